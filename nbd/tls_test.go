package nbd_test

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"nbd-ktls-server/backends/null"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// selectiveTLS lets clients choose; forcedTLS does not.
func selectiveTLS(t *testing.T, p *nbdtest.PKI) func(*nbd.Server) {
	return func(s *nbd.Server) { s.StartTLS = p.StartTLS(t, false) }
}

func forcedTLS(t *testing.T, p *nbdtest.PKI) func(*nbd.Server) {
	return func(s *nbd.Server) { s.StartTLS, s.ForceTLS = p.StartTLS(t, false), true }
}

// beforeTLS is every option that could be tried in plain text.
var beforeTLS = []struct {
	opt  wire.Option
	data []byte
}{
	{wire.OptList, nil},
	{wire.OptInfo, nbdtest.InfoRequest("disk", wire.InfoBlockSize)},
	{wire.OptInfo, nbdtest.InfoRequest("nothing")},
	{wire.OptGo, nbdtest.InfoRequest("disk")},
	{wire.OptGo, []byte("malformed")},
	{wire.OptStructuredReply, nil},
	{wire.OptListMetaContext, nbdtest.Bytes(uint32(4), "disk", uint32(0))},
	{wire.OptSetMetaContext, nbdtest.Bytes(uint32(4), "disk", uint32(0))},
	{wire.OptExtendedHeaders, nil},
	{4711, []byte("unknown")},
	{4711, make([]byte, mib)},
}

func TestT2OldClientsGetNoTLS(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, selectiveTLS(t, p))
	c := nbdtest.Dial(t, s.addr)
	c.Greet(0)
	c.Expect(wire.RepErrPolicy, wire.OptStartTLS)
	c.Expect(wire.RepErrUnknown, wire.OptInfo, nbdtest.InfoRequest("nothing"))

	s = serve(t, forcedTLS(t, p))
	c = nbdtest.Dial(t, s.addr)
	c.Greet(0)
	c.ExpectEnd()
	s.log.Expect("cannot do fixed newstyle negotiation")
}

func TestT3NoTLS(t *testing.T) {
	s := serve(t)
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepErrPolicy, wire.OptStartTLS)
	s.log.Expect("WARN", "a client that wants TLS was refused")
	for _, test := range beforeTLS {
		if test.opt == wire.OptGo {
			continue
		}
		if _, final := c.Ask(test.opt, test.data); final.Type == wire.RepErrTLSReqd {
			t.Errorf("TLS_REQD to %v, without TLS to be had", test.opt)
		}
	}
	c.Go("disk")
}

func TestT4StartTLSWithData(t *testing.T) {
	p := nbdtest.NewPKI(t)
	c := nbdtest.Hello(t, serve(t, forcedTLS(t, p)).addr)
	c.Expect(wire.RepErrInvalid, wire.OptStartTLS, "x")
	c.Expect(wire.RepErrTLSReqd, wire.OptList) // still plain
	c.StartTLS(p.Client(nil))
	c.Go("disk")
}

func TestT5StartTLS(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, forcedTLS(t, p))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} { // T14 too
		config := p.Client(nil)
		config.MinVersion, config.MaxVersion = version, version
		c := nbdtest.Hello(t, s.addr)
		c.StartTLS(config)
		c.Go("disk")
		if errno := c.Do(wire.CmdWrite, 0, 4096, 3, "abc"); errno != 0 {
			t.Fatal(errno)
		}
		if got, errno := c.Pread(4095, 5); errno != 0 || string(got) != "\x00abc\x00" {
			t.Errorf("%q %v", got, errno)
		}
		c.Disconnect()
		s.log.Expect("export opened", tls.VersionName(version))
	}
}

func TestT14NoOldTLS(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, forcedTLS(t, p))
	config := p.Client(nil)
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepAck, wire.OptStartTLS)
	if err := tls.Client(c.Conn, config).Handshake(); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	s.log.Expect("negotiation failed", "TLS handshake", "unsupported version")
}

func TestT6SecondStartTLS(t *testing.T) {
	p := nbdtest.NewPKI(t)
	c := nbdtest.Hello(t, serve(t, forcedTLS(t, p)).addr)
	c.StartTLS(p.Client(nil))
	c.Expect(wire.RepErrInvalid, wire.OptStartTLS)
	c.Go("disk")
}

func TestT7ForcedTLSRefusesEverythingBefore(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, forcedTLS(t, p))
	c := nbdtest.Hello(t, s.addr)
	for _, test := range beforeTLS {
		infos, final := c.Ask(test.opt, test.data)
		if final.Type != wire.RepErrTLSReqd || len(infos) != 0 {
			t.Errorf("%v before TLS: %v and %d informations", test.opt, final.Type, len(infos))
		}
	}
	s.log.Expect("a client without TLS was refused")
	c.Expect(wire.RepAck, wire.OptAbort)
	c.ExpectEnd()
}

func TestT8ExportNameBeforeTLSEndsTheConnection(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, forcedTLS(t, p))
	for _, name := range []string{"disk", "nothing"} {
		c := nbdtest.Hello(t, s.addr)
		c.Option(wire.OptExportName, name)
		c.ExpectEnd()
	}
	s.log.Expect("EXPORT_NAME before STARTTLS")
}

func TestT9NoTLSReqdInsideTLS(t *testing.T) {
	p := nbdtest.NewPKI(t)
	for _, mode := range []func(*nbd.Server){selectiveTLS(t, p), forcedTLS(t, p)} {
		c := nbdtest.Hello(t, serve(t, mode).addr)
		c.StartTLS(p.Client(nil))
		for _, test := range beforeTLS {
			if test.opt == wire.OptGo && string(test.data) != "malformed" {
				continue
			}
			if _, final := c.Ask(test.opt, test.data); final.Type == wire.RepErrTLSReqd {
				t.Errorf("TLS_REQD to %v inside TLS", test.opt)
			}
		}
		c.Expect(wire.RepErrUnknown, wire.OptGo, nbdtest.InfoRequest("nothing"))
	}
}

func TestT10SelectiveTLSHidesExports(t *testing.T) {
	p := nbdtest.NewPKI(t)
	secret := export("secret", null.New(mib))
	secret.TLSOnly = true
	s := serve(t, selectiveTLS(t, p), withExports(export("public", null.New(mib)), secret))

	c := nbdtest.Hello(t, s.addr)
	var said []nbdtest.Reply
	for _, name := range []string{"secret", "nothing"} { // look alike
		for _, opt := range []wire.Option{wire.OptInfo, wire.OptGo} {
			infos, final := c.Ask(opt, nbdtest.InfoRequest(name))
			if final.Type != wire.RepErrTLSReqd || len(infos) != 0 {
				t.Errorf("%v %q: %v and %d informations", opt, name, final.Type, len(infos))
			}
			said = append(said, final)
		}
	}
	if string(said[0].Data) != string(said[2].Data) || string(said[1].Data) != string(said[3].Data) {
		t.Errorf("the texts tell which export exists: %q", said)
	}
	if got := c.Expect(wire.RepAck, wire.OptList); len(got) != 1 {
		t.Errorf("LIST names %d exports, want 1", len(got))
	}
	c.StartTLS(p.Client(nil))
	if got := c.Expect(wire.RepAck, wire.OptList); len(got) != 2 {
		t.Errorf("LIST inside TLS names %d exports, want 2", len(got))
	}
	c.Expect(wire.RepErrUnknown, wire.OptInfo, nbdtest.InfoRequest("nothing"))
	c.Go("secret")

	nbdtest.Hello(t, s.addr).Go("public")
	c = nbdtest.Hello(t, s.addr)
	c.Option(wire.OptExportName, "secret")
	c.ExpectEnd()
}

func TestT11SelectiveTLSRefusesOnlyExports(t *testing.T) {
	p := nbdtest.NewPKI(t)
	c := nbdtest.Hello(t, serve(t, selectiveTLS(t, p)).addr)
	for _, test := range beforeTLS {
		if test.opt == wire.OptGo || test.opt == wire.OptInfo {
			continue
		}
		if _, final := c.Ask(test.opt, test.data); final.Type == wire.RepErrTLSReqd {
			t.Errorf("TLS_REQD to %v", test.opt)
		}
	}
}

func TestT13FailedHandshakeEndsTheConnection(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, selectiveTLS(t, p))
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepAck, wire.OptStartTLS)
	c.Send("IHAVEOPT", uint32(wire.OptList), uint32(0)) // and not TLS
	for range 2 {                                       // perhaps an alert, then the end
		if n, err := c.Conn.Read(make([]byte, 64)); err != nil {
			break
		} else if n > 7 {
			t.Fatalf("%d bytes were sent", n)
		}
	}
	s.log.Expect("negotiation failed", "something else than TLS")
}

func TestT15PipelinedBytesBehindStartTLS(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, forcedTLS(t, p))
	c := nbdtest.Hello(t, s.addr)
	c.Send("IHAVEOPT", uint32(wire.OptStartTLS), uint32(0), "IHAVEOPT", uint32(wire.OptList), uint32(0))
	c.ExpectEnd() // no ACK, no execution inside TLS
	s.log.Expect("bytes followed STARTTLS")
}

func TestT16CloseNotify(t *testing.T) {
	p := nbdtest.NewPKI(t)
	c := nbdtest.Hello(t, serve(t, forcedTLS(t, p)).addr)
	c.StartTLS(p.Client(nil))
	c.Go("disk")
	c.Request(wire.CmdDisc, 0, 0, 0, 0)
	// crypto/tls returns io.EOF only for a close_notify; a mere FIN is
	// io.ErrUnexpectedEOF, which ExpectEnd does not take.
	c.ExpectEnd()
}

func TestClientCertificateReachesTheExport(t *testing.T) {
	p := nbdtest.NewPKI(t)
	seen := make(chan nbd.Client, 1)
	e := export("disk", null.New(mib))
	open := e.Open
	e.Open = func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
		seen <- info.Client
		return open(ctx, info)
	}
	s := serve(t, withExports(e), func(s *nbd.Server) { s.StartTLS = p.StartTLS(t, true) })
	c := nbdtest.Hello(t, s.addr)
	c.StartTLS(p.Client(p.ClientPair))
	c.Go("disk")
	if got := <-seen; !got.TLS || len(got.Certificates) != 2 || got.Certificates[0].Subject.CommonName != "client" {
		t.Errorf("the export saw %+v", got)
	}
	s.log.Expect("export opened", "CN=client")
}

func TestForceTLSNeedsStartTLS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &nbd.Server{Exports: nbd.ExportList{}, ForceTLS: true}
	if err := s.Serve(t.Context(), l); err != nbd.ErrForceTLS {
		t.Errorf("Serve: %v", err)
	}
}

// A client that begins a TLS handshake and stops must not stay for ever.
func TestUnfinishedTLSHandshakeTimesOut(t *testing.T) {
	p := nbdtest.NewPKI(t)
	s := serve(t, forcedTLS(t, p), withLimits(nbd.Limits{HandshakeTimeout: 200 * time.Millisecond}))
	c := nbdtest.Hello(t, s.addr)
	c.Expect(wire.RepAck, wire.OptStartTLS)
	c.Send([]byte{0x16, 3, 1, 1})
	c.ExpectEnd()
	s.log.Expect("negotiation failed", "no export was chosen in time")
}
