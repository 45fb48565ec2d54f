package tlsengine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd-ktls-server/ktls"
)

// The client speaks first, and may do so in one packet with its Finished: no
// byte of that may be lost in crypto/tls.
func TestFirstRecordGluedToFinished(t *testing.T) {
	server, c := connect(t, Options{}, []byte("first"))
	c.send(c.record(typeApplicationData, []byte("second"), 0))
	got := make([]byte, len("firstsecond"))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "firstsecond" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := server.Write([]byte("reply")); err != nil {
		t.Fatal(err)
	}
	if typ, p, err := c.next(); err != nil || typ != typeApplicationData || string(p) != "reply" {
		t.Errorf("%d %q %v", typ, p, err)
	}
}

// Everything that a client may do wrong after the handshake gets its alert, and
// the server an error that says what it was.
func TestAlerts(t *testing.T) {
	keyUpdate := []byte{handshakeKeyUpdate, 0, 0, 1, 0}
	for _, test := range []struct {
		name  string
		send  func(c *client) []byte
		alert Alert
		err   string
	}{
		{"a flipped bit", func(c *client) []byte { r := c.record(23, []byte("x"), 0); r[7] ^= 1; return r }, alertBadRecordMAC, "does not decrypt"},
		{"a flipped bit in the length", func(c *client) []byte { r := c.record(23, make([]byte, 600), 0); r[4] ^= 1; return r }, alertBadRecordMAC, "does not decrypt"},
		{"a record left out", func(c *client) []byte { c.record(23, []byte("x"), 0); return c.record(23, []byte("y"), 0) }, alertBadRecordMAC, "does not decrypt"},
		{"a record twice", func(c *client) []byte { r := c.record(23, []byte("x"), 0); return append(r, r...) }, alertBadRecordMAC, "does not decrypt"},
		{"records in another order", func(c *client) []byte {
			a, b := c.record(23, []byte("x"), 0), c.record(23, []byte("y"), 0)
			return append(b, a...)
		}, alertBadRecordMAC, "does not decrypt"},
		{"too short to be a record", func(*client) []byte { return []byte{23, 3, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} }, alertBadRecordMAC, "16 bytes"},
		{"an empty record", func(*client) []byte { return []byte{23, 3, 3, 0, 0} }, alertBadRecordMAC, "0 bytes"},
		{"too long a record", func(*client) []byte { return []byte{23, 3, 3, 0x41, 1} }, alertRecordOverflow, "16641 bytes"},
		{"too much in a record", func(c *client) []byte { return c.record(23, make([]byte, maxPlaintext+1), 0) }, alertRecordOverflow, "16386 bytes in it"},
		{"too much padding", func(c *client) []byte { return c.record(23, []byte("x"), maxPlaintext) }, alertRecordOverflow, "16386 bytes in it"},
		{"padding alone", func(c *client) []byte { return c.record(0, nil, 10) }, alertUnexpectedMessage, "padding alone"},
		{"a plain alert", func(*client) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }, alertUnexpectedMessage, "not encrypted"},
		{"a plain handshake record", func(*client) []byte { return []byte{22, 3, 3, 0, 1, 1} }, alertUnexpectedMessage, "not encrypted"},
		{"change_cipher_spec", func(*client) []byte { return []byte{20, 3, 3, 0, 1, 1} }, alertUnexpectedMessage, "not encrypted"},
		{"not TLS at all", func(*client) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, alertUnexpectedMessage, "unknown type 71"},
		{"an unknown inner type", func(c *client) []byte { return c.record(99, []byte("x"), 0) }, alertUnexpectedMessage, "type 99"},
		{"an empty handshake record", func(c *client) []byte { return c.record(typeHandshake, nil, 0) }, alertUnexpectedMessage, "empty handshake"},
		{"an empty alert", func(c *client) []byte { return c.record(typeAlert, nil, 0) }, alertUnexpectedMessage, "empty alert"},
		{"half an alert", func(c *client) []byte { return c.record(typeAlert, []byte{2}, 0) }, alertDecodeError, "alert of 1 bytes"},
		{"another handshake", func(c *client) []byte { return c.record(typeHandshake, []byte{1, 0, 0, 0}, 0) }, alertUnexpectedMessage, "type 1 after"},
		{"a NewSessionTicket", func(c *client) []byte { return c.record(typeHandshake, []byte{4, 0, 0, 0}, 0) }, alertUnexpectedMessage, "type 4 after"},
		{"too long a KeyUpdate", func(c *client) []byte { return c.record(typeHandshake, []byte{24, 0, 0, 2, 0, 0}, 0) }, alertDecodeError, "KeyUpdate of 2"},
		{"a huge KeyUpdate", func(c *client) []byte { return c.record(typeHandshake, []byte{24, 1, 0, 0}, 0) }, alertDecodeError, "KeyUpdate of 65536"},
		{"an unknown request", func(c *client) []byte { return c.record(typeHandshake, []byte{24, 0, 0, 1, 2}, 0) }, alertIllegalParameter, "request 2"},
		{"two KeyUpdates in a record", func(c *client) []byte { return c.record(typeHandshake, append(keyUpdate, keyUpdate...), 0) }, alertUnexpectedMessage, "behind a KeyUpdate"},
		{"data between the halves of a KeyUpdate", func(c *client) []byte {
			return append(c.record(typeHandshake, keyUpdate[:3], 0), c.record(23, []byte("x"), 0)...)
		}, alertUnexpectedMessage, "in the middle"},
		{"an alert between the halves", func(c *client) []byte {
			return append(c.record(typeHandshake, keyUpdate[:3], 0), c.record(typeAlert, []byte{1, 0}, 0)...)
		}, alertUnexpectedMessage, "in the middle"},
		{"the old key after a KeyUpdate", func(c *client) []byte {
			return append(c.record(typeHandshake, keyUpdate, 0), c.record(23, []byte("x"), 0)...)
		}, alertBadRecordMAC, "does not decrypt"},
		{"the next key too soon", func(c *client) []byte { c.out.update(); return c.record(23, []byte("x"), 0) }, alertBadRecordMAC, "does not decrypt"},
		{"a flood of empty records", func(c *client) (p []byte) {
			for range maxUseless + 1 {
				p = append(p, c.record(23, nil, 5)...)
			}
			return p
		}, alertUnexpectedMessage, "records without data"},
		{"a flood of KeyUpdates", func(c *client) (p []byte) {
			for range maxUseless + 1 {
				p = append(p, c.keyUpdate(updateNotRequested)...)
			}
			return p
		}, alertUnexpectedMessage, "records without data"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, c := connect(t, Options{}, nil)
			done := make(chan error)
			go func() {
				_, err := io.Copy(io.Discard, server)
				done <- err
			}()
			c.send(test.send(c))
			c.expectAlert(test.alert)
			err := <-done
			if err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), test.alert.String()) {
				t.Errorf("the server's error is %v, want %q", err, test.err)
			}
			if _, err := server.Write([]byte("x")); err == nil {
				t.Error("something can be sent after a fatal alert")
			}
		})
	}
}

// What is unusual but right.
func TestOddButRight(t *testing.T) {
	server, c := connect(t, Options{}, nil)
	var p []byte
	p = append(p, c.record(23, nil, 0)...)
	p = append(p, c.record(23, nil, 1000)...)
	p = append(p, c.record(23, []byte("a"), maxPlaintext-1)...) // the most padding there can be
	p = append(p, c.record(typeHandshake, []byte{24}, 3)...)    // a KeyUpdate in pieces
	p = append(p, c.record(typeHandshake, []byte{0, 0, 1}, 0)...)
	p = append(p, c.record(typeHandshake, []byte{0}, 0)...)
	c.out.update()
	r := c.record(23, []byte("b"), 0)
	r[1], r[2] = 3, 3
	p = append(p, r...)
	p = append(p, c.record(typeAlert, []byte{1, byte(alertUserCanceled)}, 0)...) // ignored
	p = append(p, c.record(23, make([]byte, maxPlaintext), 0)...)
	p = append(p, c.record(typeAlert, []byte{1, byte(alertCloseNotify)}, 0)...)
	p = append(p, "whatever follows close_notify"...)
	for len(p) > 0 { // in small pieces
		n := min(len(p), 1+len(p)/7)
		c.send(p[:n])
		p = p[n:]
	}
	got, err := io.ReadAll(server)
	if want := append([]byte("ab"), make([]byte, maxPlaintext)...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	// Only reading has ended.
	if _, err := server.Write([]byte("still here")); err != nil {
		t.Error(err)
	}
	if err := server.CloseWrite(); err != nil {
		t.Error(err)
	}
	c.expectAlert(alertCloseNotify)
	if _, err := server.Write([]byte("x")); err == nil {
		t.Error("something can be sent after close_notify")
	}
}

// An end without close_notify is not an end of the data.
func TestTruncation(t *testing.T) {
	for name, cut := range map[string]func(c *client) []byte{
		"between records":    func(c *client) []byte { return c.record(23, []byte("x"), 0) },
		"in a record":        func(c *client) []byte { return c.record(23, []byte("x"), 0)[:10] },
		"in a record's head": func(c *client) []byte { return c.record(23, []byte("x"), 0)[:3] },
	} {
		t.Run(name, func(t *testing.T) {
			server, c := connect(t, Options{}, nil)
			c.send(cut(c))
			c.nc.(*net.TCPConn).CloseWrite()
			if _, err := io.ReadAll(server); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v", err)
			}
		})
	}
	server, c := connect(t, Options{}, nil)
	c.send(c.record(typeAlert, []byte{2, 42}, 0))
	var remote *RemoteAlert
	if _, err := io.ReadAll(server); !errors.As(err, &remote) || remote.Alert != alertBadCertificate {
		t.Errorf("a fatal alert: %v", err)
	}
}

// Requests for KeyUpdates from a client that does not read are answered once,
// and stop nobody from reading.
func TestKeyUpdateRequestsAreCoalesced(t *testing.T) {
	server, c := connect(t, Options{}, nil)
	const total, part = 64 << 20, 256 << 10
	var parts atomic.Int64
	wrote := make(chan error)
	go func() { // fills the socket, and waits in the middle of a batch
		var err error
		for p := make([]byte, part); parts.Load() < total/part && err == nil; parts.Add(1) {
			_, err = server.Write(p)
		}
		wrote <- err
	}()
	for last, still := int64(0), 0; still < 10; { // the slowest machine writes 256 KiB in half a second
		time.Sleep(50 * time.Millisecond)
		if n := parts.Load(); n > 0 && n == last {
			still++
		} else {
			last, still = n, 0
		}
	}
	const requests = 20
	for range requests {
		c.send(c.keyUpdate(updateRequested))
		c.send(c.record(23, []byte("x"), 0))
	}
	if _, err := io.ReadFull(server, make([]byte, requests)); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < total; {
		_, p, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		n += len(p)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	server.Write([]byte("end"))
	c.next()
	if c.updates == 0 || c.updates > 2 {
		t.Errorf("%d answers to %d requests", c.updates, requests)
	}

	// With nobody writing the answer comes by itself.
	before := c.updates
	c.send(c.keyUpdate(updateRequested))
	c.send(c.record(23, []byte("x"), 0))
	server.Read(make([]byte, 1))
	c.nc.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	c.next()
	if c.updates != before+1 {
		t.Errorf("%d answers, want 1", c.updates-before)
	}
}

func TestOwnKeyUpdates(t *testing.T) {
	for name, o := range map[string]Options{"bytes": {RekeyBytes: 1 << 20}, "records": {RekeyRecords: 64}} {
		t.Run(name, func(t *testing.T) {
			server, c := connect(t, o, nil)
			const size = 16 << 20
			go func() {
				for range size / (256 << 10) {
					server.Write(make([]byte, 256<<10))
				}
				server.CloseWrite()
			}()
			n := 0
			for {
				typ, p, err := c.next()
				if err != nil {
					t.Fatal(err)
				}
				if typ == typeAlert {
					break
				}
				n += len(p)
				if o.RekeyRecords > 0 && c.in.seq >= o.RekeyRecords {
					t.Fatalf("%d records under one key", c.in.seq)
				}
			}
			if n != size || c.updates < 13 {
				t.Errorf("%d bytes, %d updates", n, c.updates)
			}
		})
	}
}

// Both directions at once, in random records with random padding, written from
// many goroutines, with KeyUpdates of both sides all the time: every byte
// arrives, once and in its place.
func TestSoak(t *testing.T) {
	size := int64(48 << 20)
	if testing.Short() {
		size = 4 << 20
	}
	if os.Getenv("NBD_TEST_FULL") != "" {
		size = 1 << 30
	}
	server, c := connect(t, Options{RekeyBytes: 300 << 10}, nil)
	var wg sync.WaitGroup

	// The server's writers send frames: a number, a length, and that many bytes
	// of a pattern that depends on the number.
	const writers = 8
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for left := size / writers; left > 0; {
				n := min(int64(r.IntN(400<<10)+1), left)
				frame := make([]byte, 16+n, 16+n+int64(r.IntN(2)))
				seed := r.Uint64()
				binary.BigEndian.PutUint64(frame, seed)
				binary.BigEndian.PutUint64(frame[8:], uint64(n))
				pattern(frame[16:], seed)
				if err := server.WriteBuffers(net.Buffers{frame}); err != nil {
					t.Errorf("writing: %v", err)
					return
				}
				left -= n
			}
		})
	}
	// The server's reader checks the client's stream.
	wg.Go(func() {
		r := rand.New(rand.NewPCG(2, 2))
		want, got := make([]byte, 256<<10), make([]byte, 256<<10)
		for off := int64(0); off < size; {
			n := int(min(int64(r.IntN(len(got))+1), size-off))
			if _, err := io.ReadFull(server, got[:n]); err != nil {
				t.Errorf("reading: %v", err)
				return
			}
			stream(want[:n], off)
			if !bytes.Equal(got[:n], want[:n]) {
				t.Errorf("wrong bytes at %d", off)
				return
			}
			off += int64(n)
		}
	})
	// The client writes.
	wg.Go(func() {
		r := rand.New(rand.NewPCG(3, 3))
		since := 0
		for off := int64(0); off < size; {
			n := int(min(int64(r.IntN(maxPlaintext)+1), size-off))
			p := make([]byte, n)
			stream(p, off)
			c.send(c.record(typeApplicationData, p, r.IntN(maxPlaintext-n+1)))
			off += int64(n)
			if since += n; since > 300<<10 {
				since = 0
				c.send(c.keyUpdate(byte(r.IntN(2))))
			}
		}
	})
	// And reads.
	wg.Go(func() {
		var data []byte
		for left := size; left > 0; {
			typ, p, err := c.next()
			if err != nil || typ != typeApplicationData {
				t.Errorf("the client got type %d, %v", typ, err)
				return
			}
			data = append(data, p...)
			for len(data) >= 16 {
				n := int64(binary.BigEndian.Uint64(data[8:]))
				if int64(len(data)) < 16+n {
					break
				}
				want := make([]byte, n)
				pattern(want, binary.BigEndian.Uint64(data))
				if !bytes.Equal(data[16:16+n], want) {
					t.Error("a frame with the wrong bytes")
					return
				}
				data = data[16+n:]
				left -= n
			}
		}
	})
	wg.Wait()
	if c.updates < int(size/(600<<10)) {
		t.Errorf("only %d updates of ours", c.updates)
	}
}

func pattern(p []byte, seed uint64) {
	for i := range p {
		p[i] = byte(seed >> (i % 8 * 8))
	}
}

// stream is what the client sends at an offset.
func stream(p []byte, off int64) {
	for i := range p {
		x := uint64(off+int64(i)) * 0x9e3779b97f4a7c15
		p[i] = byte(x >> 56)
	}
}

func TestSendFile(t *testing.T) {
	server, c := connect(t, Options{}, nil)
	path := filepath.Join(t.TempDir(), "f")
	want := make([]byte, 100_000)
	stream(want, 0)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if handled, err := server.SendFile([]byte("header"), f, 90_000, 20_000, nil); handled || err == nil {
		t.Errorf("past the end: %v, %v", handled, err)
	}
	if handled, err := server.SendFile(nil, f, 0, maxSendFile+1, nil); handled || err != nil {
		t.Errorf("too much: %v, %v", handled, err)
	}
	if handled, err := server.SendFile([]byte("header"), f, 1000, 50_000, nil); !handled || err != nil {
		t.Errorf("%v, %v", handled, err)
	}
	var got []byte
	for len(got) < 50_006 {
		_, p, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, append([]byte("header"), want[1000:51_000]...)) {
		t.Error("the wrong bytes")
	}
}

// To read nothing takes no time, also while nothing comes.
func TestReadNothing(t *testing.T) {
	server, _ := connect(t, Options{}, nil)
	server.SetReadDeadline(time.Now().Add(time.Second))
	if n, err := server.Read(nil); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// A deadline is no end.
func TestDeadlinePasses(t *testing.T) {
	server, c := connect(t, Options{}, nil)
	server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	server.SetReadDeadline(time.Time{})
	c.send(c.record(23, []byte("x"), 0))
	if n, err := server.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// Close wipes what is ours.
func TestCloseForgetsTheKeys(t *testing.T) {
	server, c := connect(t, Options{}, nil)
	c.send(c.record(23, []byte("x"), 0))
	server.Read(make([]byte, 1))
	for _, h := range []*halfConn{&server.in.halfConn, &server.out.halfConn} {
		secret := h.secret
		defer func() {
			if !bytes.Equal(secret, make([]byte, len(secret))) || h.iv != [ivLen]byte{} || h.aead != nil {
				t.Error("something is left")
			}
		}()
	}
	server.Close()
	if _, err := server.Read(make([]byte, 1)); err == nil {
		t.Error("it can be read from")
	}
	if _, err := server.Write(make([]byte, 1)); err == nil {
		t.Error("it can be written to")
	}
}

// discard is a connection that takes everything.
type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Sealing 256 KiB, in 17 records, allocates nothing.
func TestWriteDoesNotAllocate(t *testing.T) {
	server, _ := connect(t, Options{}, nil)
	server.raw = ktls.NewSocket(discard{server.raw})
	p := make([]byte, 256<<10+16, 256<<10+17)
	if n := testing.AllocsPerRun(100, func() { server.write(p, true) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkWrite256K(b *testing.B) {
	server, _ := connect(b, Options{}, nil)
	server.raw = ktls.NewSocket(discard{server.raw})
	p := make([]byte, 256<<10+16, 256<<10+17)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		server.write(p, true)
	}
}

// What is expected is waited for together, and what is not at once: neither waits
// for more than comes.
func TestExpect(t *testing.T) {
	server, c := connect(t, Options{}, nil)
	sent := make(chan struct{})
	want := make([]byte, 300_000)
	stream(want, 0)
	for round := range 3 {
		go func() {
			for p := want; len(p) > 0; p = p[min(len(p), 10_000):] {
				c.send(c.record(typeApplicationData, p[:min(len(p), 10_000)], 0))
				time.Sleep(time.Millisecond)
			}
			time.Sleep(20 * time.Millisecond) // so that it is waited for
			c.send(c.record(typeApplicationData, []byte("next"), 0))
			sent <- struct{}{}
		}()
		server.Expect(len(want))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("round %d: %v, or wrong data", round, err)
		}
		if _, err := io.ReadFull(server, got[:4]); err != nil || string(got[:4]) != "next" {
			t.Fatalf("round %d: %q, %v", round, got[:4], err)
		}
		<-sent
	}
	// A peer that ends in the middle is no reason to wait.
	server.Expect(len(want))
	go func() {
		c.send(c.record(typeApplicationData, want[:1000], 0))
		c.nc.Close()
	}()
	if n, err := io.ReadFull(server, make([]byte, len(want))); n != 1000 || err == nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}
