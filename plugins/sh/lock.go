package sh

import (
	"context"
	"strings"

	"golang.org/x/sync/semaphore"
)

// Model says which calls may run at the same time (nbdkit-plugin(3), "Threads").
type Model int

const (
	SerializeAllRequests Model = iota
	SerializeConnections
	SerializeRequests
	Parallel
)

var models = map[string]Model{
	"serialize_connections": SerializeConnections, "serialize_all_requests": SerializeAllRequests,
	"serialize_requests": SerializeRequests, "parallel": Parallel,
}

// parseModel reads what thread_model prints; what it does not know is as if
// nothing had been said.
func parseModel(text string, otherwise Model) Model {
	name := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(text)), "-", "_")
	if m, ok := models[name]; ok {
		return m
	}
	return otherwise
}

// lock lets one in at a time; nil lets everybody in.
type lock struct{ *semaphore.Weighted }

func newLock() lock { return lock{semaphore.NewWeighted(1)} }

func (l lock) enter(ctx context.Context) error {
	if l.Weighted == nil {
		return nil
	}
	return l.Acquire(ctx, 1)
}

func (l lock) leave() {
	if l.Weighted != nil {
		l.Release(1)
	}
}
