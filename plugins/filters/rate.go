package filters

import (
	"context"
	"math"
	"os"
	"sync"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var rateFilter = plugin.Filter{
	Name: "rate", Summary: "limits how many bits per second are read and written",
	Usage: "[rate=BITSPERSEC] [connection-rate=BITSPERSEC] [burstiness=SECS]; each direction has its own",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		all, _, err := p.Size("rate")
		if err != nil {
			return nil, err
		}
		each, _, err := p.Size("connection-rate")
		if err != nil {
			return nil, err
		}
		burst, err := p.Duration("burstiness", 2*time.Second)
		if err != nil {
			return nil, err
		}
		in, out := newBucket(all, burst), newBucket(all, burst)
		return func(s *plugin.Source) {
			s.Edit(func(ctx context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
				limitRate(ctx, a, newBucket(each, burst), newBucket(each, burst), in, out)
				return nil
			})
		}, nil
	},
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
	rate  float64 // bytes a second; 0: no limit
	most  float64
	mu    sync.Mutex
	level float64
	at    time.Time
}

func newBucket(bitsPerSecond int64, burst time.Duration) *bucket {
	rate := float64(bitsPerSecond) / 8
	return &bucket{rate: rate, most: rate * burst.Seconds(), level: rate * burst.Seconds(), at: time.Now()}
}

func (b *bucket) take(ctx context.Context, n int) error {
	if b.rate == 0 {
		return nil
	}
	b.mu.Lock()
	now := time.Now()
	b.level = math.Min(b.most, b.level+b.rate*now.Sub(b.at).Seconds()) - float64(n)
	b.at = now
	debt := max(0, -b.level)
	b.mu.Unlock()
	return wait(ctx, time.Duration(debt/b.rate*float64(time.Second)))
}
