package tlsengine

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd-ktls-server/ktls"
)

// kernelPolicy is what the connections of this package's tests want of the
// kernel. NBD_TEST_KTLS tells what that can do; where it can do everything, every
// test here is one of the kernel.
func kernelPolicy() KTLS {
	if require || os.Getenv("NBD_TEST_KTLS") == "rekey" {
		return KTLSRequire
	}
	return KTLSAuto
}

// require is set by tests of kernels that --ktls=auto does not use.
var require bool

var errNotHandled = errors.New("not handled")

func TestTheKernelMakesTheRecords(t *testing.T) {
	expected := os.Getenv("NBD_TEST_KTLS")
	if expected == "" {
		t.Skip("NBD_TEST_KTLS does not say what this kernel can do")
	}
	server, _ := connect(t, Options{}, nil)
	if server.State().TX.Kernel != (expected == "rekey") {
		t.Errorf("%s: %v", expected, server)
	}
	t.Log(server)
}

// fakeKernel makes no records, and fails where it is told to.
type fakeKernel struct {
	rekey error
	types []byte
}

func (k *fakeKernel) WriteRecord(typ byte, _ []byte) error {
	k.types = append(k.types, typ)
	return nil
}
func (k *fakeKernel) Send([]byte, *ktls.Section) error { return nil }
func (k *fakeKernel) Rekey(*ktls.CryptoInfo) error     { return k.rekey }
func (k *fakeKernel) Drain() error                     { return nil }

// TestFailedRekeyEndsTheConnection: once the KeyUpdate is out, nothing may be
// sent under the old key, not even an alert.
func TestFailedRekeyEndsTheConnection(t *testing.T) {
	server, c := connect(t, Options{KTLS: KTLSOff, RekeyBytes: 1000}, nil)
	k := &fakeKernel{rekey: errors.New("no memory")}
	server.out.kernel = k
	if _, err := server.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Write([]byte("x")); !errors.Is(err, k.rekey) {
		t.Errorf("the write after the key: %v", err)
	}
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, k.rekey) {
		t.Errorf("reading: %v", err)
	}
	server.CloseWrite()
	server.sendAlert(alertInternalError)
	if !bytes.Equal(k.types, []byte{byte(typeHandshake)}) {
		t.Errorf("records of the types %v were sent", k.types)
	}
	server.raw.Close()
	// What the fake did not encrypt is all that has come.
	if b, _ := io.ReadAll(c.nc); len(b) != 1000 {
		t.Errorf("%d bytes were sent", len(b))
	}
}

// TestRequireRefuses: where the kernel cannot encrypt, --ktls=require has no
// connection, and the client and the log hear of it.
func TestRequireRefuses(t *testing.T) {
	dir, _ := authority(t)
	s, err := New(Config{Dir: dir, Options: Options{KTLS: KTLSRequire}})
	if err != nil {
		t.Fatal(err)
	}
	for _, max := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		client, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		answer := make(chan error)
		go func() {
			tc := tls.Client(client, &tls.Config{InsecureSkipVerify: true, MaxVersion: max})
			_, err := tc.Read(make([]byte, 1))
			answer <- err
		}()
		if _, err := s.StartTLS(t.Context(), server); err == nil || !strings.Contains(err.Error(), "kernel must encrypt") && max == tls.VersionTLS13 {
			t.Errorf("the server: %v", err)
		}
		server.Close()
		if err := <-answer; err == nil || !strings.Contains(err.Error(), "remote error") {
			t.Errorf("the client: %v", err)
		}
		client.Close()
	}
}

// TestOneKey: a kernel that cannot change keys ends the connection, in good
// order, when a new key is due or asked for.
func TestOneKey(t *testing.T) {
	s, err := ktls.Probe()
	if err != nil || !errors.Is(s.Sends(ktls.AES128GCM), ktls.ErrNoRekey) {
		t.Skip("this is for kernels that make records and cannot change keys")
	}
	require = true
	defer func() { require = false }()
	for _, asked := range []bool{false, true} {
		server, c := connect(t, Options{RekeyRecords: 64}, nil)
		if !server.State().TX.Kernel {
			t.Fatal(server)
		}
		read := make(chan error)
		go func() {
			_, err := server.Read(make([]byte, 1))
			read <- err
		}()
		if asked {
			c.send(c.keyUpdate(updateRequested))
		} else {
			go func() {
				for range 100 {
					if _, err := server.Write(make([]byte, maxPlaintext)); err != nil {
						break
					}
				}
			}()
		}
		for {
			typ, p, err := c.next()
			if err != nil {
				t.Fatal(err)
			}
			if typ == typeAlert {
				if p[1] != byte(alertCloseNotify) {
					t.Errorf("alert %d", p[1])
				}
				break
			}
		}
		if c.in.seq > 64 {
			t.Errorf("%d records under one key", c.in.seq)
		}
		if err := <-read; !errors.Is(err, errOneKey) {
			t.Errorf("reading: %v", err)
		}
	}
}

// TestSendFileSoak has many goroutines send parts of a file and bytes of their
// own, while both sides change keys.
func TestSendFileSoak(t *testing.T) {
	size := int64(24 << 20)
	if os.Getenv("NBD_TEST_FULL") != "" {
		size = 256 << 20
	}
	server, c := connect(t, Options{RekeyBytes: 1 << 20}, nil)
	content := make([]byte, 3<<20)
	stream(content, 0)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const writers = 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(5, uint64(w)))
			for left := size / writers; left > 0; {
				off := r.IntN(len(content) / 2)
				n := min(r.IntN(1<<20-4096)+1, int(left))
				if err := sendFrame(server, f, content, off, n, r.IntN(3) > 0); err != nil {
					t.Error(err)
					return
				}
				left -= int64(n)
			}
		})
	}
	wg.Go(func() { // the client asks for keys; the server reads what it asks
		for range 20 {
			c.send(c.keyUpdate(updateRequested))
			time.Sleep(5 * time.Millisecond)
		}
		c.send(c.record(typeApplicationData, []byte("."), 0))
	})
	wg.Go(func() {
		if _, err := server.Read(make([]byte, 1)); err != nil {
			t.Error("reading:", err)
		}
	})
	r := &clientReader{c: c}
	for left := size; left > 0; {
		off, n, err := readFrame(r, content)
		if err != nil {
			t.Fatalf("%d bytes at %d: %v", n, off, err)
		}
		left -= int64(n)
	}
	wg.Wait()
	if c.updates < 20 && c.updates < int(size>>20)/2 {
		t.Errorf("only %d updates of ours", c.updates)
	}
	t.Logf("%v: %d updates", server, c.updates)
}

// sendFrame sends where a part of the file is, and then the part.
func sendFrame(server *Conn, f *os.File, content []byte, off, n int, asFile bool) error {
	header := []byte{byte(off >> 24), byte(off >> 16), byte(off >> 8), byte(off), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	if asFile {
		if handled, err := server.SendFile(header, f, int64(off), int64(n), nil); handled || err != nil {
			return err
		}
	}
	return server.WriteBuffers(net.Buffers{header, content[off : off+n]})
}

func readFrame(r io.Reader, content []byte) (off, n int, err error) {
	var h [8]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, 0, err
	}
	off = int(h[0])<<24 | int(h[1])<<16 | int(h[2])<<8 | int(h[3])
	n = int(h[4])<<24 | int(h[5])<<16 | int(h[6])<<8 | int(h[7])
	got := make([]byte, n)
	if _, err := io.ReadFull(r, got); err != nil {
		return off, n, err
	}
	if !bytes.Equal(got, content[off:off+n]) {
		return off, n, errors.New("they are not those of the file")
	}
	return off, n, nil
}

// clientReader reads the application data that a client gets.
type clientReader struct {
	c    *client
	data []byte
}

func (r *clientReader) Read(p []byte) (int, error) {
	for len(r.data) == 0 {
		typ, data, err := r.c.next()
		if err != nil {
			return 0, err
		}
		if typ != typeApplicationData {
			return 0, errors.New("a record of another type")
		}
		r.data = data
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}
