package nbd_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"time"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// script is a connection whose client has said all it has to say.
type script struct {
	r       io.Reader
	written int64
}

func (s *script) Read(p []byte) (int, error)       { return s.r.Read(p) }
func (s *script) Write(p []byte) (int, error)      { s.written += int64(len(p)); return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// sealed is script behind something that stands for TLS: the state machine
// inside TLS is fuzzed without its cryptography.
func sealed(_ context.Context, nc net.Conn) (net.Conn, error) { return tlsScript{nc}, nil }

type tlsScript struct{ net.Conn }

// option is an option as it is sent.
func option(opt wire.Option, data []byte) []byte {
	return nbdtest.Bytes("IHAVEOPT", uint32(opt), uint32(len(data)), data)
}

// request is a compact request as it is sent.
func request(cmd wire.Command, flags wire.CommandFlags, off uint64, n uint32, payload string) []byte {
	return nbdtest.Bytes(uint32(0x25609513), uint16(flags), uint16(cmd), uint64(1), off, n, payload)
}

// FuzzServer feeds whole connections to a server: it must come to an end, without
// a panic, and within a bound of memory.
func FuzzServer(f *testing.F) {
	hello := nbdtest.Bytes(uint32(3))
	startTLS, goDisk := option(wire.OptStartTLS, nil), option(wire.OptGo, nbdtest.InfoRequest("disk", 1, 2, 3))
	structured, extended := option(wire.OptStructuredReply, nil), option(wire.OptExtendedHeaders, nil)
	meta := option(wire.OptSetMetaContext, nbdtest.MetaRequest("disk", "base:allocation"))
	work := bytes.Join([][]byte{
		request(wire.CmdWrite, 1, 4096, 5, "hello"), request(wire.CmdRead, 4, 4000, 9000, ""),
		request(wire.CmdTrim, 0, 0, 65536, ""), request(wire.CmdWriteZeroes, 18, 1, 70000, ""),
		request(wire.CmdCache, 0, 0, 1, ""), request(wire.CmdBlockStatus, 8, 0, 1<<20, ""), request(wire.CmdFlush, 0, 0, 0, ""),
		request(wire.CmdDisc, 0, 0, 0, ""),
	}, nil)
	extendedWork := nbdtest.Bytes(
		uint32(0x21e41c71), uint16(32), uint16(wire.CmdWrite), uint64(1), uint64(0), uint64(5), "hello",
		uint32(0x21e41c71), uint16(32), uint16(wire.CmdBlockStatus), uint64(1), uint64(0), uint64(12), uint64(65536), uint32(1),
		uint32(0x21e41c71), uint16(0), uint16(wire.CmdRead), uint64(1), uint64(0), uint64(65536))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for mode := range byte(3) {
		f.Add(mode, join(hello, goDisk, work))
		f.Add(mode, join(hello, structured, meta, goDisk, work))
		f.Add(mode, join(hello, extended, meta, goDisk, extendedWork))
		f.Add(mode, join(hello, option(wire.OptList, nil), option(wire.OptListMetaContext, nbdtest.MetaRequest("")), option(wire.OptExportName, []byte("disk")), work))
		f.Add(mode, join(hello, startTLS, goDisk))
		f.Add(mode, join(nbdtest.Bytes(uint32(0)), option(99, nil), option(wire.OptAbort, nil)))
	}
	f.Fuzz(func(t *testing.T, mode byte, data []byte) {
		s := &nbd.Server{
			Exports: nbd.ExportList{export("disk", memory.New(mib)), {Name: "secret", TLSOnly: true}},
			Log:     slog.New(slog.DiscardHandler),
			Limits:  nbd.Limits{Requests: 2},
		}
		var r io.Reader = bytes.NewReader(data)
		if mode%3 > 0 {
			s.StartTLS, s.ForceTLS = sealed, mode%3 == 2
			r = sips{r}
		}
		before := heap()
		c := &script{r: r}
		s.ServeConn(t.Context(), c)
		if grown := heap() - before; grown > memoryBound {
			t.Errorf("%d bytes of memory for %d of input", grown, len(data))
		}
		// One request of 28 bytes can ask for no more than 32 MiB.
		if most := int64(len(data)/28+1) * (wire.MaxPayload + 1<<16); c.written > most {
			t.Errorf("%d bytes of output for %d of input", c.written, len(data))
		}
	})
}

// memoryBound is what a connection may hold, whatever is sent: the bytes in
// flight of Limits, and something for buffers that wait to be used again.
const memoryBound = 64<<20 + 32<<20

func heap() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// sips reads a few bytes at a time, so that STARTTLS is not always
// taken for one with bytes behind it.
type sips struct{ r io.Reader }

func (o sips) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 16)]) }
