package nbd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// faulty is a disk whose abilities a test can replace.
type faulty struct {
	*memory.Disk
	edit func(*nbd.Abilities)
}

func (f faulty) Resolve(a *nbd.Abilities) error {
	if err := f.Disk.Resolve(a); err != nil {
		return err
	}
	a.ReadNow = nil // most tests replace ReadAt
	f.edit(a)
	return nil
}

func edited(edit func(*nbd.Abilities)) func(*nbd.Server) {
	return withBackend(faulty{memory.New(8 * mib), edit})
}

func TestReadWriteTrimZeroFlush(t *testing.T) {
	c := serve(t).connect(t)
	want := bytes.Repeat([]byte("nbd!"), 100_000)
	do := func(cmd wire.Command, flags wire.CommandFlags, off uint64, n uint32, payload ...any) {
		t.Helper()
		if errno := c.Do(cmd, flags, off, n, payload...); errno != 0 {
			t.Fatalf("%v: %v", cmd, errno)
		}
	}
	check := func(off uint64, want []byte) {
		t.Helper()
		if got, errno := c.Pread(off, uint32(len(want))); errno != 0 || !bytes.Equal(got, want) {
			t.Fatalf("reading at %d: wrong bytes, or %v", off, errno)
		}
	}
	do(wire.CmdWrite, 0, 12345, uint32(len(want)), want)
	check(12345, want)
	do(wire.CmdFlush, 0, 0, 0)
	do(wire.CmdWriteZeroes, 0, 12345, 1000)
	check(12345, append(make([]byte, 1000), want[1000:]...))
	do(wire.CmdWriteZeroes, wire.CmdFlagNoHole, 13345, 1000)
	do(wire.CmdTrim, 0, 0, 4*mib)
	c.Disconnect()
}

// everything is what a disk in memory offers to a client with simple replies.
const everything = wire.FlagHasFlags | wire.FlagSendFlush | wire.FlagSendFUA | wire.FlagSendTrim |
	wire.FlagSendWriteZeroes | wire.FlagSendFastZero | wire.FlagSendCache | wire.FlagCanMultiConn

func TestX1FlagsFollowAbilities(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(*nbd.Abilities)
		want wire.TransmissionFlags
	}{
		{"everything", func(*nbd.Abilities) {}, everything},
		{"no trim", func(a *nbd.Abilities) { a.Trim = nil }, everything &^ wire.FlagSendTrim},
		{"no zero", func(a *nbd.Abilities) { a.Zero = nil }, everything}, // it fails fast
		{"withheld zero", func(a *nbd.Abilities) { a.NoZero = true }, everything &^ (wire.FlagSendWriteZeroes | wire.FlagSendFastZero)},
		{"slow zero", func(a *nbd.Abilities) { a.SlowZero = true }, everything &^ wire.FlagSendFastZero},
		{"no cache", func(a *nbd.Abilities) { a.Cache = nil }, everything &^ wire.FlagSendCache},
		{"no sync", func(a *nbd.Abilities) { a.Sync, a.MultiConn = nil, false }, everything &^ (wire.FlagSendFlush | wire.FlagSendFUA | wire.FlagCanMultiConn)},
		{"rotational", func(a *nbd.Abilities) { a.Rotational = true }, everything | wire.FlagRotational},
		{"read-only", func(a *nbd.Abilities) { a.ReadOnly() }, wire.FlagHasFlags | wire.FlagReadOnly | wire.FlagSendFlush | wire.FlagSendCache | wire.FlagCanMultiConn},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := nbdtest.Hello(t, serve(t, edited(test.edit)).addr)
			if got := c.Go("disk").Flags; got != test.want {
				t.Errorf("flags %#x, want %#x", got, test.want)
			}
		})
	}
}

func TestX2ReadOnly(t *testing.T) {
	e := export("disk", memory.New(mib))
	e.ReadOnly = true
	for name, s := range map[string]*server{
		"export":  serve(t, withExports(e)),
		"backend": serve(t, edited(func(a *nbd.Abilities) { a.ReadOnly() })),
	} {
		t.Run(name, func(t *testing.T) {
			c := s.connect(t)
			for _, cmd := range []wire.Command{wire.CmdWrite, wire.CmdTrim, wire.CmdWriteZeroes} {
				var payload []byte
				if cmd == wire.CmdWrite {
					payload = make([]byte, 512)
				}
				if errno := c.Do(cmd, 0, 0, 512, payload); errno != wire.EPERM {
					t.Errorf("%v: %v", cmd, errno)
				}
			}
			if errno := c.Do(wire.CmdFlush, 0, 0, 0); errno != 0 {
				t.Errorf("FLUSH: %v", errno)
			}
			if _, errno := c.Pread(0, 512); errno != 0 {
				t.Errorf("READ: %v", errno)
			}
		})
	}
}

func TestX3RepliesOvertakeOneAnother(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, edited(func(a *nbd.Abilities) {
		read := a.ReadAt
		a.ReadAt = func(p []byte, off int64) (int, error) {
			if off == 0 {
				<-release
			}
			return read(p, off)
		}
	}))
	c := s.connect(t)
	const slow, fast = math.MaxUint64, 0x0123456789abcdef
	c.Request(wire.CmdRead, 0, slow, 0, 16)
	c.Request(wire.CmdRead, 0, fast, 4096, 32)
	if cookie, errno := c.SimpleReply(); cookie != fast || errno != 0 {
		t.Fatalf("first reply %#x %v", cookie, errno)
	}
	c.Receive(32)
	close(release)
	if cookie, errno := c.SimpleReply(); cookie != slow || errno != 0 {
		t.Fatalf("second reply %#x %v", cookie, errno)
	}
	c.Receive(16)
	c.Disconnect()
}

func TestS5UnalignedRequests(t *testing.T) {
	c := serve(t, withBackend(blocks{memory.New(mib), nbd.BlockSize{Minimum: 512}})).connect(t)
	for _, test := range []struct {
		off uint64
		n   uint32
	}{{1, 512}, {0, 511}, {256, 256}} {
		if _, errno := c.Pread(test.off, test.n); errno != wire.EINVAL {
			t.Errorf("READ %d at %d: %v", test.n, test.off, errno)
		}
		if errno := c.Do(wire.CmdWrite, 0, test.off, test.n, make([]byte, test.n)); errno != wire.EINVAL {
			t.Errorf("WRITE %d at %d: %v", test.n, test.off, errno)
		}
	}
	if _, errno := c.Pread(512, 512); errno != 0 {
		t.Error(errno)
	}
}

func TestS6LargePayloads(t *testing.T) {
	s := serve(t, withBackend(blocks{memory.New(128 * mib), nbd.BlockSize{Maximum: mib}}))
	c := s.connect(t)
	if errno := c.Do(wire.CmdWrite, 0, 0, mib, make([]byte, mib)); errno != 0 {
		t.Errorf("the largest payload: %v", errno)
	}
	for _, n := range []uint32{mib + 1, 32 * mib, 64 * mib} { // too much, but no attack
		if errno := c.Do(wire.CmdWrite, 0, 0, n, make([]byte, n)); errno != wire.EINVAL {
			t.Errorf("WRITE of %d: %v", n, errno)
		}
		if _, errno := c.Pread(0, n); errno != wire.EINVAL {
			t.Errorf("READ of %d: %v", n, errno)
		}
	}
	c.Request(wire.CmdWrite, 0, 1, 0, 64*mib+1)
	c.ExpectEnd()
	s.log.Expect("connection broken", "a payload of 67108865 bytes for WRITE")
}

func TestS1ThirtyTwoMiB(t *testing.T) {
	c := serve(t, withBackend(memory.New(64*mib))).connect(t)
	want := bytes.Repeat([]byte{7}, 32*mib)
	if errno := c.Do(wire.CmdWrite, 0, mib, 32*mib, want); errno != 0 {
		t.Fatal(errno)
	}
	if got, errno := c.Pread(mib, 32*mib); errno != 0 || !bytes.Equal(got, want) {
		t.Errorf("reading back: %v", errno)
	}
}

func TestS8LongTrimAndZero(t *testing.T) {
	c := serve(t, withBackend(memory.New(1<<40))).connect(t)
	for _, cmd := range []wire.Command{wire.CmdTrim, wire.CmdWriteZeroes} {
		if errno := c.Do(cmd, 0, 12345, math.MaxUint32); errno != 0 {
			t.Errorf("%v of 4 GiB: %v", cmd, errno)
		}
	}
}

func TestS9ZeroLength(t *testing.T) {
	c := serve(t).connect(t)
	for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdWrite, wire.CmdTrim, wire.CmdWriteZeroes} {
		c.Do(cmd, 0, 4096, 0) // any answer will do
	}
	if errno := c.Do(wire.CmdFlush, 0, 0, 0); errno != 0 {
		t.Error(errno)
	}
}

func TestS10PastTheEnd(t *testing.T) {
	c := serve(t).connect(t)
	for _, test := range []struct {
		off uint64
		n   uint32
	}{{8 * mib, 1}, {8*mib - 511, 512}, {math.MaxUint64, 512}, {math.MaxUint64 - 511, 512}, {math.MaxInt64, 512}} {
		for cmd, want := range map[wire.Command]wire.Errno{
			wire.CmdRead: wire.EINVAL, wire.CmdTrim: wire.EINVAL,
			wire.CmdWrite: wire.ENOSPC, wire.CmdWriteZeroes: wire.ENOSPC,
		} {
			var payload []byte
			if cmd == wire.CmdWrite {
				payload = make([]byte, test.n)
			}
			if errno := c.Do(cmd, 0, test.off, test.n, payload); errno != want {
				t.Errorf("%v %d at %d: %v, want %v", cmd, test.n, test.off, errno, want)
			}
		}
	}
	if _, errno := c.Pread(8*mib-512, 512); errno != 0 {
		t.Errorf("the last sector: %v", errno)
	}
}

func TestX12FUA(t *testing.T) {
	var mu sync.Mutex
	synced, dsync := 0, 0
	s := serve(t, edited(func(a *nbd.Abilities) {
		a.Sync = func() error { mu.Lock(); defer mu.Unlock(); synced++; return nil }
	}))
	c := s.connect(t)
	for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdFlush, wire.CmdTrim, wire.CmdWriteZeroes} {
		if errno := c.Do(cmd, wire.CmdFlagFUA, 0, 0); errno != 0 {
			t.Errorf("%v with FUA: %v", cmd, errno)
		}
	}
	if synced != 3 { // not for READ
		t.Errorf("%d syncs, want 3", synced)
	}
	if errno := c.Do(wire.CmdWrite, wire.CmdFlagFUA, 0, 512, make([]byte, 512)); errno != 0 || synced != 3 {
		t.Errorf("WRITE with FUA: %v, %d syncs", errno, synced) // memory has WriteFUA
	}

	s = serve(t, edited(func(a *nbd.Abilities) {
		a.WriteFUA = nil
		a.Sync = func() error { mu.Lock(); defer mu.Unlock(); dsync++; return nil }
	}))
	if errno := s.connect(t).Do(wire.CmdWrite, wire.CmdFlagFUA, 0, 512, make([]byte, 512)); errno != 0 || dsync != 1 {
		t.Errorf("WRITE with FUA, emulated: %v, %d syncs", errno, dsync)
	}

	// Without FLUSH there is no FUA either.
	c = serve(t, edited(func(a *nbd.Abilities) { a.Sync = nil })).connect(t)
	for _, cmd := range []wire.Command{wire.CmdFlush, wire.CmdTrim} {
		if errno := c.Do(cmd, wire.CmdFlagFUA, 0, 0); errno != wire.EINVAL {
			t.Errorf("%v with FUA that was not offered: %v", cmd, errno)
		}
	}
}

func TestX15ZeroesAreWrittenIfNeedBe(t *testing.T) {
	for name, edit := range map[string]func(*nbd.Abilities){
		"no ability": func(a *nbd.Abilities) { a.Zero = nil },
		"unsupported": func(a *nbd.Abilities) {
			a.Zero = func(int64, int64, nbd.ZeroFlags) error { return errors.ErrUnsupported }
		},
		"ENOTSUP": func(a *nbd.Abilities) { a.Zero = func(int64, int64, nbd.ZeroFlags) error { return syscall.ENOTSUP } },
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, edited(edit)).connect(t)
			ones := bytes.Repeat([]byte{1}, 2*mib)
			c.Do(wire.CmdWrite, 0, 0, 2*mib, ones)
			if errno := c.Do(wire.CmdWriteZeroes, 0, 100, mib); errno != 0 {
				t.Fatal(errno)
			}
			got, _ := c.Pread(0, 2*mib)
			clear(ones[100 : 100+mib])
			if !bytes.Equal(got, ones) {
				t.Error("the wrong bytes were zeroed")
			}
		})
	}
}

func TestX15NoHoleReachesTheBackend(t *testing.T) {
	flags := make(chan nbd.ZeroFlags, 2)
	c := serve(t, edited(func(a *nbd.Abilities) {
		a.Zero = func(_, _ int64, f nbd.ZeroFlags) error { flags <- f; return nil }
	})).connect(t)
	c.Do(wire.CmdWriteZeroes, 0, 0, 512)
	c.Do(wire.CmdWriteZeroes, wire.CmdFlagNoHole, 0, 512)
	if a, b := <-flags, <-flags; a != nbd.ZeroMayTrim || b != 0 {
		t.Errorf("flags %d and %d", a, b)
	}
}

func TestX19UnknownCommandsAndFlags(t *testing.T) {
	c := serve(t).connect(t)
	for _, test := range []struct {
		cmd   wire.Command
		flags wire.CommandFlags
	}{
		{99, 0},
		{0xffff, 0xffff},
		{wire.CmdBlockStatus, 0},
		{wire.CmdRead, wire.CmdFlagPayloadLen},
		{wire.CmdRead, wire.CmdFlagDF},
		{wire.CmdRead, 1 << 15},
		{wire.CmdTrim, wire.CmdFlagNoHole},
		{wire.CmdCache, wire.CmdFlagFastZero},
		{wire.CmdFlush, wire.CmdFlagReqOne},
	} {
		// A length, but no payload: only WRITE has one.
		if errno := c.Do(test.cmd, test.flags, 0, 4096); errno != wire.EINVAL {
			t.Errorf("command %d with flags %#x: %v", test.cmd, test.flags, errno)
		}
	}
	if errno := c.Do(wire.CmdWrite, wire.CmdFlagDF, 0, 512, make([]byte, 512)); errno != wire.EINVAL {
		t.Errorf("WRITE with DF: %v", errno)
	}
	c.Disconnect()
}

func TestX20Errors(t *testing.T) {
	for _, test := range []struct {
		err  error
		want wire.Errno
	}{
		{syscall.EIO, wire.EIO},
		{syscall.EDQUOT, wire.ENOSPC},
		{syscall.EFBIG, wire.ENOSPC},
		{syscall.ENOSPC, wire.ENOSPC},
		{syscall.EROFS, wire.EPERM},
		{syscall.EACCES, wire.EPERM},
		{syscall.EINVAL, wire.EINVAL},
		{syscall.ENOTSUP, wire.EIO},
		{syscall.EOVERFLOW, wire.EIO},
		{syscall.ESTALE, wire.EIO},
		{io.EOF, wire.EIO},
		{errors.New("what?"), wire.EIO},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, wire.ENOSPC},
		{fmt.Errorf("wrapped: %w", wire.ESHUTDOWN), wire.ESHUTDOWN},
	} {
		c := serve(t, edited(func(a *nbd.Abilities) {
			a.WriteAt = func([]byte, int64) (int, error) { return 0, test.err }
			a.ReadAt = a.WriteAt
		})).connect(t)
		if errno := c.Do(wire.CmdWrite, 0, 0, 512, make([]byte, 512)); errno != test.want {
			t.Errorf("WRITE that fails with %v: %v, want %v", test.err, errno, test.want)
		}
		if _, errno := c.Pread(0, 512); errno != test.want {
			t.Errorf("READ that fails with %v: %v, want %v", test.err, errno, test.want)
		}
	}
}

// X7: with simple replies an error has to be known before the header is sent.
func TestX7ShortReadsAndWritesAreErrors(t *testing.T) {
	s := serve(t, edited(func(a *nbd.Abilities) {
		short := func(p []byte, _ int64) (int, error) { return len(p) - 1, nil }
		a.ReadAt, a.WriteAt = short, short
	}))
	c := s.connect(t)
	if _, errno := c.Pread(0, 512); errno != wire.EIO {
		t.Errorf("short READ: %v", errno)
	}
	if errno := c.Do(wire.CmdWrite, 0, 0, 512, make([]byte, 512)); errno != wire.EIO {
		t.Errorf("short WRITE: %v", errno)
	}
	s.log.Expect("511 of 512 bytes were read")
}

func TestPanicOfABackendIsAnError(t *testing.T) {
	s := serve(t, edited(func(a *nbd.Abilities) {
		a.ReadAt = func([]byte, int64) (int, error) { panic("boo") }
	}))
	c := s.connect(t)
	if _, errno := c.Pread(0, 512); errno != wire.EIO {
		t.Errorf("READ: %v", errno)
	}
	if errno := c.Do(wire.CmdWrite, 0, 0, 512, make([]byte, 512)); errno != 0 {
		t.Errorf("WRITE: %v", errno)
	}
	s.log.Expect("a backend panicked", "boo")
}

// What ReadNow cannot do ReadAt does, and everything that can go wrong with it
// ends there.
func TestReadNow(t *testing.T) {
	calls := 0
	d := memory.New(8 * mib)
	d.WriteAt(bytes.Repeat([]byte("data"), mib), 0)
	s := serve(t, withBackend(faulty{d, func(a *nbd.Abilities) {
		a.ReadNow = func(p []byte, off int64) int {
			switch calls++; calls % 4 {
			case 0:
				n, _ := d.ReadAt(p, off)
				return n
			case 1:
				return 0
			case 2:
				return copy(p, "half of it, and not what is there")
			}
			panic("boo")
		}
	}}))
	for _, style := range []bool{false, true} {
		c := s.connect(t)
		if style {
			c = s.structured(t, false)
		}
		for i := range uint64(40) {
			var got []byte
			if style {
				r := ask(c, wire.CmdRead, 0, i*4, 4096)
				got, _, _, _ = c.Content(r, i*4, 4096)
			} else {
				got, _ = c.Pread(i*4, 4096)
			}
			if !bytes.Equal(got, bytes.Repeat([]byte("data"), 1024)) {
				t.Fatalf("read %d: the wrong bytes", i)
			}
		}
		c.Disconnect()
	}
	if calls < 40 { // not while somebody is sending
		t.Errorf("%d calls", calls)
	}
}

func TestX21DiscWaitsForWhatIsOutstanding(t *testing.T) {
	s := serve(t, edited(func(a *nbd.Abilities) {
		a.Sync = func() error { time.Sleep(100 * time.Millisecond); return nil }
	}))
	c := s.connect(t)
	c.Request(wire.CmdFlush, 0, 1, 0, 0)
	c.Request(wire.CmdFlush, 0, 2, 0, 0)
	c.Request(wire.CmdDisc, 0, 3, 0, 0)
	for range 2 {
		if cookie, errno := c.SimpleReply(); errno != 0 || cookie > 2 {
			t.Errorf("reply %d: %v", cookie, errno)
		}
	}
	c.ExpectEnd() // and no reply to DISC
	s.log.Expect("connection closed", "the client disconnected", "requests=2")
}

func TestX23BadRequestMagic(t *testing.T) {
	s := serve(t)
	c := s.connect(t)
	c.Send(make([]byte, 28))
	c.ExpectEnd()
	s.log.Expect("connection broken", "bad magic number")
}

// A payload that never comes to its end must not be written.
func TestHalfAWriteIsNotExecuted(t *testing.T) {
	wrote := make(chan int, 10)
	s := serve(t, edited(func(a *nbd.Abilities) {
		a.WriteAt = func(p []byte, _ int64) (int, error) { wrote <- len(p); return len(p), nil }
	}))
	c := s.connect(t)
	c.Request(wire.CmdWrite, 0, 1, 0, 4096, make([]byte, 4095))
	c.Close()
	s.log.Expect("connection broken", "reading the 4096 bytes of a WRITE")
	if len(wrote) != 0 {
		t.Error("it was executed")
	}
}

func TestExportIsClosed(t *testing.T) {
	closed := make(chan bool, 10)
	s := serve(t, edited(func(a *nbd.Abilities) { a.Close = func() error { closed <- true; return nil } }))
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepAck, wire.OptInfo, nbdtest.InfoRequest("disk"))
	<-closed // after INFO
	c.Go("disk")
	c.Disconnect()
	<-closed // after the connection
}
