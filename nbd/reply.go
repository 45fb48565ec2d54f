package nbd

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"nbd-ktls-server/nbd/wire"
)

// style is the form of requests and replies.
type style int

const (
	simple     style = iota // compact requests, simple replies
	structured              // compact requests, structured replies
	extended                // extended requests and replies
)

// replies is the only writer of a session: whatever is sent in the transmission
// phase goes through it, one chunk or simple reply at a time.
type replies struct {
	conn  *conn
	style style

	mu   sync.Mutex
	err  error     // guarded by mu: the first error; nothing is sent after it
	held *buffer   // guarded by mu: replies that leave with the next one, or by flush
	wait uint64    // guarded by mu: bytes of payload whose replies have been held back
	bufs [1][]byte // guarded by mu: what is being sent
}

// done says that a request without data in its reply has succeeded.
func (r *replies) done(req *request) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holdDone(req)
	r.flushLocked()
	return r.err
}

// doneSoon is done of a reply that leaves with others, or by flush.
func (r *replies) doneSoon(req *request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holdDone(req)
	if r.wait += req.payloadLen; r.wait >= maxWait {
		r.flushLocked()
	}
}

// maxWait is how many bytes a client may send before the replies to what it has
// sent leave: it may be waiting for them to send more.
const maxWait = 128 << 10

func (r *replies) holdDone(req *request) {
	b := r.room(maxHeader)
	r.hold(len(r.header(b[:0], req, wire.Chunk{Done: true})))
}

// maxHeld is how many bytes of replies are held back: four records of TLS.
const maxHeld = 64 << 10

// room makes sure that n bytes can be held back, and returns where. Who has filled
// them calls hold. mu is held.
func (r *replies) room(n int) []byte {
	if r.held != nil && r.held.n+n > maxHeld {
		r.flushLocked()
	}
	if r.held == nil {
		r.held = newBuffer(maxHeld)
		r.held.n = 0
	}
	return r.held.mem[headroom+r.held.n:][:n:n]
}

// hold counts n bytes of room in.
func (r *replies) hold(n int) { r.held.n += n }

// flush sends what has been held back, unless somebody is sending, who does so
// first.
func (r *replies) flush() {
	if r.mu.TryLock() {
		defer r.mu.Unlock()
		r.flushLocked()
	}
}

func (r *replies) flushLocked() {
	b := r.held
	if b == nil {
		return
	}
	r.held, r.wait = nil, 0
	if b.n > 0 {
		r.sendLocked(b.data())
	}
	b.free()
}

// fail says that a request has failed, and why. In a structured reply it ends
// what may have been sent before.
func (r *replies) fail(req *request, errno wire.Errno, text string) error {
	if r.style == simple {
		return r.send(wire.AppendSimpleReply(nil, errno, req.Cookie))
	}
	return r.chunk(req, wire.Chunk{Done: true, Type: wire.ReplyError}, wire.AppendError(nil, errno, text))
}

// failAt is fail with the offset of the trouble.
func (r *replies) failAt(req *request, errno wire.Errno, text string, offset uint64) error {
	if r.style == simple {
		return r.fail(req, errno, text)
	}
	payload := binary.BigEndian.AppendUint64(wire.AppendError(nil, errno, text), offset)
	return r.chunk(req, wire.Chunk{Done: true, Type: wire.ReplyErrorOffset}, payload)
}

// data sends the data of a READ that begin at offset; done says that they are
// the last ones. Header and data leave together. In a simple reply they are all.
func (r *replies) data(req *request, offset uint64, b *buffer, done bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dataLocked(req, offset, b, done)
}

// dataLocked is data for who holds mu.
func (r *replies) dataLocked(req *request, offset uint64, b *buffer, done bool) error {
	var mem [maxHeader + wire.OffsetDataSize]byte
	return r.sendLocked(b.message(r.dataHeader(mem[:0], req, offset, b.n, done)))
}

// dataHeader appends the header of n bytes of data that begin at offset.
func (r *replies) dataHeader(b []byte, req *request, offset uint64, n int, done bool) []byte {
	b = r.header(b, req, wire.Chunk{Done: done, Type: wire.ReplyOffsetData, Length: uint32(wire.OffsetDataSize + n)})
	if r.style == simple {
		return b
	}
	return binary.BigEndian.AppendUint64(b, offset)
}

// hole says that n bytes at offset read as zeroes.
func (r *replies) hole(req *request, offset uint64, n uint32, done bool) error {
	return r.chunk(req, wire.Chunk{Done: done, Type: wire.ReplyOffsetHole}, wire.AppendOffsetHole(nil, offset, n))
}

// status sends the block status of one context.
func (r *replies) status(req *request, id wire.ContextID, d []wire.Descriptor) error {
	if r.style == extended {
		return r.chunk(req, wire.Chunk{Done: true, Type: wire.ReplyBlockStatusExt}, wire.AppendBlockStatusExt(nil, id, d))
	}
	return r.chunk(req, wire.Chunk{Done: true, Type: wire.ReplyBlockStatus}, wire.AppendBlockStatus(nil, id, d))
}

// maxHeader is the size of the largest header.
const maxHeader = wire.ExtendedReplySize

// chunk sends a chunk with a small payload.
func (r *replies) chunk(req *request, c wire.Chunk, payload []byte) error {
	c.Length = uint32(len(payload))
	b := r.header(make([]byte, 0, maxHeader+len(payload)), req, c)
	return r.send(append(b, payload...))
}

// header appends the header of c, or of the simple reply that stands for it.
func (r *replies) header(b []byte, req *request, c wire.Chunk) []byte {
	c.Cookie, c.Offset = req.Cookie, req.Offset
	switch r.style {
	case structured:
		return c.AppendStructured(b)
	case extended:
		return c.AppendExtended(b)
	}
	return wire.AppendSimpleReply(b, 0, req.Cookie)
}

func (r *replies) send(p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sendLocked(p)
}

// sendLocked sends one reply or chunk, in pieces that each have their own
// deadline.
func (r *replies) sendLocked(p []byte) error {
	if r.held != nil { // they go first, or along
		if r.held.n+len(p) <= maxHeld {
			r.hold(copy(r.room(len(p)), p))
			p = nil
		}
		r.flushLocked()
	}
	for len(p) > 0 && r.err == nil {
		n := min(len(p), stallUnit)
		r.conn.raw.SetWriteDeadline(r.conn.srv.limits.stallDeadline())
		r.sent(r.write(p[:n]))
		p = p[n:]
	}
	return r.err
}

// sent follows up a write that ended in err. A reply of which a part could not be
// sent leaves the stream unusable: the connection ends.
func (r *replies) sent(err error) {
	// The TLS layer may have something of its own to write, much later.
	r.conn.raw.SetWriteDeadline(time.Time{})
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("sending a reply: %w", err)
		r.conn.giveUp(r.err)
	}
}

// buffersWriter is a connection that takes a reply for its own while it sends it,
// and a byte behind: it need not copy what it encrypts.
type buffersWriter interface{ WriteBuffers(net.Buffers) error }

func (r *replies) write(p []byte) error {
	if w, ok := r.conn.top.(buffersWriter); ok {
		r.bufs[0] = p
		return w.WriteBuffers(r.bufs[:])
	}
	_, err := r.conn.top.Write(p)
	return err
}
