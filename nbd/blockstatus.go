package nbd

import (
	"slices"

	"nbd-ktls-server/nbd/wire"
)

const (
	// maxDescriptors bounds a block status: what is left out, the client asks
	// for again. The specification's bound is 2^20, which would be a reply of
	// 16 MiB.
	maxDescriptors = 1 << 14

	// maxStatusPayload bounds the payload of a BLOCK_STATUS; there is but one
	// context to name.
	maxStatusPayload = 4096
)

// handleBlockStatus answers a BLOCK_STATUS (proto.md, "NBD_CMD_BLOCK_STATUS").
func (s *session) handleBlockStatus(req *request) error {
	length, wanted, err := s.statusRange(req)
	if err != nil {
		return err
	}
	if !wanted {
		return s.replies.done(req)
	}
	one := req.Flags&wire.CmdFlagReqOne != 0
	extents, err := s.extents(int64(req.Offset), int64(length), one)
	if err != nil {
		return err
	}
	s.replies.status(req, allocationID, descriptors(extents, length, one))
	return nil
}

// statusRange returns the length that is asked about, and whether the only
// context is wanted: the payload, if there is one, says both.
func (s *session) statusRange(req *request) (length uint64, wanted bool, err error) {
	length, wanted = req.Length, true
	if req.Flags&wire.CmdFlagPayloadLen != 0 {
		var p []byte
		if req.payload != nil {
			p = req.payload.data()
		}
		r, err := wire.ParseStatusRequest(p)
		if err != nil {
			return 0, false, refuse(wire.EINVAL, "%v", err)
		}
		for i, id := range r.Contexts {
			if id != allocationID || slices.Contains(r.Contexts[:i], id) {
				return 0, false, refuse(wire.EINVAL, "context %d was not selected, or is named twice", id)
			}
		}
		length, wanted = r.Length, len(r.Contexts) > 0
		ranged := req.Request
		ranged.Length = length
		if err := s.validateRange(&ranged); err != nil {
			return 0, false, err
		}
	}
	if length == 0 {
		return 0, false, refuse(wire.EINVAL, "the status of no bytes at all")
	}
	return length, wanted, nil
}

// extents asks the export for its extents, or puts them together from its holes.
func (s *session) extents(off, n int64, one bool) (extents []Extent, err error) {
	switch {
	case s.able.Extents != nil:
		err = s.guard(func() error {
			extents, err = s.able.Extents(off, n, one)
			return err
		})
		return extents, err
	case s.able.Hole == nil:
		return []Extent{{Length: n}}, nil
	}
	for end, runs := off+n, 0; off < end && runs < maxDescriptors; runs++ {
		hole, k := s.holeAt(off, end-off)
		if last := len(extents) - 1; last >= 0 && extents[last].Hole == hole {
			extents[last].Length += k
		} else if one && last >= 0 {
			break
		} else {
			extents = append(extents, Extent{Length: k, Hole: hole, Zero: hole})
		}
		off += k
	}
	return extents, nil
}

// descriptors are extents as they are sent: of n bytes at most, equal neighbours
// joined, each a multiple of the smallest block.
func descriptors(extents []Extent, n uint64, one bool) []wire.Descriptor {
	var ds []wire.Descriptor
	for _, e := range extents {
		length := min(uint64(max(e.Length, 0)), n)
		if length == 0 {
			continue
		}
		n -= length
		var flags wire.StateFlags
		if e.Hole {
			flags |= wire.StateHole
		}
		if e.Zero {
			flags |= wire.StateZero
		}
		last := len(ds) - 1
		if last >= 0 && ds[last].Flags == flags {
			ds[last].Length += length
			continue
		}
		if len(ds) == maxDescriptors || one && last >= 0 {
			break
		}
		ds = append(ds, wire.Descriptor{Length: length, Flags: flags})
	}
	if len(ds) == 0 { // a backend that knows nothing: all may be data
		ds = []wire.Descriptor{{Length: n}}
	}
	return ds
}
