package nbd

import (
	"fmt"
	"sync"

	"nbd-ktls-server/nbd/wire"
)

// replies is the only writer of a session: whatever is sent in the transmission
// phase goes through it, one reply at a time.
type replies struct {
	conn *conn

	mu  sync.Mutex
	err error // the first error; nothing is sent after it
}

// simple sends a simple reply without data.
func (r *replies) simple(errno wire.Errno, cookie wire.Cookie) error {
	var b [wire.SimpleReplySize]byte
	return r.send(wire.AppendSimpleReply(b[:0], errno, cookie))
}

// read sends a simple reply to a READ. Header and data lie side by side in b,
// so that they leave together.
func (r *replies) read(cookie wire.Cookie, b *buffer) error {
	wire.AppendSimpleReply(b.header(wire.SimpleReplySize)[:0], 0, cookie)
	return r.send(b.message(wire.SimpleReplySize))
}

// send writes one reply, in pieces that each have their own deadline. A reply
// of which a part could not be sent leaves the stream unusable: the connection
// ends.
func (r *replies) send(p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(p) > 0 && r.err == nil {
		n := min(len(p), stallUnit)
		r.conn.raw.SetWriteDeadline(r.conn.srv.limits.stallDeadline(0))
		_, r.err = r.conn.top.Write(p[:n])
		p = p[n:]
		if r.err != nil {
			r.err = fmt.Errorf("sending a reply: %w", r.err)
			r.conn.abort(r.err)
		}
	}
	return r.err
}
