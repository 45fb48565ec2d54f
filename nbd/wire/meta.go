package wire

import (
	"encoding/binary"
	"fmt"
)

// ContextID is the number that a server gives to a metadata context.
type ContextID uint32

// BaseAllocation is the context that tells holes and zeroes from data (proto.md,
// `"base" metadata context`).
const BaseAllocation = "base:allocation"

// StateFlags are the status of a range in base:allocation. Zero is always true
// enough.
type StateFlags uint32

const (
	StateHole StateFlags = 1 << 0
	StateZero StateFlags = 1 << 1
)

// Descriptor is one range of a block status.
type Descriptor struct {
	Length uint64
	Flags  StateFlags
}

// MetaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type MetaRequest struct {
	Name    string // of the export
	Queries []string
}

// ParseMetaRequest parses the data of LIST_META_CONTEXT or SET_META_CONTEXT. The
// result shares no memory with p.
func ParseMetaRequest(p []byte) (*MetaRequest, error) {
	name, p, err := cutString(p)
	if err != nil {
		return nil, fmt.Errorf("the export's name: %w", err)
	}
	if len(p) < 4 {
		return nil, fmt.Errorf("%w: the number of queries is missing", ErrMalformed)
	}
	n := binary.BigEndian.Uint32(p)
	req := &MetaRequest{Name: name}
	p = p[4:]
	for i := range n { // every query takes four bytes at least: p bounds the loop
		var q string
		if q, p, err = cutString(p); err != nil {
			return nil, fmt.Errorf("query %d of %d: %w", i+1, n, err)
		}
		req.Queries = append(req.Queries, q)
	}
	if len(p) != 0 {
		return nil, fmt.Errorf("%w: %d bytes behind the last query", ErrMalformed, len(p))
	}
	return req, CheckName(name)
}

// cutString cuts a string, preceded by its length, off p.
func cutString(p []byte) (s string, rest []byte, err error) {
	if len(p) < 4 {
		return "", nil, fmt.Errorf("%w: the length of a string is missing", ErrMalformed)
	}
	n := binary.BigEndian.Uint32(p)
	p = p[4:]
	switch {
	case n > MaxString:
		return "", nil, fmt.Errorf("%w: a string of %d bytes", ErrMalformed, n)
	case uint64(n) > uint64(len(p)):
		return "", nil, fmt.Errorf("%w: a string of %d bytes in %d", ErrMalformed, n, len(p))
	}
	return string(p[:n]), p[n:], nil
}

// AppendMetaContext appends the data of a REP_META_CONTEXT.
func AppendMetaContext(b []byte, id ContextID, name string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(id)), name...)
}

// AppendBlockStatus appends the payload of a BLOCK_STATUS chunk.
func AppendBlockStatus(b []byte, id ContextID, descriptors []Descriptor) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(id))
	for _, d := range descriptors {
		b = binary.BigEndian.AppendUint32(b, uint32(d.Length))
		b = binary.BigEndian.AppendUint32(b, uint32(d.Flags))
	}
	return b
}

// AppendBlockStatusExt appends the payload of a BLOCK_STATUS_EXT chunk.
func AppendBlockStatusExt(b []byte, id ContextID, descriptors []Descriptor) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(id))
	b = binary.BigEndian.AppendUint32(b, uint32(len(descriptors)))
	for _, d := range descriptors {
		b = binary.BigEndian.AppendUint64(b, d.Length)
		b = binary.BigEndian.AppendUint64(b, uint64(d.Flags))
	}
	return b
}
