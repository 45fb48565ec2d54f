package sh

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/plugins/plugin"
)

// closeTimeout bounds the method close, for which nobody waits any more.
const closeTimeout = 10 * time.Second

// handle is an open export: what open printed is an argument of every method.
type handle struct {
	src  *source
	ctx  context.Context // ends with the connection
	info nbd.OpenInfo
	name string
	// requests is held while a method that a client has asked for runs.
	requests lock
	size     int64
}

// call calls a method of the handle.
func (h *handle) call(c call) ([]byte, error) {
	if err := h.requests.enter(h.ctx); err != nil {
		return nil, err
	}
	defer h.requests.leave()
	return h.callUnlocked(h.ctx, c)
}

func (h *handle) callUnlocked(ctx context.Context, c call) ([]byte, error) {
	c.args = append([]string{h.name}, c.args...)
	c.disconnect = h.info.Disconnect
	return h.src.script.do(ctx, c)
}

// can asks a method that answers yes or no.
func (h *handle) can(method string) (bool, error) {
	_, err := h.call(call{method: method})
	if errors.Is(err, errMissing) || errors.Is(err, errFalse) {
		return false, nil
	}
	return err == nil, err
}

// word asks a method that prints one of three words; where it is missing it is
// as if it had printed otherwise.
func (h *handle) word(method, otherwise string) (string, error) {
	out, err := h.call(call{method: method})
	if errors.Is(err, errMissing) {
		return otherwise, nil
	}
	word := strings.TrimSpace(string(out))
	if err == nil && word != "none" && word != "emulate" && word != "native" {
		err = fmt.Errorf("%s printed %q, not none, emulate or native", method, word)
	}
	return word, err
}

// Size is the method get_size.
func (h *handle) Size() (int64, error) {
	if h.size >= 0 {
		return h.size, nil
	}
	out, err := h.call(call{method: "get_size"})
	if err != nil {
		return 0, fmt.Errorf("get_size: %w", err)
	}
	h.size, err = plugin.ParseSize(strings.TrimSpace(string(out)))
	return h.size, err
}

// Resolve implements [nbd.Resolver].
func (h *handle) Resolve(a *nbd.Abilities) error {
	var firstErr error
	can := func(method string) bool {
		yes, err := h.can(method)
		if firstErr == nil && err != nil {
			firstErr = fmt.Errorf("%s: %w", method, err)
		}
		return yes
	}
	if out, err := h.call(call{method: "export_description"}); err == nil {
		a.Description = strings.TrimSuffix(string(out), "\n")
	}
	if out, err := h.call(call{method: "block_size"}); err == nil && strings.TrimSpace(string(out)) != "" {
		if a.BlockSize, err = parseBlockSize(string(out)); err != nil {
			return err
		}
	}
	flush := can("can_flush")
	if !flush {
		a.Sync = nil
	}
	a.Rotational, a.MultiConn = can("is_rotational"), can("can_multi_conn")
	if can("can_extents") {
		a.Extents = h.extents
	}
	cache, err := h.word("can_cache", "none")
	if err != nil {
		return err
	}
	switch cache {
	case "native":
		a.Cache = h.cache
	case "emulate":
		a.Cache = h.readAhead
	}
	if h.info.ReadOnly || !can("can_write") {
		a.ReadOnly()
		return firstErr
	}
	if can("can_trim") {
		a.Trim = h.trim
	}
	if can("can_zero") {
		a.Zero, a.SlowZero = h.zero, !can("can_fast_zero")
	}
	fua, err := h.word("can_fua", "emulate")
	if err != nil {
		return err
	}
	if fua == "native" {
		a.WriteFUA = func(p []byte, off int64) (int, error) { return h.write(p, off, "fua") }
		if a.Sync == nil { // FUA needs one: nothing is ever unsafe
			a.Sync = func() error { return nil }
		}
	}
	return firstErr
}

func span(n, off int64, more ...string) []string {
	return append([]string{strconv.FormatInt(n, 10), strconv.FormatInt(off, 10)}, more...)
}

// required says that a method that a script must have is missing.
func required(method string, err error) error {
	if errors.Is(err, errMissing) || errors.Is(err, errFalse) {
		return fmt.Errorf("%w: the script's %s: %w", wire.EIO, method, err)
	}
	return err
}

// optional makes a missing method one that has done all there is to do.
func optional(method string, err error) error {
	if errors.Is(err, errMissing) {
		return nil
	}
	return required(method, err)
}

// ReadAt is the method pread, which has to print all that is wanted.
func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	out, err := h.call(call{method: "pread", args: span(int64(len(p)), off), limit: len(p)})
	if err != nil {
		return 0, required("pread", err)
	}
	if len(out) != len(p) {
		return 0, fmt.Errorf("%w: pread printed %d bytes, not %d", wire.EIO, len(out), len(p))
	}
	return copy(p, out), nil
}

// WriteAt is the method pwrite.
func (h *handle) WriteAt(p []byte, off int64) (int, error) { return h.write(p, off, "") }

func (h *handle) write(p []byte, off int64, flags string) (int, error) {
	_, err := h.call(call{method: "pwrite", args: span(int64(len(p)), off, flags), stdin: p})
	if err != nil {
		return 0, required("pwrite", err)
	}
	return len(p), nil
}

// Sync is the method flush.
func (h *handle) Sync() error {
	_, err := h.call(call{method: "flush"})
	return optional("flush", err)
}

func (h *handle) trim(off, n int64) error {
	_, err := h.call(call{method: "trim", args: span(n, off, "")})
	return optional("trim", err)
}

// zero is the method zero; a script that cannot do it this time says ENOTSUP.
func (h *handle) zero(off, n int64, flags nbd.ZeroFlags) error {
	var words []string
	if flags&nbd.ZeroMayTrim != 0 {
		words = append(words, "may_trim")
	}
	if flags&nbd.ZeroFast != 0 {
		words = append(words, "fast")
	}
	_, err := h.call(call{method: "zero", args: span(n, off, strings.Join(words, ","))})
	if errors.Is(err, errMissing) || errors.Is(err, wire.ENOTSUP) {
		return errors.ErrUnsupported
	}
	return required("zero", err)
}

func (h *handle) cache(off, n int64) error {
	_, err := h.call(call{method: "cache", args: span(n, off)})
	return optional("cache", err)
}

// readAhead is cache for a script that wants it to be a pread.
func (h *handle) readAhead(off, n int64) error {
	const most = 4 << 20
	for n > 0 {
		k := min(n, most)
		if _, err := h.ReadAt(make([]byte, k), off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (h *handle) extents(off, n int64, one bool) ([]nbd.Extent, error) {
	flags := ""
	if one {
		flags = "req_one"
	}
	out, err := h.call(call{method: "extents", args: span(n, off, flags)})
	if err != nil {
		return nil, required("extents", err)
	}
	return parseExtents(string(out), off, n)
}

// Close is the method close, of which errors do not matter.
func (h *handle) Close() error {
	defer h.src.connections.leave()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), closeTimeout)
	defer cancel()
	if err := h.requests.enter(ctx); err != nil {
		return nil
	}
	defer h.requests.leave()
	h.callUnlocked(ctx, call{method: "close"})
	return nil
}
