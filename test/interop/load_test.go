package interop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// maxIdleMemory is what an idle TLS connection may cost the server, in KiB.
const maxIdleMemory = 48

// Thousands of clients that do nothing cost little, and others do not notice.
func TestThousandsOfIdleConnections(t *testing.T) {
	const clients = 5000
	p, port := nbdtest.NewPKI(t), freePort(t)
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := fmt.Sprintf("listen: [{tcp: '127.0.0.1:%s'}]\ntls: {certificates: %s}\nlimits: {connections: %d}\nlog: {level: warn}\n"+
		"exports: [{name: disk, plugin: memory, parameters: {size: 1M}}]\n", port, p.Dir, clients+10)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startOn(t, port, program, "--config", file)
	tls := p.Client(p.ClientPair)
	connect := func() *nbdtest.Client {
		c := nbdtest.Hello(t, s.addr())
		c.StartTLS(tls)
		c.Go("disk")
		return c
	}
	first := connect()
	before, began := s.rss(), time.Now()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range clients / 4 {
				connect()
			}
		})
	}
	all.Wait()
	took, cost := time.Since(began), float64(s.rss()-before)/clients
	t.Logf("%d connections: %.1f KiB each; %.1f ms for each handshake of both sides", clients, cost, took.Seconds()*1000/clients)
	if cost > maxIdleMemory {
		t.Errorf("an idle connection costs %.1f KiB, more than %d", cost, maxIdleMemory)
	}
	for _, c := range []*nbdtest.Client{first, connect()} {
		c.SetDeadline(time.Now().Add(patience))
		if _, errno := c.Pread(0, 4096); errno != 0 {
			t.Error(errno)
		}
	}
}

func (s *server) addr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", "127.0.0.1:"+s.port)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// A server without file descriptors goes on with the clients it has, and takes new
// ones when it can again.
func TestOutOfFileDescriptors(t *testing.T) {
	s := start(t, "--tls=off", "memory", "1M")
	limit := &unix.Rlimit{Cur: 40, Max: 40}
	if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, limit, nil); err != nil {
		t.Fatal(err)
	}
	first := nbdtest.Hello(t, s.addr())
	first.Go("")
	var others []net.Conn
	for range 60 {
		c, err := net.Dial("tcp", s.addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		others = append(others, c)
	}
	s.log.expect("too many open files")
	if _, errno := first.Pread(0, 4096); errno != 0 {
		t.Errorf("the client that was there: %v", errno)
	}
	for _, c := range others {
		c.Close()
	}
	nbdtest.Hello(t, s.addr()).Go("")
}

// Whatever ends the server while clients write: what it has acknowledged is there.
func TestEndWhileWriting(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			const block, blocks = 4096, 1 << 14
			image := sparse(t, block*blocks)
			s := start(t, "--tls=off", "file", image)
			c := nbdtest.Hello(t, s.addr())
			c.Go("")
			go func() { // until the server hangs up
				p := make([]byte, block)
				for i := range uint64(blocks) {
					for j := 0; j < block; j += 8 {
						binary.BigEndian.PutUint64(p[j:], i+1)
					}
					if _, err := c.Write(nbdtest.Bytes(uint32(0x25609513), uint16(0), uint16(wire.CmdWrite), i, i*block, uint32(block), p)); err != nil {
						return
					}
				}
			}()
			var acknowledged []uint64
			for reply := make([]byte, wire.SimpleReplySize); ; {
				if _, err := io.ReadFull(c, reply); err != nil {
					break
				}
				if errno := binary.BigEndian.Uint32(reply[4:]); errno == 0 {
					acknowledged = append(acknowledged, binary.BigEndian.Uint64(reply[8:]))
				}
				if len(acknowledged) == 200 {
					s.killed = sig == syscall.SIGKILL
					s.cmd.Process.Signal(sig)
				}
			}
			<-s.done
			if n := len(acknowledged); n < 200 || n == blocks {
				t.Errorf("%d writes were acknowledged: that tests nothing", n)
			}
			p, want := make([]byte, block), make([]byte, 8)
			for _, i := range acknowledged {
				readAt(t, image, p, int64(i*block))
				binary.BigEndian.PutUint64(want, i+1)
				if !bytes.Equal(p, bytes.Repeat(want, block/8)) {
					t.Fatalf("write %d is lost", i)
				}
			}
			t.Logf("%d writes acknowledged", len(acknowledged))
		})
	}
}

// A flood of handshakes, of clients without a certificate, neither ends the server
// nor keeps others from working, or from coming in.
func TestHandshakeFlood(t *testing.T) {
	const flooders = 16
	p := nbdtest.NewPKI(t)
	s := start(t, "--tls-certificates="+p.Dir, "--tls-verify-peer", "memory", "1M")
	good := p.Client(p.ClientPair)
	enter := func() *nbdtest.Client {
		c := nbdtest.Hello(t, s.addr())
		c.StartTLS(good)
		c.Go("")
		return c
	}
	first, before := enter(), s.rss()
	var refused atomic.Int64
	stop := make(chan struct{})
	var flood sync.WaitGroup
	for range flooders {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := nbdtest.Hello(t, s.addr())
				c.StartTLS(p.Client(nil))
				if _, err := c.Read(make([]byte, 1)); err == nil {
					t.Error("a client without a certificate was let in")
				}
				c.Close()
				refused.Add(1)
			}
		})
	}
	var slowest time.Duration
	began := time.Now()
	for time.Since(began) < 3*time.Second {
		at := time.Now()
		if _, errno := first.Pread(0, 4096); errno != 0 {
			t.Error(errno)
		}
		slowest = max(slowest, time.Since(at))
	}
	at := time.Now()
	enter()
	entered := time.Since(at)
	close(stop)
	flood.Wait()
	t.Logf("%.0f handshakes refused in a second; the slowest of the reads beside them took %v, to come in %v; memory %+d KiB",
		float64(refused.Load())/time.Since(began).Seconds(), slowest.Round(time.Millisecond), entered.Round(time.Millisecond), s.rss()-before)
	if slowest > 5*time.Second || entered > 5*time.Second {
		t.Error("that is too slow")
	}
	if n := strings.Count(s.log.String(), "\n"); n > 3000 {
		t.Errorf("%d lines in the log", n)
	}
}
