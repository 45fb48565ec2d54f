package filters

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

// picky is a disk that takes what is aligned, and not too much of it.
type picky struct {
	*memory.Disk
	min, data, span int64
}

func (d picky) check(off, n, most int64) error {
	if (off|n)%d.min != 0 || n > most {
		return fmt.Errorf("%d bytes at %d", n, off)
	}
	return nil
}

func (d picky) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p)), d.data); err != nil {
		return 0, err
	}
	return d.Disk.ReadAt(p, off)
}

func (d picky) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p)), d.data); err != nil {
		return 0, err
	}
	return d.Disk.WriteAt(p, off)
}

func (d picky) Resolve(a *nbd.Abilities) error {
	a.BlockSize = nbd.BlockSize{Minimum: uint32(d.min), Preferred: 4096, Maximum: uint32(d.data)}
	spans := func(f func(off, n int64) error) func(off, n int64) error {
		return func(off, n int64) error { return errors.Join(d.check(off, n, d.span), f(off, n)) }
	}
	a.Trim = spans(d.Trim)
	a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
		return spans(func(off, n int64) error { return d.Disk.Zero(off, n, flags) })(off, n)
	}
	a.Cache = spans(func(_, _ int64) error { return nil })
	a.Extents = func(off, n int64, _ bool) ([]nbd.Extent, error) {
		return []nbd.Extent{{Length: n / 2}, {Length: n - n/2, Hole: true}}, d.check(off, n, d.span)
	}
	return nil
}

// Whatever is asked of it, the disk gets what it takes; writers of neighbouring
// bytes do not overwrite each other's.
func TestBlocksize(t *testing.T) {
	d := picky{memory.New(1 << 20), 4096, 16 << 10, 64 << 10}
	s := must(t, d, "blocksize", "maxlen=64K")
	model := make([]byte, 1<<20)
	var all sync.WaitGroup
	for w := range 4 { // each has every fourth kilobyte
		a := open(t, s, nbd.OpenInfo{})
		if a.BlockSize.Minimum != 1 {
			t.Fatalf("%+v", a.BlockSize)
		}
		all.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(w)))
			for range 500 {
				off := (r.IntN(256)*4 + w) * 1024
				p := model[off : off+1+r.IntN(1024)]
				var err error
				switch r.IntN(4) {
				case 0:
					clear(p)
					err = a.Zero(int64(off), int64(len(p)), 0)
				case 1:
					got := make([]byte, len(p))
					if _, err = a.ReadAt(got, int64(off)); err == nil && !bytes.Equal(got, p) {
						err = errors.New("wrong data")
					}
				default:
					for i := range p {
						p[i] = byte(r.Uint32())
					}
					_, err = a.WriteAt(p, int64(off))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	a := open(t, s, nbd.OpenInfo{})
	got := make([]byte, len(model)-3)
	if _, err := a.ReadAt(got, 1); err != nil || !bytes.Equal(got, model[1:len(model)-2]) {
		t.Errorf("%v, or wrong data", err)
	}
	for name, f := range map[string]func(off, n int64) error{
		"trim": a.Trim, "cache": a.Cache,
		"zero":    func(off, n int64) error { return a.Zero(off, n, nbd.ZeroMayTrim) },
		"extents": func(off, n int64) error { _, err := a.Extents(off, n, false); return err },
	} {
		if err := f(1000, 1000000); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	extents, _ := a.Extents(5000, 10, false)
	if len(extents) == 0 || extents[0].Length > 10 {
		t.Errorf("%v", extents)
	}
}

func TestBlocksizePolicy(t *testing.T) {
	a := open(t, must(t, memory.New(1<<20+5), "blocksize-policy", "blocksize-minimum=4096", "blocksize-preferred=32K", "blocksize-maximum=1M"), nbd.OpenInfo{})
	if a.BlockSize != (nbd.BlockSize{Minimum: 4096, Preferred: 32 << 10, Maximum: 1 << 20}) || a.Size != 1<<20 {
		t.Errorf("%+v, %d bytes", a.BlockSize, a.Size)
	}
	b, err := must(t, memory.New(1<<20), "blocksize-policy", "blocksize-minimum=3").Open(t.Context(), nbd.OpenInfo{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nbd.Resolve(b); err == nil {
		t.Error("a minimum of 3 bytes")
	}
}

func TestCheckwrite(t *testing.T) {
	d := memory.New(1 << 20)
	d.WriteAt([]byte("text"), 100)
	a := open(t, must(t, d, "checkwrite"), nbd.OpenInfo{})
	if _, err := a.WriteAt([]byte("text\x00"), 100); err != nil {
		t.Error(err)
	}
	if err := a.Zero(104, 1<<20-104, 0); err != nil {
		t.Error(err)
	}
	_, err := a.WriteAt([]byte("TEXT"), 100)
	for _, err := range []error{err, a.Zero(0, 101, 0), a.Trim(103, 1)} {
		if !errors.Is(err, wire.EIO) {
			t.Errorf("%v, want EIO", err)
		}
	}
}

// counted counts what is asked of a disk.
type counted struct {
	*memory.Disk
	mu                   sync.Mutex
	reads, writes, syncs int
}

func (d *counted) count(n *int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*n++
}

func (d *counted) ReadAt(p []byte, off int64) (int, error) {
	d.count(&d.reads)
	return d.Disk.ReadAt(p, off)
}

func (d *counted) WriteAt(p []byte, off int64) (int, error) {
	d.count(&d.writes)
	return d.Disk.WriteAt(p, off)
}
func (d *counted) Sync() error                  { d.count(&d.syncs); return nil }
func (d *counted) Resolve(*nbd.Abilities) error { return nil }

// When what is written gets below, and what is read twice.
func TestCacheModes(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "on")
	for _, test := range []struct {
		args string
		// How often the disk is asked, at: two writes, a sync, two reads, the end.
		writes, reads [5]int
	}{
		{"", [5]int{0, 0, 1, 1, 1}, [5]int{1, 1, 1, 3, 3}},
		{"cache=unsafe", [5]int{}, [5]int{1, 1, 1, 3, 3}},
		{"cache=writethrough", [5]int{1, 2, 2, 2, 2}, [5]int{0, 0, 0, 2, 2}},
		{"cache-on-read=true", [5]int{0, 0, 1, 1, 1}, [5]int{1, 1, 1, 2, 2}},
		{"cache-on-read=" + flag, [5]int{0, 0, 1, 1, 1}, [5]int{1, 1, 1, 3, 3}},
	} {
		d := &counted{Disk: memory.New(1 << 20)}
		a := open(t, must(t, d, "cache", strings.Fields(test.args)...), nbd.OpenInfo{})
		check := func(i int) {
			t.Helper()
			if d.writes != test.writes[i] || d.reads != test.reads[i] {
				t.Errorf("%q, step %d: %d writes and %d reads, want %d and %d", test.args, i, d.writes, d.reads, test.writes[i], test.reads[i])
			}
		}
		p := []byte("text")
		a.WriteAt(p, 1000)
		check(0)
		a.WriteAt(p, 2000)
		check(1)
		a.Sync()
		check(2)
		a.ReadAt(p, 512<<10)
		a.ReadAt(p, 512<<10)
		check(3)
		a.Close()
		check(4)
	}
}

// What clients have not flushed is below when the last one has gone; caches of
// different names are different.
func TestCacheOfNames(t *testing.T) {
	disks := map[string]*memory.Disk{"a": memory.New(1 << 20), "b": memory.New(1 << 20)}
	s, err := over(t, func(info nbd.OpenInfo) (nbd.Backend, error) { return disks[info.Name], nil }, "cache")
	if err != nil {
		t.Fatal(err)
	}
	a1, a2, b := open(t, s, nbd.OpenInfo{Name: "a"}), open(t, s, nbd.OpenInfo{Name: "a"}), open(t, s, nbd.OpenInfo{Name: "b"})
	a1.WriteAt([]byte("text"), 0)
	p := make([]byte, 4)
	if a2.ReadAt(p, 0); string(p) != "text" {
		t.Errorf("another connection reads %q", p)
	}
	if b.ReadAt(p, 0); string(p) != "\x00\x00\x00\x00" {
		t.Errorf("another export reads %q", p)
	}
	a1.Close()
	if disks["a"].ReadAt(p, 0); string(p) == "text" {
		t.Error("it is below while there is another client")
	}
	a2.Close()
	if disks["a"].ReadAt(p, 0); string(p) != "text" {
		t.Error("it is not below when all have gone")
	}
}

// A cache does not grow over its limit, and gives storage back.
func TestCacheIsBounded(t *testing.T) {
	o := &cacheOptions{mode: writeback, block: 4096, most: 20, least: 10, onRead: func() bool { return true }}
	s := &store{cacheOptions: o}
	d := memory.New(4 << 20)
	a, err := nbd.Resolve(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.open(a); err != nil {
		t.Fatal(err)
	}
	defer s.forget()
	for off := int64(0); off < 4<<20; off += 4096 {
		if _, err := a.WriteAt([]byte{byte(off >> 12)}, off); err != nil {
			t.Fatal(err)
		}
		if len(s.blocks) > 20 {
			t.Fatalf("%d blocks", len(s.blocks))
		}
	}
	p := make([]byte, 1)
	for off := int64(0); off < 4<<20; off += 4096 {
		if a.ReadAt(p, off); p[0] != byte(off>>12) {
			t.Fatalf("at %d: %d", off, p[0])
		}
	}
}

// A client that reads on is read ahead of, and one that jumps is not.
func TestReadahead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<20)); err != nil {
		t.Fatal(err)
	}
	f, err := file.Open(path, file.Options{NoLocking: true})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked [][2]int64
	base := must(t, f, "")
	base.Edit(func(_ context.Context, _ nbd.OpenInfo, a *nbd.Abilities) error {
		a.Cache = func(off, n int64) error {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, [2]int64{off, n})
			return nil
		}
		return nil
	})
	a := open(t, base, nbd.OpenInfo{})
	readAhead(a)
	p := make([]byte, 4096)
	for _, off := range []int64{500 << 10, 100 << 10, 700 << 10} { // jumps
		a.ReadAt(p, off)
	}
	for off := int64(0); off < 1<<20; off += 4096 {
		if off == 0 {
			a.ReadAt(p, off)
		} else if _, _, ok := a.Section(off, 4096); !ok {
			t.Fatal("it is not streamed any more")
		}
	}
	a.Close()
	if len(asked) == 0 {
		t.Error("nothing was read ahead")
	}
	end := int64(4096)
	for _, r := range asked {
		if r[0] < end || r[0]+r[1] > 1<<20 {
			t.Errorf("%v after %d", r, end)
		}
		end = r[0] + r[1]
	}
}
