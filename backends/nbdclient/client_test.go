package nbdclient_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"nbd-ktls-server/backends/backendtest"
	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/backends/nbdclient"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// exporting serves what open opens, to everybody.
func exporting(t testing.TB, open func() nbd.Backend) net.Addr {
	return nbdtest.Serve(t, &nbd.Server{
		Log:     slog.New(slog.DiscardHandler),
		Exports: nbd.ExportList{{Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return open(), nil }}},
	})
}

func dialing(a net.Addr) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, a.Network(), a.String())
	}
}

func options(t testing.TB) nbdclient.Options {
	return nbdclient.Options{Connections: 3, Reconnect: 20 * time.Second, Replay: 1 << 20, Log: nbdtest.NewLog(t).Logger()}
}

func open(t testing.TB, target nbdclient.Target, o nbdclient.Options) *nbdclient.Client {
	t.Helper()
	c, err := nbdclient.New(t.Context(), target, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func abilities(t testing.TB, c *nbdclient.Client) *nbd.Abilities {
	t.Helper()
	a, err := nbd.Resolve(c.Open(t.Context(), nil))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A disk behind a server behind a client is a disk.
func TestBackend(t *testing.T) {
	disks := make(chan *memory.Disk, 1)
	addr := exporting(t, func() nbd.Backend { d := <-disks; disks <- d; return d })
	backendtest.Run(t, func(t testing.TB) nbd.Backend {
		select {
		case <-disks:
		default:
		}
		disks <- memory.New(backendtest.Size)
		c, err := nbdclient.New(context.Background(), nbdclient.Target{Dial: dialing(addr)}, options(t))
		if err != nil {
			t.Fatal(err)
		}
		return c.Open(context.Background(), c.Close)
	})
}

// ram is a disk that forgets what was not flushed.
type ram struct {
	mu           sync.Mutex
	data, stable []byte
}

func (r *ram) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return copy(p, r.data[off:]), nil
}

func (r *ram) WriteAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return copy(r.data[off:], p), nil
}

func (r *ram) Size() (int64, error) { return int64(len(r.data)), nil }

func (r *ram) Sync() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.stable, r.data)
	return nil
}

func (r *ram) Resolve(a *nbd.Abilities) error {
	a.MultiConn = true
	a.Zero = func(off, n int64, _ nbd.ZeroFlags) error {
		_, err := r.WriteAt(make([]byte, n), off)
		return err
	}
	a.Trim = func(off, n int64) error { return a.Zero(off, n, 0) }
	return nil
}

// host is a machine with a server that loses its power: connections are cut, and
// what was not flushed is gone.
type host struct {
	net.Addr
	mu    sync.Mutex
	disk  *ram
	conns []net.Conn
	down  bool
}

func newHost(t testing.TB, size int) *host {
	h := &host{disk: &ram{data: make([]byte, size), stable: make([]byte, size)}}
	h.Addr = exporting(t, func() nbd.Backend { h.mu.Lock(); defer h.mu.Unlock(); return h.disk })
	return h
}

var errDown = errors.New("no power")

func (h *host) dial(ctx context.Context) (net.Conn, error) {
	c, err := dialing(h.Addr)(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil || h.down {
		return nil, errors.Join(err, errDown)
	}
	h.conns = append(h.conns, c)
	return c, nil
}

func (h *host) crash(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = down
	for _, c := range h.conns {
		c.Close() // nobody hears of what is done from now on
	}
	h.conns = nil
	h.disk.mu.Lock()
	stable := bytes.Clone(h.disk.stable)
	h.disk.mu.Unlock()
	h.disk = &ram{data: bytes.Clone(stable), stable: stable}
}

func (h *host) power() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = false
}

// Writers that flush now and then do not notice that the server crashes all the
// time, and nothing that they were told is done gets lost.
func TestCrashes(t *testing.T) {
	const writers, region, rounds = 4, 1 << 18, 1000
	h := newHost(t, writers*region)
	c := open(t, nbdclient.Target{Dial: h.dial}, options(t))
	model := make([]byte, writers*region)
	var all sync.WaitGroup
	for w := range writers {
		a := abilities(t, c)
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for range rounds {
				if r.IntN(200) == 0 {
					h.crash(false)
				}
				at := w*region + r.IntN(region/512-64)*512
				p := model[at : at+512*(1+r.IntN(64))]
				var err error
				switch k := r.IntN(12); {
				case k < 6:
					p[0]++
					for i := range p {
						p[i] = p[0] + byte(i)
					}
					_, err = a.WriteAt(p, int64(at))
				case k < 7:
					p[0]++
					_, err = a.WriteFUA(p, int64(at))
				case k < 8:
					clear(p)
					err = a.Zero(int64(at), int64(len(p)), 0)
				case k < 9:
					err = a.Sync()
				default:
					got := make([]byte, len(p))
					if _, err = a.ReadAt(got, int64(at)); err == nil && !bytes.Equal(got, p) {
						err = errors.New("wrong data")
					}
				}
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
			}
		})
	}
	all.Wait()
	a := abilities(t, c)
	if err := a.Sync(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(h.disk.stable, model) {
		t.Error("something is lost")
	}
}

// What there was no room for to remember makes FLUSH fail, once for everybody.
func TestLossIsReported(t *testing.T) {
	h := newHost(t, 1<<20)
	o := options(t)
	o.Replay = 64 << 10
	c := open(t, nbdclient.Target{Dial: h.dial}, o)
	defer c.Close()
	a, other := abilities(t, c), abilities(t, c)
	write := func(n int) {
		t.Helper()
		if _, err := a.WriteAt(make([]byte, n), 0); err != nil {
			t.Fatal(err)
		}
	}
	write(100 << 10)
	if err := a.Sync(); err != nil {
		t.Fatalf("before the crash: %v", err)
	}
	write(10 << 10)
	h.crash(false)
	if err := a.Sync(); err != nil {
		t.Fatalf("after a crash with little to remember: %v", err)
	}
	write(100 << 10)
	h.crash(false)
	for _, x := range []*nbd.Abilities{a, other} {
		if err := x.Sync(); err == nil {
			t.Error("FLUSH has not failed")
		}
		if err := x.Sync(); err != nil {
			t.Errorf("FLUSH failed twice: %v", err)
		}
	}
}

// A server that is away for too long lets requests fail; those that come when it
// is there again do not.
func TestAway(t *testing.T) {
	h := newHost(t, 1<<20)
	o := options(t)
	o.Reconnect = 100 * time.Millisecond
	c := open(t, nbdclient.Target{Dial: h.dial}, o)
	defer c.Close()
	a := abilities(t, c)
	h.crash(true)
	if _, err := a.ReadAt(make([]byte, 512), 0); !errors.Is(err, wire.ESHUTDOWN) {
		t.Fatalf("%v, want ESHUTDOWN", err)
	}
	h.power()
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := a.ReadAt(make([]byte, 512), 0)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestNoReconnect(t *testing.T) {
	h := newHost(t, 1<<20)
	o := options(t)
	o.Reconnect = 0
	c := open(t, nbdclient.Target{Dial: h.dial}, o)
	defer c.Close()
	a := abilities(t, c)
	h.crash(false)
	for range 2 {
		if _, err := a.ReadAt(make([]byte, 512), 0); !errors.Is(err, wire.ESHUTDOWN) {
			t.Fatalf("%v, want ESHUTDOWN", err)
		}
	}
}

// stuck is a disk that answers reads of its first half only.
type stuck struct {
	nbd.Backend
	asked, let chan struct{}
}

func (s stuck) ReadAt(p []byte, off int64) (int, error) {
	if off >= 512 {
		s.asked <- struct{}{}
		<-s.let
	}
	return s.Backend.ReadAt(p, off)
}

// A client that goes does not wait for its requests, and the others do not notice.
func TestCancel(t *testing.T) {
	s := stuck{memory.New(1024), make(chan struct{}), make(chan struct{})}
	addr := exporting(t, func() nbd.Backend { return s })
	c := open(t, nbdclient.Target{Dial: dialing(addr)}, options(t))
	defer c.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	a, err := nbd.Resolve(c.Open(ctx, nil))
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		_, err := a.ReadAt(make([]byte, 512), 512)
		result <- err
	}()
	<-s.asked
	why := errors.New("gone")
	cancel(why)
	if err := <-result; !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
	if _, err := a.ReadAt(make([]byte, 512), 0); !errors.Is(err, why) {
		t.Errorf("after its end: %v, want %v", err, why)
	}
	close(s.let) // the reply that nobody waits for
	if _, err := abilities(t, c).ReadAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	pki, disk := nbdtest.NewPKI(t), memory.New(1<<20)
	s := &nbd.Server{
		Log: slog.New(slog.DiscardHandler), ForceTLS: true, StartTLS: pki.StartTLS(t, true),
		Exports: nbd.ExportList{{Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return disk, nil }}},
	}
	addr := nbdtest.Serve(t, s)
	plain := exporting(t, func() nbd.Backend { return disk })
	config := pki.Client(pki.ClientPair)
	for name, test := range map[string]struct {
		addr     net.Addr
		tls      *tls.Config
		optional bool
		works    bool
	}{
		"both":                  {addr, config, false, true},
		"neither":               {plain, nil, false, true},
		"only the server":       {addr, nil, false, false},
		"only we":               {plain, config, false, false},
		"only we, if possible":  {plain, config, true, true},
		"an unknown authority":  {addr, &tls.Config{ServerName: "localhost"}, false, false},
		"unknown, but optional": {addr, &tls.Config{ServerName: "localhost"}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := nbdclient.New(t.Context(), nbdclient.Target{Dial: dialing(test.addr), TLS: test.tls, TLSOptional: test.optional}, options(t))
			if (err == nil) != test.works {
				t.Fatalf("%v, want success: %v", err, test.works)
			}
			if err != nil {
				t.Log(err)
				return
			}
			defer c.Close()
			want := bytes.Repeat([]byte("x"), 100<<10)
			got := make([]byte, len(want))
			a := abilities(t, c)
			if _, err := a.WriteAt(want, 1); err != nil {
				t.Fatal(err)
			}
			if _, err := a.ReadAt(got, 1); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v, or wrong data", err)
			}
		})
	}
}
