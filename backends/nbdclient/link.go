package nbdclient

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"nbd-ktls-server/nbd/wire"
)

const (
	// readAhead is as much as is read from the connection before it is known what
	// it is: headers, and small replies.
	readAhead = 32 << 10
	// gather is the largest payload that is copied behind its request, so that
	// both are one write and one TLS record.
	gather = 16<<10 - wire.RequestSize
	// maxExtents bounds the descriptors of one reply.
	maxExtents = 1 << 20
	// maxErrorChunk bounds an error chunk: an errno, a text and an offset.
	maxErrorChunk = 4 + 2 + wire.MaxString + 8
	// maxAbandoned bounds the requests that nobody waits for any more.
	maxAbandoned = 4096
	// sendTimeout is how long a server may take to take a request.
	sendTimeout = time.Minute
	// patience is how long a reply that has begun may take to end, once the one
	// it is for has gone.
	patience = 10 * time.Second
)

// errLost means that the connection has ended: whether the request was done is
// not known.
var errLost = errors.New("the connection to the server was lost")

// call is a request on its way.
type call struct {
	req   wire.Request
	owner context.Context // of the client that waits for it
	dst   []byte          // of a READ

	// What the reply has said so far.
	got         spans // of a READ: what of it is there
	descriptors []wire.Descriptor
	answer      error

	// err is the result, once something is in done.
	err  error
	done chan struct{}

	// Under the link's mu: whether somebody writes to dst, and whether nobody
	// waits any more.
	busy, abandoned bool
}

var calls = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

// newCall returns a call, to be freed after its end.
func newCall(owner context.Context, req wire.Request) *call {
	c := calls.Get().(*call)
	c.owner, c.req = owner, req
	return c
}

// reset forgets what an earlier reply has said.
func (c *call) reset() {
	c.got, c.descriptors, c.answer, c.err = c.got[:0], nil, nil, nil
}

// free gives c back, unless a reply to it may still come.
func (c *call) free() {
	if c.abandoned {
		return
	}
	c.reset()
	c.owner, c.dst = nil, nil
	calls.Put(c)
}

// link is one connection in the transmission phase: requests are pipelined.
type link struct {
	*session
	r *bufio.Reader

	wmu sync.Mutex // one request is written at a time
	out []byte

	mu        sync.Mutex
	pending   map[wire.Cookie]*call
	cookie    wire.Cookie
	abandoned int
	hurry     bool  // a deadline was set for the message that is being read
	err       error // why the link is broken
	// broken gets err.
	broken chan<- error
	// ended is closed when nothing of a broken link is left.
	ended chan struct{}
}

// newLink begins to use s. broken is told once when that is over, and must have
// room for it.
func newLink(s *session, broken chan<- error) *link {
	l := &link{
		session: s, r: bufio.NewReaderSize(s.Conn, readAhead), pending: make(map[wire.Cookie]*call),
		broken: broken, ended: make(chan struct{}),
	}
	go l.receiveAll()
	return l
}

// do sends a request with its payload and waits for the reply. The error is what
// the server says, errLost, or the end of c.owner.
func (l *link) do(c *call, payload []byte) error {
	if err := l.register(c); err != nil {
		return err
	}
	if err := l.send(&c.req, payload); err != nil {
		l.fail(err)
	}
	<-c.done
	return c.err
}

// register chooses a cookie.
func (l *link) register(c *call) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return errLost
	}
	if err := context.Cause(c.owner); err != nil {
		return err
	}
	l.cookie++
	c.req.Cookie = l.cookie
	l.pending[l.cookie] = c
	return nil
}

func (l *link) send(req *wire.Request, payload []byte) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.SetWriteDeadline(time.Now().Add(sendTimeout))
	l.out = req.Append(l.out[:0])
	if len(payload) <= gather {
		l.out = append(l.out, payload...)
		_, err := l.Write(l.out)
		return err
	}
	_, err := (&net.Buffers{l.out, payload}).WriteTo(l.Conn)
	return err
}

// fail breaks the link because of err.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
}

func (l *link) failLocked(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	l.broken <- err
	l.Conn.Close()
}

// reason returns why the link is broken, nil if it is not.
func (l *link) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// disconnect ends the link in good order; nothing may be on its way.
func (l *link) disconnect() {
	l.SetWriteDeadline(time.Now().Add(time.Second))
	l.Write((&wire.Request{Command: wire.CmdDisc}).Append(nil))
	l.fail(errors.New("disconnected"))
	<-l.ended
}

// abandon lets nobody of owner wait any more.
func (l *link) abandon(owner context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.pending {
		switch {
		case c.owner != owner || c.abandoned:
		case c.busy: // it comes in at this moment
			l.hurry = true
			l.SetReadDeadline(time.Now().Add(patience))
		default:
			c.abandoned = true
			l.abandoned++
			c.finish(context.Cause(owner))
		}
	}
	if l.abandoned > maxAbandoned {
		l.failLocked(errors.New("the server does not answer"))
	}
}

// finish lets go whoever waits for c.
func (c *call) finish(err error) {
	c.err = err
	c.done <- struct{}{}
}

// receiveAll reads replies until the link breaks. Then nobody touches the memory
// of those who wait, and they are told.
func (l *link) receiveAll() {
	defer close(l.ended)
	for {
		if err := l.receiveOne(); err != nil {
			l.fail(err)
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.pending {
		if !c.abandoned {
			c.finish(errLost)
		}
	}
	l.pending = nil
}

// receiveOne reads a reply, or a chunk of one. An error breaks the link.
func (l *link) receiveOne() error {
	p, err := l.r.Peek(4)
	if err != nil {
		return ended(err)
	}
	if binary.BigEndian.Uint32(p) == wire.MagicStructuredReply && l.structured {
		err = l.chunk()
	} else {
		err = l.simple()
	}
	return ended(err)
}

func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the server ended the connection")
	}
	return err
}

func (l *link) simple() error {
	var h [wire.SimpleReplySize]byte
	if _, err := io.ReadFull(l.r, h[:]); err != nil {
		return err
	}
	errno, cookie, err := wire.ParseSimpleReply(h[:])
	if err != nil {
		return err
	}
	c, err := l.find(cookie)
	if err != nil {
		return err
	}
	switch {
	case errno != 0:
		c.answer = errno
	case c.req.Command == wire.CmdBlockStatus, c.req.Command == wire.CmdRead && l.structured:
		return fmt.Errorf("a simple reply to command %d", c.req.Command)
	case c.req.Command == wire.CmdRead:
		dst, err := c.place(c.req.Offset, int(c.req.Length))
		if err == nil {
			err = l.fill(c, dst)
		}
		if err != nil {
			return err
		}
	}
	return l.complete(c)
}

func (l *link) find(cookie wire.Cookie) (*call, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.pending[cookie]
	if !ok {
		return nil, fmt.Errorf("a reply to no request: cookie %#x", uint64(cookie))
	}
	return c, nil
}

// complete ends c, to which the whole reply has been read.
func (l *link) complete(c *call) error {
	if c.answer == nil && c.req.Command == wire.CmdRead && !c.got.cover(int(c.req.Length)) {
		return errors.New("a reply to READ without all data")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, c.req.Cookie)
	if l.hurry {
		l.hurry = false
		l.SetReadDeadline(time.Time{})
	}
	if c.abandoned {
		l.abandoned--
		return nil
	}
	c.finish(c.answer)
	return nil
}

func (l *link) chunk() error {
	var h [wire.StructuredReplySize]byte
	if _, err := io.ReadFull(l.r, h[:]); err != nil {
		return err
	}
	k, err := wire.ParseStructured(h[:])
	if err != nil {
		return err
	}
	c, err := l.find(k.Cookie)
	if err != nil {
		return err
	}
	if err := l.chunkPayload(c, &k); err != nil {
		return err
	}
	if k.Done {
		return l.complete(c)
	}
	return nil
}

func (l *link) chunkPayload(c *call, k *wire.Chunk) error {
	reads, asks := c.req.Command == wire.CmdRead, c.req.Command == wire.CmdBlockStatus
	switch t := k.Type; {
	case t == wire.ReplyNone && k.Length == 0 && k.Done:
		return nil
	case t == wire.ReplyOffsetData && reads && k.Length > wire.OffsetDataSize:
		return l.data(c, int(k.Length-wire.OffsetDataSize))
	case t == wire.ReplyOffsetHole && reads && k.Length == wire.OffsetHoleSize:
		return l.hole(c)
	case t == wire.ReplyBlockStatus && asks && k.Length > 4 && k.Length <= 4+8*maxExtents:
		return l.blockStatus(c, int(k.Length))
	case t.IsError() && k.Length <= maxErrorChunk:
		return l.errorChunk(c, int(k.Length))
	}
	return fmt.Errorf("a chunk of type %d and %d bytes in the reply to command %d", k.Type, k.Length, c.req.Command)
}

func (l *link) data(c *call, n int) error {
	p, err := l.take(wire.OffsetDataSize)
	if err != nil {
		return err
	}
	dst, err := c.place(binary.BigEndian.Uint64(p), n)
	if err != nil {
		return err
	}
	return l.fill(c, dst)
}

func (l *link) hole(c *call) error {
	p, err := l.take(wire.OffsetHoleSize)
	if err != nil {
		return err
	}
	off, n := wire.ParseOffsetHole(p)
	dst, err := c.place(off, int(n))
	if err != nil {
		return err
	}
	if l.claim(c) {
		clear(dst)
		l.release(c)
	}
	return nil
}

// place returns where n bytes at off of the export belong that a reply to the
// READ c holds. None may come twice.
func (c *call) place(off uint64, n int) ([]byte, error) {
	at := off - c.req.Offset
	if off < c.req.Offset || at > c.req.Length || uint64(n) > c.req.Length-at {
		return nil, fmt.Errorf("%d bytes at %d in the reply to a READ of %d at %d", n, off, c.req.Length, c.req.Offset)
	}
	return c.dst[at : at+uint64(n)], c.got.add(int(at), int(at)+n)
}

// take reads a few bytes.
func (l *link) take(n int) ([]byte, error) {
	p := make([]byte, n)
	_, err := io.ReadFull(l.r, p)
	return p, err
}

// fill reads data to dst, or nowhere if nobody wants them any more.
func (l *link) fill(c *call, dst []byte) error {
	if !l.claim(c) {
		_, err := l.r.Discard(len(dst))
		return err
	}
	_, err := io.ReadFull(l.r, dst)
	l.release(c)
	return err
}

// claim reserves the memory of who waits for c, if somebody does.
func (l *link) claim(c *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.busy = !c.abandoned
	return c.busy
}

func (l *link) release(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.busy = false
}

func (l *link) blockStatus(c *call, n int) error {
	p, err := l.take(n)
	if err != nil {
		return err
	}
	if id := wire.ContextID(binary.BigEndian.Uint32(p)); id != l.allocation {
		return fmt.Errorf("a BLOCK_STATUS of context %d, which was not asked for", id)
	}
	if c.descriptors != nil {
		return errors.New("two BLOCK_STATUS of one context")
	}
	c.descriptors, err = wire.ParseBlockStatus(p[4:])
	return err
}

// errorChunk remembers the first error.
func (l *link) errorChunk(c *call, n int) error {
	p, err := l.take(n)
	if err != nil {
		return err
	}
	errno, text, err := wire.ParseError(p)
	switch {
	case err != nil:
		return err
	case c.answer != nil:
	case text == "":
		c.answer = errno
	default:
		c.answer = fmt.Errorf("%w: %q", errno, text)
	}
	return nil
}
