package nbd

import (
	"io"
	"net"
)

// input is what a client sends, read ahead: many requests with one system call.
// The buffer comes from a pool when there is something to be read: a connection
// that waits for its client holds none.
type input struct {
	conn net.Conn
	// waiting is called before a read that may wait; or nil. Clients send many
	// requests at a time, and the replies to them leave together.
	waiting func()
	ahead   int // how much is read at once

	buf  *buffer // nil while nothing is in it
	r, w int     // what has been read and not been taken is buf[r:w]
	into []byte  // where to read to instead; or nil
}

const (
	// smallAhead is for options, and for payloads that are better read to where
	// they belong.
	smallAhead = 4 << 10
	// largeAhead is for requests with small payloads or none.
	largeAhead = 64 << 10
	// largePayload is from where on a payload is not read ahead.
	largePayload = 16 << 10
)

// A lender is a connection that asks for memory when it has something to put
// there, and says that it has to wait before it does.
type lender interface {
	ReadTo(interface {
		Space() []byte
		Idle()
	}) (int, error)
}

// Space is where the next bytes go.
func (in *input) Space() []byte {
	if in.into != nil {
		return in.into
	}
	if in.buf == nil {
		in.buf = newBuffer(in.ahead)
	}
	return in.buf.data()[in.w:]
}

// Idle is called before anything is waited for.
func (in *input) Idle() {
	if in.r == in.w {
		in.free()
	}
	if in.waiting != nil {
		in.waiting()
	}
}

// free gives the buffer back, with whatever is in it.
func (in *input) free() {
	if in.buf != nil {
		in.buf.free()
	}
	in.buf, in.r, in.w = nil, 0, 0
}

// Buffered is how many bytes have been read and not been taken.
func (in *input) Buffered() int { return in.w - in.r }

// Peek returns the next n bytes, at most smallAhead, until something else is read.
// If they are not all there it returns what there is, and why.
func (in *input) Peek(n int) ([]byte, error) {
	for in.Buffered() < n {
		if in.r > 0 && in.buf.n-in.r < n {
			in.w = copy(in.buf.data(), in.buf.data()[in.r:in.w])
			in.r = 0
		}
		if err := in.fill(); err != nil {
			if in.buf == nil {
				return nil, err
			}
			return in.buf.data()[in.r:in.w], err
		}
	}
	return in.buf.data()[in.r:][:n], nil
}

// Discard takes n bytes that Peek has returned.
func (in *input) Discard(n int) { in.r += n }

// Read takes what there is, or reads it to p.
func (in *input) Read(p []byte) (int, error) {
	if in.Buffered() == 0 && len(p) >= in.ahead {
		in.into = p
		defer func() { in.into = nil }()
		return in.read()
	}
	if in.Buffered() == 0 && len(p) > 0 {
		if err := in.fill(); err != nil {
			return 0, err
		}
	}
	n := 0
	if in.buf != nil {
		n = copy(p, in.buf.data()[in.r:in.w])
		in.r += n
	}
	return n, nil
}

// fill reads once.
func (in *input) fill() error {
	switch {
	case in.buf == nil:
	case in.r < in.w: // what is there stays where it is
	case in.buf.n == in.ahead:
		in.r, in.w = 0, 0
	default: // another size from now on
		in.free()
	}
	n, err := in.read()
	in.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (in *input) read() (int, error) {
	if c, ok := in.conn.(lender); ok {
		return c.ReadTo(in)
	}
	in.Idle()
	return in.conn.Read(in.Space())
}

// expectPayload sets how much is read ahead behind a request with a payload of n
// bytes: the next one is likely to be of its kind.
func (in *input) expectPayload(n uint64) {
	in.ahead = largeAhead
	if n >= largePayload {
		in.ahead = smallAhead
	}
}
