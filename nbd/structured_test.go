package nbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/backends/null"
	"nbd-ktls-server/backends/pattern"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// structured returns a client in transmission that has agreed on structured
// replies and, if it wants, on base:allocation.
func (s *server) structured(t *testing.T, allocation bool) *nbdtest.Client {
	t.Helper()
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepAck, wire.OptStructuredReply)
	if allocation {
		if got := c.Expect(wire.RepAck, wire.OptSetMetaContext, nbdtest.MetaRequest("disk", "base:allocation")); len(got) != 1 {
			t.Fatalf("%d contexts were selected", len(got))
		}
	}
	c.Go("disk")
	return c
}

// ask sends a request and reads its reply in chunks.
func ask(c *nbdtest.Client, cmd wire.Command, flags wire.CommandFlags, off uint64, n uint32, payload ...any) nbdtest.ChunkedReply {
	c.T.Helper()
	const cookie = 0xfeedfacecafebeef
	c.Request(cmd, flags, cookie, off, n, payload...)
	r := c.Chunks(c.Chunk)
	for _, k := range r {
		if k.Cookie != cookie {
			c.T.Fatalf("cookie %#x", k.Cookie)
		}
	}
	return r
}

func TestH17StructuredReply(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	c.Expect(wire.RepErrInvalid, wire.OptStructuredReply, "data")
	c.Expect(wire.RepAck, wire.OptStructuredReply)
	c.Expect(wire.RepAck, wire.OptStructuredReply) // again is harmless
	if e := c.Go("disk"); e.Flags != everything|wire.FlagSendDF {
		t.Errorf("flags %#x", e.Flags)
	}
	if r := ask(c, wire.CmdRead, 0, 0, 512); len(r) != 1 {
		t.Errorf("%d chunks", len(r))
	}
}

func TestX4OnlyStructuredReplies(t *testing.T) {
	c := serve(t).structured(t, false)
	for _, test := range []struct {
		cmd  wire.Command
		off  uint64
		n    uint32
		want wire.Errno
	}{
		{wire.CmdRead, 0, 512, 0},
		{wire.CmdRead, math.MaxUint64, 512, wire.EINVAL},
		{wire.CmdRead, 0, math.MaxUint32, wire.EINVAL},
		{wire.CmdRead, 0, 0, 0},
		{wire.CmdFlush, 0, 0, 0},
		{wire.CmdTrim, 0, 512, 0},
		{wire.CmdCache, 0, 512, 0},
		{wire.CmdWriteZeroes, 0, 512, 0},
		{77, 0, 512, wire.EINVAL},
	} {
		r := ask(c, test.cmd, 0, test.off, test.n) // would fail on a simple reply
		if errno, _, _ := r[len(r)-1].Error(); errno != test.want {
			t.Errorf("%v %d at %d: %v, want %v", test.cmd, test.n, test.off, errno, test.want)
		}
	}
	c.Disconnect()
}

func TestX5ErrorsComeWithText(t *testing.T) {
	s := serve(t, edited(func(a *nbd.Abilities) {
		a.Sync = func() error { return &pathError }
	}))
	c := s.structured(t, false)
	errno, text, _ := ask(c, wire.CmdTrim, 0, 1<<40, 512)[0].Error()
	if errno != wire.EINVAL || !strings.Contains(text, "512 bytes at 1099511627776 reach past the end") {
		t.Errorf("%v %q", errno, text)
	}
	errno, text, _ = ask(c, wire.CmdFlush, 0, 0, 0)[0].Error()
	if errno != wire.ENOSPC || text != "no space left on device" { // and not the path
		t.Errorf("%v %q", errno, text)
	}
	s.log.Expect("request failed", "/secret/path")
}

var pathError = pathErr{}

// pathErr is an error that names a file.
type pathErr struct{}

func (*pathErr) Error() string { return "sync /secret/path: no space left on device" }
func (*pathErr) Unwrap() error { return syscall.ENOSPC }

// sparseDisk has data in the pages 1, 2 and 5 of 64 KiB, and holes elsewhere.
func sparseDisk() *memory.Disk {
	d := memory.New(8 * mib)
	d.WriteAt(bytes.Repeat([]byte{1}, 2*page), page)
	d.WriteAt(bytes.Repeat([]byte{5}, page), 5*page)
	return d
}

const page = 64 << 10

func TestX8SparseRead(t *testing.T) {
	d := sparseDisk()
	want := make([]byte, 8*mib)
	d.ReadAt(want, 0)
	c := serve(t, withBackend(d)).structured(t, false)
	for _, test := range []struct {
		off           uint64
		n             uint32
		chunks, holes int
	}{
		{0, 8 * mib, 5, 3},             // hole data hole data hole
		{0, page, 1, 1},                // a hole
		{page, 2 * page, 1, 0},         // data
		{page - 512, page, 1, 0},       // a hole too small for a chunk of its own
		{page - 4096, page, 2, 1},      // one that is not
		{3*page - 1, 2*page + 2, 3, 1}, // data hole data
		{8*mib - 1, 1, 1, 0},
	} {
		r := ask(c, wire.CmdRead, 0, test.off, test.n)
		got, chunks, holes, errno := c.Content(r, test.off, test.n)
		if errno != 0 || !bytes.Equal(got, want[test.off:][:test.n]) {
			t.Errorf("READ %d at %d: %v, or the wrong bytes", test.n, test.off, errno)
		}
		if chunks != test.chunks || holes != test.holes {
			t.Errorf("READ %d at %d: %d chunks, %d of them holes; want %d and %d", test.n, test.off, chunks, holes, test.chunks, test.holes)
		}
	}
}

func TestX9DontFragment(t *testing.T) {
	d := sparseDisk()
	want := make([]byte, 8*mib)
	d.ReadAt(want, 0)
	c := serve(t, withBackend(d)).structured(t, false)
	for _, n := range []uint32{512, 65536, 8 * mib} {
		r := ask(c, wire.CmdRead, wire.CmdFlagDF, 0, n)
		got, chunks, holes, errno := c.Content(r, 0, n)
		if errno != 0 || chunks != 1 || holes != 0 || !bytes.Equal(got, want[:n]) {
			t.Errorf("READ %d with DF: %v, %d chunks, %d holes", n, errno, chunks, holes)
		}
	}
}

// S7: a chunk is never longer than the largest payload and its own offset.
func TestS7LargestChunk(t *testing.T) {
	c := serve(t, withBackend(pattern.New(64*mib))).structured(t, false)
	for _, flags := range []wire.CommandFlags{0, wire.CmdFlagDF} {
		for _, k := range ask(c, wire.CmdRead, flags, mib, wire.MaxPayload) {
			if len(k.Data) > wire.MaxPayload+8 {
				t.Errorf("a chunk of %d bytes", len(k.Data))
			}
		}
	}
}

// X6, X10: DONE is on the last chunk, of which there are no more than needed.
func TestX6DoneIsOnTheLastChunk(t *testing.T) {
	c := serve(t, withBackend(sparseDisk())).structured(t, false)
	r := ask(c, wire.CmdRead, 0, 0, 8*mib)
	for i, k := range r {
		if k.Done != (i == len(r)-1) {
			t.Errorf("chunk %d of %d: done is %v", i, len(r), k.Done)
		}
	}
	if last := r[len(r)-1]; last.Type == wire.ReplyNone {
		t.Error("an empty chunk at the end, where the last data could have said so")
	}
	// A reply of nothing is a chunk of nothing.
	for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdFlush} {
		if r := ask(c, cmd, 0, 0, 0); len(r) != 1 || r[0].Type != wire.ReplyNone {
			t.Errorf("%v of nothing: %v", cmd, r)
		}
	}
}

// X7: an error after the first chunk ends the reply with an error chunk; the
// connection lives on.
func TestX7ErrorInTheMiddleOfAReply(t *testing.T) {
	d := sparseDisk()
	s := serve(t, withBackend(faulty{d, func(a *nbd.Abilities) {
		read := a.ReadAt
		a.ReadAt = func(p []byte, off int64) (int, error) {
			if off >= 5*page {
				return 0, syscall.EIO
			}
			return read(p, off)
		}
	}}))
	c := s.structured(t, false)
	r := ask(c, wire.CmdRead, 0, 0, 8*mib)
	if _, chunks, _, errno := c.Content(r, 0, 8*mib); errno != wire.EIO || chunks != 3 {
		t.Errorf("%v after %d chunks", errno, chunks)
	}
	if _, text, at := r[len(r)-1].Error(); at != 5*page || text == "" {
		t.Errorf("the error is at %d, text %q", at, text)
	}
	if _, _, _, errno := c.Content(ask(c, wire.CmdRead, 0, 0, page), 0, page); errno != 0 {
		t.Error(errno)
	}
}

func TestX15FastZero(t *testing.T) {
	c := serve(t).structured(t, false)
	if errno, _, _ := ask(c, wire.CmdWriteZeroes, wire.CmdFlagFastZero, 0, mib)[0].Error(); errno != 0 {
		t.Errorf("where zeroing is fast: %v", errno)
	}
	ones := bytes.Repeat([]byte{1}, 4096)
	d := memory.New(8 * mib)
	c = serve(t, withBackend(faulty{d, func(a *nbd.Abilities) {
		a.Zero = func(int64, int64, nbd.ZeroFlags) error { return errors.ErrUnsupported }
	}})).structured(t, false)
	ask(c, wire.CmdWrite, 0, 0, 4096, ones)
	if errno, _, _ := ask(c, wire.CmdWriteZeroes, wire.CmdFlagFastZero, 0, 4096)[0].Error(); errno != wire.ENOTSUP {
		t.Errorf("where it is not: %v", errno)
	}
	if got, _, _, _ := c.Content(ask(c, wire.CmdRead, 0, 0, 4096), 0, 4096); !bytes.Equal(got, ones) {
		t.Error("the data were touched")
	}
	if errno, _, _ := ask(c, wire.CmdWriteZeroes, 0, 0, 4096)[0].Error(); errno != 0 {
		t.Errorf("without the flag: %v", errno)
	}
	// Not offered, it is refused.
	c = serve(t, edited(func(a *nbd.Abilities) { a.SlowZero = true })).structured(t, false)
	if errno, _, _ := ask(c, wire.CmdWriteZeroes, wire.CmdFlagFastZero, 0, 4096)[0].Error(); errno != wire.EINVAL {
		t.Errorf("where it was not offered: %v", errno)
	}
}

func TestX16Cache(t *testing.T) {
	type span struct{ off, n int64 }
	cached := make(chan span, 9)
	var fail error
	c := serve(t, edited(func(a *nbd.Abilities) {
		a.Cache = func(off, n int64) error { cached <- span{off, n}; return fail }
	})).structured(t, false)
	if errno, _, _ := ask(c, wire.CmdCache, 0, 4096, mib)[0].Error(); errno != 0 || <-cached != (span{4096, mib}) {
		t.Errorf("CACHE: %v", errno)
	}
	if errno, _, _ := ask(c, wire.CmdCache, 1<<14, 4096, mib)[0].Error(); errno != wire.EINVAL {
		t.Errorf("with an unknown flag: %v", errno)
	}
	c = serve(t, edited(func(a *nbd.Abilities) { a.Cache = nil })).structured(t, false)
	if errno, _, _ := ask(c, wire.CmdCache, 0, 0, 512)[0].Error(); errno != wire.EINVAL {
		t.Errorf("not offered: %v", errno)
	}
}

// contexts returns the names that a meta context option was answered with.
func contexts(t *testing.T, replies []nbdtest.Reply) (names []string, ids []uint32) {
	t.Helper()
	for _, r := range replies {
		if r.Type != wire.RepMetaContext || len(r.Data) < 4 {
			t.Fatalf("%v %x among the contexts", r.Type, r.Data)
		}
		names, ids = append(names, string(r.Data[4:])), append(ids, binary.BigEndian.Uint32(r.Data))
	}
	return names, ids
}

func TestH18MetaContextsNeedStructuredReplies(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	for _, opt := range []wire.Option{wire.OptListMetaContext, wire.OptSetMetaContext} {
		c.Expect(wire.RepErrInvalid, opt, nbdtest.MetaRequest("disk", "base:allocation"))
	}
}

func TestH19MetaContexts(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	c.Expect(wire.RepAck, wire.OptStructuredReply)
	all := []string{"base:allocation"}
	for _, test := range []struct {
		queries   []string
		list, set []string
	}{
		{nil, all, nil},
		{[]string{"base:"}, all, nil},
		{[]string{"base:allocation"}, all, all},
		{[]string{"x-other:", "base:allocation", "base:allocation"}, all, all},
		{[]string{"base:alloc"}, nil, nil},
		{[]string{"BASE:ALLOCATION"}, nil, nil},
		{[]string{"qemu:dirty-bitmap:x", "x:", ""}, nil, nil},
	} {
		list, ids := contexts(t, c.Expect(wire.RepAck, wire.OptListMetaContext, nbdtest.MetaRequest("disk", test.queries...)))
		if !cmp.Equal(list, test.list) || len(ids) > 0 && ids[0] != 0 {
			t.Errorf("LIST %q: %q %d, want %q", test.queries, list, ids, test.list)
		}
		set, ids := contexts(t, c.Expect(wire.RepAck, wire.OptSetMetaContext, nbdtest.MetaRequest("disk", test.queries...)))
		if !cmp.Equal(set, test.set) || len(ids) > 0 && ids[0] == 0 {
			t.Errorf("SET %q: %q %d, want %q", test.queries, set, ids, test.set)
		}
	}
	for _, data := range [][]byte{
		nil,
		{0},
		nbdtest.Bytes(uint32(4), "disk"), nbdtest.Bytes(uint32(9), "disk", uint32(0)),
		nbdtest.Bytes(uint32(4), "disk", uint32(1)), nbdtest.Bytes(uint32(4), "disk", uint32(1), uint32(5), "base"),
		nbdtest.Bytes(uint32(4), "disk", uint32(0), "x"), nbdtest.Bytes(uint32(4), "disk", uint32(0xffffffff), uint32(0)),
		nbdtest.Bytes(uint32(4), "disk", uint32(1), uint32(5000), strings.Repeat("x", 5000)),
	} {
		for _, opt := range []wire.Option{wire.OptListMetaContext, wire.OptSetMetaContext} {
			c.Expect(wire.RepErrInvalid, opt, data)
		}
	}
	c.Expect(wire.RepErrTooBig, wire.OptSetMetaContext, nbdtest.MetaRequest("disk", make([]string, 100_000)...))
	c.Expect(wire.RepErrUnknown, wire.OptSetMetaContext, nbdtest.MetaRequest("nothing", "base:allocation"))
	c.Expect(wire.RepErrUnknown, wire.OptListMetaContext, nbdtest.MetaRequest("nothing"))
}

// H20: a context counts only for the export it was last set for, if that was
// successful, and if TLS has not been started since.
func TestH20ContextsBelongToTheirExport(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, withExports(export("disk", memory.New(mib)), export("other", memory.New(mib))), selectiveTLS(t, p))
	set := func(c *nbdtest.Client, want wire.OptionReply, name string, queries ...string) {
		t.Helper()
		c.Expect(want, wire.OptSetMetaContext, nbdtest.MetaRequest(name, queries...))
	}
	for name, test := range map[string]struct {
		prepare func(c *nbdtest.Client)
		want    wire.Errno
	}{
		"set for it":      {func(c *nbdtest.Client) { set(c, wire.RepAck, "disk", "base:allocation") }, 0},
		"never set":       {func(c *nbdtest.Client) {}, wire.EINVAL},
		"set for another": {func(c *nbdtest.Client) { set(c, wire.RepAck, "other", "base:allocation") }, wire.EINVAL},
		"set to nothing":  {func(c *nbdtest.Client) { set(c, wire.RepAck, "disk", "base:allocation"); set(c, wire.RepAck, "disk") }, wire.EINVAL},
		"set, then it failed": {func(c *nbdtest.Client) {
			set(c, wire.RepAck, "disk", "base:allocation")
			set(c, wire.RepErrInvalid, "\xff")
		}, wire.EINVAL},
		"set, then unknown": {func(c *nbdtest.Client) {
			set(c, wire.RepAck, "disk", "base:allocation")
			set(c, wire.RepErrUnknown, "nothing", "base:allocation")
		}, wire.EINVAL},
		"set, then INFO of one": {func(c *nbdtest.Client) {
			set(c, wire.RepAck, "disk", "base:allocation")
			c.Expect(wire.RepAck, wire.OptInfo, nbdtest.InfoRequest("other"))
		}, 0},
		"set, then TLS": {func(c *nbdtest.Client) {
			set(c, wire.RepAck, "disk", "base:allocation")
			c.StartTLS(p.Client(nil))
			c.Expect(wire.RepAck, wire.OptStructuredReply)
		}, wire.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			c := nbdtest.Hello(t, s.addr)
			c.Expect(wire.RepAck, wire.OptStructuredReply)
			test.prepare(c)
			c.Go("disk")
			r := ask(c, wire.CmdBlockStatus, 0, 0, mib)
			if errno, _, _ := r[0].Error(); errno != test.want {
				t.Errorf("BLOCK_STATUS: %v, want %v", errno, test.want)
			}
		})
	}
}

// T12: nothing that was agreed on in plain text is left inside TLS.
func TestT12TLSForgetsWhatWasAgreedOn(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, selectiveTLS(t, p))
	for name, opt := range map[string]wire.Option{"structured replies": wire.OptStructuredReply, "extended headers": wire.OptExtendedHeaders} {
		t.Run(name, func(t *testing.T) {
			c := nbdtest.Hello(t, s.addr)
			c.Expect(wire.RepAck, opt)
			c.StartTLS(p.Client(nil))
			c.Expect(wire.RepErrInvalid, wire.OptSetMetaContext, nbdtest.MetaRequest("disk", "base:allocation"))
			if e := c.Go("disk"); e.Flags != everything {
				t.Errorf("flags %#x", e.Flags)
			}
			if _, errno := c.Pread(0, 512); errno != 0 { // a compact request, a simple reply
				t.Error(errno)
			}
		})
		t.Run(name+" again", func(t *testing.T) {
			c := nbdtest.Hello(t, s.addr)
			c.Expect(wire.RepAck, opt)
			c.StartTLS(p.Client(nil))
			c.Expect(wire.RepAck, opt)
			if e := c.Go("disk"); e.Flags&wire.FlagSendDF == 0 {
				t.Errorf("flags %#x", e.Flags)
			}
		})
	}
}

// descriptors returns the ranges of a block status.
func descriptors(t *testing.T, r nbdtest.ChunkedReply) (ds []wire.Descriptor) {
	t.Helper()
	if len(r) != 1 || r[0].Type != wire.ReplyBlockStatus {
		t.Fatalf("%d chunks, the first %v", len(r), r[0].Type)
	}
	d := r[0].Data
	if len(d) < 12 || len(d)%8 != 4 || binary.BigEndian.Uint32(d) != 1 {
		t.Fatalf("BLOCK_STATUS of %d bytes: %x", len(d), d[:4])
	}
	for d = d[4:]; len(d) > 0; d = d[8:] {
		ds = append(ds, wire.Descriptor{Length: uint64(binary.BigEndian.Uint32(d)), Flags: wire.StateFlags(binary.BigEndian.Uint32(d[4:]))})
	}
	return ds
}

// desc is one range of a block status.
func desc(length uint64, flags wire.StateFlags) wire.Descriptor {
	return wire.Descriptor{Length: length, Flags: flags}
}

func TestX17BlockStatus(t *testing.T) {
	const hole = wire.StateHole | wire.StateZero
	c := serve(t, withBackend(sparseDisk())).structured(t, true)
	for _, test := range []struct {
		off   uint64
		n     uint32
		flags wire.CommandFlags
		want  []wire.Descriptor
	}{
		{0, 8 * mib, 0, []wire.Descriptor{desc(page, hole), desc(2*page, 0), desc(2*page, hole), desc(page, 0), desc(8*mib-6*page, hole)}},
		{0, 8 * mib, wire.CmdFlagReqOne, []wire.Descriptor{desc(page, hole)}},
		{512, 1024, 0, []wire.Descriptor{desc(1024, hole)}},
		{page + 512, page, wire.CmdFlagReqOne, []wire.Descriptor{desc(page, 0)}},
		{page + 512, 4 * page, wire.CmdFlagReqOne, []wire.Descriptor{desc(2*page-512, 0)}},
		{3*page - 512, page, 0, []wire.Descriptor{desc(512, 0), desc(page-512, hole)}},
		{8*mib - 1, 1, 0, []wire.Descriptor{desc(1, hole)}},
	} {
		if got := descriptors(t, ask(c, wire.CmdBlockStatus, test.flags, test.off, test.n)); !cmp.Equal(got, test.want) {
			t.Errorf("%d at %d: %s", test.n, test.off, cmp.Diff(test.want, got))
		}
	}
	for _, test := range []struct {
		off uint64
		n   uint32
	}{{8 * mib, 1}, {0, 8*mib + 1}, {math.MaxUint64, 2}, {0, 0}} {
		if errno, _, _ := ask(c, wire.CmdBlockStatus, 0, test.off, test.n)[0].Error(); errno != wire.EINVAL {
			t.Errorf("%d at %d: %v", test.n, test.off, errno)
		}
	}
}

// A backend that answers with its own extents: they are joined, cut and bounded.
func TestX17ExtentsOfABackend(t *testing.T) {
	var extents []nbd.Extent
	s := serve(t, edited(func(a *nbd.Abilities) {
		a.Extents = func(int64, int64, bool) ([]nbd.Extent, error) {
			if extents == nil {
				return nil, syscall.EIO
			}
			return extents, nil
		}
	}))
	c := s.structured(t, true)
	extents = []nbd.Extent{{Length: 512, Hole: true}, {Length: 512, Hole: true}, {Length: 0}, {Length: 1024, Zero: true}, {Length: 1 << 40}}
	want := []wire.Descriptor{desc(1024, wire.StateHole), desc(1024, wire.StateZero), desc(mib-2048, 0)}
	if got := descriptors(t, ask(c, wire.CmdBlockStatus, 0, 0, mib)); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	if got := descriptors(t, ask(c, wire.CmdBlockStatus, wire.CmdFlagReqOne, 0, mib)); !cmp.Equal(got, want[:1]) {
		t.Error(cmp.Diff(want[:1], got))
	}
	extents = []nbd.Extent{} // nothing is known
	if got := descriptors(t, ask(c, wire.CmdBlockStatus, 0, 0, mib)); !cmp.Equal(got, []wire.Descriptor{desc(mib, 0)}) {
		t.Error(got)
	}
	for i := range 100_000 {
		extents = append(extents, nbd.Extent{Length: 8, Hole: i%2 == 0})
	}
	if got := descriptors(t, ask(c, wire.CmdBlockStatus, 0, 0, mib)); len(got) == 0 || len(got) > 1<<14 {
		t.Errorf("%d descriptors", len(got))
	}
	extents = nil
	if errno, _, _ := ask(c, wire.CmdBlockStatus, 0, 0, mib)[0].Error(); errno != wire.EIO {
		t.Error(errno)
	}
}

// What a backend says wrongly about holes, or not at all, is data.
func TestX18WrongHolesAreData(t *testing.T) {
	for name, hole := range map[string]func(off, n int64) (bool, int64){
		"panic":    func(int64, int64) (bool, int64) { panic("boo") },
		"nothing":  func(int64, int64) (bool, int64) { return true, 0 },
		"negative": func(int64, int64) (bool, int64) { return true, -1 },
		"too much": func(_, n int64) (bool, int64) { return true, n + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			d := sparseDisk()
			want := make([]byte, mib)
			d.ReadAt(want, 0)
			c := serve(t, withBackend(faulty{d, func(a *nbd.Abilities) { a.Hole = hole }})).structured(t, true)
			got, _, holes, errno := c.Content(ask(c, wire.CmdRead, 0, 0, mib), 0, mib)
			if errno != 0 || holes != 0 || !bytes.Equal(got, want) {
				t.Errorf("READ: %v, %d holes, or the wrong bytes", errno, holes)
			}
			if got := descriptors(t, ask(c, wire.CmdBlockStatus, 0, 0, mib)); !cmp.Equal(got, []wire.Descriptor{desc(mib, 0)}) {
				t.Errorf("BLOCK_STATUS: %v", got)
			}
		})
	}
}

// X18: without knowledge all is data, which is always true enough.
func TestX18NoExtentsIsAllData(t *testing.T) {
	c := serve(t, edited(func(a *nbd.Abilities) { a.Hole = nil })).structured(t, true)
	if got := descriptors(t, ask(c, wire.CmdBlockStatus, 0, 0, mib)); !cmp.Equal(got, []wire.Descriptor{desc(mib, 0)}) {
		t.Error(got)
	}
}

func TestT10MetaContextsDoNotTellExports(t *testing.T) {
	p := nbdtest.NewPKI(t)
	secret := export("secret", null.New(mib))
	secret.TLSOnly = true
	c := nbdtest.Hello(t, serve(t, selectiveTLS(t, p), withExports(secret)).addr)
	c.Expect(wire.RepAck, wire.OptStructuredReply)
	for _, opt := range []wire.Option{wire.OptListMetaContext, wire.OptSetMetaContext} {
		_, a := c.Ask(opt, nbdtest.MetaRequest("secret", "base:allocation"))
		_, b := c.Ask(opt, nbdtest.MetaRequest("absent", "base:allocation"))
		if a.Type != wire.RepErrUnknown || b.Type != a.Type {
			t.Errorf("%v: %v and %v", opt, a.Type, b.Type)
		}
	}
}
