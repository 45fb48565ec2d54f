//go:build !race

package bench

import (
	"fmt"
	"runtime"
	"testing"

	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// A READ that is spliced costs no more allocations than its goroutine's closure,
// one that is read and written none; nor does a WRITE. The client has one for all
// of them.
func TestAllocationsOfFiles(t *testing.T) {
	addr, _ := serve(t)
	for _, test := range []struct {
		command wire.Command
		size    int
		most    float64
	}{
		{wire.CmdRead, 4 << 10, 0.2},
		{wire.CmdRead, 64 << 10, 1.5},
		{wire.CmdWrite, 4 << 10, 0.2},
		{wire.CmdWrite, 64 << 10, 0.5},
	} {
		t.Run(fmt.Sprint(test.command, " ", test.size), func(t *testing.T) {
			c := nbdtest.Hello(t, addr)
			c.Go("disk")
			r := prepare(test.command, test.size)
			for range 20 {
				r.do(t, c)
			}
			const times = 100
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range times {
				r.do(t, c)
			}
			runtime.ReadMemStats(&after)
			n := float64(after.Mallocs-before.Mallocs) / float64(times*r.n)
			t.Logf("%.2f allocations for each", n)
			if n > test.most {
				t.Errorf("more than %v", test.most)
			}
		})
	}
}
