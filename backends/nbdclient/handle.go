package nbdclient

import (
	"context"
	"errors"
	"math"
	"sync/atomic"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

// maxSpan is the longest range of a request without payload: one that every
// server takes, and that both fits 32 bits and is a multiple of every block size.
const maxSpan = 1 << 30

// Handle is what one client of ours has of a Client.
type Handle struct {
	c    *Client
	ctx  context.Context
	stop func() bool
	// losses are those that were reported here.
	losses atomic.Uint64
	// onClose is called at the end.
	onClose func() error
}

// Open returns a handle. Its requests end with ctx. onClose may be nil.
func (c *Client) Open(ctx context.Context, onClose func() error) *Handle {
	h := &Handle{c: c, ctx: ctx, onClose: onClose}
	h.losses.Store(c.lost())
	h.stop = context.AfterFunc(ctx, func() { c.abandon(ctx) })
	return h
}

// abandon lets no requests of owner wait any more.
func (c *Client) abandon(owner context.Context) {
	c.mu.Lock()
	g := c.now
	c.mu.Unlock()
	if g == nil {
		return
	}
	for _, l := range g.links {
		l.abandon(owner)
	}
}

func (c *Client) lost() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.losses
}

// Close implements io.Closer.
func (h *Handle) Close() error {
	h.stop()
	if h.onClose == nil {
		return nil
	}
	return h.onClose()
}

// Size implements [nbd.Backend].
func (h *Handle) Size() (int64, error) { return int64(h.c.info.size), nil }

// Resolve implements [nbd.Resolver]: what the server can do can be done.
func (h *Handle) Resolve(a *nbd.Abilities) error {
	f := h.c.info.flags
	a.Description = h.c.info.description
	a.BlockSize = h.c.info.block
	a.MultiConn = f&wire.FlagCanMultiConn != 0 || h.c.opts.Shared // with one link, then
	a.Rotational = f&wire.FlagRotational != 0
	a.NoZero = f&wire.FlagSendWriteZeroes == 0
	if h.c.allocation {
		a.Extents = h.extents
	}
	if f&wire.FlagSendCache != 0 {
		a.Cache = h.cache
	}
	if f&wire.FlagSendFlush == 0 {
		a.Sync = nil
	}
	if f&wire.FlagReadOnly != 0 {
		a.ReadOnly()
		return nil
	}
	if f&wire.FlagSendFUA != 0 {
		a.WriteFUA = h.writeFUA
	}
	if f&wire.FlagSendTrim != 0 {
		a.Trim = h.trim
	}
	if f&wire.FlagSendWriteZeroes != 0 {
		a.Zero = h.zero
		a.SlowZero = f&wire.FlagSendFastZero == 0
	}
	return nil
}

// request does one request without a payload.
func (h *Handle) request(req wire.Request) error {
	q := newCall(h.ctx, req)
	defer q.free()
	return h.c.do(q, nil, nil)
}

// maxPayload is the largest payload the server takes.
func (h *Handle) maxPayload() int {
	if m := h.c.info.block.Maximum; m != 0 {
		return int(min(m, wire.MaxPayload))
	}
	return wire.MaxPayload
}

// ReadAt implements [nbd.Backend].
func (h *Handle) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+h.maxPayload())]
		q := newCall(h.ctx, wire.Request{Command: wire.CmdRead, Offset: uint64(off) + uint64(n), Length: uint64(len(part))})
		q.dst = part
		err = h.c.do(q, nil, nil)
		q.free()
		if err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// WriteAt implements [nbd.Backend].
func (h *Handle) WriteAt(p []byte, off int64) (int, error) { return h.write(p, off, 0) }

func (h *Handle) writeFUA(p []byte, off int64) (int, error) {
	return h.write(p, off, wire.CmdFlagFUA)
}

func (h *Handle) write(p []byte, off int64, flags wire.CommandFlags) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+h.maxPayload())]
		err := h.change(wire.Request{Command: wire.CmdWrite, Flags: flags, Offset: uint64(off) + uint64(n), Length: uint64(len(part))}, part)
		if err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// change does a request that changes the export, and keeps it until the next
// FLUSH: also what needs none, as it may be in the place of something that does.
func (h *Handle) change(req wire.Request, payload []byte) error {
	q := newCall(h.ctx, req)
	defer q.free()
	req.Flags &^= wire.CmdFlagFastZero // which is not asked for again
	return h.c.do(q, payload, func() { h.c.journal.add(req, payload) })
}

// Sync implements [nbd.Backend]. It fails once after changes were lost.
func (h *Handle) Sync() error {
	mark := h.c.journal.mark()
	if err := h.request(wire.Request{Command: wire.CmdFlush}); err != nil {
		return err
	}
	h.c.journal.flushed(mark)
	if lost := h.c.lost(); h.losses.Swap(lost) != lost {
		return errLoss
	}
	return nil
}

func (h *Handle) trim(off, n int64) error {
	return pieces(off, n, func(off, n int64) error {
		return h.change(wire.Request{Command: wire.CmdTrim, Offset: uint64(off), Length: uint64(n)}, nil)
	})
}

func (h *Handle) zero(off, n int64, flags nbd.ZeroFlags) error {
	var f wire.CommandFlags
	if flags&nbd.ZeroMayTrim == 0 {
		f |= wire.CmdFlagNoHole
	}
	if flags&nbd.ZeroFast != 0 {
		if h.c.info.flags&wire.FlagSendFastZero == 0 {
			return errors.ErrUnsupported
		}
		f |= wire.CmdFlagFastZero
	}
	return pieces(off, n, func(off, n int64) error {
		req := wire.Request{Command: wire.CmdWriteZeroes, Flags: f, Offset: uint64(off), Length: uint64(n)}
		f &^= wire.CmdFlagFastZero // that it would not be fast, and nothing was done, only the first can say
		return h.change(req, nil)
	})
}

func (h *Handle) cache(off, n int64) error {
	return pieces(off, n, func(off, n int64) error {
		return h.request(wire.Request{Command: wire.CmdCache, Offset: uint64(off), Length: uint64(n)})
	})
}

// pieces does something to a range that may be too long for one request.
func pieces(off, n int64, do func(off, n int64) error) error {
	for ; n > 0; off, n = off+maxSpan, n-maxSpan {
		if err := do(off, min(n, maxSpan)); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handle) extents(off, n int64, one bool) ([]nbd.Extent, error) {
	var f wire.CommandFlags
	if one {
		f = wire.CmdFlagReqOne
	}
	n = min(n, maxSpan)
	q := newCall(h.ctx, wire.Request{Command: wire.CmdBlockStatus, Flags: f, Offset: uint64(off), Length: uint64(n)})
	defer q.free()
	if err := h.c.do(q, nil, nil); err != nil {
		return nil, err
	}
	if q.descriptors == nil {
		return nil, errors.New("the server answered BLOCK_STATUS with nothing")
	}
	var all []nbd.Extent
	for _, d := range q.descriptors {
		if n == 0 {
			break
		}
		length := min(int64(min(d.Length, math.MaxInt64)), n)
		all = append(all, nbd.Extent{Length: length, Hole: d.Flags&wire.StateHole != 0, Zero: d.Flags&wire.StateZero != 0})
		n -= length
	}
	return all, nil
}
