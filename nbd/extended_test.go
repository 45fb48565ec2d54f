package nbd_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// extended returns a client in transmission that has agreed on extended headers
// and base:allocation.
func (s *server) extended(t *testing.T) *nbdtest.Client {
	t.Helper()
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepAck, wire.OptExtendedHeaders)
	c.Expect(wire.RepAck, wire.OptSetMetaContext, nbdtest.MetaRequest("disk", "base:allocation"))
	c.Go("disk")
	return c
}

// askExtended sends an extended request and reads its reply.
func askExtended(c *nbdtest.Client, cmd wire.Command, flags wire.CommandFlags, off, n uint64, payload ...any) nbdtest.ChunkedReply {
	c.T.Helper()
	const cookie = 0xfeedfacecafebeef
	c.ExtendedRequest(cmd, flags, cookie, off, n, payload...)
	r := c.Chunks(c.ExtendedChunk)
	for _, k := range r {
		if k.Cookie != cookie || k.Offset != off {
			c.T.Fatalf("cookie %#x, offset %#x, want %#x", k.Cookie, k.Offset, off)
		}
	}
	return r
}

func TestE1ExtendedHeaders(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	c.Expect(wire.RepErrInvalid, wire.OptExtendedHeaders, "data")
	c.Expect(wire.RepAck, wire.OptStructuredReply)
	c.Expect(wire.RepAck, wire.OptExtendedHeaders)
	c.Expect(wire.RepErrExtHeaderReqd, wire.OptStructuredReply)
	c.Expect(wire.RepAck, wire.OptExtendedHeaders)
	if e := c.Go("disk"); e.Flags != everything|wire.FlagSendDF {
		t.Errorf("flags %#x", e.Flags)
	}
	askExtended(c, wire.CmdFlush, 0, 0, 0)
}

func TestE2NoExportName(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	c.Expect(wire.RepAck, wire.OptExtendedHeaders)
	c.Option(wire.OptExportName, "disk")
	c.ExpectEnd()
}

// E3, E5: requests and replies are extended, whatever they are about.
func TestE3E5ExtendedRequestsAndReplies(t *testing.T) {
	c := serve(t, withBackend(memory.New(16<<40))).extended(t)
	data := bytes.Repeat([]byte("ext!"), 4096)
	ok := func(r nbdtest.ChunkedReply) {
		t.Helper()
		if errno, text, _ := r[len(r)-1].Error(); errno != 0 {
			t.Errorf("%v %s", errno, text)
		}
	}
	ok(askExtended(c, wire.CmdWrite, wire.CmdFlagPayloadLen, 8<<40, uint64(len(data)), data))
	r := askExtended(c, wire.CmdRead, 0, 8<<40, uint64(len(data)))
	if got, _, _, errno := c.Content(r, 8<<40, uint32(len(data))); errno != 0 || !bytes.Equal(got, data) {
		t.Errorf("reading back: %v", errno)
	}
	ok(askExtended(c, wire.CmdWriteZeroes, 0, 1, 16<<40-2)) // more than 32 bits
	ok(askExtended(c, wire.CmdTrim, wire.CmdFlagFUA, 0, 16<<40))
	ok(askExtended(c, wire.CmdCache, 0, 0, 16<<40))
	ok(askExtended(c, wire.CmdFlush, 0, 0, 0))
	r = askExtended(c, wire.CmdRead, 0, 8<<40, uint64(len(data)))
	if got, _, _, errno := c.Content(r, 8<<40, uint32(len(data))); errno != 0 || !bytes.Equal(got, make([]byte, len(data))) {
		t.Errorf("after zeroing: %v", errno)
	}
	for _, test := range []struct {
		cmd  wire.Command
		off  uint64
		n    uint64
		want wire.Errno
	}{
		{wire.CmdRead, 0, 32*mib + 1, wire.EINVAL},
		{wire.CmdRead, 0, math.MaxUint64, wire.EINVAL}, // E8
		{wire.CmdTrim, 1, math.MaxUint64, wire.EINVAL},
		{wire.CmdWriteZeroes, 1, math.MaxUint64, wire.ENOSPC},
		{wire.CmdTrim, 16 << 40, 1, wire.EINVAL},
		{99, 0, 0, wire.EINVAL},
	} {
		r := askExtended(c, test.cmd, 0, test.off, test.n)
		if errno, _, _ := r[0].Error(); errno != test.want {
			t.Errorf("%v %d at %d: %v, want %v", test.cmd, test.n, test.off, errno, test.want)
		}
	}
	c.ExtendedRequest(wire.CmdDisc, 0, 0, 0, 0)
	c.ExpectEnd()
}

// A WRITE must say that it has a payload. QEMU's do not (seen with 10.0), and
// have one nevertheless.
func TestE3WriteWithoutPayloadLen(t *testing.T) {
	c := serve(t).extended(t)
	if errno, _, _ := askExtended(c, wire.CmdWrite, 0, 0, 4096, bytes.Repeat([]byte("q"), 4096))[0].Error(); errno != 0 {
		t.Error(errno)
	}
	got, _, _, _ := c.Content(askExtended(c, wire.CmdRead, 0, 4095, 2), 4095, 2)
	if string(got) != "q\x00" {
		t.Errorf("%q", got)
	}
}

func TestE4Payloads(t *testing.T) {
	s := serve(t)
	c := s.extended(t)
	for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdFlush, wire.CmdTrim, wire.CmdWriteZeroes, wire.CmdCache, 99} {
		r := askExtended(c, cmd, wire.CmdFlagPayloadLen, 0, 5000, make([]byte, 5000))
		if errno, _, _ := r[0].Error(); errno != wire.EINVAL {
			t.Errorf("%v with a payload: %v", cmd, errno)
		}
	}
	if errno, _, _ := askExtended(c, wire.CmdWrite, wire.CmdFlagPayloadLen, 0, 0)[0].Error(); errno != 0 {
		t.Errorf("a WRITE of nothing: %v", errno)
	}
	c.ExtendedRequest(wire.CmdWrite, wire.CmdFlagPayloadLen, 1, 0, 32*mib+1)
	c.ExpectEnd()
	for _, n := range []uint64{math.MaxUint64, 1 << 63, 1 << 32} {
		c = s.extended(t)
		c.ExtendedRequest(wire.CmdTrim, wire.CmdFlagPayloadLen, 1, 0, n)
		c.ExpectEnd()
	}
}

func TestE6ExtendedBlockStatus(t *testing.T) {
	const hole = wire.StateHole | wire.StateZero
	d := memory.New(16 << 40)
	d.WriteAt([]byte{1}, 8<<40)
	c := serve(t, withBackend(faulty{d, func(a *nbd.Abilities) {
		a.Hole = func(off, n int64) (bool, int64) { // a disk of three extents
			switch {
			case off < 8<<40:
				return true, min(n, 8<<40-off)
			case off < 8<<40+page:
				return false, min(n, 8<<40+page-off)
			}
			return true, n
		}
	}})).extended(t)
	if got, want := extendedStatus(t, askExtended(c, wire.CmdBlockStatus, 0, 0, 16<<40)),
		([]wire.Descriptor{desc(8<<40, hole), desc(page, 0), desc(8<<40-page, hole)}); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	if got, want := extendedStatus(t, askExtended(c, wire.CmdBlockStatus, wire.CmdFlagReqOne, 8<<40, 8<<40)),
		([]wire.Descriptor{desc(page, 0)}); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
}

func extendedStatus(t *testing.T, r nbdtest.ChunkedReply) (ds []wire.Descriptor) {
	t.Helper()
	if len(r) != 1 || r[0].Type != wire.ReplyBlockStatusExt {
		t.Fatalf("%d chunks, the first %v", len(r), r[0].Type)
	}
	d := r[0].Data
	if len(d) < 24 || binary.BigEndian.Uint32(d) != 1 || len(d) != 8+16*int(binary.BigEndian.Uint32(d[4:])) {
		t.Fatalf("BLOCK_STATUS_EXT of %d bytes: %x", len(d), d[:8])
	}
	for d = d[8:]; len(d) > 0; d = d[16:] {
		flags := binary.BigEndian.Uint64(d[8:])
		if flags>>32 != 0 {
			t.Errorf("status %#x", flags)
		}
		ds = append(ds, wire.Descriptor{Length: binary.BigEndian.Uint64(d), Flags: wire.StateFlags(flags)})
	}
	return ds
}

func TestE7BlockStatusPayload(t *testing.T) {
	s := serve(t)
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepAck, wire.OptExtendedHeaders)
	if e := c.ParseInfos(c.Expect(wire.RepAck, wire.OptInfo, nbdtest.InfoRequest("disk"))); e.Flags&wire.FlagBlockStatusPayload != 0 {
		t.Error("the payload form is offered without contexts")
	}
	c.Expect(wire.RepAck, wire.OptSetMetaContext, nbdtest.MetaRequest("disk", "base:allocation"))
	if e := c.Go("disk"); e.Flags&wire.FlagBlockStatusPayload == 0 {
		t.Error("the payload form is not offered")
	}
	status := func(payload ...any) nbdtest.ChunkedReply {
		b := nbdtest.Bytes(payload...)
		return askExtended(c, wire.CmdBlockStatus, wire.CmdFlagPayloadLen, 4096, uint64(len(b)), b)
	}
	if got := extendedStatus(t, status(uint64(mib), uint32(1))); len(got) != 1 || got[0].Length != mib {
		t.Errorf("%v", got)
	}
	if r := status(uint64(mib)); len(r) != 1 || r[0].Type != wire.ReplyNone { // no context, no answer
		t.Errorf("%v", r)
	}
	for _, bad := range [][]any{
		{uint64(mib), uint32(2)},
		{uint64(mib), uint32(0)},
		{uint64(mib), uint32(1), uint32(1)},
		{uint64(0), uint32(1)},
		{uint64(math.MaxUint64), uint32(1)},
		{uint64(8 * mib), uint32(1)},
		{uint32(1)},
		{uint64(mib), uint16(1)},
		{make([]byte, 100_000)},
		{},
	} {
		if errno, _, _ := status(bad...)[0].Error(); errno != wire.EINVAL {
			t.Errorf("payload %x: %v", nbdtest.Bytes(bad...)[:min(12, len(nbdtest.Bytes(bad...)))], errno)
		}
	}
}
