package nbd

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// handshakeGrace is how long an unfinished handshake is safe from being pushed
// out by a newer one. An honest client needs a few milliseconds.
const handshakeGrace = time.Second

// handshakes bounds the connections that have not chosen an export yet, so
// that clients who never do cannot keep the others out (CVE-2024-7409 is the
// class). When it is full the next client waits for a place; the oldest loses
// its place after handshakeGrace. A burst of honest clients is thus served in
// order, and a flood costs them a wait instead of a refusal.
type handshakes struct {
	mu    sync.Mutex
	max   int
	live  list.List     // of *handshake, oldest first
	freed chan struct{} // capacity 1: a place may have become free
}

type handshake struct {
	hs    *handshakes
	elem  *list.Element
	since time.Time
	evict func()
}

// enter waits for a place. evict is called, at most once and from another
// goroutine, when the place goes to somebody else. It returns nil if ctx ends.
func (hs *handshakes) enter(ctx context.Context, evict func()) *handshake {
	for {
		h, wait := hs.tryEnter(evict)
		if h != nil {
			hs.wake() // another waiter, if there is room for it, too
			return h
		}
		t := time.NewTimer(wait)
		select {
		case <-hs.freed:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (hs *handshakes) tryEnter(evict func()) (_ *handshake, wait time.Duration) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.live.Len() >= hs.max {
		oldest := hs.live.Front().Value.(*handshake)
		if wait = handshakeGrace - time.Since(oldest.since); wait > 0 {
			return nil, wait
		}
		hs.live.Remove(oldest.elem)
		oldest.elem = nil
		oldest.evict()
	}
	h := &handshake{hs: hs, since: time.Now(), evict: evict}
	h.elem = hs.live.PushBack(h)
	return h, 0
}

// leave gives the place back; again is harmless.
func (h *handshake) leave() {
	h.hs.mu.Lock()
	defer h.hs.mu.Unlock()
	if h.elem == nil {
		return
	}
	h.hs.live.Remove(h.elem)
	h.elem = nil
	h.hs.wake()
}

// wake lets one waiter look again.
func (hs *handshakes) wake() {
	select {
	case hs.freed <- struct{}{}:
	default:
	}
}
