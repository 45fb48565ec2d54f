package filters

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nbd-ktls-server/backends/backendtest"
	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// over makes a source of b below filters, given as on a command line.
func over(t testing.TB, open func(nbd.OpenInfo) (nbd.Backend, error), names string, args ...string) (*plugin.Source, error) {
	t.Helper()
	base := plugin.Plugin{Name: "base", Configure: func(*plugin.Params) (*plugin.Source, error) {
		return &plugin.Source{Open: func(_ context.Context, info nbd.OpenInfo) (nbd.Backend, error) { return open(info) }}, nil
	}}
	var fs []plugin.Filter
	for _, name := range strings.Fields(names) {
		i := slices.IndexFunc(All(), func(f plugin.Filter) bool { return f.Name == name })
		if i < 0 {
			t.Fatalf("no filter %s", name)
		}
		fs = append(fs, All()[i])
	}
	s, err := plugin.Configure(base, fs, args, plugin.Host{Exit: func(string) {}, Log: slog.New(slog.DiscardHandler)})
	if err == nil && s.Close != nil {
		s.Close = sync.OnceValue(s.Close) // a test may close it earlier
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

func must(t testing.TB, b nbd.Backend, names string, args ...string) *plugin.Source {
	t.Helper()
	s, err := over(t, func(nbd.OpenInfo) (nbd.Backend, error) { return b, nil }, names, args...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t testing.TB, s *plugin.Source, info nbd.OpenInfo) *nbd.Abilities {
	t.Helper()
	b, err := s.Open(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	a, err := nbd.Resolve(b)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestBackends: a disk behind a filter is still a disk.
func TestBackends(t *testing.T) {
	flag.Set("rapid.checks", "5") // most of it is memory's, which has been tested
	log := filepath.Join(t.TempDir(), "log")
	for _, test := range []struct {
		filters, args string
		size          int64 // below
	}{
		{"offset", "offset=64K", backendtest.Size + 64<<10},
		{"offset", "offset=128K range=1053184", 2 << 20},
		{"truncate", "truncate=1053184", 2 << 20},
		{"truncate", "round-down=512", backendtest.Size + 511},
		{"cow", "", backendtest.Size},
		{"delay error rate log limit protect", "error-rate=0 rdelay=0 protect=2000000000- limit=0 logfile=" + log, backendtest.Size},
		{"nozero", "", backendtest.Size},
		{"nozero", "zeromode=notrim fastzeromode=slow", backendtest.Size},
		{"fua nocache", "fuamode=force cachemode=emulate", backendtest.Size},
		{"stats retry retry-request count openonce scan", "statsfile=" + log, backendtest.Size},
		{"evil", "evil-probability=0", backendtest.Size},
		{"blocksize", "minblock=512 maxdata=4096 maxlen=64K", backendtest.Size + 100},
		{"cache", "", backendtest.Size},
		{"cache", "cache=unsafe cache-min-block-size=4096 cache-max-size=200K", backendtest.Size},
		{"cache", "cache=writethrough cache-on-read=true cache-max-size=512K", backendtest.Size},
		{"readahead cache", "", backendtest.Size},
		{"noextents multi-conn rotational", "multi-conn-mode=disable", backendtest.Size},
	} {
		t.Run(test.filters+" "+test.args, func(t *testing.T) {
			backendtest.Run(t, func(t testing.TB) nbd.Backend {
				s := must(t, memory.New(test.size), test.filters, strings.Fields(test.args)...)
				b, err := s.Open(t.Context(), nbd.OpenInfo{})
				if err != nil {
					t.Fatal(err)
				}
				return b
			})
		})
	}
}

func TestWrongParameters(t *testing.T) {
	for _, test := range []struct{ filter, args, want string }{
		{"offset", "", "offset= or range= is needed"},
		{"offset", "offset=x", "is not a size"},
		{"truncate", "round-up=0", "must be positive"},
		{"blocksize", "minblock=1000", "a power of two"},
		{"blocksize", "minblock=4k maxdata=1000", "a multiple of minblock"},
		{"blocksize-policy", "blocksize-maximum=8G", "more than 32 bits"},
		{"cache", "cache=often", "must be one of"},
		{"cache", "cache-min-block-size=512", "a power of two from"},
		{"cache", "cache-low-threshold=96", "cache-low-threshold <"},
		{"cache", "cache-max-size=64K", "too small"},
		{"cache", "cache-on-read=perhaps", "neither true nor false"},
		{"partition", "", "counts from 1"},
		{"partition", "partition=1 partition-sectorsize=100", "512 or 4096"},
		{"protect", "", "protect= is needed"},
		{"protect", "protect=9-8", "ends before it begins"},
		{"error", "error=EFUN", "must be one of"},
		{"error", "error-rate=200%", "from 0%"},
		{"error", "error-pread-rate=NaN", "from 0%"},
		{"exportname", "exportdesc=short", "must be one of"},
		{"rate", "rate=0", "cannot be set to 0"},
		{"ip", "allow=here", "is none of"},
		{"ip", "deny=1.2.3.4-1.2.3.3", "no range"},
		{"ip", "deny=uid:root", "not a number"},
		{"ip", "deny=", "is none of"},
		{"log", "logappend=maybe", "neither true nor false"},
		{"stats", "", "statsfile= is needed"},
		{"stats", "statsfile=/dev/null statsthreshold=101", "from 0 to 100"},
		{"exitwhen", "exit-when-poll=0", "positive"},
		{"exitwhen", "exit-when-pipe-closed=7777", "no such file descriptor"},
		{"exitwhen", "exit-when-process-exits=2147483647", "no such file"},
		{"pause", "", "pause-control= is needed"},
		{"retry", "retry-delay=0", "cannot be 0"},
		{"retry", "retries=1001", "at most 1000"},
		{"retry-request", "retry-request-delay=0", "cannot be 0"},
		{"evil", "evil=worse", "must be one of"},
		{"evil", "evil-probability=2", "from 0%"},
		{"scan", "scan-size=3000", "a power of 2"},
		{"cow", "x=y", `there is no parameter "x"`},
		{"delay", "rdelay=soon", "is not a time"},
		{"nozero", "zeromode=x", "must be one of"},
	} {
		_, err := over(t, nil, test.filter, strings.Fields(test.args)...)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %s: %v, want %q", test.filter, test.args, err, test.want)
		}
	}
}

// TestSectionSurvives: what only moves, counts, delays or looks at requests lets
// files be sent without being read.
func TestSectionSurvives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		filters, args string
		at            int64 // where the byte 4096 is
	}{
		{"offset", "offset=512", 4608},
		{"truncate", "truncate=2M", 4096},
		{"delay error rate limit protect fua nozero nocache noextents multi-conn rotational readonly exitlast time-limit tls-fallback ip exportname", "rate=1G protect=0-1", 4096},
		{"cow", "", 4096},
	} {
		f, err := file.Open(path, file.Options{NoLocking: true})
		if err != nil {
			t.Fatal(err)
		}
		info := nbd.OpenInfo{Client: nbd.Client{TLS: true}}
		a := open(t, must(t, f, test.filters, strings.Fields(test.args)...), info)
		if a.Section == nil {
			t.Errorf("%s: no Section", test.filters)
		} else if _, at, ok := a.Section(4096, 512); !ok || at != test.at {
			t.Errorf("%s: at %d, %v", test.filters, at, ok)
		}
		if a.Close != nil {
			a.Close()
		}
	}
}

// TestCow: what is below stays as it is; connections to an export share its
// changes, and exports do not.
func TestCow(t *testing.T) {
	disks := map[string]*memory.Disk{"a": memory.New(1 << 20), "b": memory.New(1 << 20)}
	for name, d := range disks {
		d.WriteAt([]byte(strings.Repeat(name, 4096)), 0)
	}
	s, err := over(t, func(info nbd.OpenInfo) (nbd.Backend, error) { return disks[info.Name], nil }, "cow")
	if err != nil {
		t.Fatal(err)
	}
	first, second, other := open(t, s, nbd.OpenInfo{Name: "a"}), open(t, s, nbd.OpenInfo{Name: "a"}), open(t, s, nbd.OpenInfo{Name: "b"})
	if _, err := first.WriteAt([]byte("new"), 1); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		a    *nbd.Abilities
		want string
	}{{first, "anewa"}, {second, "anewa"}, {other, "bbbbb"}} {
		p := make([]byte, 5)
		if _, err := test.a.ReadAt(p, 0); err != nil || string(p) != test.want {
			t.Errorf("%q, %v, want %q", p, err, test.want)
		}
	}
	p := make([]byte, 5)
	if disks["a"].ReadAt(p, 0); string(p) != "aaaaa" {
		t.Errorf("below is %q", p)
	}
	if _, _, ok := first.Section(0, 64<<10); !ok {
		t.Error("a range that is all in the file of changes is not streamed")
	}
	if _, _, ok := first.Section(60<<10, 8<<10); ok {
		t.Error("a range on both sides is")
	}
}

func TestExtend(t *testing.T) {
	d := memory.New(1000)
	a := open(t, must(t, d, "truncate", "round-up=4096"), nbd.OpenInfo{})
	if a.Size != 4096 {
		t.Fatalf("%d bytes", a.Size)
	}
	if n, err := a.WriteAt(append(bytes.Repeat([]byte{1}, 1000), make([]byte, 24)...), 0); n != 1024 || err != nil {
		t.Errorf("zeroes behind the end: %d %v", n, err)
	}
	if _, err := a.WriteAt([]byte{0, 1}, 999); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("others: %v", err)
	}
	p := bytes.Repeat([]byte{9}, 100)
	if n, err := a.ReadAt(p, 950); n != 100 || err != nil || !bytes.Equal(p, append(bytes.Repeat([]byte{1}, 50), make([]byte, 50)...)) {
		t.Errorf("%d %v %x", n, err, p)
	}
	if hole, n := a.Hole(1000, 3096); !hole || n != 3096 {
		t.Errorf("behind the end: %v %d", hole, n)
	}
}

func TestProtect(t *testing.T) {
	d := memory.New(1 << 20)
	d.WriteAt([]byte("0123456789"), 0)
	a := open(t, must(t, d, "protect", "protect=2-4", "protect=~0-0x10000"), nbd.OpenInfo{})
	for _, test := range []struct {
		data    string
		off     int64
		allowed bool
	}{
		{"ab", 0, true},
		{"ab2", 0, true},
		{"abX", 0, false},
		{"4x", 4, true},
		{"X", 4, false},
		{"x", 9, true},
		{"x", 65537, false},
		{"\x00", 65537, true},
		{"xy", 65536, false},
	} {
		if _, err := a.WriteAt([]byte(test.data), test.off); (err == nil) != test.allowed || err != nil && !errors.Is(err, syscall.EPERM) {
			t.Errorf("%q at %d: %v", test.data, test.off, err)
		}
	}
	if err := a.Trim(0, 3); !errors.Is(err, syscall.EPERM) {
		t.Errorf("trim: %v", err)
	}
	if err := a.Zero(100, 1<<19, 0); err != nil {
		t.Errorf("zeroing what is zero: %v", err)
	}
	if err := a.Zero(0, 5, 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("zero: %v", err)
	}
}

// mbrDisk is a disk with two primary partitions and two logical ones.
func mbrDisk() *memory.Disk {
	d := memory.New(4 << 20)
	record := func(at int64, entries ...[3]uint32) {
		b := make([]byte, 512)
		for i, e := range entries {
			b[446+16*i+4] = byte(e[0])
			binary.LittleEndian.PutUint32(b[446+16*i+8:], e[1])
			binary.LittleEndian.PutUint32(b[446+16*i+12:], e[2])
		}
		b[510], b[511] = 0x55, 0xaa
		d.WriteAt(b, at*512)
	}
	record(0, [3]uint32{0x83, 10, 20}, [3]uint32{0x83, 100, 8100}, [3]uint32{0x05, 1000, 2000})
	record(1000, [3]uint32{0x83, 1, 50}, [3]uint32{0x05, 100, 100})
	record(1100, [3]uint32{0x83, 2, 60}, [3]uint32{0x05, 0x7fffffff, 1}) // goes on nowhere
	for _, sector := range []int64{10, 1001, 1102} {
		d.WriteAt([]byte{byte(sector)}, sector*512)
	}
	return d
}

func gptDisk() *memory.Disk {
	d := memory.New(4 << 20)
	b := make([]byte, 512)
	b[510], b[511] = 0x55, 0xaa
	d.WriteAt(b, 0)
	h := make([]byte, 512)
	copy(h, "EFI PART")
	binary.LittleEndian.PutUint64(h[72:], 2)
	binary.LittleEndian.PutUint32(h[80:], 128)
	binary.LittleEndian.PutUint32(h[84:], 128)
	d.WriteAt(h, 512)
	e := make([]byte, 256)
	e[0] = 1
	binary.LittleEndian.PutUint64(e[32:], 40)
	binary.LittleEndian.PutUint64(e[40:], 49)
	e[128] = 1
	binary.LittleEndian.PutUint64(e[128+32:], 50)
	binary.LittleEndian.PutUint64(e[128+40:], 1<<40)
	d.WriteAt(e, 1024)
	d.WriteAt([]byte{40}, 40*512)
	return d
}

func TestPartition(t *testing.T) {
	for _, test := range []struct {
		disk   *memory.Disk
		number string
		size   int64
		first  byte
		wrong  string
	}{
		{disk: mbrDisk(), number: "1", size: 20 * 512, first: 10},
		{disk: mbrDisk(), number: "2", wrong: "not within the disk"},
		{disk: mbrDisk(), number: "3", wrong: "extended"},
		{disk: mbrDisk(), number: "4", wrong: "no partition 4"},
		{disk: mbrDisk(), number: "5", size: 50 * 512, first: byte(1001 & 0xff)},
		{disk: mbrDisk(), number: "6", size: 60 * 512, first: byte(1102 & 0xff)},
		{disk: mbrDisk(), number: "7", wrong: "beyond the end"},
		{disk: gptDisk(), number: "1", size: 10 * 512, first: 40},
		{disk: gptDisk(), number: "2", wrong: "not within the disk"},
		{disk: gptDisk(), number: "3", wrong: "no partition 3"},
		{disk: gptDisk(), number: "129", wrong: "128 entries"},
		{disk: memory.New(1 << 20), number: "1", wrong: "no partition table"},
		{disk: memory.New(100), number: "1", wrong: "beyond the end"},
	} {
		b, err := must(t, test.disk, "partition", "partition="+test.number).Open(t.Context(), nbd.OpenInfo{})
		if test.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("partition %s: %v, want %q", test.number, err, test.wrong)
			}
			continue
		} else if err != nil {
			t.Errorf("partition %s: %v", test.number, err)
			continue
		}
		size, _ := b.Size()
		p := make([]byte, 1)
		if b.ReadAt(p, 0); size != test.size || p[0] != test.first {
			t.Errorf("partition %s: %d bytes, first %d", test.number, size, p[0])
		}
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, must(t, memory.New(1<<20), "rate", "rate=8K"), nbd.OpenInfo{}) // 1 KiB a second, 2 KiB at once
		start := time.Now()
		p := make([]byte, 1024)
		for range 10 {
			a.ReadAt(p, 0)
		}
		if took := time.Since(start).Round(time.Millisecond); took != 8*time.Second {
			t.Errorf("10 KiB took %v", took)
		}
		start = time.Now()
		a.WriteAt(make([]byte, 4096), 0) // has a bucket of its own
		if took := time.Since(start).Round(time.Millisecond); took != 2*time.Second {
			t.Errorf("4 KiB took %v", took)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		cancel(gone)
		if err := newBucket(rate{bits: 8, burst: time.Second}).take(ctx, 100); !errors.Is(err, gone) {
			t.Errorf("with nobody waiting: %v", err)
		}
	})
}

// TestRateFile: a file changes the rate, and one that is gone or wrong does not.
func TestRateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rate")
	synctest.Test(t, func(t *testing.T) {
		a := open(t, must(t, memory.New(1<<20), "rate", "connection-rate-file="+path, "burstiness=1"), nbd.OpenInfo{})
		for _, test := range []struct {
			content string
			took    time.Duration // of 11 KiB
		}{
			{"", 0},
			{"8K\n", 10 * time.Second},
			{"fast", 11 * time.Second},
			{"16K\nand more", 11 * time.Second / 2},
			{"0", 0},
		} {
			os.WriteFile(path, []byte(test.content), 0o600)
			time.Sleep(rateFileEvery)
			a.ReadAt(make([]byte, 1), 0) // and there is nothing left of the old rate
			begun := time.Now()
			for range 11 {
				a.ReadAt(make([]byte, 1024), 0)
			}
			if took := time.Since(begun).Round(100 * time.Millisecond); took < test.took-time.Second || took > test.took+time.Second {
				t.Errorf("%q: %v, want about %v", test.content, took, test.took)
			}
		}
	})
}

func TestDelayAndErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, must(t, memory.New(1<<20), "delay", "rdelay=2", "delay-write=50ms"), nbd.OpenInfo{})
		start := time.Now()
		a.ReadAt(make([]byte, 1), 0)
		a.WriteAt(make([]byte, 1), 0)
		if took := time.Since(start); took != 2050*time.Millisecond {
			t.Errorf("%v", took)
		}
	})
	flag := filepath.Join(t.TempDir(), "flag")
	a := open(t, must(t, memory.New(1<<20), "error", "error=ENOSPC", "error-pwrite-rate=100%", "error-pread=EPERM", "error-pread-rate=1", "error-pread-file="+flag), nbd.OpenInfo{})
	if _, err := a.WriteAt(make([]byte, 1), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if _, err := a.ReadAt(make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
	os.WriteFile(flag, nil, 0o600)
	if _, err := a.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.EPERM) {
		t.Error(err)
	}
}

func TestClients(t *testing.T) {
	v4 := nbd.Client{Addr: &net.TCPAddr{IP: net.ParseIP("192.0.2.7")}}
	v6 := nbd.Client{Addr: &net.TCPAddr{IP: net.ParseIP("2001:db8::7")}}
	local := nbd.Client{Addr: &net.UnixAddr{Name: "@"}}
	mine := nbd.Client{Addr: local.Addr, Credentials: &nbd.Credentials{PID: 12, UID: 34, GID: 56}}
	known := nbd.Client{Addr: v4.Addr, Certificates: []*x509.Certificate{{
		Subject: pkix.Name{CommonName: "vm", Organization: []string{"us"}}, Issuer: pkix.Name{CommonName: "we"},
	}}}
	for _, test := range []struct {
		args string
		c    nbd.Client
		in   bool
	}{
		{"", v4, true},
		{"deny=all", v4, false},
		{"deny=all", local, false},
		{"deny=allipv4", v6, true},
		{"deny=allipv6", v6, false},
		{"allow=192.0.2.0/24 deny=all", v4, true},
		{"allow=192.0.2.1-192.0.2.6,192.0.2.8 deny=all", v4, false},
		{"allow=192.0.2.1-192.0.2.7 deny=all", v4, true},
		{"allow=2001:db8::/32 deny=all", v6, true},
		{"allow=dn:CN=vm,O=us deny=all", known, true},
		{"allow=dn:cn=VM,* deny=all", known, true},
		{"allow=dn:CN=vm deny=all", known, false},
		{"allow=dn:CN=v.* deny=all", known, false},
		{"allow=dn:* deny=all", v4, false},
		{"allow=issuer-dn:CN=we allow=192.0.2.8 deny=all", known, true},
		{"allow=issuer-dn:CN=vm* deny=all", known, false},
		{"deny=allunix", local, false},
		{"deny=anyunix", v6, true},
		{"allow=uid:34 deny=all", mine, true},
		{"allow=uid:34 deny=all", local, false},
		{"allow=uid:56,pid:34,gid:12 deny=all", mine, false},
		{"allow=uid:1,gid:56 deny=all", mine, true},
		{"deny=pid:12", mine, false},
	} {
		_, err := must(t, memory.New(512), "ip", strings.Fields(test.args)...).Open(t.Context(), nbd.OpenInfo{Client: test.c})
		if (err == nil) != test.in || err != nil && !errors.Is(err, nbd.ErrNoExport) {
			t.Errorf("%s, %v: %v", test.args, test.c.Addr, err)
		}
	}

	s := must(t, memory.New(512), "limit", "limit=1")
	a := open(t, s, nbd.OpenInfo{})
	if _, err := s.Open(t.Context(), nbd.OpenInfo{}); err == nil {
		t.Error("one more than there may be")
	}
	a.Close()
	open(t, s, nbd.OpenInfo{})

	s = must(t, memory.New(512), "tls-fallback", "tlsreadme=hello")
	p := make([]byte, 6)
	if a := open(t, s, nbd.OpenInfo{}); a.Size != 512 || a.WriteAt != nil {
		t.Errorf("the placeholder has %d bytes", a.Size)
	} else if a.ReadAt(p, 0); string(p) != "hello\x00" {
		t.Errorf("%q", p)
	}
	if a := open(t, s, nbd.OpenInfo{Client: nbd.Client{TLS: true}}); a.WriteAt == nil {
		t.Error("with TLS it is not the disk")
	}

	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		a := open(t, must(t, memory.New(512), "time-limit", "time-limit=5"), nbd.OpenInfo{Disconnect: func(err error, _ bool) { ended <- err }})
		start := time.Now()
		if <-ended; time.Since(start) != 5*time.Second {
			t.Errorf("it has lasted %v", time.Since(start))
		}
		a.Close()
	})
}

// TestNamesAreKept: who may open nothing is told of nothing.
func TestNamesAreKept(t *testing.T) {
	secret := plugin.Entry{Name: "secret"}
	base := plugin.Plugin{Name: "base", Configure: func(*plugin.Params) (*plugin.Source, error) {
		s := plugin.Single(memory.New(512))
		s.List = func(context.Context, nbd.Client) ([]plugin.Entry, error) { return []plugin.Entry{secret}, nil }
		s.Default = func(context.Context, nbd.Client) (string, error) { return secret.Name, nil }
		s.Check = func(_ context.Context, _ nbd.Client, name string) error {
			if name != secret.Name {
				return nbd.ErrNoExport
			}
			return nil
		}
		return s, nil
	}}
	for _, test := range []struct {
		filter plugin.Filter
		args   []string
		known  nbd.Client
		listed []plugin.Entry // to another
	}{
		{ipFilter, []string{"allow=dn:CN=vm", "deny=all"}, nbd.Client{Certificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "vm"}}}}, nil},
		{tlsFallbackFilter, nil, nbd.Client{TLS: true}, []plugin.Entry{{}}},
	} {
		s, err := plugin.Configure(base, []plugin.Filter{test.filter}, test.args, plugin.Host{})
		if err != nil {
			t.Fatal(err)
		}
		if l, err := s.List(t.Context(), test.known); err != nil || !slices.Equal(l, []plugin.Entry{secret}) {
			t.Errorf("%s lists %v, %v", test.filter.Name, l, err)
		}
		if l, err := s.List(t.Context(), nbd.Client{}); err != nil || !slices.Equal(l, test.listed) {
			t.Errorf("%s lists %v, %v to others", test.filter.Name, l, err)
		}
		if name, _ := s.Default(t.Context(), nbd.Client{}); name != "" {
			t.Errorf("%s tells others of %q", test.filter.Name, name)
		}
		there, missing := s.Check(t.Context(), nbd.Client{}, secret.Name), s.Check(t.Context(), nbd.Client{}, "another")
		if fmt.Sprint(there) != fmt.Sprint(missing) {
			t.Errorf("%s: what is there: %v; what is not: %v", test.filter.Name, there, missing)
		}
	}
}

func TestExitLast(t *testing.T) {
	exited := 0
	base := plugin.Plugin{Name: "base", Configure: func(*plugin.Params) (*plugin.Source, error) { return plugin.Single(memory.New(512)), nil }}
	s, err := plugin.Configure(base, []plugin.Filter{exitLastFilter}, nil, plugin.Host{Exit: func(string) { exited++ }})
	if err != nil {
		t.Fatal(err)
	}
	a, b := open(t, s, nbd.OpenInfo{}), open(t, s, nbd.OpenInfo{})
	if a.Close(); exited != 0 {
		t.Error("the first was not the last")
	}
	if b.Close(); exited != 1 {
		t.Error("it has not ended")
	}
}

func TestExportName(t *testing.T) {
	s := must(t, memory.New(512), "exportname", "default-export=x", "exportname-list=explicit", "exportname=x", "exportname=y", "exportname-strict=true", "exportdesc=fixed:about it")
	entries, err := s.List(t.Context(), nbd.Client{})
	if err != nil || !slices.Equal(entries, []plugin.Entry{{Name: "x", Description: "about it"}, {Name: "y", Description: "about it"}}) {
		t.Errorf("%v %v", entries, err)
	}
	if name, err := s.Default(t.Context(), nbd.Client{}); name != "x" || err != nil {
		t.Errorf("%q %v", name, err)
	}
	if err := s.Check(t.Context(), nbd.Client{}, "z"); !errors.Is(err, nbd.ErrNoExport) {
		t.Error(err)
	}
	if a := open(t, s, nbd.OpenInfo{}); a.Description != "about it" {
		t.Errorf("%q", a.Description)
	}
}

func TestExportDescriptionByScript(t *testing.T) {
	s := must(t, memory.New(512), "exportname", "exportname-list=explicit", "exportname=a b", `exportname=$(c)`, `exportdesc=script:test "$name" = d && exit 1; echo "about $name"`)
	entries, err := s.List(t.Context(), nbd.Client{})
	if err != nil || !slices.Equal(entries, []plugin.Entry{{Name: "a b", Description: "about a b"}, {Name: "$(c)", Description: "about $(c)"}}) {
		t.Errorf("%q %v", entries, err)
	}
	if a := open(t, s, nbd.OpenInfo{Name: "d"}); a.Description != "" {
		t.Errorf("%q", a.Description)
	}
}

// TestLog compares lines with those that nbdkit wrote for the same requests.
func TestLog(t *testing.T) {
	dir := t.TempDir()
	path, calls := filepath.Join(dir, "log"), filepath.Join(dir, "calls")
	s := must(t, memory.New(1<<20), "log error", "logfile="+path, "error-cache-rate=1", "error=ENOSPC", "error-pwrite-rate=1",
		`logscript=echo "$connection $type $id $act $offset $error $export" >> `+calls)
	a := open(t, s, nbd.OpenInfo{Name: "a\nb $(exit)"})
	a.ReadAt(make([]byte, 512), 1024)
	a.WriteAt(make([]byte, 16), 0)
	a.Zero(0, 4096, nbd.ZeroMayTrim|nbd.ZeroFast)
	a.Trim(0, 4096)
	a.Sync()
	a.Extents(0, 1<<20, true)
	a.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	lines := func(path string) (all []string) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			all = append(all, strings.TrimSpace(line))
		}
		return all
	}
	got := lines(path)
	for i, line := range got {
		at, rest := line[:min(len(line), 26)], line[min(len(line), 27):]
		if _, err := time.Parse("2006-01-02 15:04:05.000000", at); err != nil {
			t.Error(err)
		}
		got[i] = rest
	}
	if diff := cmp.Diff([]string{
		"Ready thread_model=3",
		`connection=1 Connect export="a\nb $(exit)" tls=0 size=0x100000 minsize=0x1 prefsize=0x1000 maxsize=0x2000000 write=1 flush=1 rotational=0 trim=1 zero=2 fua=2 extents=1 cache=2 fast_zero=1`,
		"connection=1 Read id=1 offset=0x400 count=0x200 ...",
		"connection=1 ...Read id=1 return=0",
		"connection=1 Write id=2 offset=0x0 count=0x10 fua=0 ...",
		"connection=1 ...Write id=2 return=-1 error=ENOSPC",
		"connection=1 Zero id=3 offset=0x0 count=0x1000 trim=1 fua=0 fast=1 ...",
		"connection=1 ...Zero id=3 return=0",
		"connection=1 Trim id=4 offset=0x0 count=0x1000 fua=0 ...",
		"connection=1 ...Trim id=4 return=0",
		"connection=1 Flush id=5 ...",
		"connection=1 ...Flush id=5 return=0",
		"connection=1 Extents id=6 offset=0x0 count=0x100000 req_one=1 ...",
		`connection=1 ...Extents id=6 extents=(0x0 0x100000 "hole,zero") return=0`,
		"connection=1 Disconnect transactions=6",
	}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"PRINT  Ready",
		"1 PRINT  Connect   a", "b $(exit)",
		"1 ENTER 1 Read 0x400", "1 LEAVE 1 Read",
		"1 ENTER 2 Write 0x0", "1 LEAVE 2 Write  ENOSPC",
	}, lines(calls)[:7]); diff != "" {
		t.Errorf("calls -want +got:\n%s", diff)
	}
}
