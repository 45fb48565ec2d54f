package filters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var cacheFilter = plugin.Filter{
	Name: "cache", Summary: "keeps what was written, and perhaps read, in a temporary file",
	Usage: "[cache=writeback|writethrough|unsafe] [cache-min-block-size=SIZE] [cache-max-size=SIZE] [cache-high-threshold=PERCENT] " +
		"[cache-low-threshold=PERCENT] [cache-on-read=BOOL|/PATH]; TMPDIR says where the file is",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		o := &cacheOptions{log: p.Log}
		if err := o.parse(p); err != nil {
			return nil, err
		}
		stores := newByName(func() *store { return &store{cacheOptions: o} })
		return func(s *plugin.Source) {
			s.Edit(func(_ context.Context, info nbd.OpenInfo, a *nbd.Abilities) error {
				return stores.of(info.Name).open(a)
			})
			s.OnClose(func() (err error) {
				for _, st := range stores.all {
					err = errors.Join(err, st.forget())
				}
				return err
			})
		}, nil
	},
}

// The values of cache=.
const (
	writeback    = "writeback"
	writethrough = "writethrough"
	unsafeCache  = "unsafe"
)

type cacheOptions struct {
	mode   string
	block  int64 // bytes
	most   int64 // blocks at which some are dropped; 0: any number
	least  int64 // blocks that then remain
	onRead func() bool
	log    *slog.Logger
}

const (
	defaultCacheBlock = 64 << 10
	minCacheBlock     = 4096
	maxCacheBlock     = 32 << 20
)

// parse takes the parameters.
func (o *cacheOptions) parse(p *plugin.Params) (err error) {
	if o.mode, err = p.Choice("cache", writeback, writethrough, unsafeCache); err != nil {
		return err
	}
	block, given, err := p.Size("cache-min-block-size")
	switch {
	case err != nil:
		return err
	case !given:
		block = defaultCacheBlock
	case block < minCacheBlock || block > maxCacheBlock || block&(block-1) != 0:
		return fmt.Errorf("cache-min-block-size=%d: it is a power of two from %d to %d", block, minCacheBlock, maxCacheBlock)
	}
	o.block = block
	size, limited, err := p.Size("cache-max-size")
	if err != nil {
		return err
	}
	high, err := p.Uint("cache-high-threshold", 95)
	if err != nil {
		return err
	}
	low, err := p.Uint("cache-low-threshold", 80)
	if err != nil {
		return err
	}
	if low == 0 || low >= high || high > 100 {
		return errors.New("0 < cache-low-threshold < cache-high-threshold <= 100")
	}
	if limited {
		o.most, o.least = size/100*int64(high)/block, size/100*int64(low)/block
		if o.most < 2 {
			return fmt.Errorf("cache-max-size=%d is too small for blocks of %d bytes", size, block)
		}
	}
	o.onRead, err = cacheOnRead(p)
	return err
}

// cacheOnRead reports whether reads are kept, now: a file may say so.
func cacheOnRead(p *plugin.Params) (func() bool, error) {
	v, ok := p.String("cache-on-read")
	if strings.HasPrefix(v, "/") {
		return func() bool {
			_, err := os.Stat(v)
			return err == nil
		}, nil
	}
	if !ok {
		return func() bool { return false }, nil
	}
	on, err := plugin.ParseBool(v)
	if err != nil {
		return nil, fmt.Errorf("cache-on-read: %w", err)
	}
	return func() bool { return on }, nil
}
