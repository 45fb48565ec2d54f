// Package backendtest is what every backend has to pass: the contract of
// [nbd.Backend] and [nbd.Abilities], checked against a slice of bytes.
package backendtest

import (
	"bytes"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"nbd-ktls-server/nbd"
)

// Size of the backends under test: odd, to find what is rounded, and more than
// a page of anything.
const Size = 1<<20 + 4096 + 512

// Run tests a writable backend. open returns a new one of Size bytes, all zero,
// which Run closes.
func Run(t *testing.T, open func(t testing.TB) nbd.Backend) {
	t.Run("Model", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) { model(rt, resolve(rt, open(t))) })
	})
	t.Run("Concurrent", func(t *testing.T) { concurrent(t, resolve(t, open(t))) })
	t.Run("Sparse", func(t *testing.T) { sparse(t, resolve(t, open(t))) })
	t.Run("Empty", func(t *testing.T) { empty(t, resolve(t, open(t))) })
}

// fataler is what testing.TB and rapid.T have in common.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(f func())
}

func resolve(t fataler, b nbd.Backend) *nbd.Abilities {
	t.Helper()
	a, err := nbd.Resolve(b)
	if err != nil {
		t.Fatalf("Resolve: %v", err)
	}
	if a.Size != Size {
		t.Fatalf("a size of %d, want %d", a.Size, Size)
	}
	t.Cleanup(func() {
		if a.Close == nil {
			return
		}
		if err := a.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	})
	return a
}

// model does random things to a backend and to a slice, which must agree.
func model(t *rapid.T, a *nbd.Abilities) {
	want := make([]byte, Size)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v", err)
		}
	}
	span := rapid.Custom(func(t *rapid.T) [2]int64 {
		off := rapid.Int64Range(0, Size).Draw(t, "offset")
		return [2]int64{off, rapid.Int64Range(0, min(Size-off, 1<<17)).Draw(t, "length")}
	})
	payload := func(n int64) []byte {
		seed := rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "data")
		return bytes.Repeat(seed, int(n)/len(seed)+1)[:n]
	}
	read := func(off, n int64) []byte {
		p := bytes.Repeat([]byte{0xdb}, int(n)) // what was in the buffer must not show
		k, err := a.ReadAt(p, off)
		if k != len(p) {
			t.Fatalf("ReadAt %d at %d: %d, %v", n, off, k, err)
		}
		return p
	}
	write := func(name string, writeAt func([]byte, int64) (int, error)) func(*rapid.T) {
		return func(t *rapid.T) {
			if writeAt == nil {
				t.Skip("no " + name)
			}
			s := span.Draw(t, "span")
			p := payload(s[1])
			k, err := writeAt(p, s[0])
			check(err)
			if k != len(p) {
				t.Fatalf("%s: %d of %d bytes", name, k, len(p))
			}
			copy(want[s[0]:], p)
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"ReadAt": func(t *rapid.T) {
			s := span.Draw(t, "span")
			if got := read(s[0], s[1]); !bytes.Equal(got, want[s[0]:s[0]+s[1]]) {
				t.Fatalf("%d bytes at %d are not what was written", s[1], s[0])
			}
		},
		"ReadNow": func(t *rapid.T) {
			if a.ReadNow == nil {
				t.Skip("no ReadNow")
			}
			s := span.Draw(t, "span")
			p := bytes.Repeat([]byte{0xdb}, int(s[1]))
			if n := a.ReadNow(p, s[0]); n > len(p) || !bytes.Equal(p[:n], want[s[0]:][:n]) {
				t.Fatalf("ReadNow %d at %d: %d bytes, or the wrong ones", s[1], s[0], n)
			}
		},
		"WriteAt":  write("WriteAt", a.WriteAt),
		"WriteFUA": write("WriteFUA", a.WriteFUA),
		"Zero": func(t *rapid.T) {
			if a.Zero == nil {
				t.Skip("no Zero")
			}
			s := span.Draw(t, "span")
			flags := rapid.SampledFrom([]nbd.ZeroFlags{0, nbd.ZeroMayTrim}).Draw(t, "flags")
			if a.Zero(s[0], s[1], flags) == nil { // otherwise the server writes zeroes
				clear(want[s[0] : s[0]+s[1]])
			}
		},
		"Trim": func(t *rapid.T) {
			if a.Trim == nil {
				t.Skip("no Trim")
			}
			s := span.Draw(t, "span")
			check(a.Trim(s[0], s[1]))
			copy(want[s[0]:], read(s[0], s[1])) // anything may be there now
		},
		"Sync": func(*rapid.T) { check(a.Sync()) },
		"Cache": func(t *rapid.T) {
			if a.Cache == nil {
				t.Skip("no Cache")
			}
			s := span.Draw(t, "span")
			check(a.Cache(s[0], s[1]))
		},
		"Hole": func(t *rapid.T) {
			if a.Hole == nil {
				t.Skip("no Hole")
			}
			s := span.Draw(t, "span")
			for off, end := s[0], s[0]+s[1]; off < end; {
				hole, n := a.Hole(off, end-off)
				if n < 1 || n > end-off {
					t.Fatalf("Hole at %d: %d of %d bytes", off, n, end-off)
				}
				if hole && !bytes.Equal(want[off:off+n], make([]byte, n)) {
					t.Fatalf("a hole of %d bytes at %d, where data are", n, off)
				}
				off += n
			}
		},
		"": func(t *rapid.T) {
			if got := read(0, Size); !bytes.Equal(got, want) {
				t.Fatalf("the whole is not what was written")
			}
		},
	})
}

// concurrent lets many write side by side: the race detector looks on, and
// nobody's bytes may be lost.
func concurrent(t *testing.T, a *nbd.Abilities) {
	const workers, rounds, part = 8, 20, Size / 8
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			off := int64(w * part)
			p, q := make([]byte, part), make([]byte, part)
			for r := range rounds {
				for i := range p {
					p[i] = byte(w + r)
				}
				if n, err := a.WriteAt(p, off); n != part || err != nil {
					t.Errorf("WriteAt: %d, %v", n, err)
				}
				if r%5 == 0 {
					if err := a.Sync(); err != nil {
						t.Errorf("Sync: %v", err)
					}
				}
				if n, err := a.ReadAt(q, off); n != part || !bytes.Equal(p, q) {
					t.Errorf("ReadAt: %d, %v, or the wrong bytes", n, err)
				}
			}
		})
	}
	wg.Wait()
}

// sparse: a backend that tells holes from data finds them again, and those that
// trimming makes.
func sparse(t *testing.T, a *nbd.Abilities) {
	if a.Hole == nil {
		t.Skip("no Hole")
	}
	if hole, _ := a.Hole(0, Size); !hole {
		t.Skip("all is data, as on a block device")
	}
	const at, n = 256 << 10, 128 << 10
	if _, err := a.WriteAt(bytes.Repeat([]byte{1}, n), at); err != nil {
		t.Fatal(err)
	}
	runs := func() (runs [][2]int64) { // of data
		for off := int64(0); off < Size; {
			hole, n := a.Hole(off, Size-off)
			if last := len(runs) - 1; !hole && last >= 0 && runs[last][1] == off {
				runs[last][1] = off + n
			} else if !hole {
				runs = append(runs, [2]int64{off, off + n})
			}
			off += n
		}
		return runs
	}
	if got := runs(); len(got) != 1 || got[0] != [2]int64{at, at + n} {
		t.Errorf("data at %v, want %d to %d", got, at, at+n)
	}
	if a.Trim == nil {
		return
	}
	if err := a.Trim(at, n); err != nil {
		t.Fatal(err)
	}
	if got := runs(); len(got) != 0 {
		t.Errorf("data at %v after trimming", got)
	}
}

// empty: nothing at all may be read, written, zeroed and trimmed, anywhere.
func empty(t *testing.T, a *nbd.Abilities) {
	for _, off := range []int64{0, 1, Size} {
		if _, err := a.WriteAt(nil, off); err != nil {
			t.Errorf("WriteAt at %d: %v", off, err)
		}
		if a.Zero != nil {
			if err := a.Zero(off, 0, 0); err != nil {
				t.Errorf("Zero at %d: %v", off, err)
			}
		}
		if a.Trim != nil {
			if err := a.Trim(off, 0); err != nil {
				t.Errorf("Trim at %d: %v", off, err)
			}
		}
	}
}
