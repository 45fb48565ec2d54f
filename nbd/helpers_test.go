package nbd_test

import (
	"context"
	"net"
	"testing"

	"go.uber.org/goleak"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/test/nbdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// export offers a backend under a name.
func export(name string, b nbd.Backend) nbd.Export {
	return nbd.Export{
		Name: name,
		Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return b, nil },
	}
}

// server is a server whose log the test can read.
type server struct {
	*nbd.Server
	log  *nbdtest.Log
	addr net.Addr
}

// serve starts a server of an 8 MiB disk called "disk", changed by options.
func serve(t *testing.T, options ...func(*nbd.Server)) *server {
	t.Helper()
	s := &server{
		Server: &nbd.Server{Exports: nbd.ExportList{export("disk", memory.New(8*mib))}},
		log:    nbdtest.NewLog(t),
	}
	s.Log = s.log.Logger()
	for _, o := range options {
		o(s.Server)
	}
	s.addr = nbdtest.Serve(t, s.Server)
	return s
}

func withExports(e ...nbd.Export) func(*nbd.Server) {
	return func(s *nbd.Server) { s.Exports = nbd.ExportList(e) }
}

func withBackend(b nbd.Backend) func(*nbd.Server) { return withExports(export("disk", b)) }

func withLimits(l nbd.Limits) func(*nbd.Server) { return func(s *nbd.Server) { s.Limits = l } }

// connect returns a client in transmission.
func (s *server) connect(t *testing.T) *nbdtest.Client {
	t.Helper()
	c := nbdtest.Hello(t, s.addr)
	c.Go("disk")
	return c
}
