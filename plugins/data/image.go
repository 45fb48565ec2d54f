package data

import (
	"errors"
	"fmt"
	"math"
)

// image is what an expression stands for: bytes at offsets, and a size.
type image interface {
	size() int64
	// emit calls to with all bytes that are not zero, and perhaps others, in the
	// order in which they are written: later ones replace earlier ones.
	emit(to sink) error
}

// sink takes bytes.
type sink func(off int64, p []byte) error

var (
	errTooLarge = errors.New("it is larger than 2^63-1 bytes")
	// errTooMuch bounds the work and the memory that a few characters can ask for.
	errTooMuch = fmt.Errorf("there are more than %d bytes of data in it", int64(maxData))
)

const (
	// maxData bounds what is written for an image, in bytes.
	maxData = 256 << 20
	// each is what every piece costs besides its bytes, and far one that is not
	// near the last one: a page of the disk.
	each, far = 64, 64 << 10
)

// budget counts what is written.
type budget struct {
	left, last int64
}

func (b *budget) spend(off int64, p []byte) error {
	b.left -= int64(len(p)) + each
	if page := off / far; len(p) > 0 && page != b.last {
		b.left, b.last = b.left-far, page
	}
	if b.left < 0 {
		return errTooMuch
	}
	return nil
}

// literal is an image of bytes that are there.
type literal []byte

func (l literal) size() int64 { return int64(len(l)) }

func (l literal) emit(to sink) error { return to(0, l) }

// zeroes is an image of so many zeroes.
type zeroes int64

func (z zeroes) size() int64     { return int64(z) }
func (z zeroes) emit(sink) error { return nil }

// list is images at offsets.
type list struct {
	parts []placed
	end   int64
}

type placed struct {
	at int64
	image
}

func (l *list) size() int64 { return l.end }

func (l *list) emit(to sink) error {
	for _, p := range l.parts {
		if err := p.emit(func(off int64, b []byte) error { return to(p.at+off, b) }); err != nil {
			return err
		}
	}
	return nil
}

// add puts an image at an offset.
func (l *list) add(at int64, i image) error {
	if i.size() > math.MaxInt64-at {
		return errTooLarge
	}
	l.parts = append(l.parts, placed{at, i})
	l.end = max(l.end, at+i.size())
	return nil
}

// repeated is an image n times.
type repeated struct {
	image
	n int64
}

// repeat repeats an image; small ones are put together to larger ones.
func repeat(i image, n int64) (image, error) {
	const enough = 64 << 10
	size := i.size()
	if size > 0 && n > math.MaxInt64/size {
		return nil, errTooLarge
	}
	if size == 0 || n == 0 {
		return literal(nil), nil
	}
	if _, ok := i.(zeroes); ok {
		return zeroes(size * n), nil
	}
	if size >= enough || n == 1 {
		return repeated{i, n}, nil
	}
	one, err := flat(i)
	if err != nil {
		return nil, err
	}
	if allZero(one) {
		return zeroes(size * n), nil
	}
	per := min(n, enough/size)
	var block literal
	for range per {
		block = append(block, one...)
	}
	l := new(list)
	if err := l.add(0, repeated{block, n / per}); err != nil {
		return nil, err
	}
	return l, l.add(n/per*per*size, block[:n%per*size])
}

// flat makes bytes of a small image.
func flat(i image) (literal, error) {
	b, left := make(literal, i.size()), budget{left: maxData / 16}
	return b, i.emit(func(off int64, p []byte) error {
		copy(b[off:], p)
		return left.spend(off, p)
	})
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

func (r repeated) size() int64 { return r.image.size() * r.n }

func (r repeated) emit(to sink) error {
	step := r.image.size()
	for k := range r.n {
		if err := r.image.emit(func(off int64, p []byte) error { return to(k*step+off, p) }); err != nil {
			return err
		}
	}
	return nil
}

// slice is a part of an image.
type slice struct {
	image
	from, to int64
}

// errEnough ends what is behind a slice.
var errEnough = errors.New("enough")

func (s slice) size() int64 { return s.to - s.from }

func (s slice) emit(to sink) error {
	_, ordered := s.image.(repeated)
	err := s.image.emit(func(off int64, p []byte) error {
		end := off + int64(len(p))
		if off >= s.to && ordered {
			return errEnough
		}
		if end <= s.from || off >= s.to {
			return to(0, nil) // it counts as work
		}
		p = p[max(s.from-off, 0) : int64(len(p))-max(end-s.to, 0)]
		return to(max(off-s.from, 0), p)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}
