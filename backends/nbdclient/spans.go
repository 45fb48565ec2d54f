package nbdclient

import (
	"errors"
	"slices"
)

// maxSpans bounds the pieces that a reply comes in, if they are out of order.
const maxSpans = 1 << 12

// spans are the ranges of a buffer that have been filled: apart, and in order.
type spans []span

type span struct{ from, to int }

// add adds a range that is not there yet.
func (s *spans) add(from, to int) error {
	i, _ := slices.BinarySearchFunc(*s, from, func(x span, at int) int { return x.from - at })
	before := i > 0 && (*s)[i-1].to >= from
	after := i < len(*s) && (*s)[i].from <= to
	switch {
	case from == to:
	case before && (*s)[i-1].to > from, after && (*s)[i].from < to:
		return errors.New("a reply to READ with the same bytes twice")
	case before && after:
		(*s)[i-1].to = (*s)[i].to
		*s = slices.Delete(*s, i, i+1)
	case before:
		(*s)[i-1].to = to
	case after:
		(*s)[i].from = from
	case len(*s) == maxSpans:
		return errors.New("a reply to READ in too many pieces")
	default:
		*s = slices.Insert(*s, i, span{from, to})
	}
	return nil
}

// cover reports whether all of n bytes are there.
func (s spans) cover(n int) bool { return n == 0 || len(s) == 1 && s[0] == span{0, n} }
