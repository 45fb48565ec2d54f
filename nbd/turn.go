package nbd

import (
	"sync"
	"sync/atomic"
	"time"

	"nbd-ktls-server/nbd/wire"
)

// Reading requests is one goroutine's turn at a time. It may work on a request
// itself, if that will not take long: to start a goroutine and wake a thread for
// it costs more than to copy a few pages. If it takes long after all, another one
// takes over reading, and later requests have their own goroutines for a while.
type turn struct {
	// n is odd while the reader works on a request. Whoever makes it even has
	// the turn next.
	n       atomic.Uint64
	watched atomic.Bool
	seen    uint64       // guarded by turns.mu: n, the last time it was looked at
	slow    atomic.Int64 // requests not to be worked on by the reader
}

const (
	// turnLength is how long the reader may work on a request, up to twice that.
	turnLength = time.Millisecond
	// slowRequests are not worked on by the reader after one that took longer.
	slowRequests = 256
)

// maxWriteNow is the largest WRITE that the reader works on.
const maxWriteNow = 2 << 20

// writeNow reports whether the reader should work on req.
func (s *session) writeNow(req *request) bool {
	if req.Command != wire.CmdWrite || !s.able.Buffered || req.Flags&wire.CmdFlagFUA != 0 || req.payloadLen > maxWriteNow {
		return false
	}
	if s.turn.slow.Load() > 0 {
		s.turn.slow.Add(-1)
		return false
	}
	return true
}

// inTurn works on req, and reports whether reading is still ours.
func (s *session) inTurn(req *request) (ours bool) {
	s.working.Add(1)
	defer s.working.Done()
	n := s.turn.n.Add(1)
	if !s.turn.watched.Load() {
		s.conn.srv.turns.watch(s)
	}
	req.soon = true
	s.work(req)
	if s.endTurn(n) {
		return true
	}
	s.replies.flush() // whoever reads now may be waiting already
	return false
}

// endTurn ends work on a request, unless it has been ended.
func (s *session) endTurn(n uint64) bool { return s.turn.n.CompareAndSwap(n, n+1) }

// turns looks after the sessions whose readers work on requests.
type turns struct {
	mu       sync.Mutex
	sessions []*session
}

func (t *turns) watch(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.turn.watched.Swap(true) {
		return
	}
	if t.sessions = append(t.sessions, s); len(t.sessions) == 1 {
		go t.run()
	}
}

// run ends when there is nothing to be looked after.
func (t *turns) run() {
	for more := true; more; {
		time.Sleep(turnLength)
		more = t.look()
	}
}

func (t *turns) look() (more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.sessions[:0]
	for _, s := range t.sessions {
		if s.look() {
			kept = append(kept, s)
		}
	}
	clear(t.sessions[len(kept):])
	t.sessions = kept
	return len(kept) > 0
}

// look lets another goroutine read if the reader has been working on one request
// all the time since the last look. It reports false if it has not worked at all.
func (s *session) look() bool {
	n := s.turn.n.Load()
	defer func() { s.turn.seen = n }()
	if n != s.turn.seen {
		return true
	}
	if n%2 == 1 {
		if s.endTurn(n) {
			n++
			s.turn.slow.Store(slowRequests)
			go s.readRequests()
		}
		return true
	}
	s.turn.watched.Store(false)
	// Has it begun meanwhile, and found that it is watched?
	return s.turn.n.Load() != n && !s.turn.watched.Swap(true)
}
