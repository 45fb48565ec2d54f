package nbd

import (
	"fmt"

	"nbd-ktls-server/nbd/wire"
)

// The constraints of an export that states none (proto.md, "Block size
// constraints").
const (
	defaultMinimumBlock   = 1
	defaultPreferredBlock = 4096
	maxMinimumBlock       = 65536
	minPreferredBlock     = 512
)

// fill sets the defaults and reports constraints that the specification
// forbids, or that do not suit an export of size bytes.
func (s *BlockSize) fill(size int64) error {
	if s.Minimum == 0 {
		s.Minimum = defaultMinimumBlock
	}
	if s.Preferred == 0 {
		s.Preferred = max(defaultPreferredBlock, s.Minimum)
	}
	if s.Maximum == 0 {
		s.Maximum = wire.MaxPayload
	}
	switch {
	case !powerOfTwo(s.Minimum) || s.Minimum > maxMinimumBlock:
		return fmt.Errorf("minimum block size %d is not a power of two up to %d", s.Minimum, maxMinimumBlock)
	case !powerOfTwo(s.Preferred) || s.Preferred < max(s.Minimum, minPreferredBlock):
		return fmt.Errorf("preferred block size %d is not a power of two from %d", s.Preferred, max(s.Minimum, minPreferredBlock))
	case s.Maximum < s.Preferred:
		return fmt.Errorf("maximum block size %d is less than the preferred %d", s.Maximum, s.Preferred)
	case size%int64(s.Minimum) != 0:
		return fmt.Errorf("size %d is not a multiple of the minimum block size %d", size, s.Minimum)
	}
	// Whatever the backend could take, a payload is never larger than this.
	s.Maximum = min(s.Maximum, wire.MaxPayload)
	return nil
}

// isDefault reports whether a client need not be told.
func (s BlockSize) isDefault() bool {
	return s == BlockSize{defaultMinimumBlock, defaultPreferredBlock, wire.MaxPayload}
}

func powerOfTwo(n uint32) bool { return n != 0 && n&(n-1) == 0 }
