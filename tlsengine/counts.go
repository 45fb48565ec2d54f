package tlsengine

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"
)

// Counts are totals of a Server.
type Counts struct {
	// Handshakes by their result: "ok", the name of the alert that ended it, sent
	// or received, or "error".
	Handshakes map[string]int64
	// Kernel and User are the connections whose records were made there when
	// they began.
	Kernel, User int64
	// KeyUpdates of TLS 1.3.
	KeyUpdatesSent, KeyUpdatesReceived int64
}

// Counts returns them.
func (s *Server) Counts() Counts { return s.counts.all() }

type counts struct {
	kernel, user, sent, received atomic.Int64

	mu         sync.Mutex
	handshakes map[string]int64
}

func (c *counts) all() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Counts{maps.Clone(c.handshakes), c.kernel.Load(), c.user.Load(), c.sent.Load(), c.received.Load()}
}

// handshake counts one that ended in err. crypto/tls does not tell the alerts
// that it sends.
func (c *counts) handshake(err error) {
	result := "ok"
	var sent *alertError
	var got *RemoteAlert
	switch {
	case err == nil:
	case errors.As(err, &sent):
		result = sent.alert.String()
	case errors.As(err, &got):
		result = got.Alert.String()
	default:
		result = "error"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handshakes == nil {
		c.handshakes = make(map[string]int64)
	}
	c.handshakes[result]++
}

// session counts a connection that has begun.
func (c *counts) session(s State) {
	if s.TX.Kernel {
		c.kernel.Add(1)
	} else {
		c.user.Add(1)
	}
}
