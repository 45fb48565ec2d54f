package nbd_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// volatileDisk forgets what was not flushed when the power goes.
type volatileDisk struct {
	mu           sync.Mutex
	data, stable []byte
}

func (d *volatileDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.data[off:]), nil
}

func (d *volatileDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.data[off:], p), nil
}

func (d *volatileDisk) Size() (int64, error) { return int64(len(d.data)), nil }

func (d *volatileDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.stable, d.data)
	return nil
}

func (d *volatileDisk) Resolve(a *nbd.Abilities) error {
	a.MultiConn = true
	return nil
}

// What was acknowledged before a FLUSH was sent that was answered, or with FUA,
// survives whatever comes after, on this connection and on others (proto.md,
// "Ordering of messages and writes").
func TestPowerCut(t *testing.T) {
	const blocks, block = 256, 512
	d := &volatileDisk{data: make([]byte, blocks*block), stable: make([]byte, blocks*block)}
	addr := nbdtest.Serve(t, &nbd.Server{
		Log:     nbdtest.NewLog(t).Logger(),
		Exports: nbd.ExportList{{Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return d, nil }}},
	})
	clients := make([]*nbdtest.Client, 3)
	for i := range clients {
		clients[i] = nbdtest.Hello(t, addr)
		clients[i].Go("")
	}
	r := rand.New(rand.NewPCG(1, 2))
	written := make([]byte, blocks)  // what each block holds
	promised := make([]byte, blocks) // what it holds at least: blocks count up
	for n := range 300 {
		// Several requests are on their way on one connection.
		c := clients[r.IntN(len(clients))]
		batch := map[uint64]wire.CommandFlags{}
		for range 1 + r.IntN(8) {
			i := uint64(r.IntN(blocks))
			if _, twice := batch[i]; twice || written[i] == 255 {
				continue
			}
			batch[i] = []wire.CommandFlags{0, 0, 0, wire.CmdFlagFUA}[r.IntN(4)]
			written[i]++
			c.Request(wire.CmdWrite, batch[i], i, i*block, block, bytes.Repeat(written[i:i+1], block))
		}
		for range len(batch) {
			i, errno := c.SimpleReply()
			if errno != 0 {
				t.Fatal(errno)
			}
			if batch[i] == wire.CmdFlagFUA {
				promised[i] = written[i]
			}
		}
		if r.IntN(5) == 0 {
			if errno := clients[r.IntN(len(clients))].Do(wire.CmdFlush, 0, 0, 0); errno != 0 {
				t.Fatal(errno)
			}
			copy(promised, written)
		}
		d.mu.Lock()
		for i := range promised {
			if got := d.stable[i*block]; got < promised[i] {
				t.Fatalf("round %d: without power block %d holds write %d, and %d was promised", n, i, got, promised[i])
			}
		}
		d.mu.Unlock()
	}
}
