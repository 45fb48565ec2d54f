package mkdisk

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

func configured(t *testing.T, p plugin.Plugin, args ...string) *plugin.Source {
	t.Helper()
	s, err := plugin.Configure(p, nil, args, plugin.Host{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func opened(t *testing.T, s *plugin.Source, name string) *nbd.Abilities {
	t.Helper()
	b, err := s.Open(t.Context(), nbd.OpenInfo{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	a, err := nbd.Resolve(b)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Each client has a disk of its own, of which nothing is left.
func TestTmpdisk(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	s := configured(t, Tmpdisk, "size=1M", "text=one two", `command=truncate -s $size "$disk"; printf "$text" | dd of="$disk" conv=notrunc status=none`)
	first, second := opened(t, s, ""), opened(t, s, "")
	p := make([]byte, 7)
	if first.WriteAt([]byte("ONE"), 0); first.Size != 1<<20 {
		t.Errorf("a size of %d", first.Size)
	}
	if second.ReadAt(p, 0); string(p) != "one two" {
		t.Errorf("the second disk begins with %q", p)
	}
	first.Close()
	second.Close()
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

func TestFileSystem(t *testing.T) {
	a := opened(t, configured(t, Tmpdisk, "8M", "label=mine"), "")
	defer a.Close()
	super := make([]byte, 1024)
	if _, err := a.ReadAt(super, 1024); err != nil {
		t.Fatal(err)
	}
	if super[0x38] != 0x53 || super[0x39] != 0xef || !strings.HasPrefix(string(super[0x78:]), "mine\x00") {
		t.Error("there is no ext4 called mine on it")
	}
}

func TestOndemand(t *testing.T) {
	dir := t.TempDir()
	s := configured(t, Ondemand, "dir="+dir, "1M", `command=truncate -s $size "$disk"; case $disk in *bad*) echo no luck; exit 1; esac`)
	a := opened(t, s, "a")
	a.WriteAt([]byte("text"), 0)
	if _, err := s.Open(t.Context(), nbd.OpenInfo{Name: "a"}); err == nil || !strings.Contains(err.Error(), "locked by another client") {
		t.Errorf("a second client: %v", err)
	}
	opened(t, s, "").Close() // another disk has another client
	a.Close()
	p := make([]byte, 4)
	a = opened(t, s, "a")
	if a.ReadAt(p, 0); string(p) != "text" {
		t.Errorf("the disk begins with %q", p)
	}
	a.Close()
	if _, err := s.Open(t.Context(), nbd.OpenInfo{Name: "bad"}); err == nil || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("a disk that could not be made: %v", err)
	}
	for _, name := range []string{"..", "a/b", ".x", "a:b", "a\nb", strings.Repeat("x", 252)} {
		if _, err := s.Open(t.Context(), nbd.OpenInfo{Name: name}); !errors.Is(err, nbd.ErrNoExport) {
			t.Errorf("%q: %v", name, err)
		}
	}
	list, err := s.List(t.Context(), nbd.Client{})
	if err != nil || len(list) != 2 || list[0].Name != "a" || list[1].Name != "default" {
		t.Errorf("%v, %v", list, err)
	}
	if left, _ := filepath.Glob(dir + "/*.new"); left != nil {
		t.Errorf("%v is left", left)
	}
}

// With wait= the second client waits for the first to go.
func TestOndemandWaits(t *testing.T) {
	s := configured(t, Ondemand, "dir="+t.TempDir(), "wait=true", "1M", `command=truncate -s $size "$disk"`)
	first := opened(t, s, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Open(ctx, nbd.OpenInfo{Name: "a"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while there is another client: %v", err)
	}
	second := make(chan error)
	go func() {
		b, err := s.Open(t.Context(), nbd.OpenInfo{Name: "a"})
		if err == nil {
			err = b.(interface{ Close() error }).Close()
		}
		second <- err
	}()
	first.Close()
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// A client that goes does not wait for its disk.
func TestCommandIsKilled(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	s := configured(t, Tmpdisk, "1M", "command=sleep 1000")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Open(ctx, nbd.OpenInfo{}); err == nil {
		t.Error("a disk was made")
	}
}
