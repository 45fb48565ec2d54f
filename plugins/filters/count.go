package filters

import (
	"context"
	"log/slog"
	"sync/atomic"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var countFilter = plugin.Filter{
	Name: "count", Summary: "logs at the end how many bytes were read, written, zeroed and trimmed", Usage: "no parameters",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		c := &byteCount{log: p.Log}
		return func(s *plugin.Source) {
			s.Edit(c.edit)
			s.OnClose(c.report)
		}, nil
	},
}

type byteCount struct {
	bytes [opCache + 1]atomic.Int64
	log   *slog.Logger
}

func (c *byteCount) edit(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
	around(a, func(below *nbd.Abilities, r *request, p []byte) error {
		err := r.do(below, p)
		if err == nil {
			c.bytes[r.op].Add(r.n)
		}
		return err
	})
	return nil
}

func (c *byteCount) report() error {
	c.log.Info("counted bytes", "read", c.bytes[opRead].Load(), "written", c.bytes[opWrite].Load(),
		"zeroed", c.bytes[opZero].Load(), "trimmed", c.bytes[opTrim].Load())
	return nil
}
