package filters

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var statsFilter = plugin.Filter{
	Name: "stats", Summary: "writes statistics of requests to a file at the end",
	Usage: "statsfile=FILE [statsappend=BOOL] [statsthreshold=PERCENT] (default 95)",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		path, ok := p.String("statsfile")
		if !ok {
			return nil, errors.New("statsfile= is needed")
		}
		appends, err := p.Bool("statsappend", false)
		if err != nil {
			return nil, err
		}
		percent, err := p.Uint("statsthreshold", 95)
		if err != nil {
			return nil, err
		}
		if percent > 100 {
			return nil, fmt.Errorf("statsthreshold=%d: it must be from 0 to 100", percent)
		}
		f, err := createOutput(path, appends)
		if err != nil {
			return nil, err
		}
		c := &requestCounts{threshold: float64(percent) / 100, begun: time.Now()}
		return func(s *plugin.Source) {
			s.Edit(c.edit)
			s.OnClose(func() error { return errors.Join(c.write(f, time.Since(c.begun)), f.Close()) })
		}, nil
	},
}

// createOutput opens a file to write to, which is emptied unless it is appended
// to.
func createOutput(path string, appends bool) (*os.File, error) {
	path, err := filepath.Abs(path) // the program may change its directory
	if err != nil {
		return nil, err
	}
	how := os.O_TRUNC
	if appends {
		how = os.O_APPEND
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|how, 0o666)
}

// requestCounts counts the requests that succeed, of all connections.
type requestCounts struct {
	threshold float64 // of the requests, whose sizes are written
	begun     time.Time

	mu    sync.Mutex
	kinds [opCache + 1]requestCount
}

// requestCount counts the requests of one kind.
type requestCount struct {
	ops, bytes int64
	took       time.Duration
	sizes      map[int]*sizeCount // by the number of the highest bit of the size
}

// sizeCount counts the requests of about one size.
type sizeCount struct {
	ops, bytes int64
	aligned    map[int]int64 // by the number of the lowest bit of the offset
}

// anyAlignment is that of the offset 0.
const anyAlignment = 64

func (c *requestCounts) edit(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
	around(a, func(below *nbd.Abilities, r *request, p []byte) error {
		begun := time.Now()
		err := r.do(below, p)
		if err == nil {
			c.count(r, time.Since(begun))
		}
		return err
	})
	return nil
}

func (c *requestCounts) count(r *request, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := &c.kinds[r.op]
	k.ops++
	k.bytes += r.n
	k.took += took
	if r.n == 0 || c.threshold == 0 {
		return
	}
	if k.sizes == nil {
		k.sizes = make(map[int]*sizeCount)
	}
	size := bits.Len64(uint64(r.n)) - 1
	s := k.sizes[size]
	if s == nil {
		s = &sizeCount{aligned: make(map[int]int64)}
		k.sizes[size] = s
	}
	s.ops++
	s.bytes += r.n
	s.aligned[bits.TrailingZeros64(uint64(r.off))]++ // anyAlignment for 0
}

// write writes the statistics in the form of nbdkit-stats-filter(1).
func (c *requestCounts) write(w io.Writer, elapsed time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ops, bytes int64
	for op, k := range c.kinds {
		if operation(op) != opCache {
			ops += k.ops
		}
		if operation(op) != opExtents && operation(op) != opCache {
			bytes += k.bytes
		}
	}
	_, err := fmt.Fprintf(w, "total: %d ops, %.6f s, %s, %s/s\n", ops, elapsed.Seconds(), humanSize(bytes), humanRate(bytes, elapsed))
	for _, kind := range []struct {
		op   operation
		name string
	}{{opRead, "read"}, {opWrite, "write"}, {opTrim, "trim"}, {opZero, "zero"}, {opExtents, "extents"}, {opCache, "cache"}, {opFlush, "flush"}} {
		k := &c.kinds[kind.op]
		if k.ops == 0 {
			continue
		}
		fmt.Fprintf(w, "%s: %d ops, %.6f s, %s, %s/s op, %s/s total\n", kind.name, k.ops, k.took.Seconds(),
			humanSize(k.bytes), humanRate(k.bytes, k.took), humanRate(k.bytes, elapsed))
		if len(k.sizes) > 0 {
			fmt.Fprintln(w, "  Request size and alignment breakdown:")
			k.writeSizes(w, c.threshold)
			fmt.Fprintln(w)
		}
	}
	return err
}

// writeSizes writes the most frequent sizes, up to threshold of all requests.
func (k *requestCount) writeSizes(w io.Writer, threshold float64) {
	sizes := slices.SortedFunc(maps.Keys(k.sizes), func(a, b int) int {
		return cmp.Or(cmp.Compare(k.sizes[b].ops, k.sizes[a].ops), cmp.Compare(b, a))
	})
	var ops, bytes int64
	for _, size := range sizes {
		if float64(ops) >= threshold*float64(k.ops) {
			fmt.Fprintf(w, "    other sizes: %4.1f%% (%d reqs, %s total)\n", percent(k.ops-ops, k.ops), k.ops-ops, humanSize(k.bytes-bytes))
			return
		}
		s := k.sizes[size]
		fmt.Fprintf(w, "    %2d bits: %4.1f%% (%d reqs, %s total)\n", size, percent(s.ops, k.ops), s.ops, humanSize(s.bytes))
		ops, bytes = ops+s.ops, bytes+s.bytes
		s.writeAlignments(w, threshold)
	}
}

// writeAlignments writes how many requests are aligned to 2^n: those that are to
// more, are to n, too.
func (s *sizeCount) writeAlignments(w io.Writer, threshold float64) {
	left := s.ops
	for _, n := range slices.Sorted(maps.Keys(s.aligned)) {
		if n == anyAlignment {
			return
		}
		if float64(left) < (1-threshold)*float64(s.ops) {
			fmt.Fprintf(w, "         %2d+ bit-aligned: %4.1f%% (%d)\n", n, percent(left, s.ops), left)
			return
		}
		fmt.Fprintf(w, "         %2d bit aligned: %5.1f%% (%d)\n", n, percent(left, s.ops), left)
		left -= s.aligned[n]
	}
}

func percent(part, whole int64) float64 { return 100 * float64(part) / float64(whole) }

func humanSize(n int64) string {
	for _, unit := range []struct {
		bits int
		name string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n >= 1<<unit.bits {
			return fmt.Sprintf("%.2f %s", float64(n)/float64(int64(1)<<unit.bits), unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// humanRate is how many bytes a second n in d are.
func humanRate(n int64, d time.Duration) string {
	if d < time.Microsecond { // it is measured no finer
		return "(n/a)"
	}
	return humanSize(int64(float64(n) / d.Seconds()))
}
