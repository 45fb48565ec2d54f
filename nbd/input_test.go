package nbd

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// trickle is a connection that gives what it has in pieces of any size, and says
// each time that it has to wait.
type trickle struct {
	net.Conn
	left []byte
	rand *rand.Rand
}

func (c *trickle) ReadTo(b interface {
	Space() []byte
	Idle()
},
) (int, error) {
	b.Idle()
	if len(c.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b.Space(), c.left[:min(1+c.rand.IntN(9000), len(c.left))])
	c.left = c.left[n:]
	return n, nil
}

// However bytes come and are asked for, they are the same ones, in order; and
// while a connection waits with nothing read ahead, it holds no buffer.
func TestInput(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		want := make([]byte, r.IntN(400_000))
		for i := range want {
			want[i] = byte(r.Uint32())
		}
		in := &input{conn: &trickle{left: want, rand: r}, ahead: smallAhead}
		in.waiting = func() {
			if in.Buffered() == 0 && in.buf != nil {
				t.Fatal("a buffer is held with nothing in it")
			}
		}
		var got []byte
		for done := false; !done; {
			var p []byte
			var err error
			switch n := r.IntN(3); n {
			case 0:
				p, err = in.Peek(1 + r.IntN(32))
				p = bytes.Clone(p)
				in.Discard(len(p))
			default:
				p = make([]byte, r.IntN(100)*r.IntN(1000))
				n, err = io.ReadFull(in, p)
				p = p[:n]
			}
			got = append(got, p...)
			done = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
			in.expectPayload(uint64(r.IntN(2 * largePayload)))
		}
		in.free()
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: %d bytes, not the %d that were sent", seed, len(got), len(want))
		}
	}
}
