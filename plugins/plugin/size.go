package plugin

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ParseSize reads a size as nbdkit_parse_size(3) does: a decimal number of
// bytes, or with one of the suffixes b (bytes), k, M, G, T, P, E (powers of
// 1024), in either case, or s (sectors of 512 bytes).
func ParseSize(s string) (int64, error) {
	digits, unit := s, int64(1)
	if s != "" {
		if u, ok := sizeUnits[s[len(s)-1]|0x20]; ok {
			digits, unit = s[:len(s)-1], u
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && n > math.MaxInt64/unit:
		return 0, fmt.Errorf("size %q is too large: the largest is 2^63-1", s)
	case err != nil || strings.HasPrefix(digits, "+"):
		return 0, fmt.Errorf("%q is not a size: a number, then one of b k M G T P E s or nothing", s)
	case n < 0:
		return 0, fmt.Errorf("size %q is negative", s)
	}
	return n * unit, nil
}

var sizeUnits = map[byte]int64{
	'b': 1, 's': 512,
	'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40, 'p': 1 << 50, 'e': 1 << 60,
}
