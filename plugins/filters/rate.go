package filters

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var rateFilter = plugin.Filter{
	Name: "rate", Summary: "limits how many bits per second are read and written",
	Usage: "[rate=BITSPERSEC] [connection-rate=BITSPERSEC] [rate-file=FILE] [connection-rate-file=FILE] [burstiness=SECS]; each direction has its own",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		all, err := parseRate(p, "rate")
		if err != nil {
			return nil, err
		}
		each, err := parseRate(p, "connection-rate")
		if err != nil {
			return nil, err
		}
		burst, err := p.Duration("burstiness", 2*time.Second)
		if err != nil {
			return nil, err
		}
		all.burst, each.burst = burst, burst
		in, out := newBucket(all), newBucket(all)
		return func(s *plugin.Source) {
			s.Edit(func(ctx context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
				limitRate(ctx, a, newBucket(each), newBucket(each), in, out)
				return nil
			})
		}, nil
	},
}

// rate is how fast something may be.
type rate struct {
	bits  int64  // a second; 0: no limit
	file  string // that says otherwise, if it is there; or ""
	burst time.Duration
}

func parseRate(p *plugin.Params, key string) (r rate, err error) {
	bits, given, err := p.Size(key)
	switch {
	case err != nil:
		return r, err
	case given && bits == 0:
		return r, fmt.Errorf("%s cannot be set to 0", key)
	}
	r.bits = bits
	if file, ok := p.String(key + "-file"); ok {
		if r.file, err = filepath.Abs(file); err != nil {
			return r, err
		}
	}
	return r, nil
}

// maxRateFile is as much of a file as is read: a number has fewer digits.
const maxRateFile = 64

// read reads the first line of the file. What is not there, or no rate, changes
// nothing.
func (r rate) read() (bits int64, ok bool) {
	f, err := os.Open(r.file)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRateFile))
	line, _, _ := strings.Cut(string(b), "\n")
	bits, e := plugin.ParseSize(line)
	return bits, err == nil && e == nil
}

// limitRate lets reads and writes pass through buckets, the connection's and those
// of all.
func limitRate(ctx context.Context, a *nbd.Abilities, myIn, myOut, in, out *bucket) {
	below := *a
	charge := func(n int, mine, all *bucket) error {
		if err := mine.take(ctx, n); err != nil {
			return err
		}
		return all.take(ctx, n)
	}
	a.ReadNow = nil
	a.Buffered = false
	a.ReadAt = func(p []byte, off int64) (int, error) {
		if err := charge(len(p), myOut, out); err != nil {
			return 0, err
		}
		return below.ReadAt(p, off)
	}
	if below.Section != nil {
		a.Section = func(off, n int64) (*os.File, int64, bool) {
			f, at, ok := below.Section(off, n)
			if ok && charge(int(n), myOut, out) != nil {
				return nil, 0, false
			}
			return f, at, ok
		}
	}
	write := func(below func([]byte, int64) (int, error)) func([]byte, int64) (int, error) {
		if below == nil {
			return nil
		}
		return func(p []byte, off int64) (int, error) {
			if err := charge(len(p), myIn, in); err != nil {
				return 0, err
			}
			return below(p, off)
		}
	}
	a.WriteAt, a.WriteFUA = write(below.WriteAt), write(below.WriteFUA)
}

// bucket holds as much as may be sent at once. What is taken of it beyond that is
// a debt, which has to be waited for: so the rate holds for requests larger than
// the bucket, too.
type bucket struct {
	rate
	mu     sync.Mutex
	bytes  float64 // a second; 0: no limit
	level  float64
	at     time.Time
	looked time.Time // at the file
}

// rateFileEvery is how often a file is looked at.
const rateFileEvery = time.Second

func newBucket(r rate) *bucket {
	b := &bucket{rate: r, at: time.Now()}
	b.set(r.bits)
	b.level = b.most()
	return b
}

func (b *bucket) most() float64 { return b.bytes * b.burst.Seconds() }

// set changes the rate. The caller holds mu, or is the only one.
func (b *bucket) set(bits int64) {
	if b.bytes == 0 {
		b.level = math.Inf(1) // full, whatever that will be
	}
	b.bytes = float64(bits) / 8
	b.level = math.Min(b.level, b.most())
}

// look adjusts the rate to the file. The caller holds mu.
func (b *bucket) look(now time.Time) {
	if b.file == "" || !b.looked.IsZero() && now.Sub(b.looked) < rateFileEvery {
		return
	}
	b.looked = now
	if bits, ok := b.read(); ok {
		b.set(bits)
	}
}

func (b *bucket) take(ctx context.Context, n int) error {
	if b.bits == 0 && b.file == "" {
		return nil
	}
	return wait(ctx, b.debt(n))
}

// debt takes n bytes, and says how long they have to be waited for.
func (b *bucket) debt(n int) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.look(now)
	if b.bytes == 0 {
		return 0
	}
	b.level = math.Min(b.most(), b.level+b.bytes*now.Sub(b.at).Seconds()) - float64(n)
	b.at = now
	return time.Duration(max(0, -b.level) / b.bytes * float64(time.Second))
}
