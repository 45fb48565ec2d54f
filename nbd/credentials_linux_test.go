package nbd_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/test/nbdtest"
)

// TestCredentials: of a client on a Unix socket is known who it is.
func TestCredentials(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan *nbd.Credentials, 1)
	s := &nbd.Server{Exports: nbd.ExportList{{Open: func(_ context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
		seen <- info.Client.Credentials
		return memory.New(512), nil
	}}}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	c := nbdtest.Hello(t, l.Addr())
	c.Go("")
	c.Disconnect()
	want := &nbd.Credentials{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if diff := cmp.Diff(want, <-seen); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
