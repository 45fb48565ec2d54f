package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/backends/null"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// acceptTCP hands the connections that it accepts to the test.
type acceptTCP struct {
	net.Listener
	accepted chan *net.TCPConn
}

func (l acceptTCP) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		l.accepted <- nc.(*net.TCPConn)
	}
	return nc, err
}

func TestH1NoDelay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	al := acceptTCP{l, make(chan *net.TCPConn, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- (&nbd.Server{Exports: nbd.ExportList{}, Log: nbdtest.NewLog(t).Logger()}).Serve(ctx, al)
	}()
	c := nbdtest.Hello(t, l.Addr())
	c.Expect(wire.RepAck, wire.OptList)
	rc, err := (<-al.accepted).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) {
		if on, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_NODELAY); err != nil || on == 0 {
			t.Errorf("TCP_NODELAY is %d, %v", on, err)
		}
	})
	c.Expect(wire.RepAck, wire.OptAbort)
	c.Close()
	cancel()
	<-done
}

// A client that is haggling when the server shuts down is told so.
func TestH22ShutdownWhileHaggling(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := nbdtest.NewLog(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- (&nbd.Server{Exports: nbd.ExportList{}, Log: log.Logger()}).Serve(ctx, l) }()
	talks, silent := nbdtest.Hello(t, l.Addr()), nbdtest.Hello(t, l.Addr())
	talks.Expect(wire.RepAck, wire.OptList)
	silent.Expect(wire.RepAck, wire.OptList)
	cancel()
	for _, final := talks.Ask(wire.OptList); final.Type != wire.RepErrShutdown; _, final = talks.Ask(wire.OptList) {
		if final.Type != wire.RepAck { // before it has heard
			t.Fatalf("LIST: %v", final.Type)
		}
	}
	talks.Expect(wire.RepErrShutdown, wire.OptGo, nbdtest.InfoRequest(""))
	talks.Expect(wire.RepAck, wire.OptAbort)
	talks.ExpectEnd()
	talks.Close()
	silent.ExpectEnd()
	silent.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	log.Expect("connection closed", "the server is shutting down")
}

func TestH2Greeting(t *testing.T) {
	c := nbdtest.Dial(t, serve(t).addr)
	if got, want := c.Greeting(), wire.FlagFixedNewstyle|wire.FlagNoZeroes; got != want {
		t.Errorf("handshake flags %#x, want %#x", got, want)
	}
}

func TestH3UnknownClientFlagsEndTheConnection(t *testing.T) {
	s := serve(t)
	for _, flags := range []uint32{4, 1 << 31, 0xffffffff} {
		c := nbdtest.Dial(t, s.addr)
		c.Greet(flags)
		c.ExpectEnd()
	}
	s.log.Expect("unknown flags: 0xffffffff")
}

func TestTLSBeforeNBDIsExplained(t *testing.T) {
	s := serve(t)
	c := nbdtest.Dial(t, s.addr)
	c.Greeting()
	c.Send([]byte{0x16, 3, 1, 2, 0, 1, 0, 1})
	c.ExpectEnd()
	s.log.Expect("began with a TLS handshake")
}

func TestH4BadOptionMagicEndsTheConnection(t *testing.T) {
	s := serve(t)
	c := nbdtest.Hello(t, s.addr)
	c.Send("IHAVEOPS", uint32(wire.OptList), uint32(0))
	c.ExpectEnd()
	s.log.Expect("bad magic number")
}

func TestH5UnknownOption(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	c.Expect(wire.RepErrUnsup, 99)
	c.Expect(wire.RepErrUnsup, 0xffffffff, "with data")
	c.Expect(wire.RepErrUnsup, wire.OptPeekExport, make([]byte, 3*mib)) // read past, however long
	c.Go("disk")
	c.Disconnect()
}

func TestH6RepliesNameTheirOption(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	for _, opt := range []wire.Option{wire.OptList, 77, wire.OptStartTLS} { // all at once
		c.Option(opt)
	}
	var got []wire.Option
	for range 4 { // LIST has two replies
		got = append(got, c.Reply().Option)
	}
	if want := []wire.Option{wire.OptList, wire.OptList, 77, wire.OptStartTLS}; !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
}

func TestH7Names(t *testing.T) {
	long := strings.Repeat("x", wire.MaxString)
	s := serve(t, withExports(export(long, null.New(mib)), export("ü/ 中", null.New(2*mib))))
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepAck, wire.OptInfo, nbdtest.InfoRequest(long))
	c.Expect(wire.RepErrInvalid, wire.OptInfo, nbdtest.InfoRequest(long+"x"))
	c.Expect(wire.RepErrInvalid, wire.OptInfo, nbdtest.InfoRequest("a\x00b"))
	c.Expect(wire.RepErrInvalid, wire.OptInfo, nbdtest.InfoRequest("\xff"))
	c.Expect(wire.RepErrInvalid, wire.OptGo, uint32(0xffffffff), "x", uint16(0))
	c.Expect(wire.RepErrTooBig, wire.OptGo, make([]byte, mib))
	if e := c.Go("ü/ 中"); e.Size != 2*mib {
		t.Errorf("size %d", e.Size)
	}
}

func TestH8Abort(t *testing.T) {
	s := serve(t)
	for _, data := range []string{"", "bye"} {
		c := nbdtest.Hello(t, s.addr)
		c.Expect(wire.RepAck, wire.OptAbort, data)
		c.ExpectEnd()
	}
	s.log.Expect("INFO", "the client aborted the negotiation")
}

func TestH9List(t *testing.T) {
	s := serve(t, withExports(
		nbd.Export{Name: "a"}, nbd.Export{Name: "bb", Description: "the second"}, nbd.Export{Name: ""},
		nbd.Export{Name: "not UTF-8: \xff"}, // cannot be named
	))
	c := nbdtest.Hello(t, s.addr)
	var got []string
	for _, r := range c.Expect(wire.RepAck, wire.OptList) {
		if r.Type != wire.RepServer {
			t.Fatalf("%v among the servers", r.Type)
		}
		n := r.Data[3]
		got = append(got, string(r.Data[4:4+n])+"|"+string(r.Data[4+n:]))
	}
	if want := []string{"a|", "bb|the second", "|"}; !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	c.Expect(wire.RepErrInvalid, wire.OptList, "x")
	c.Expect(wire.RepAck, wire.OptList)
}

func TestListOfThousands(t *testing.T) {
	var many []nbd.Export
	for range 5000 {
		many = append(many, nbd.Export{Name: strings.Repeat("n", 100)})
	}
	c := nbdtest.Hello(t, serve(t, withExports(many...)).addr)
	if got := len(c.Expect(wire.RepAck, wire.OptList)); got != len(many) {
		t.Errorf("%d exports, want %d", got, len(many))
	}
}

func TestListThatFails(t *testing.T) {
	s := serve(t, func(s *nbd.Server) { s.Exports = brokenList{} })
	nbdtest.Hello(t, s.addr).Expect(wire.RepErrPlatform, wire.OptList)
	s.log.Expect("cannot list the exports", "on fire")
}

type brokenList struct{ nbd.ExportList }

func (brokenList) List(context.Context, nbd.Client) ([]nbd.Export, error) {
	return nil, errors.New("on fire")
}

func TestH10ExportName(t *testing.T) {
	s := serve(t)
	for _, test := range []struct {
		flags  uint32
		zeroes int
	}{{3, 0}, {1, 124}, {0, 124}} {
		c := nbdtest.Dial(t, s.addr)
		c.Greet(test.flags)
		c.Option(wire.OptExportName, "disk")
		got := c.Receive(10 + test.zeroes)
		if !bytes.Equal(got[:8], nbdtest.Bytes(uint64(8*mib))) || got[9]&1 == 0 {
			t.Errorf("size and flags %x", got[:10])
		}
		if !bytes.Equal(got[10:], make([]byte, test.zeroes)) {
			t.Error("the zeroes are not")
		}
		if data, errno := c.Pread(0, 512); errno != 0 || len(data) != 512 {
			t.Errorf("reading: %v", errno)
		}
		c.Disconnect()
	}
	for _, name := range []string{"nothing", strings.Repeat("x", 5000), strings.Repeat("y", mib)} {
		c := nbdtest.Hello(t, s.addr)
		c.Option(wire.OptExportName, name)
		c.ExpectEnd()
	}
	s.log.Expect("EXPORT_NAME", "no such export")
}

func TestH11InfoLengthsMustFit(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	for _, data := range [][]byte{
		nil,
		nbdtest.Bytes(uint32(4), "disk"), // no list
		nbdtest.Bytes(uint32(5), "disk", uint16(0)),                      // the name eats the list
		nbdtest.Bytes(uint32(4), "disk", uint16(1)),                      // an entry is missing
		nbdtest.Bytes(uint32(4), "disk", uint16(0), uint16(3)),           // one too many
		nbdtest.Bytes(uint32(4), "disk", uint16(1), uint16(3), uint8(0)), // half a one
	} {
		for _, opt := range []wire.Option{wire.OptInfo, wire.OptGo} {
			c.Expect(wire.RepErrInvalid, opt, data)
		}
	}
	c.Go("disk")
}

func TestH12InfoAndGo(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	for _, opt := range []wire.Option{wire.OptInfo, wire.OptGo} {
		if infos := c.Expect(wire.RepErrUnknown, opt, nbdtest.InfoRequest("nothing")); len(infos) != 0 {
			t.Errorf("information about an export that is not there: %v", infos)
		}
	}
	e := c.ParseInfos(c.Expect(wire.RepAck, wire.OptInfo, nbdtest.InfoRequest("disk")))
	if want := everything; e.Size != 8*mib || e.Flags != want {
		t.Errorf("size %d, flags %#x, want %#x", e.Size, e.Flags, want)
	}
}

// An INFO that succeeded must not help a GO that does not: go-nbd's server
// opened the export of the former.
func TestInfoDoesNotOutliveItself(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	c.Expect(wire.RepAck, wire.OptInfo, nbdtest.InfoRequest("disk"))
	c.Expect(wire.RepErrUnknown, wire.OptGo, nbdtest.InfoRequest("nothing"))
	c.Expect(wire.RepErrInvalid, wire.OptGo, "rubbish")
	c.Expect(wire.RepAck, wire.OptAbort)
}

func TestH13UnknownInformationIsIgnored(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	c.ParseInfos(c.Expect(wire.RepAck, wire.OptInfo, nbdtest.InfoRequest("disk", 4711, 0xffff)))
}

func TestH14GoRepeatsInfo(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	req := nbdtest.InfoRequest("disk", wire.InfoName, wire.InfoDescription, wire.InfoBlockSize)
	info := c.ParseInfos(c.Expect(wire.RepAck, wire.OptInfo, req))
	again := c.ParseInfos(c.Expect(wire.RepAck, wire.OptGo, req))
	if diff := cmp.Diff(info, again); diff != "" {
		t.Error(diff)
	}
}

func TestH15NoZeroesAfterGo(t *testing.T) {
	c := nbdtest.Dial(t, serve(t).addr)
	c.Greet(1) // without NO_ZEROES
	c.Go("disk")
	if errno := c.Do(wire.CmdFlush, 0, 0, 0); errno != 0 { // would read zeroes as a reply
		t.Error(errno)
	}
}

func TestH16EmptyNameIsTheDefaultExport(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	if e := c.Go(""); e.Size != 8*mib || e.Name != "disk" {
		t.Errorf("size %d, name %q", e.Size, e.Name)
	}
	two := nbd.ExportList{{Name: "a"}, {Name: "b"}}
	if _, err := two.Lookup(t.Context(), nbd.Client{}, ""); !errors.Is(err, nbd.ErrNoExport) {
		t.Errorf("a default among two: %v", err)
	}
}

func TestH24NoOldstyle(t *testing.T) {
	// Oldstyle would say its size at once; we wait for the client.
	c := nbdtest.Dial(t, serve(t).addr)
	if c.Greeting()&wire.FlagFixedNewstyle == 0 {
		t.Error("not the fixed newstyle greeting")
	}
}

func TestS1DefaultBlockSizes(t *testing.T) {
	c := nbdtest.Hello(t, serve(t).addr)
	e := c.ParseInfos(c.Expect(wire.RepAck, wire.OptInfo, nbdtest.InfoRequest("disk")))
	if e.HasBlock {
		t.Error("defaults were sent without being asked for")
	}
	if e = c.Go("disk"); e.Minimum != 1 || e.Preferred != 4096 || e.Maximum != wire.MaxPayload {
		t.Errorf("block sizes %d %d %d", e.Minimum, e.Preferred, e.Maximum)
	}
}

// blocks is a disk with block size constraints.
type blocks struct {
	*memory.Disk
	size nbd.BlockSize
}

func (b blocks) Resolve(a *nbd.Abilities) error {
	a.BlockSize = b.size
	return b.Disk.Resolve(a)
}

func TestS3UnusualBlockSizesAreAlwaysSent(t *testing.T) {
	c := nbdtest.Hello(t, serve(t, withBackend(blocks{memory.New(mib), nbd.BlockSize{Minimum: 4096, Preferred: 65536}})).addr)
	e := c.ParseInfos(c.Expect(wire.RepAck, wire.OptGo, nbdtest.InfoRequest("disk")))
	if e.Minimum != 4096 || e.Preferred != 65536 || e.Maximum != wire.MaxPayload {
		t.Errorf("block sizes %d %d %d", e.Minimum, e.Preferred, e.Maximum)
	}
}

func TestS2ImpossibleBlockSizesAreNotServed(t *testing.T) {
	for _, size := range []nbd.BlockSize{
		{Minimum: 3},
		{Minimum: 131072},
		{Preferred: 256},
		{Preferred: 5000},
		{Minimum: 8192, Preferred: 4096},
		{Maximum: 512},
		{Minimum: 65536},
	} {
		b := blocks{memory.New(mib + 4096), size}
		if a, err := nbd.Resolve(b); err == nil {
			t.Errorf("%+v was resolved to %+v", size, a.BlockSize)
		}
	}
	s := serve(t, withBackend(blocks{memory.New(mib), nbd.BlockSize{Minimum: 3}}))
	nbdtest.Hello(t, s.addr).Expect(wire.RepErrUnknown, wire.OptGo, nbdtest.InfoRequest("disk"))
	s.log.Expect("not a power of two")
}
