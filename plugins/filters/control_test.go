package filters

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// flaky is a disk of which requests fail as told, and that counts how often it was
// opened.
type flaky struct {
	*memory.Disk
	fail   error // as long as bad > 0
	bad    int
	opened int
	info   nbd.OpenInfo // of the last opening
	closed int
}

func (f *flaky) open(info nbd.OpenInfo) (nbd.Backend, error) {
	f.opened++
	f.info = info
	if f.bad > 0 && f.fail == errOpen {
		f.bad--
		return nil, f.fail
	}
	return f, nil
}

func (f *flaky) ReadAt(p []byte, off int64) (int, error) {
	if f.bad > 0 {
		f.bad--
		return 0, f.fail
	}
	return f.Disk.ReadAt(p, off)
}

func (f *flaky) Resolve(a *nbd.Abilities) error {
	a.Close = func() error { f.closed++; return nil }
	a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
		if flags&nbd.ZeroFast != 0 {
			f.bad--
			return syscall.ENOTSUP
		}
		return f.Disk.Zero(off, n, flags)
	}
	a.Cache = func(off, n int64) error { return nil }
	return nil
}

var errOpen = errors.New("it cannot be opened")

func TestRetry(t *testing.T) {
	for _, test := range []struct {
		filter, args string
		fail         error
		bad          int
		took         time.Duration
		opened       int
		ok           bool
	}{
		{filter: "retry", fail: syscall.EIO, bad: 0, opened: 1, ok: true},
		{filter: "retry", fail: syscall.EIO, bad: 3, took: (2 + 4 + 8) * time.Second, opened: 4, ok: true},
		{filter: "retry", fail: syscall.EIO, bad: 9, took: (2 + 4 + 8 + 16 + 32) * time.Second, opened: 6},
		{filter: "retry", args: "retries=2 retry-delay=3 retry-exponential=no", fail: syscall.EIO, bad: 2, took: 6 * time.Second, opened: 3, ok: true},
		{filter: "retry", args: "retries=0", fail: syscall.EIO, bad: 1, opened: 1},
		{filter: "retry", fail: errOpen, bad: 2, took: 6 * time.Second, opened: 3, ok: true},
		{filter: "retry-request", fail: syscall.EIO, bad: 2, took: 4 * time.Second, opened: 1, ok: true},
		{filter: "retry-request", args: "retry-request-delay=500ms", fail: syscall.EIO, bad: 3, took: time.Second, opened: 1},
		{filter: "retry-request", fail: errOpen, bad: 2, took: 4 * time.Second, opened: 3, ok: true},
	} {
		t.Run(fmt.Sprint(test.filter, " ", test.args, " ", test.fail, " ", test.bad), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &flaky{Disk: memory.New(512), fail: test.fail, bad: test.bad}
				s, err := over(t, f.open, test.filter, strings.Fields(test.args)...)
				if err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				a := open(t, s, nbd.OpenInfo{})
				_, err = a.ReadAt(make([]byte, 512), 0)
				if took := time.Since(begun); took != test.took || f.opened != test.opened || (err == nil) != test.ok {
					t.Errorf("after %v, opened %d times: %v; want %v, %d, %v", took, f.opened, err, test.took, test.opened, test.ok)
				}
				if err != nil && !errors.Is(err, test.fail) {
					t.Error(err)
				}
				begun = time.Now()
				if err := a.Zero(0, 512, nbd.ZeroFast); !errors.Is(err, syscall.ENOTSUP) || time.Since(begun) != 0 {
					t.Errorf("a fast zero: %v after %v", err, time.Since(begun))
				}
				if a.Close(); f.closed == 0 {
					t.Error("it was not closed")
				}
			})
		})
	}
}

// TestRetryReadOnly: after a failure nothing is written any more, nor opened for
// writing.
func TestRetryReadOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flaky{Disk: memory.New(512), fail: syscall.EIO, bad: 1}
		s, err := over(t, f.open, "retry", "retry-readonly=yes")
		if err != nil {
			t.Fatal(err)
		}
		a := open(t, s, nbd.OpenInfo{})
		if _, err := a.WriteAt(make([]byte, 1), 0); err != nil {
			t.Error(err)
		}
		if _, err := a.ReadAt(make([]byte, 1), 0); err != nil || !f.info.ReadOnly {
			t.Errorf("%v; opened read-only: %v", err, f.info.ReadOnly)
		}
		if _, err := a.WriteAt(make([]byte, 1), 0); !errors.Is(err, syscall.EROFS) {
			t.Error(err)
		}
	})
}

// TestRetryEndsWithTheConnection: nobody is waited for who has gone.
func TestRetryEndsWithTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flaky{Disk: memory.New(512), fail: syscall.EIO, bad: 100}
		s, err := over(t, f.open, "retry")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		b, err := s.Open(ctx, nbd.OpenInfo{})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := b.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.EIO) || time.Since(begun) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

func TestStats(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stats")
	s := must(t, memory.New(1<<20), "stats error", "statsfile="+path, "error-trim-rate=1")
	a := open(t, s, nbd.OpenInfo{})
	for _, r := range [][2]int64{{0, 512}, {4096, 4096}, {8192, 4096}, {512, 5000}} {
		a.ReadAt(make([]byte, r[1]), r[0])
	}
	a.WriteAt(make([]byte, 512), 1024)
	a.Trim(0, 4096) // fails, and is not counted
	a.Sync()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	b, _ := os.ReadFile(path)
	for _, want := range []string{
		"total: 6 ops, ",
		" s, 13.88 KiB, ",
		"\nread: 4 ops, ",
		" s, 13.38 KiB, ",
		"  Request size and alignment breakdown:\n" +
			"    12 bits: 75.0% (3 reqs, 12.88 KiB total)\n" +
			"          9 bit aligned: 100.0% (3)\n" +
			"         12 bit aligned:  66.7% (2)\n" +
			"         13 bit aligned:  33.3% (1)\n" +
			"     9 bits: 25.0% (1 reqs, 512 bytes total)\n\n",
		"\nwrite: 1 ops, ",
		"     9 bits: 100.0% (1 reqs, 512 bytes total)\n         10 bit aligned: 100.0% (1)\n",
		"\nflush: 1 ops, ",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is not in the statistics:\n%s", want, b)
		}
	}
	if strings.Contains(string(b), "trim") {
		t.Error("a trim that failed is counted")
	}
}

func TestCount(t *testing.T) {
	var log bytes.Buffer
	base := plugin.Plugin{Name: "base", Configure: func(*plugin.Params) (*plugin.Source, error) { return plugin.Single(memory.New(1 << 20)), nil }}
	s, err := plugin.Configure(base, []plugin.Filter{countFilter}, nil, plugin.Host{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, s, nbd.OpenInfo{})
	a.ReadAt(make([]byte, 10), 0)
	a.WriteAt(make([]byte, 20), 0)
	a.Zero(0, 30, 0)
	a.Trim(0, 40)
	if s.Close(); !strings.Contains(log.String(), "read=10 written=20 zeroed=30 trimmed=40") {
		t.Error(log.String())
	}
}

// TestExitWhen: an event ends the server, but not under its clients.
func TestExitWhen(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "flag")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	child := exec.Command("cat")
	input, _ := child.StdinPipe()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	touch := func() { os.WriteFile(flag, nil, 0o600) }
	remove := func() { os.Remove(flag) }
	for _, test := range []struct {
		arg    string
		before func()
		event  func()
	}{
		{"exit-when-file-created=" + flag, remove, touch},
		{"exit-when-file-deleted=" + flag, touch, remove},
		{"exit-when-script=test ! -e " + flag + " || exit 88", remove, touch},
		{fmt.Sprintf("exit-when-pipe-closed=%d", r.Fd()), remove, func() { w.Close() }},
		{fmt.Sprintf("exit-when-process-exits=%d", child.Process.Pid), remove, func() { input.Close(); child.Wait() }},
	} {
		t.Run(test.arg, func(t *testing.T) {
			exits := 0
			base := plugin.Plugin{Name: "base", Configure: func(*plugin.Params) (*plugin.Source, error) { return plugin.Single(memory.New(512)), nil }}
			test.before()
			s, err := plugin.Configure(base, []plugin.Filter{exitWhenFilter}, []string{test.arg},
				plugin.Host{Exit: func(string) { exits++ }, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			open(t, s, nbd.OpenInfo{}).Close()
			if exits != 0 {
				t.Fatal("it ends before anything has happened")
			}
			a := open(t, s, nbd.OpenInfo{})
			test.event()
			if _, err := s.Open(t.Context(), nbd.OpenInfo{}); err == nil || exits != 0 {
				t.Errorf("another client: %v; %d exits", err, exits)
			}
			if a.Close(); exits != 1 {
				t.Errorf("%d exits after the last client", exits)
			}
		})
	}
}

// TestExitWhenPolls: without clients the event is noticed, too, also at the start.
func TestExitWhenPolls(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "flag")
	synctest.Test(t, func(t *testing.T) {
		var exits atomic.Int32
		start := func() *plugin.Source {
			base := plugin.Plugin{Name: "base", Configure: func(*plugin.Params) (*plugin.Source, error) { return plugin.Single(memory.New(512)), nil }}
			s, err := plugin.Configure(base, []plugin.Filter{exitWhenFilter}, []string{"exit-when-file-created=" + flag, "exit-when-poll=5"},
				plugin.Host{Exit: func(string) { exits.Add(1) }, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := start()
		time.Sleep(7 * time.Second)
		os.WriteFile(flag, nil, 0o600)
		if exits.Load() != 0 {
			t.Error("too early")
		}
		time.Sleep(4 * time.Second)
		if synctest.Wait(); exits.Load() != 1 {
			t.Errorf("%d exits", exits.Load())
		}
		s.Close()
		s = start()
		if exits.Load() != 2 {
			t.Error("what had happened before the start is not noticed")
		}
		s.Close()
	})
}

func TestPause(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	s := must(t, memory.New(512), "pause", "pause-control="+path)
	a := open(t, s, nbd.OpenInfo{})
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	say := func(what, want string) {
		t.Helper()
		if _, err := c.Write([]byte(what)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("%q was answered %q, %v", what, got, err)
		}
	}
	read := func() error { _, err := a.ReadAt(make([]byte, 1), 0); return err }
	say("q P\n", "XX")
	say("p\np", "PP")

	// A client that goes does not wait.
	ctx, cancel := context.WithCancelCause(t.Context())
	b, err := s.Open(ctx, nbd.OpenInfo{})
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	cancel(gone)
	if _, err := b.ReadAt(make([]byte, 1), 0); !errors.Is(err, gone) {
		t.Error(err)
	}

	done := make(chan error)
	go func() { done <- read() }()
	say("r", "R")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestGate: pausing is done when those who were inside have left.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		g.enter(t.Context())
		shut := false
		go func() { <-g.shut(); shut = true }()
		if synctest.Wait(); shut {
			t.Error("somebody is inside")
		}
		entered := false
		go func() { g.enter(t.Context()); entered = true }()
		if synctest.Wait(); entered {
			t.Error("somebody entered a gate that is to be shut")
		}
		g.leave()
		if synctest.Wait(); !shut || entered {
			t.Error("everybody has left")
		}
		g.open()
		if synctest.Wait(); !entered {
			t.Error("the gate is open")
		}
	})
}

func TestEvil(t *testing.T) {
	const size = 4 << 20
	corrupt := func(a *nbd.Abilities, off, n int64) []byte {
		p := make([]byte, n)
		if _, err := a.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		return p
	}
	ones := func(p []byte) (n int) {
		for _, b := range p {
			n += bits.OnesCount8(b)
		}
		return n
	}
	within := func(what string, got, want int) {
		t.Helper()
		if got < want*8/10 || got > want*12/10 {
			t.Errorf("%s: %d bits, about %d expected", what, got, want)
		}
	}
	evil := func(args string) (a, other *nbd.Abilities) {
		s := must(t, memory.New(size), "evil", strings.Fields("evil-seed=7 "+args)...)
		return open(t, s, nbd.OpenInfo{Name: "a"}), open(t, s, nbd.OpenInfo{Name: "b"})
	}

	// Half of what is stuck is stuck at 1, which shows in zeroes.
	a, other := evil("evil-probability=0.0001")
	all := corrupt(a, 0, size)
	within("stuck", ones(all), size*8/10000/2)
	if !bytes.Equal(all[1000:2001000], corrupt(a, 1000, 2000000)) {
		t.Error("other bits are stuck if they are read otherwise")
	}
	if bytes.Equal(all, corrupt(other, 0, size)) {
		t.Error("another export has the same")
	}
	a, _ = evil("evil-probability=0.0001 evil-stuck-probability=50%")
	within("half stuck", ones(corrupt(a, 0, size)), size*8/10000/4)

	a, _ = evil("evil=cosmic-rays evil-probability=0.01%")
	first := corrupt(a, 0, size)
	within("flipped", ones(first), size*8/10000)
	if bytes.Equal(first, corrupt(a, 0, size)) {
		t.Error("the same bits flip twice")
	}

	a, _ = evil("evil=stuck-wires evil-probability=0.001")
	if !bytes.Equal(corrupt(a, 0, 1<<20), corrupt(a, 12345, 1<<20)) {
		t.Error("wires depend on the offset")
	}
	a, _ = evil("evil=cosmic-rays evil-probability=1")
	if n := ones(corrupt(a, 0, 4096)); n != 4096*8 {
		t.Errorf("%d of all bits flipped", n)
	}
}

// TestOpenOnce: what is below is opened once for each export, and closed with the
// server.
func TestOpenOnce(t *testing.T) {
	f := &flaky{Disk: memory.New(512), fail: errOpen, bad: 1}
	s, err := over(t, f.open, "openonce")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), nbd.OpenInfo{Name: "a"}); !errors.Is(err, errOpen) {
		t.Fatal(err)
	}
	for range 2 {
		if a := open(t, s, nbd.OpenInfo{Name: "a"}); a.Close != nil {
			t.Error("a connection can close it")
		}
	}
	open(t, s, nbd.OpenInfo{Name: "b"})
	if f.opened != 3 || f.closed != 0 {
		t.Errorf("opened %d times, closed %d times", f.opened, f.closed)
	}
	if s.Close(); f.closed != 2 {
		t.Errorf("closed %d times", f.closed)
	}
	for i := range maxOpen - 2 {
		open(t, s, nbd.OpenInfo{Name: fmt.Sprint(i)})
	}
	if _, err := s.Open(t.Context(), nbd.OpenInfo{Name: "one more"}); err == nil {
		t.Error("clients can make it keep as much as they like")
	}
}

// TestScan: every byte is cached once, those that clients have read are not, and a
// new client goes on where the last one left.
func TestScan(t *testing.T) {
	for _, test := range []struct {
		args   string
		read   int64 // up to where, before the scan goes on
		want   string
		second string // of the next client
	}{
		{"scan-size=64K", 0, "0+65536 65536+65536 131072+18928", ""},
		{"scan-size=64K scan-clock=false", 0, "0+65536 65536+65536 131072+18928", "0+65536 65536+65536 131072+18928"},
		{"scan-size=64K", 70000, "0+65536 70000+61072 131072+18928", ""},
		{"scan-size=64K scan-ahead=false", 70000, "0+65536 65536+65536 131072+18928", ""},
	} {
		t.Run(fmt.Sprint(test.args, " ", test.read), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var cached []string
				proceed := make(chan struct{})
				below := plugin.Single(nbd.Resolved(&nbd.Abilities{
					Size:   150000,
					ReadAt: func(p []byte, _ int64) (int, error) { return len(p), nil },
					Cache: func(off, n int64) error {
						cached = append(cached, fmt.Sprintf("%d+%d", off, n))
						<-proceed
						return nil
					},
				}))
				base := plugin.Plugin{Name: "base", Configure: func(*plugin.Params) (*plugin.Source, error) { return below, nil }}
				s, err := plugin.Configure(base, []plugin.Filter{scanFilter}, strings.Fields(test.args), plugin.Host{Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				a := open(t, s, nbd.OpenInfo{})
				synctest.Wait()
				a.ReadAt(make([]byte, test.read), 0)
				close(proceed)
				synctest.Wait()
				if got := strings.Join(cached, " "); got != test.want {
					t.Errorf("cached %s, want %s", got, test.want)
				}
				a.Close()
				cached = nil
				a = open(t, s, nbd.OpenInfo{})
				synctest.Wait()
				if got := strings.Join(cached, " "); got != test.second {
					t.Errorf("then cached %s, want %s", got, test.second)
				}
				a.Close()
			})
		})
	}
}
