package memory_test

import (
	"runtime"
	"testing"

	"nbd-ktls-server/backends/backendtest"
	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
)

func TestDisk(t *testing.T) {
	backendtest.Run(t, func(testing.TB) nbd.Backend { return memory.New(backendtest.Size) })
}

// A disk of 2^63-1 bytes costs what is written to it, and trimming gives it back.
func TestSparse(t *testing.T) {
	const size = 1<<63 - 1
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	d := memory.New(size)
	p := make([]byte, 16<<20)
	for i := range p {
		p[i] = 1
	}
	d.WriteAt(p, size-int64(len(p)))
	if used := heap() - before; used > 64<<20 {
		t.Errorf("16 MiB cost %d bytes", used)
	}
	d.Trim(size-int64(len(p)), int64(len(p)))
	clear(p)
	if n, err := d.ReadAt(p[:5], size-5); n != 5 || err != nil || p[0] != 0 {
		t.Errorf("after Trim: %v %v", p[:5], err)
	}
	p = nil
	if used := int64(heap()) - int64(before); used > 2<<20 {
		t.Errorf("%d bytes are left", used)
	}
	runtime.KeepAlive(d)
}
