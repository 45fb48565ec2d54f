package filters

import (
	"context"
	"os"
	"sync"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var readaheadFilter = plugin.Filter{
	Name: "readahead", Summary: "reads ahead of clients that read one thing after the other", Usage: "no parameters",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		return func(s *plugin.Source) {
			s.Edit(func(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
				if a.Cache == nil {
					p.Log.Warn("there is nothing to read ahead with: what is below has no CACHE; use --filter=cache behind this one")
					return nil
				}
				readAhead(a)
				return nil
			})
		}, nil
	},
}

// How far ahead is read: twice as far each time a client goes on.
const (
	minAhead = 32 << 10
	maxAhead = 4 << 20
)

// ahead reads ahead of one connection.
type ahead struct {
	cache func(off, n int64) error
	size  int64

	mu     sync.Mutex
	next   int64 // where the client goes on, if it does
	done   int64 // as far as has been read ahead
	window int64
	busy   bool
	asked  sync.WaitGroup
}

// readAhead lets what is read be followed.
func readAhead(a *nbd.Abilities) {
	r := &ahead{cache: a.Cache, size: a.Size}
	below := *a
	a.ReadAt = func(p []byte, off int64) (int, error) {
		r.follow(off, int64(len(p)))
		return below.ReadAt(p, off)
	}
	if below.ReadNow != nil {
		a.ReadNow = func(p []byte, off int64) int {
			n := below.ReadNow(p, off)
			if n == len(p) { // else ReadAt will be asked
				r.follow(off, int64(n))
			}
			return n
		}
	}
	if below.Section != nil {
		a.Section = func(off, n int64) (*os.File, int64, bool) {
			f, at, ok := below.Section(off, n)
			if ok {
				r.follow(off, n)
			}
			return f, at, ok
		}
	}
	onClose(a, r.asked.Wait)
}

// follow reads ahead of a read that goes on where another has ended.
func (r *ahead) follow(off, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if off != r.next {
		r.next, r.window, r.done = off+n, 0, 0
		return
	}
	r.next = off + n
	r.window = min(max(2*r.window, minAhead), maxAhead)
	from, to := max(r.done, r.next), min(r.next+r.window, r.size)
	if r.busy || to-from < minAhead && to != r.size || to <= from {
		return
	}
	r.done, r.busy = to, true
	r.asked.Go(func() {
		r.cache(from, to-from) // if it fails, the read will
		r.mu.Lock()
		defer r.mu.Unlock()
		r.busy = false
	})
}
