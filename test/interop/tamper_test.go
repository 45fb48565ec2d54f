package interop

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// A proxy passes one connection on. Once armed, it holds what comes from one
// side until that has no more, damages it, and sends that and a FIN.
type proxy struct {
	l          *net.TCPListener
	armed      atomic.Bool
	damage     func([]byte) []byte
	fromServer bool // damages what comes from there
	wg         sync.WaitGroup
}

// newProxy listens in front of a server, for one connection.
func newProxy(t *testing.T, server net.Addr, fromServer bool, damage func([]byte) []byte) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l.(*net.TCPListener), damage: damage, fromServer: fromServer}
	p.wg.Go(func() {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", server.String())
		if err != nil {
			t.Error(err)
			return
		}
		p.wg.Go(func() { p.pass(near.(*net.TCPConn), far.(*net.TCPConn), !fromServer) })
		p.wg.Go(func() { p.pass(far.(*net.TCPConn), near.(*net.TCPConn), fromServer) })
	})
	return p
}

func (p *proxy) pass(from, to *net.TCPConn, damaging bool) {
	defer to.CloseWrite()
	var held []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		switch {
		case damaging && p.armed.Load():
			held = append(held, buf[:n]...)
			// A server does not say that it has no more: one record will do.
			if p.fromServer && len(held) >= 5 && len(held) >= 5+int(held[3])<<8+int(held[4]) {
				to.Write(p.damage(held))
				held, damaging = nil, false
			}
		default:
			to.Write(buf[:n])
		}
		if err != nil {
			if len(held) > 0 {
				to.Write(p.damage(held))
			}
			return
		}
	}
}

func (p *proxy) close() {
	p.l.Close()
	p.wg.Wait()
}

// victim is a server that the proxy stands in front of.
type victim struct {
	addr net.Addr
	disk *memory.Disk
	log  *nbdtest.Log
	pki  *nbdtest.PKI
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{disk: memory.New(1 << 20), log: nbdtest.NewLog(t), pki: nbdtest.NewPKI(t)}
	open := func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return v.disk, nil }
	v.addr = nbdtest.Serve(t, &nbd.Server{
		Exports:  nbd.ExportList{{Name: "disk", Open: open}},
		StartTLS: v.pki.StartTLS(t, false), ForceTLS: true, Log: v.log.Logger(),
	})
	return v
}

// client connects through a proxy, as far as the transmission phase.
func (v *victim) client(t *testing.T, p *proxy) *nbdtest.Client {
	t.Helper()
	c := nbdtest.Hello(t, p.l.Addr())
	c.StartTLS(v.pki.Client(nil))
	c.Go("disk")
	p.armed.Store(true)
	return c
}

const (
	writeLen  = 64
	recordLen = 5 + 28 + writeLen + 1 + 16 // of one WRITE
)

// tamper sends two WRITEs, lets the proxy damage them, and returns which
// of them were carried out, and how the connection ended for the client.
func (v *victim) tamper(t *testing.T, damage func([]byte) []byte) (first, second bool, end error) {
	t.Helper()
	zeroes := make([]byte, 4096)
	v.disk.WriteAt(zeroes, 0)
	p := newProxy(t, v.addr, false, damage)
	defer p.close()
	c := v.client(t, p)
	defer c.Close()
	payload := bytes.Repeat([]byte{0xaa}, writeLen)
	c.Request(wire.CmdWrite, 0, 1, 0, writeLen, payload)
	c.Request(wire.CmdWrite, 0, 2, 1024, writeLen, payload)
	tc := c.Conn.(*tls.Conn)
	tc.NetConn().(*net.TCPConn).CloseWrite()
	_, end = io.Copy(io.Discard, tc)
	return v.wrote(t, 0, payload), v.wrote(t, 1024, payload), end
}

// wrote reports whether payload is at off: all of it, or nothing.
func (v *victim) wrote(t *testing.T, off int64, payload []byte) bool {
	t.Helper()
	b := make([]byte, len(payload))
	v.disk.ReadAt(b, off)
	if !bytes.Equal(b, payload) && !bytes.Equal(b, make([]byte, len(b))) {
		t.Errorf("half a request was carried out: %x", b)
	}
	return bytes.Equal(b, payload)
}

// alertIn is the alert in an error of crypto/tls; "" without one.
func alertIn(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	return ""
}

// TestTampering damages every byte of a record in every way: the client gets the
// right alert, and nothing that was damaged or came after it is carried out.
func TestTampering(t *testing.T) {
	v := newVictim(t)
	const badMAC, unexpected, overflow, none = "bad record MAC", "unexpected message", "record overflow", ""
	type kind struct {
		name   string
		damage func(at int) func([]byte) []byte
		// What a record that has lost its boundary looks like depends on the
		// bytes that are then where its header should be.
		header, body []string
	}
	anyAlert := []string{badMAC, unexpected, overflow, none}
	kinds := []kind{
		{"flip", func(at int) func([]byte) []byte {
			return func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b }
		}, anyAlert, []string{badMAC}},
		{"drop", func(at int) func([]byte) []byte {
			return func(b []byte) []byte {
				b[at+1] ^= 1 // the one that takes its place must be another
				if b[at] == b[at+1] {
					b[at+1] ^= 2
				}
				return slices.Delete(b, at, at+1)
			}
		}, anyAlert, []string{badMAC}},
		{"double", func(at int) func([]byte) []byte {
			return func(b []byte) []byte { return slices.Insert(b, at, b[at]) }
		}, anyAlert, []string{badMAC}},
		{"end", func(at int) func([]byte) []byte {
			return func(b []byte) []byte { return b[:at] }
		}, []string{none}, []string{none}},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			for at := range recordLen {
				first, second, end := v.tamper(t, k.damage(at))
				want := k.body
				// To double the last byte is to damage the header behind it.
				whole := k.name == "double" && at == recordLen-1
				if at < 5 || whole {
					want = k.header
				}
				if !slices.Contains(want, alertIn(end)) || first != whole || second {
					t.Errorf("byte %d: %v; carried out: %v, %v", at, end, first, second)
				}
			}
		})
	}
	first, second := func(b []byte) []byte { return b[:recordLen] }, func(b []byte) []byte { return b[recordLen:] }
	for name, c := range map[string]struct {
		damage func([]byte) []byte
		want   string
		first  bool
	}{
		"flip the type":         {func(b []byte) []byte { b[0] = 22; return b }, unexpected, false},
		"change the version":    {func(b []byte) []byte { b[2] = 1; return b }, badMAC, false},
		"a length of 32 KiB":    {func(b []byte) []byte { b[3] = 0x80; return b }, overflow, false},
		"a length shorter":      {func(b []byte) []byte { b[4]--; return b }, badMAC, false},
		"a length longer":       {func(b []byte) []byte { b[4]++; return b }, badMAC, false},
		"drop the first":        {second, badMAC, false},
		"send the first twice":  {func(b []byte) []byte { return slices.Concat(first(b), first(b)) }, badMAC, true},
		"swap them":             {func(b []byte) []byte { return slices.Concat(second(b), first(b)) }, badMAC, false},
		"end between records":   {first, none, true},
		"plain text in between": {func(b []byte) []byte { return slices.Concat(first(b), []byte{21, 3, 3, 0, 2, 1, 0}) }, unexpected, true},
	} {
		t.Run(name, func(t *testing.T) {
			one, two, end := v.tamper(t, c.damage)
			if alertIn(end) != c.want || one != c.first || two {
				t.Errorf("%v; carried out: %v, %v", end, one, two)
			}
		})
	}
	v.log.Expect("connection broken", "does not decrypt")
	v.log.Expect("connection broken", "unexpected EOF")

	// And it lives on.
	p := newProxy(t, v.addr, false, nil)
	defer p.close()
	c := nbdtest.Hello(t, p.l.Addr())
	defer c.Close()
	c.StartTLS(v.pki.Client(nil))
	c.Go("disk")
	if errno := c.Do(wire.CmdWrite, 0, 0, 4, "okay"); errno != 0 {
		t.Error(errno)
	}
}

// gate is a disk on which a WRITE takes until it is opened.
type gate struct {
	*memory.Disk
	entered, open chan struct{}
}

func (g gate) WriteAt(p []byte, off int64) (int, error) {
	g.entered <- struct{}{}
	<-g.open
	return g.Disk.WriteAt(p, off)
}

// Resolve keeps WriteAt as it is.
func (gate) Resolve(*nbd.Abilities) error { return nil }

// TestTamperingMeanwhile damages a request while another one is worked on: its
// reply finds that the connection has ended. The client still gets the alert,
// and the log says why.
func TestTamperingMeanwhile(t *testing.T) {
	v := newVictim(t)
	g := gate{v.disk, make(chan struct{}), make(chan struct{})}
	v.addr = nbdtest.Serve(t, &nbd.Server{
		Exports: nbd.ExportList{{Name: "disk", Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) {
			return g, nil
		}}},
		StartTLS: v.pki.StartTLS(t, false), ForceTLS: true, Log: v.log.Logger(),
	})
	p := newProxy(t, v.addr, false, func(b []byte) []byte { b[50] ^= 1; return b })
	defer p.close()
	c := v.client(t, p)
	defer c.Close()
	p.armed.Store(false)
	c.Request(wire.CmdWrite, 0, 1, 0, 4, "good")
	<-g.entered
	p.armed.Store(true)
	// More than sockets and buffers take: closing with it unread would be a reset.
	payload := make([]byte, 4<<20)
	c.Request(wire.CmdWrite, 0, 2, 4096, uint32(len(payload)), payload)
	tc := c.Conn.(*tls.Conn)
	tc.NetConn().(*net.TCPConn).CloseWrite()
	if _, err := io.Copy(io.Discard, tc); alertIn(err) != "bad record MAC" {
		t.Errorf("the client was told %v", err)
	}
	close(g.open)
	v.log.Expect("connection broken", "a record that does not decrypt")
}

// TestTamperingWithReplies damages every byte of a reply: the client never takes
// wrong data, and the log says what the client said of it.
func TestTamperingWithReplies(t *testing.T) {
	v := newVictim(t)
	const replyLen = 5 + 16 + writeLen + 1 + 16
	for at := range replyLen {
		p := newProxy(t, v.addr, true, func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b })
		c := v.client(t, p)
		c.Request(wire.CmdRead, 0, 1, 0, writeLen)
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // a length may promise more
		b := make([]byte, 1)
		if n, err := c.Read(b); n != 0 || err == nil {
			t.Errorf("byte %d: the client took %d bytes", at, n)
		}
		c.Close()
		p.close()
	}
	v.log.Expect("the peer sent the alert bad_record_mac")
}

// TestSecretsAreInNoLog looks for the secrets of connections, good and bad, in
// everything that is logged.
func TestSecretsAreInNoLog(t *testing.T) {
	v := newVictim(t)
	var keys bytes.Buffer
	config := v.pki.Client(nil)
	config.KeyLogWriter = &keys
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b },
		func(b []byte) []byte { b[50] ^= 1; return b },
	} {
		p := newProxy(t, v.addr, false, damage)
		c := nbdtest.Hello(t, p.l.Addr())
		c.StartTLS(config)
		c.Go("disk")
		p.armed.Store(true)
		c.Request(wire.CmdWrite, 0, 1, 0, writeLen, bytes.Repeat([]byte("secret!!"), writeLen/8))
		c.Conn.(*tls.Conn).NetConn().(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
		p.close()
	}
	v.log.Expect("connection broken", "does not decrypt")
	secrets := 0
	for line := range strings.Lines(keys.String()) {
		fields := strings.Fields(line)
		secret, err := hex.DecodeString(fields[2])
		if err != nil {
			t.Fatal(err)
		}
		secrets++
		for _, form := range forms(secret) {
			if v.log.Count(form) > 0 {
				t.Errorf("%s is in the log as %s", fields[0], form)
			}
		}
	}
	if v.log.Count("secret!!") > 0 {
		t.Error("what a client writes is in the log")
	}
	if secrets < 8 {
		t.Errorf("only %d secrets were looked for", secrets)
	}
	// The search finds what is there.
	found := nbdtest.NewLog(t)
	for _, format := range []string{"%x", "%X", "%v", "%q"} {
		secret := []byte("a secret of some bytes")
		before := 0
		for _, form := range forms(secret) {
			before += found.Count(form)
		}
		fmt.Fprintf(found, format+"\n", secret)
		after := 0
		for _, form := range forms(secret) {
			after += found.Count(form)
		}
		if after == before {
			t.Errorf("a secret printed by %s is not found", format)
		}
	}

	// The variable that makes other programs write keys down does not make this one.
	file := filepath.Join(t.TempDir(), "keys")
	t.Setenv("SSLKEYLOGFILE", file)
	dir := certificates(t)
	s := start(t, "-v", "--tls-certificates="+dir, "memory", "1M")
	addr, err := net.ResolveTCPAddr("tcp", "127.0.0.1:"+s.port)
	if err != nil {
		t.Fatal(err)
	}
	c := nbdtest.Hello(t, addr)
	c.StartTLS(&tls.Config{InsecureSkipVerify: true})
	c.Go("")
	c.Disconnect()
	s.stop()
	if _, err := os.Stat(file); err == nil {
		t.Error("keys were written to SSLKEYLOGFILE")
	}
}

// forms are the ways in which parts of a secret may have been printed.
func forms(secret []byte) (all []string) {
	const part = 8
	for at := 0; at+part <= len(secret); at += part {
		p := secret[at : at+part]
		all = append(all, fmt.Sprintf("%x", p), fmt.Sprintf("%X", p), strings.Trim(fmt.Sprint(p), "[]"), strings.Trim(fmt.Sprintf("%q", p), `"`))
	}
	return all
}
