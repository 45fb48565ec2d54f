package ktls

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair returns a Socket and its peer, over TCP.
func socketPair(t *testing.T) (*Socket, *net.TCPConn) {
	t.Helper()
	a, b := tcpPair(t)
	return NewSocket(a), b
}

func TestSocketCarriesBytes(t *testing.T) {
	s, peer := socketPair(t)
	if n, err := s.Read(nil); n != 0 || err != nil { // at once, though there is nothing
		t.Errorf("nothing: %d, %v", n, err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB: many pieces, and both have to wait
	for name, way := range map[string]struct {
		to   io.WriteCloser
		from io.Reader
	}{"out": {nopCloser{s}, peer}, "in": {nopCloser{peer}, s}} {
		sent := make(chan error)
		go func() {
			_, err := way.to.Write(want)
			sent <- err
		}()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(way.from, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, or other bytes", name, err)
		}
		if err := <-sent; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	peer.CloseWrite()
	if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	peer.Close()
	s.Write([]byte("x"))
	time.Sleep(10 * time.Millisecond) // for the RST
	var oe *net.OpError
	if _, err := s.Write([]byte("x")); !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) || !errors.As(err, &oe) || oe.Op != "write" {
		t.Errorf("to nobody: %v", err)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// A deadline holds for a write that waits, whether it is set before or meanwhile.
func TestSocketWriteDeadline(t *testing.T) {
	for name, set := range map[string]func(*Socket){
		"before":         func(s *Socket) { s.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)) },
		"before, passed": func(s *Socket) { s.SetWriteDeadline(time.Unix(1, 0)) },
		"meanwhile": func(s *Socket) {
			time.AfterFunc(50*time.Millisecond, func() { s.SetWriteDeadline(time.Unix(1, 0)) })
		},
		"later, meanwhile": func(s *Socket) {
			time.AfterFunc(50*time.Millisecond, func() { s.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)) })
		},
		"sooner, meanwhile": func(s *Socket) {
			s.SetWriteDeadline(time.Now().Add(time.Hour))
			time.AfterFunc(50*time.Millisecond, func() { s.SetDeadline(time.Now().Add(10 * time.Millisecond)) })
		},
	} {
		s, _ := socketPair(t)
		set(s)
		begun := time.Now()
		n, err := s.Write(make([]byte, 64<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n == 64<<20 || time.Since(begun) > 5*time.Second {
			t.Errorf("%s: %d bytes, %v after %v", name, n, err, time.Since(begun))
		}
		// And so it does for others who wait to write.
		rc, _ := s.SyscallConn()
		s.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		if err := rc.Write(func(uintptr) bool { return false }); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: by SyscallConn: %v", name, err)
		}
	}
}

// Idle is called before waiting, and not otherwise.
func TestSocketTellsThatItWaits(t *testing.T) {
	s, peer := socketPair(t)
	peer.Write([]byte("here"))
	time.Sleep(10 * time.Millisecond)
	if n, err := s.ReadTo(idle(func() { t.Error("called though there was something") })); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	told := false
	n, err := s.ReadTo(idle(func() {
		if !told {
			peer.Write([]byte("later")) // which comes because of it, and is not missed
		}
		told = true
	}))
	if n != 5 || err != nil || !told {
		t.Errorf("%d, %v, told: %v", n, err, told)
	}
}

type idle func()

func (f idle) Space() []byte { return make([]byte, 10) }
func (f idle) Idle()         { f() }

// What embeds a Socket is one: its deadlines and low-water mark are known once.
func TestSocketOnce(t *testing.T) {
	s, _ := socketPair(t)
	if got := NewSocket(struct{ *Socket }{s}); got != s {
		t.Error("another one")
	}
}

// A reader whose peer answers at once becomes patient, and one whose peer does not
// stops being so.
func TestPatience(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var clock time.Time
	now = func() time.Time { return clock }
	defer func() { now = time.Now }()
	var p patience
	// wait is a wait for a peer that answers after so many microseconds.
	wait := func(after int) (asked int) {
		p.read()
		p.wait(func() bool {
			clock = clock.Add(time.Microsecond)
			asked++
			return asked < after
		})
		return asked
	}
	for range retryPatience {
		wait(10)
	}
	if n := wait(10); n != 10 {
		t.Errorf("asked %d times for %v: not patient", n, p.limit)
	}
	for range 20 {
		wait(1000)
	}
	if n := wait(10); n != 0 {
		t.Errorf("asked %d times for %v: still patient", n, p.limit)
	}
	for range retryPatience {
		wait(10)
	}
	p.read()
	p.read() // two reads before there was nothing: requests come in numbers
	if p.wait(func() bool { t.Error("asked"); return false }); p.limit == 0 {
		t.Error("not patient again")
	}
	if n := wait(10); n != 10 {
		t.Errorf("asked %d times for %v: not patient", n, p.limit)
	}
	runtime.GOMAXPROCS(1) // which the peer may need
	if wait(10) != 0 {
		t.Error("patient on the only processor")
	}
}

func BenchmarkSocketPingPong(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		s, p := NewSocket(nc), make([]byte, 64)
		for {
			n, err := s.Read(p)
			if err != nil {
				return
			}
			s.Write(p[:n])
		}
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	s, p := NewSocket(nc), make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		s.Write(p)
		if _, err := s.Read(p); err != nil {
			b.Fatal(err)
		}
	}
}
