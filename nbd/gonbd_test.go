package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/tlsengine"
)

// A backend written for go-nbd is exported over TLS as it is.
func Example_goNBD() {
	disk := backend.NewMemoryBackend(make([]byte, 1<<20)) // any go-nbd backend

	tls, err := tlsengine.New(tlsengine.Config{Dir: "/etc/pki/nbd", VerifyPeer: true})
	if err != nil {
		log.Fatal(err)
	}
	srv := &nbd.Server{
		Exports: nbd.ExportList{{
			Name: "disk",
			Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return disk, nil },
		}},
		StartTLS: tls.StartTLS,
		ForceTLS: true,
	}
	l, err := net.Listen("tcp", ":10809")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(srv.Serve(context.Background(), l))
}

// The same, run: go-nbd's two backends, through requests that its own server
// got wrong.
func TestGoNBDBackends(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/disk")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(mib); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]nbd.Backend{
		"memory": backend.NewMemoryBackend(make([]byte, mib)),
		"file":   backend.NewFileBackend(f),
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, withBackend(b)).connect(t)
			if errno := c.Do(wire.CmdWrite, wire.CmdFlagFUA, mib-512, 512, bytes.Repeat([]byte("x"), 512)); errno != 0 {
				t.Error(errno)
			}
			// Defect 10: go-nbd's memory backend kept its lock, or panicked, at the end.
			for range 2 {
				if _, errno := c.Pread(mib-256, 512); errno != wire.EINVAL {
					t.Errorf("past the end: %v", errno)
				}
			}
			if got, errno := c.Pread(mib-512, 512); errno != 0 || !bytes.Equal(got, bytes.Repeat([]byte("x"), 512)) {
				t.Errorf("reading back: %v", errno)
			}
			if errno := c.Do(wire.CmdWriteZeroes, 0, 0, mib); errno != 0 { // by writing
				t.Error(errno)
			}
			if errno := c.Do(wire.CmdTrim, 0, 0, 4096); errno != wire.EINVAL { // defect 5: out of step after this
				t.Errorf("TRIM without the ability: %v", errno)
			}
			c.Disconnect()
		})
	}
}
