package sh_test

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nbd-ktls-server/backends/backendtest"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/plugins/plugin"
	"nbd-ktls-server/plugins/sh"
)

// source configures a script.
func source(t testing.TB, h plugin.Host, script string, args ...string) (*plugin.Source, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script.sh")
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if h.Log == nil {
		h.Log = slog.New(slog.DiscardHandler)
	}
	s, err := plugin.Configure(sh.Plugin, nil, append([]string{path}, args...), h)
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

func open(t testing.TB, s *plugin.Source, ctx context.Context, info nbd.OpenInfo) *nbd.Abilities {
	t.Helper()
	b, err := s.Open(ctx, info)
	if err != nil {
		t.Fatal(err)
	}
	a, err := nbd.Resolve(b)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

const disk = `#!/bin/sh
case "$1" in
  thread_model) echo parallel ;;
  get_ready) truncate -s ` + "1053184" + ` $tmpdir/disk ;;
  get_size) stat -c %s $tmpdir/disk ;;
  pread) dd if=$tmpdir/disk iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none ;;
  pwrite) dd of=$tmpdir/disk conv=notrunc oflag=seek_bytes seek=$4 status=none ;;
  trim|zero) [ $3 = 0 ] || fallocate -p -o $4 -l $3 -n $tmpdir/disk ;;
  can_write|can_flush|can_trim|can_zero) exit 0 ;;
  *) exit 2 ;;
esac
`

func TestBackend(t *testing.T) {
	flag.Set("rapid.checks", "5") // a process for each step takes its time
	if backendtest.Size != 1053184 {
		t.Fatal("the script has another size")
	}
	backendtest.Run(t, func(t testing.TB) nbd.Backend {
		s, err := source(t, plugin.Host{}, disk)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Open(t.Context(), nbd.OpenInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

// TestStatuses: what the status of a script does to the server and the client.
func TestStatuses(t *testing.T) {
	for _, test := range []struct {
		status       int
		errno        wire.Errno // 0: it has succeeded
		exits        bool
		disconnected string
	}{
		{0, 0, false, ""},
		{1, wire.EIO, false, ""},
		{2, wire.EIO, false, ""},
		{3, wire.EIO, false, ""},
		{4, 0, true, ""},
		{5, wire.ESHUTDOWN, true, ""},
		{6, wire.EIO, false, "hard"},
		{7, 0, false, "soft"},
		{8, wire.ESHUTDOWN, false, "soft"},
		{9, wire.EIO, false, ""},
		{255, wire.EIO, false, ""},
	} {
		t.Run(strconv.Itoa(test.status), func(t *testing.T) {
			exits, disconnected := false, ""
			s, err := source(t, plugin.Host{Exit: func(string) { exits = true }},
				"case $1 in get_size) echo 1M;; pread) head -c $3 /dev/zero; exit "+strconv.Itoa(test.status)+";; *) exit 2;; esac")
			if err != nil {
				t.Fatal(err)
			}
			a := open(t, s, t.Context(), nbd.OpenInfo{Disconnect: func(_ error, hard bool) {
				disconnected = map[bool]string{true: "hard", false: "soft"}[hard]
			}})
			_, err = a.ReadAt(make([]byte, 512), 0)
			var errno wire.Errno
			errors.As(err, &errno)
			if (err == nil) != (test.errno == 0) || errno != test.errno || exits != test.exits || disconnected != test.disconnected {
				t.Errorf("%v, exits %v, disconnected %q", err, exits, disconnected)
			}
		})
	}
}

// TestKilled: a script ends with the connection that it works for, and so do its
// children.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := source(t, plugin.Host{}, "case $1 in get_size) echo 1M;; pread) sleep 1000 & echo $! > "+fifo+"; wait;; *) exit 2;; esac")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	a := open(t, s, ctx, nbd.OpenInfo{})
	done := make(chan error, 1)
	go func() {
		_, err := a.ReadAt(make([]byte, 512), 0)
		done <- err
	}()
	b, err := os.ReadFile(fifo) // it has begun
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("the client has gone")
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) || !errors.Is(err, wire.EIO) {
		t.Error(err)
	}
	for end := time.Now().Add(5 * time.Second); running(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the child of the script lives on")
		}
	}
}

// running reports whether a process runs: one that nobody has waited for does not.
func running(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// TestTooMuch: what a script prints is bounded.
func TestTooMuch(t *testing.T) {
	s, err := source(t, plugin.Host{}, "case $1 in get_size) echo 1M;; pread) cat /dev/zero;; *) exit 2;; esac")
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, s, t.Context(), nbd.OpenInfo{})
	if _, err := a.ReadAt(make([]byte, 512), 0); err == nil || !strings.Contains(err.Error(), "more than it may: 512 bytes") {
		t.Error(err)
	}
}

func TestOneConnectionAtATime(t *testing.T) {
	s, err := source(t, plugin.Host{}, "case $1 in thread_model) echo serialize-connections;; get_size) echo 1M;; pread) exit 1;; *) exit 2;; esac")
	if err != nil {
		t.Fatal(err)
	}
	first := open(t, s, t.Context(), nbd.OpenInfo{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Open(ctx, nbd.OpenInfo{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second connection: %v", err)
	}
	first.Close()
	open(t, s, t.Context(), nbd.OpenInfo{}).Close()
}

func TestScriptFromStandardInput(t *testing.T) {
	s, err := plugin.Configure(sh.Plugin, nil, []string{"-", "n=4"}, plugin.Host{
		Log:   slog.New(slog.DiscardHandler),
		Stdin: strings.NewReader("case $1 in config) echo $3 > $tmpdir/n;; get_size) cat $tmpdir/n;; pread) exit 1;; unload) touch $tmpdir/../unloaded;; *) exit 2;; esac"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if a := open(t, s, t.Context(), nbd.OpenInfo{}); a.Size != 4 {
		t.Errorf("%d bytes", a.Size)
	}
	unloaded := filepath.Join(os.TempDir(), "unloaded")
	defer os.Remove(unloaded)
	s.Close()
	if _, err := os.Stat(unloaded); err != nil {
		t.Errorf("the script was not unloaded: %v", err)
	}
	if _, err := plugin.Configure(sh.Plugin, nil, []string{"-"}, plugin.Host{}); err == nil || !strings.Contains(err.Error(), "a client is there") {
		t.Error(err)
	}
}
