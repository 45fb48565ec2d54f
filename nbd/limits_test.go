package nbd_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

func TestSilentClientTimesOut(t *testing.T) {
	s := serve(t, withLimits(nbd.Limits{HandshakeTimeout: 100 * time.Millisecond}))
	c := nbdtest.Dial(t, s.addr)
	c.Greeting()
	c.ExpectEnd()
	s.log.Expect("no export was chosen in time")

	// One that haggles without end does not last longer.
	c = nbdtest.Hello(t, s.addr)
	begun := time.Now()
	for {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write(nbdtest.Bytes("IHAVEOPT", uint32(wire.OptList), uint32(0))); err != nil {
			break
		}
		if _, err := c.Conn.Read(make([]byte, 4096)); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if d := time.Since(begun); d > 3*time.Second {
		t.Errorf("it lasted %v", d)
	}
}

func TestConnectedClientMayBeSilent(t *testing.T) {
	c := serve(t, withLimits(nbd.Limits{HandshakeTimeout: 50 * time.Millisecond, StallTimeout: 50 * time.Millisecond})).connect(t)
	time.Sleep(200 * time.Millisecond)
	if _, errno := c.Pread(0, 512); errno != 0 {
		t.Error(errno)
	}
}

func TestTooManyConnections(t *testing.T) {
	s := serve(t, withLimits(nbd.Limits{Connections: 2}))
	a, b := s.connect(t), s.connect(t)
	c := nbdtest.Dial(t, s.addr)
	c.ExpectEnd()
	s.log.Expect("connection refused", "too many connections")
	a.Disconnect()
	b.Disconnect()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		nc, err := net.Dial("tcp", s.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		n, _ := nc.Read(make([]byte, 18))
		nc.Close()
		if n > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("no place became free")
		}
	}
}

// Clients that never finish their handshake must not keep the others out.
func TestUnfinishedHandshakesGiveWay(t *testing.T) {
	s := serve(t, withLimits(nbd.Limits{Handshakes: 3, HandshakeTimeout: time.Minute}))
	var idle []*nbdtest.Client
	for range 3 {
		c := nbdtest.Dial(t, s.addr)
		c.Greeting()
		idle = append(idle, c)
	}
	begun := time.Now()
	c := s.connect(t) // waits for the oldest to have had its second
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	idle[0].ExpectEnd()
	s.log.Expect("this was the oldest")
	if _, errno := c.Pread(0, 512); errno != 0 {
		t.Error(errno)
	}
	// The others are still served.
	idle[2].Send(uint32(3))
	idle[2].Go("disk")
}

func TestStalledPayloadEndsTheConnection(t *testing.T) {
	s := serve(t, withLimits(nbd.Limits{StallTimeout: 100 * time.Millisecond}))
	c := s.connect(t)
	c.Request(wire.CmdWrite, 0, 1, 0, 4096, "only the beginning")
	c.ExpectEnd()
	s.log.Expect("connection broken", "reading the 4096 bytes of a WRITE", "timeout")
}

func TestClientThatDoesNotReadIsEnded(t *testing.T) {
	s := serve(t, withBackend(memory.New(64*mib)), withLimits(nbd.Limits{StallTimeout: 200 * time.Millisecond}))
	c := s.connect(t)
	for i := range uint64(16) {
		c.Request(wire.CmdRead, 0, i, 0, 32*mib)
	}
	s.log.Expect("connection broken", "sending a reply", "timeout")
	if _, errno := s.connect(t).Pread(0, 512); errno != 0 {
		t.Error(errno)
	}
}

// Requests and bytes in flight are bounded, whatever a client sends.
func TestRequestsInFlightAreBounded(t *testing.T) {
	var now, most atomic.Int64
	release := make(chan struct{})
	s := serve(t, withLimits(nbd.Limits{Requests: 4}), edited(func(a *nbd.Abilities) {
		a.Sync = func() error {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-release
			now.Add(-1)
			return nil
		}
	}))
	c := s.connect(t)
	for i := range uint64(50) {
		c.Request(wire.CmdFlush, 0, i, 0, 0)
	}
	time.Sleep(100 * time.Millisecond)
	close(release)
	for range 50 {
		c.SimpleReply()
	}
	if got := most.Load(); got != 4 {
		t.Errorf("%d at the same time, want 4", got)
	}
}

func TestBytesInFlightAreBounded(t *testing.T) {
	var now, most atomic.Int64
	s := serve(t, withLimits(nbd.Limits{Bytes: 32 * mib, BytesTotal: 32 * mib, Requests: 64}),
		withBackend(faulty{memory.New(64 * mib), func(a *nbd.Abilities) {
			write := a.WriteAt
			a.WriteAt = func(p []byte, off int64) (int, error) {
				if n := now.Add(int64(len(p))); n > most.Load() {
					most.Store(n)
				}
				defer now.Add(-int64(len(p)))
				time.Sleep(time.Millisecond)
				return write(p, off)
			}
		}}))
	a, b := s.connect(t), s.connect(t)
	for _, c := range []*nbdtest.Client{a, b} {
		go func() {
			for i := range uint64(20) {
				c.Write(nbdtest.Bytes(uint32(0x25609513), uint16(0), uint16(wire.CmdWrite), i, uint64(0), uint32(10*mib), make([]byte, 10*mib)))
			}
		}()
	}
	for _, c := range []*nbdtest.Client{a, b} {
		for range 20 {
			if _, errno := c.SimpleReply(); errno != 0 {
				t.Error(errno)
			}
		}
	}
	if got := most.Load(); got > 32*mib {
		t.Errorf("%d bytes at the same time", got)
	}
}

// X22: what was received is finished, then the connection ends; one that never
// finishes is cut off.
func TestX22Shutdown(t *testing.T) {
	for name, test := range map[string]struct {
		takes time.Duration
		drain time.Duration
		reply bool
	}{
		"in time":  {300 * time.Millisecond, 10 * time.Second, true},
		"too late": {2 * time.Second, 200 * time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			begun := make(chan struct{})
			log := nbdtest.NewLog(t)
			p := nbdtest.NewPKI(t)
			srv := &nbd.Server{
				Log:      log.Logger(),
				StartTLS: p.StartTLS(t, false),
				Limits:   nbd.Limits{DrainTimeout: test.drain},
				Exports: nbd.ExportList{export("disk", faulty{memory.New(mib), func(a *nbd.Abilities) {
					a.Sync = func() error { close(begun); time.Sleep(test.takes); return nil }
				}})},
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error)
			go func() { done <- srv.Serve(ctx, l) }()
			idle, busy := nbdtest.Hello(t, l.Addr()), nbdtest.Hello(t, l.Addr())
			idle.StartTLS(p.Client(nil)) // and is sent a close_notify at the end, or ExpectEnd complains
			idle.Go("disk")
			busy.Go("disk")
			busy.Request(wire.CmdFlush, 0, 1, 0, 0)
			<-begun
			cancel()
			idle.ExpectEnd()
			if test.reply {
				if cookie, errno := busy.SimpleReply(); cookie != 1 || errno != 0 {
					t.Errorf("reply %d: %v", cookie, errno)
				}
			}
			busy.ExpectEnd()
			if err := <-done; err != nil {
				t.Errorf("Serve: %v", err)
			}
			log.Expect("the server is shutting down")
		})
	}
}

// Clients that announce as much as may be in memory, and send nothing, must not
// stop the small requests of others.
func TestStalledPayloadsDoNotStopOthers(t *testing.T) {
	s := serve(t, withBackend(memory.New(64*mib)), withLimits(nbd.Limits{Bytes: 32 * mib, BytesTotal: 32 * mib}))
	for range 3 {
		s.connect(t).Request(wire.CmdWrite, 0, 1, 0, 32*mib)
	}
	time.Sleep(50 * time.Millisecond)
	victim := s.connect(t)
	victim.SetDeadline(time.Now().Add(5 * time.Second))
	if _, errno := victim.Pread(0, 4096); errno != 0 {
		t.Errorf("READ: %v", errno)
	}
	if errno := victim.Do(wire.CmdFlush, 0, 0, 0); errno != 0 {
		t.Errorf("FLUSH: %v", errno)
	}
}

// Nor may they keep the places for requests that are worked on.
func TestStalledPayloadsHoldNoPlaces(t *testing.T) {
	s := serve(t, withLimits(nbd.Limits{RequestsTotal: 1}))
	s.connect(t).Request(wire.CmdWrite, 0, 1, 0, 4096)
	time.Sleep(50 * time.Millisecond)
	victim := s.connect(t)
	victim.SetDeadline(time.Now().Add(5 * time.Second))
	if _, errno := victim.Pread(0, 4096); errno != 0 {
		t.Errorf("READ: %v", errno)
	}
}

// Connections that failed to negotiate wait for the client to close, but as
// unfinished handshakes: they must not fill the limit of connections.
func TestFailedNegotiationsDoNotFillTheServer(t *testing.T) {
	s := serve(t, withLimits(nbd.Limits{Connections: 12, Handshakes: 4}))
	for range 20 {
		nc, err := net.Dial("tcp", s.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.Write([]byte{0xff, 0xff, 0xff, 0xff}) // and never closes
	}
	if _, errno := s.connect(t).Pread(0, 512); errno != 0 {
		t.Error(errno)
	}
}

func TestOneClientCannotFillTheLog(t *testing.T) {
	s := serve(t)
	c := nbdtest.Hello(t, s.addr)
	for range 50 {
		c.Expect(wire.RepErrUnknown, wire.OptInfo, nbdtest.InfoRequest(strings.Repeat("x", 4096)))
		c.Expect(wire.RepErrPolicy, wire.OptStartTLS)
	}
	c.Expect(wire.RepAck, wire.OptAbort)
	s.log.Expect("connection closed")
	if n := s.log.Count("level=WARN"); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
}

// failing is a connection on which nothing can be sent once the client has
// chosen an export.
type failing struct {
	script
	writes int
}

func (f *failing) Write(p []byte) (int, error) {
	if f.writes++; f.writes > 1 { // the greeting was the first
		return 0, syscall.EPIPE
	}
	return len(p), nil
}

// An export that was opened for a client who has gone before it could be told is
// closed again.
func TestExportIsClosedIfTheClientHasGone(t *testing.T) {
	for _, choose := range [][]byte{
		option(wire.OptGo, nbdtest.InfoRequest("disk")),
		option(wire.OptExportName, []byte("disk")),
	} {
		closed := 0
		s := &nbd.Server{Log: nbdtest.NewLog(t).Logger(), Exports: nbd.ExportList{export("disk", faulty{memory.New(mib), func(a *nbd.Abilities) {
			a.Close = func() error { closed++; return nil }
		}})}}
		c := &failing{script: script{r: bytes.NewReader(append(nbdtest.Bytes(uint32(3)), choose...))}}
		if err := s.ServeConn(t.Context(), c); err == nil || closed != 1 {
			t.Errorf("%v, closed %d times", err, closed)
		}
	}
}

// deadlines is a connection that remembers its last write deadline.
type deadlines struct {
	script
	last time.Time
}

func (d *deadlines) SetWriteDeadline(t time.Time) error { d.last = t; return nil }

// A deadline left behind by a reply would hit what the TLS layer writes by
// itself, an hour later.
func TestNoWriteDeadlineIsLeftBehind(t *testing.T) {
	s := &nbd.Server{Log: nbdtest.NewLog(t).Logger(), Exports: nbd.ExportList{export("disk", memory.New(mib))}}
	c := &deadlines{last: time.Now()}
	c.r = bytes.NewReader(bytes.Join([][]byte{
		nbdtest.Bytes(uint32(3)), option(wire.OptGo, nbdtest.InfoRequest("disk")),
		request(wire.CmdRead, 0, 0, 512, ""), request(wire.CmdDisc, 0, 0, 0, ""),
	}, nil))
	if err := s.ServeConn(t.Context(), c); err != nil || !c.last.IsZero() {
		t.Errorf("%v; the last deadline is %v", err, c.last)
	}
}

func TestPanicWhileOpeningIsARefusal(t *testing.T) {
	s := serve(t, withExports(nbd.Export{Name: "disk", Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { panic("boo") }}))
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepErrUnknown, wire.OptGo, nbdtest.InfoRequest("disk"))
	c.Expect(wire.RepAck, wire.OptAbort)
	s.log.Expect("a backend panicked", "boo")
}
