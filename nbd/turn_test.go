package nbd_test

import (
	"bytes"
	"testing"
	"time"

	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// A WRITE that takes long, though its backend promised otherwise, does not keep
// requests behind it from being read, and its reply comes when it is done.
func TestSlowWritesLoseTheirTurn(t *testing.T) {
	gate := make(chan struct{})
	d := memory.New(8 * mib)
	s := serve(t, withBackend(faulty{d, func(a *nbd.Abilities) {
		a.WriteAt = func(p []byte, off int64) (int, error) {
			if p[0] == 's' {
				<-gate
			}
			return d.WriteAt(p, off)
		}
	}}))
	c := s.connect(t)
	c.SetDeadline(time.Now().Add(20 * time.Second))
	for round := range uint64(20) {
		for i := range uint64(300) { // so that it is the reader's again
			if errno := c.Do(wire.CmdWrite, 0, i*512, 512, bytes.Repeat([]byte{'q'}, 512)); errno != 0 {
				t.Fatal(errno)
			}
		}
		c.Request(wire.CmdWrite, 0, 1000+round, 4*mib, 512, bytes.Repeat([]byte{'s'}, 512))
		c.Request(wire.CmdWrite, 0, 2000+round, 0, 512, bytes.Repeat([]byte{'q'}, 512))
		if cookie, errno := c.SimpleReply(); cookie != 2000+round || errno != 0 {
			t.Fatalf("reply %d: %v", cookie, errno)
		}
		gate <- struct{}{}
		if cookie, errno := c.SimpleReply(); cookie != 1000+round || errno != 0 {
			t.Fatalf("reply %d: %v", cookie, errno)
		}
	}
	// Nor does it keep the connection from ending.
	for i := range uint64(300) {
		c.Do(wire.CmdWrite, 0, i*512, 512, bytes.Repeat([]byte{'q'}, 512))
	}
	c.Request(wire.CmdWrite, 0, 1, 0, 512, bytes.Repeat([]byte{'s'}, 512))
	c.Request(wire.CmdDisc, 0, 0, 0, 0)
	time.AfterFunc(50*time.Millisecond, func() { gate <- struct{}{} })
	if cookie, errno := c.SimpleReply(); cookie != 1 || errno != 0 {
		t.Errorf("reply %d: %v", cookie, errno)
	}
	c.ExpectEnd()
	s.log.Expect("the client disconnected")
}

// Replies leave together, but none waits for a request that may never come.
func TestHeldRepliesLeave(t *testing.T) {
	s := serve(t)
	c := s.connect(t)
	c.SetDeadline(time.Now().Add(20 * time.Second))
	const n = 200
	var all []any
	for i := range uint64(n) {
		r := &wire.Request{Command: wire.CmdRead, Cookie: wire.Cookie(i), Offset: i * 4096, Length: 4096}
		if i%3 == 0 {
			r.Command = wire.CmdWrite
		}
		all = append(all, r.Append(nil))
		if i%3 == 0 {
			all = append(all, make([]byte, 4096))
		}
	}
	p := nbdtest.Bytes(all...)
	const missing = 10 // bytes of the last request
	c.Send(p[:len(p)-missing])
	for seen := range n - 1 {
		cookie, errno := c.SimpleReply()
		if errno != 0 {
			t.Fatalf("reply %d: %v", seen, errno)
		}
		if cookie%3 != 0 {
			c.Receive(4096)
		}
	}
	c.Send(p[len(p)-missing:])
	if cookie, errno := c.SimpleReply(); cookie != n-1 || errno != 0 {
		t.Errorf("reply %d", cookie)
	}
}
