package nbd

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"nbd-ktls-server/nbd/wire"
)

// request is one request and what it holds until it has been answered.
type request struct {
	wire.Request
	payloadLen uint64  // bytes that follow it
	payload    *buffer // those bytes
	begun      time.Time
	failed     bool
	soon       bool // its reply may be held back: who works on it will flush
	holds      [3]hold
}

var requests = sync.Pool{New: func() any { return new(request) }}

// transmit is the transmission phase: requests are read one after the other,
// worked on at the same time, and answered as they are done (proto.md,
// "Transmission"). It returns when the last one has been answered.
func (s *session) transmit() error {
	defer s.close()
	s.readRequests()
	err := <-s.over
	s.r.free()
	s.replies.flush()
	// Whoever asked may have gone, and a backend that waits for something must
	// not wait for ever.
	t := time.AfterFunc(s.conn.srv.limits.DrainTimeout, func() { s.conn.cancel(err) })
	defer t.Stop()
	s.working.Wait()
	return err
}

// readRequests reads until there are no more, or somebody else does.
func (s *session) readRequests() {
	for {
		ours, err := s.nextRequest()
		if err != nil {
			s.over <- err
		}
		if err != nil || !ours {
			return
		}
	}
}

// nextRequest reads a request and accepts it.
func (s *session) nextRequest() (ours bool, err error) {
	req, err := s.readRequest()
	if err != nil {
		return false, err
	}
	if req.Command == wire.CmdDisc {
		return false, errDisc
	}
	s.stats.requests.Add(1)
	return s.accept(req)
}

// readRequest reads a request without its payload.
func (s *session) readRequest() (*request, error) {
	size, parse := wire.RequestSize, wire.ParseRequest
	if s.style == extended {
		size, parse = wire.ExtendedRequestSize, wire.ParseExtendedRequest
	}
	h, err := s.r.Peek(size)
	switch {
	case errors.Is(err, io.EOF) && len(h) == 0:
		return nil, errHangup
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("reading a request: %w", err)
	}
	r, err := parse(h)
	if err != nil {
		return nil, err
	}
	s.r.Discard(size)
	req := requests.Get().(*request)
	*req = request{Request: r}
	// A WRITE has a payload, even if it should say so and does not: QEMU forgets
	// to (seen with 10.0), and its own server lets that pass.
	if r.Command == wire.CmdWrite || s.style == extended && r.Flags&wire.CmdFlagPayloadLen != 0 {
		req.payloadLen = r.Length
	}
	s.r.expectPayload(req.payloadLen)
	return req, nil
}

// accept starts work on a request, or refuses it. What it may cost is reserved
// before its payload is read: while the limits are reached nothing is read, and
// the socket is the queue. It reports whether reading is still ours, and returns
// an error if the connection cannot go on.
func (s *session) accept(req *request) (ours bool, err error) {
	s.traffic.began(req)
	if err := s.validate(req); err != nil {
		defer s.finish(req)
		if err := s.discardPayload(req); err != nil {
			return false, err
		}
		return true, s.fail(req, err)
	}
	if s.readNow(req) {
		s.finish(req)
		return true, nil
	}
	if err = s.reserve(req); err == nil {
		err = s.readPayload(req)
	}
	if err != nil {
		s.finish(req)
		return false, err
	}
	if s.writeNow(req) {
		return s.inTurn(req), nil
	}
	s.working.Add(1)
	go s.workAside(req)
	return true, nil
}

// workAside is work in a goroutine of its own.
func (s *session) workAside(req *request) {
	defer s.working.Done()
	s.work(req)
}

// work works on an accepted request.
func (s *session) work(req *request) {
	defer s.finish(req)
	s.handle(req)
}

// hold is a share of a limit.
type hold struct {
	limit *semaphore.Weighted
	n     int64
}

// reserve waits until the limits allow for req, and takes its shares of them,
// always in this order.
func (s *session) reserve(req *request) error {
	n := int64(req.payloadLen)
	if req.Command == wire.CmdRead {
		n = int64(req.Length)
	}
	total := n
	if n <= smallPayload {
		total = 0
	}
	for i, h := range [...]hold{{s.slots, 1}, {s.bytes, n}, {s.conn.srv.bytes, total}} {
		if h.n > 0 { // even nothing would queue behind those who wait for something
			if !h.limit.TryAcquire(h.n) {
				s.replies.flush()
				if err := h.limit.Acquire(s.conn.ctx, h.n); err != nil {
					return err
				}
			}
		}
		req.holds[i] = h
	}
	return nil
}

// finish counts req, and gives back what it holds, and it.
func (s *session) finish(req *request) {
	s.traffic.finished(req)
	if req.payload != nil {
		req.payload.free()
	}
	for _, h := range req.holds {
		if h.n > 0 {
			h.limit.Release(h.n)
		}
	}
	requests.Put(req)
}

// An expecter is a connection that is glad to know how many bytes have to come.
type expecter interface{ Expect(n int) }

// readPayload reads the payload of a valid request. A client that has begun one
// has to go on with it: others may be waiting for the memory it holds.
func (s *session) readPayload(req *request) error {
	if req.payloadLen == 0 {
		return nil
	}
	req.payload = newBuffer(int(req.payloadLen))
	if e, ok := s.conn.top.(expecter); ok {
		e.Expect(int(req.payloadLen) - s.r.Buffered())
	}
	return s.inPieces(req, func(from, to int) error {
		_, err := io.ReadFull(s.r, req.payload.data()[from:to])
		return err
	})
}

// discardPayload reads past the payload of a refused request, so that the next
// one is found.
func (s *session) discardPayload(req *request) error {
	limit := uint64(discardLimit)
	if s.style == extended {
		limit = wire.MaxPayload // the extension asks for a hard disconnect
	}
	if req.payloadLen > limit {
		return fmt.Errorf("a payload of %d bytes for %v: the largest is %d", req.payloadLen, req.Command, wire.MaxPayload)
	}
	return s.inPieces(req, func(from, to int) error {
		_, err := io.CopyN(io.Discard, s.r, int64(to-from))
		return err
	})
}

// inPieces reads a payload in pieces that each have their own deadline, unless
// it is there already.
func (s *session) inPieces(req *request, read func(from, to int) error) error {
	n := int(req.payloadLen)
	wait := s.r.Buffered() < n
	if wait {
		defer s.conn.setReadDeadline(time.Time{})
	}
	for from := 0; from < n; from += stallUnit {
		if wait {
			s.conn.setReadDeadline(s.conn.srv.limits.stallDeadline())
		}
		if err := read(from, min(from+stallUnit, n)); err != nil {
			return fmt.Errorf("reading the %d bytes of a %v: %w", n, req.Command, err)
		}
	}
	return nil
}
