package ktls

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/unix"
)

// expected is what this kernel is to be able to do: "rekey", "norekey" or "none".
// A virtual machine says so; elsewhere the tests take what they find, if there is
// anything.
var expected = os.Getenv("NBD_TEST_KTLS")

func needKernel(t testing.TB) *Support {
	t.Helper()
	s, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	if s.ULP != nil {
		if expected == "rekey" || expected == "norekey" {
			t.Fatalf("the kernel is to have TLS: %v", s.ULP)
		}
		t.Skip(s.ULP)
	}
	return s
}

func TestProbe(t *testing.T) {
	s, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s)
	stats, err := Stats()
	if err != nil {
		t.Fatal(err)
	}
	switch expected {
	case "none":
		if !errors.Is(s.ULP, unix.ENOENT) || s.Sends(AES128GCM) == nil {
			t.Errorf("ULP: %v", s.ULP)
		}
		return
	case "norekey":
		if s.Rekey != unix.EBUSY || !errors.Is(s.Sends(AES128GCM), ErrNoRekey) {
			t.Errorf("rekey: %v", s.Rekey)
		}
	case "rekey":
		if s.Rekey != nil {
			t.Errorf("rekey: %v", s.Rekey)
		}
	default:
		return
	}
	for _, c := range Ciphers {
		if s.TX[c] != nil || s.RX[c] != nil {
			t.Errorf("%v: TX %v, RX %v", c, s.TX[c], s.RX[c])
		}
	}
	if _, ok := stats["TlsTxRekeyOk"]; ok != (s.Rekey == nil) {
		t.Errorf("rekey %v, but the counters are %v", s.Rekey, stats)
	}
}

// peer is the receiving end of a connection: it opens every record with the next
// sequence number of its key.
type peer struct {
	t    testing.TB
	nc   net.Conn
	r    *bufio.Reader
	key  *CryptoInfo
	aead cipher.AEAD
	seq  uint64
}

// testKey makes the n-th key of a cipher.
func testKey(c Cipher, n byte) *CryptoInfo {
	info := &CryptoInfo{Cipher: c, Key: bytes.Repeat([]byte{n}, c.keyLen())}
	copy(info.IV[:], bytes.Repeat([]byte{n + 100}, IVLen))
	return info
}

func newPeer(t testing.TB, nc *net.TCPConn) *peer {
	// With a window of one segment TCP would wait for delayed acknowledgements.
	nc.SetReadBuffer(1 << 20)
	return &peer{t: t, nc: nc, r: bufio.NewReader(nc)}
}

func (p *peer) setKey(info *CryptoInfo) {
	p.key, p.seq = info, info.RecSeq
	if info.Cipher == ChaCha20Poly1305 {
		p.aead, _ = chacha20poly1305.New(info.Key)
		return
	}
	b, _ := aes.NewCipher(info.Key)
	p.aead, _ = cipher.NewGCM(b)
}

// next returns the next record.
func (p *peer) next() (typ byte, content []byte, err error) {
	var header [5]byte
	if _, err := io.ReadFull(p.r, header[:]); err != nil {
		return 0, nil, err
	}
	record := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(p.r, record); err != nil {
		return 0, nil, err
	}
	nonce := p.key.IV
	seq := binary.BigEndian.Uint64(nonce[4:]) ^ p.seq
	binary.BigEndian.PutUint64(nonce[4:], seq)
	p.seq++
	inner, err := p.aead.Open(nil, nonce[:], record, header[:])
	if err != nil {
		p.t.Errorf("record %d does not open", p.seq-1)
		return 0, nil, err
	}
	return inner[len(inner)-1], inner[:len(inner)-1], nil
}

// data reads n bytes of data, and returns the lengths of their records.
func (p *peer) data(n int) (b []byte, records []int) {
	p.t.Helper()
	for len(b) < n {
		typ, content, err := p.next()
		if err != nil || typ != 23 {
			p.t.Fatalf("after %d of %d bytes: type %d, %v", len(b), n, typ, err)
		}
		b = append(b, content...)
		records = append(records, len(content))
	}
	return b, records
}

// attached returns a connection, its sending direction and its peer.
func attached(t testing.TB, c Cipher) (*TX, *net.TCPConn, *peer) {
	t.Helper()
	needKernel(t)
	a, b := tcpPair(t)
	info := testKey(c, 1)
	tx, err := Attach(a, info)
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, b)
	p.setKey(info)
	return tx, a, p
}

func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	deadline := time.Now().Add(time.Minute)
	near.SetDeadline(deadline)
	far.SetDeadline(deadline)
	return near.(*net.TCPConn), far.(*net.TCPConn)
}

// testFile makes a file of n bytes that are nowhere the same.
func testFile(t testing.TB, n int) (*os.File, []byte) {
	t.Helper()
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{7}).Read(b)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, b
}

func TestRecords(t *testing.T) {
	for _, c := range Ciphers {
		t.Run(c.String(), func(t *testing.T) {
			tx, conn, p := attached(t, c)
			for _, n := range []int{1, 5, 100, MaxRecord, MaxRecord + 1, 100_000} {
				b := bytes.Repeat([]byte{byte(n)}, n)
				go conn.Write(b)
				if got, _ := p.data(n); !bytes.Equal(got, b) {
					t.Fatalf("%d bytes are not what was sent", n)
				}
			}
			if err := tx.WriteRecord(21, []byte{1, 0}); err != nil {
				t.Fatal(err)
			}
			if typ, content, err := p.next(); typ != 21 || !bytes.Equal(content, []byte{1, 0}) {
				t.Errorf("type %d, %x, %v", typ, content, err)
			}
			if seq, err := tx.RecSeq(); seq != p.seq || err != nil {
				t.Errorf("the kernel is at record %d (%v), the peer at %d", seq, err, p.seq)
			}
			if err := tx.WriteRecord(21, nil); err == nil {
				t.Error("an empty alert was sent")
			}
		})
	}
}

// TestReceivingStaysAsItIs: with TLS_TX alone, the socket reads as TCP.
func TestReceivingStaysAsItIs(t *testing.T) {
	_, conn, p := attached(t, AES128GCM)
	go p.nc.Write([]byte("not a record"))
	b := make([]byte, 12)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "not a record" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestFirstRecordMayBeAny(t *testing.T) {
	needKernel(t)
	a, b := tcpPair(t)
	info := testKey(AES256GCM, 9)
	info.RecSeq = 1<<32 + 5
	if _, err := Attach(a, info); err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, b)
	p.setKey(info)
	go a.Write([]byte("x"))
	p.data(1)
}

func TestRekey(t *testing.T) {
	if needKernel(t).Rekey != nil {
		tx, conn, p := attached(t, AES128GCM)
		if err := tx.Rekey(testKey(AES128GCM, 2)); !errors.Is(err, unix.EBUSY) {
			t.Errorf("a second key: %v", err)
		}
		go conn.Write([]byte("old key"))
		p.data(7)
		return
	}
	for _, c := range Ciphers {
		tx, conn, p := attached(t, c)
		before, _ := Stats()
		const keys = 100
		for k := byte(2); k < keys; k++ {
			go conn.Write([]byte("old key"))
			p.data(7)
			if err := tx.WriteRecord(22, []byte{24, 0, 0, 1, 0}); err != nil {
				t.Fatal(err)
			}
			if err := tx.Rekey(testKey(c, k)); err != nil {
				t.Fatal(err)
			}
			if typ, _, err := p.next(); typ != 22 {
				t.Fatalf("type %d, %v", typ, err)
			}
			p.setKey(testKey(c, k))
		}
		wrong := testKey(c, 1)
		wrong.Cipher = Ciphers[0]
		if c == wrong.Cipher {
			wrong = testKey(AES256GCM, 1)
		}
		wrong.Key = wrong.Key[:wrong.Cipher.keyLen()]
		if err := tx.Rekey(wrong); !errors.Is(err, unix.EINVAL) {
			t.Errorf("a key of another cipher: %v", err)
		}
		go conn.Write([]byte("the key before"))
		p.data(14)
		if after, _ := Stats(); after["TlsTxRekeyOk"]-before["TlsTxRekeyOk"] != keys-2 {
			t.Errorf("the kernel counts %d new keys", after["TlsTxRekeyOk"]-before["TlsTxRekeyOk"])
		}
	}
}

func TestAttachFails(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := Attach(nc, testKey(AES128GCM, 1)); !errors.Is(err, ErrNotTCP) {
		t.Errorf("Unix socket: %v", err)
	}
	for _, info := range []*CryptoInfo{{Cipher: 99, Key: make([]byte, 32)}, {Cipher: AES128GCM, Key: make([]byte, 32)}} {
		if _, err := info.appendTo(nil); err == nil {
			t.Errorf("%+v was taken", info)
		}
	}
	if s, err := Probe(); err == nil && s.ULP != nil {
		a, _ := tcpPair(t)
		if _, err := Attach(a, testKey(AES128GCM, 1)); err == nil {
			t.Error("attached without the kernel's help")
		}
		return
	}
	tx, _, _ := attached(t, AES128GCM)
	if err := control(tx.c, func(fd int) error { return setULP(fd) }); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second ULP: %v", err)
	}
}

// TestAttachFailsInTheMiddle: a socket with the ULP and no key passes bytes on as
// they are, so user space can go on with it.
func TestAttachFailsInTheMiddle(t *testing.T) {
	needKernel(t)
	defer func(f func(int, int, int, []byte) error) { setsockopt = f }(setsockopt)
	setsockopt = func(int, int, int, []byte) error { return unix.ENOMEM }
	a, b := tcpPair(t)
	if _, err := Attach(a, testKey(AES128GCM, 1)); !errors.Is(err, unix.ENOMEM) {
		t.Fatal(err)
	}
	go a.Write([]byte("as it is"))
	p := make([]byte, 8)
	if _, err := io.ReadFull(b, p); err != nil || string(p) != "as it is" {
		t.Errorf("%q, %v", p, err)
	}
}

// sendSection is what a writer does with a part of a file.
func sendSection(t testing.TB, c syscall.RawConn, header []byte, f *os.File, off int64, n int) {
	t.Helper()
	s, err := Load(f, off, n)
	if s == nil || err != nil {
		t.Errorf("%d bytes at %d: %v, %v", n, off, s, err)
		return
	}
	if err := s.SendTo(c, header); err != nil {
		t.Error(err)
	}
	s.Free()
}

func TestSections(t *testing.T) {
	f, want := testFile(t, 2<<20)
	header := []byte("sixteen bytes it")
	check := func(t *testing.T, c syscall.RawConn, receive func(n int) []byte) {
		for _, s := range []struct {
			off int64
			n   int
		}{{0, 1}, {0, 4096}, {1, 4096}, {0, 16384}, {512, 1<<20 - 512}, {0, 1 << 20}, {4096, 1 << 20}, {123_457, 700_001}} {
			go sendSection(t, c, header, f, s.off, s.n)
			got := receive(len(header) + s.n)
			if !bytes.Equal(got, append(bytes.Clone(header), want[s.off:][:s.n]...)) {
				t.Errorf("%d bytes at %d are not those of the file", s.n, s.off)
			}
		}
	}
	t.Run("plain", func(t *testing.T) {
		a, b := tcpPair(t)
		c, err := a.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		check(t, c, func(n int) []byte {
			p := make([]byte, n)
			if _, err := io.ReadFull(b, p); err != nil {
				t.Error(err)
			}
			return p
		})
	})
	for _, cipher := range Ciphers {
		t.Run(cipher.String(), func(t *testing.T) {
			tx, _, p := attached(t, cipher)
			check(t, tx.c, func(n int) []byte {
				b, records := p.data(n)
				t.Logf("%d bytes in %d records", n, len(records))
				if limit := n/4096 + 4; len(records) > limit {
					t.Errorf("%d bytes came in %d records", n, len(records))
				}
				return b
			})
		})
	}
}

// TestBadSections: what is wrong with a file is found before anything is sent,
// and no pipe with something in it is used again.
func TestBadSections(t *testing.T) {
	f, want := testFile(t, 100_000)
	if s, err := Load(f, 90_000, 20_000); s != nil || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("beyond the end: %v, %v", s, err)
	}
	if s, err := Load(f, 1, MaxSection); s != nil || err != nil {
		t.Errorf("too much: %v, %v", s, err)
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if s, err := Load(dir, 0, 4096); s != nil || err != nil && !errors.Is(err, unix.EISDIR) {
		t.Errorf("a directory: %v, %v", s, err)
	}
	var all []*Section
	for range maxPipes {
		s, err := Load(f, 0, 5000)
		if s == nil || err != nil {
			t.Fatal(s, err)
		}
		all = append(all, s)
	}
	if s, err := Load(f, 0, 5000); s != nil || err != nil {
		t.Errorf("one pipe too many: %v, %v", s, err)
	}
	for _, s := range all {
		s.Free() // with something in it
	}
	if pipes.made != 0 || len(pipes.free) != 0 {
		t.Errorf("%d pipes are left, %d free", pipes.made, len(pipes.free))
	}
	a, b := tcpPair(t)
	c, _ := a.SyscallConn()
	sendSection(t, c, nil, f, 3, 5000)
	p := make([]byte, 5000)
	if _, err := io.ReadFull(b, p); err != nil || !bytes.Equal(p, want[3:5003]) {
		t.Errorf("other bytes than those of the file: %v", err)
	}
	if pipes.made != 1 || len(pipes.free) != 1 {
		t.Errorf("%d pipes, %d free", pipes.made, len(pipes.free))
	}
}

// TestPeerGone: a reader that goes away, or does not read, ends sending.
func TestPeerGone(t *testing.T) {
	f, _ := testFile(t, 1<<20)
	for _, how := range []string{"close", "stall"} {
		t.Run(how, func(t *testing.T) {
			a, b := tcpPair(t)
			c, _ := a.SyscallConn()
			if how == "close" {
				b.SetLinger(0)
				b.Close()
			} else {
				a.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			}
			var err error
			for range 1000 {
				s, lerr := Load(f, 0, 1<<20)
				if s == nil {
					t.Fatal(lerr)
				}
				err = s.SendTo(c, []byte("header"))
				s.Free()
				if err != nil {
					break
				}
			}
			if err == nil || errors.Is(err, os.ErrDeadlineExceeded) != (how == "stall") {
				t.Error(err)
			}
		})
	}
}

// TestBackPressure mixes everything that sends while the peer reads in fits and
// starts: every byte arrives, under the right key, in one record each.
func TestBackPressure(t *testing.T) {
	rekey := needKernel(t).Rekey == nil
	f, want := testFile(t, 1<<20)
	tx, conn, p := attached(t, AES128GCM)
	const operations = 300
	type sent struct {
		typ  byte
		data []byte
	}
	script := make(chan sent, operations)
	go func() {
		defer close(script)
		rng := rand.New(rand.NewPCG(1, 2))
		var err error
		for i, k := 0, byte(2); err == nil && i < operations-1; i++ {
			switch off, n := rng.IntN(len(want)/2), 1+rng.IntN(100_000); rng.IntN(4) {
			case 0:
				script <- sent{23, want[off : off+n]}
				_, err = conn.Write(want[off : off+n])
			case 1, 2:
				script <- sent{23, append([]byte("header"), want[off:off+n]...)}
				sendSection(t, tx.c, []byte("header"), f, int64(off), n)
			case 3:
				script <- sent{22, []byte{24, k}}
				if err = tx.WriteRecord(22, []byte{24, k}); err == nil && rekey {
					err = tx.Rekey(testKey(AES128GCM, k))
				}
				k++
			}
		}
		if err == nil {
			script <- sent{21, []byte{1, 0}}
			err = tx.WriteRecord(21, []byte{1, 0})
		}
		if err == nil {
			err = tx.Drain()
		}
		if err != nil {
			t.Error(err)
		}
		conn.Close()
	}()
	rng := rand.New(rand.NewPCG(3, 4))
	total := 0
	for s := range script {
		if rng.IntN(10) == 0 {
			time.Sleep(time.Millisecond)
		}
		if s.typ == 23 {
			got, _ := p.data(len(s.data))
			if !bytes.Equal(got, s.data) {
				t.Fatal("the bytes are not those that were sent")
			}
			total += len(got)
			continue
		}
		typ, content, err := p.next()
		if typ != s.typ || !bytes.Equal(content, s.data) {
			t.Fatalf("type %d, %x, %v", typ, content, err)
		}
		if typ == 22 && rekey {
			p.setKey(testKey(AES128GCM, content[1]))
		}
	}
	if _, _, err := p.next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	t.Logf("%d bytes", total)
}

// TestCloseLosesNothing fills the socket and closes right after Drain.
func TestCloseLosesNothing(t *testing.T) {
	f, _ := testFile(t, 1<<20)
	for range 5 {
		tx, conn, p := attached(t, AES128GCM)
		done := make(chan int)
		go func() {
			n := 0
			for conn.SetWriteDeadline(time.Now().Add(50*time.Millisecond)) == nil {
				s, err := Load(f, 0, 100_000)
				if s == nil {
					t.Error(err)
					break
				}
				err = s.SendTo(tx.c, nil)
				n += 100_000 - s.n
				s.Free()
				if err != nil {
					break
				}
			}
			done <- n
			conn.SetWriteDeadline(time.Now().Add(time.Minute))
			if err := tx.Drain(); err != nil {
				t.Error(err)
			}
			conn.CloseWrite()
		}()
		n := <-done
		p.data(n)
		if _, _, err := p.next(); !errors.Is(err, io.EOF) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}
