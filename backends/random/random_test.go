package random_test

import (
	"bytes"
	"errors"
	"testing"

	"nbd-ktls-server/backends/random"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

// What is read in pieces is what is read at once, can be written, and nothing else
// can; another seed is another disk.
func TestDisks(t *testing.T) {
	const size = 1 << 20
	for name, open := range map[string]func(seed uint64) nbd.Backend{
		"random": func(seed uint64) nbd.Backend { return random.New(size, seed) },
		"sparse": func(seed uint64) nbd.Backend {
			return random.NewSparse(size, random.Sparse{Seed: seed, Percent: 40, RunLength: 16 << 10})
		},
		"sparse, random": func(seed uint64) nbd.Backend {
			return random.NewSparse(size, random.Sparse{Seed: seed, Percent: 40, RunLength: 1, Content: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := nbd.Resolve(open(1))
			if err != nil {
				t.Fatal(err)
			}
			all, part, other := make([]byte, size), make([]byte, size), make([]byte, size)
			a.ReadAt(all, 0)
			for at := 0; at < size; {
				n := min(at%1000+1, size-at)
				a.ReadAt(part[at:at+n], int64(at))
				at += n
			}
			if !bytes.Equal(all, part) {
				t.Error("read in pieces it is another disk")
			}
			if open(2).ReadAt(other, 0); bytes.Equal(all, other) {
				t.Error("another seed makes no difference")
			}
			if _, err := a.WriteAt(all[77:99999], 77); err != nil {
				t.Error(err)
			}
			all[50000]++
			if _, err := a.WriteAt(all[77:99999], 77); !errors.Is(err, wire.EIO) {
				t.Errorf("something else was written: %v", err)
			}
		})
	}
}

// About as much of a sparse disk is data as it should be, in runs about as long as
// they should be, and holes are zeroes.
func TestSparse(t *testing.T) {
	const size, run = 256 << 20, 256 << 10
	for _, percent := range []int{0, 10, 50, 90, 100} {
		a, err := nbd.Resolve(random.NewSparse(size, random.Sparse{Seed: 3, Percent: percent, RunLength: run}))
		if err != nil {
			t.Fatal(err)
		}
		var data, runs int64
		block := make([]byte, 4096)
		for off := int64(0); off < size; {
			hole, n := a.Hole(off, size-off)
			if a.ReadAt(block, off); hole != bytes.Equal(block, make([]byte, len(block))) {
				t.Fatalf("%d%%: at %d a hole: %v, and the data say otherwise", percent, off, hole)
			}
			if !hole {
				data, runs = data+n, runs+1
			}
			off += n
		}
		if got := int(data * 100 / size); got < percent-percent/10-1 || got > percent+percent/10+1 {
			t.Errorf("%d%% are data, want %d%%", got, percent)
		}
		if runs > 0 && percent <= 10 && (data/runs < run/2 || data/runs > 2*run) {
			t.Errorf("%d%%: runs of %d bytes, want %d", percent, data/runs, run)
		}
	}
}
