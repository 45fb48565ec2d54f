//go:build !race

package nbd_test

import (
	"encoding/binary"
	"io"
	"runtime"
	"testing"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

// A request costs no allocation, whoever works on it, but for the goroutine's
// closure if it has one of its own.
func TestAllocationsPerRequest(t *testing.T) {
	for _, test := range []struct {
		name    string
		command wire.Command
		edit    func(*nbd.Abilities)
		most    float64
	}{
		{"READ by the reader", wire.CmdRead, func(*nbd.Abilities) {}, 0.1},
		{"READ by a goroutine", wire.CmdRead, func(a *nbd.Abilities) { a.ReadNow = nil }, 1.1},
		{"WRITE by the reader", wire.CmdWrite, func(*nbd.Abilities) {}, 0.1},
		{"WRITE by a goroutine", wire.CmdWrite, func(a *nbd.Abilities) { a.Buffered = false }, 1.1},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := memory.New(8 * mib)
			c := serve(t, withBackend(faulty{d, func(a *nbd.Abilities) {
				a.ReadNow = func(p []byte, off int64) int { n, _ := d.ReadAt(p, off); return n }
				test.edit(a)
			}})).connect(t)
			const length, batch, batches = 4096, 8, 500
			one := (&wire.Request{Command: test.command, Length: length}).Append(nil)
			reply := make([]byte, wire.SimpleReplySize+length)
			if test.command == wire.CmdWrite {
				one, reply = append(one, make([]byte, length)...), reply[:wire.SimpleReplySize]
			}
			var all []byte
			for range batch {
				all = append(all, one...)
			}
			do := func() {
				if _, err := c.Conn.Write(all); err != nil {
					t.Fatal(err)
				}
				for range batch {
					if _, err := io.ReadFull(c.Conn, reply); err != nil {
						t.Fatal(err)
					}
					if errno := binary.BigEndian.Uint32(reply[4:]); errno != 0 {
						t.Fatalf("errno %d", errno)
					}
				}
			}
			for range 50 {
				do()
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range batches {
				do()
			}
			runtime.ReadMemStats(&after)
			if n := float64(after.Mallocs-before.Mallocs) / (batch * batches); n > test.most {
				t.Errorf("%.2f allocations for each request, at most %.1f", n, test.most)
			} else {
				t.Logf("%.2f", n)
			}
		})
	}
}
