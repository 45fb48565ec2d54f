// Package bench measures the way of a request through everything that serves it.
package bench

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/ktls"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

const imageSize = 64 << 20

// serve serves a file of zeroes.
func serve(tb testing.TB) (net.Addr, *nbdtest.PKI) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, imageSize), 0o600); err != nil {
		tb.Fatal(err)
	}
	p, image := nbdtest.NewPKI(tb), file.NewPath(path, file.Options{})
	s := &nbd.Server{
		Exports: nbd.ExportList{{Name: "disk", Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) {
			return image.Open()
		}}},
		Log:      slog.New(slog.DiscardHandler),
		StartTLS: p.StartTLS(tb, false),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	nbdtest.ServeOn(tb, s, ktls.Listener{Listener: l})
	return l.Addr(), p
}

// BenchmarkRequests is READ and WRITE of a file in the page cache, many at a time,
// with a client in the same process: for profiles, and allocations. Beside other
// servers it is measured by compare.
func BenchmarkRequests(b *testing.B) {
	addr, p := serve(b)
	for _, tls := range []bool{true, false} {
		for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdWrite} {
			for _, size := range []int{512, 4 << 10, 64 << 10, 256 << 10, 1 << 20} {
				b.Run(fmt.Sprintf("tls=%v/%v/%d", tls, cmd, size), func(b *testing.B) {
					c := nbdtest.Hello(b, addr)
					if tls {
						c.StartTLS(p.Client(nil))
					}
					c.Go("disk")
					c.SetDeadline(time.Time{})
					r := prepare(cmd, size)
					b.SetBytes(int64(size))
					b.ReportAllocs()
					for i := 0; i < b.N; i += r.n {
						r.do(b, c)
					}
				})
			}
		}
	}
}

// requests are some of one size, up to a MiB of them or 32, and room for the
// replies.
type requests struct {
	n            int
	all, replies []byte
}

func prepare(cmd wire.Command, size int) *requests {
	r := &requests{n: min(32, 1<<20/size)}
	reply := wire.SimpleReplySize
	for i := range r.n {
		at := i * (imageSize / r.n)
		r.all = (&wire.Request{Command: cmd, Cookie: wire.Cookie(i), Offset: uint64(at), Length: uint64(size)}).Append(r.all)
		if cmd == wire.CmdWrite {
			r.all = append(r.all, make([]byte, size)...)
		}
	}
	if cmd == wire.CmdRead {
		reply += size
	}
	r.replies = make([]byte, r.n*reply)
	return r
}

// do sends them, and waits for the replies.
func (r *requests) do(tb testing.TB, c *nbdtest.Client) {
	go c.Write(r.all)
	if _, err := io.ReadFull(c, r.replies); err != nil {
		tb.Fatal(err)
	}
}
