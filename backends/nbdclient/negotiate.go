package nbdclient

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

// Target is an export of another server, and the way there.
type Target struct {
	// Dial connects to the server.
	Dial func(ctx context.Context) (net.Conn, error)
	// TLS says how; nil: in plain text.
	TLS *tls.Config
	// TLSOptional goes on in plain text if the server has no TLS.
	TLSOptional bool
	// Export is the name of the export; "" is the default one.
	Export string
}

const (
	// handshakeTimeout bounds everything before the first request.
	handshakeTimeout = 30 * time.Second
	// maxOptionReply bounds the data of one answer to an option: a name and a
	// description of the longest kind.
	maxOptionReply = 4 + 2*wire.MaxString
	// maxOptionReplies bounds the answers to one option, so exports in a list.
	maxOptionReplies = 1 << 16
)

// refusal is the server's answer to an option that it does not grant.
type refusal struct {
	option wire.Option
	reply  wire.OptionReply
	text   string // what the server says about it
}

func (r *refusal) Error() string {
	s := fmt.Sprintf("the server refuses %v: error %d", r.option, uint32(r.reply&0xff))
	if r.text != "" {
		s += fmt.Sprintf(": %q", r.text)
	}
	return s
}

// Is lets a name that the server does not know be one that we do not know.
func (r *refusal) Is(target error) bool {
	return target == nbd.ErrNoExport && r.reply == wire.RepErrUnknown
}

// session is a connection that is negotiated or being so.
type session struct {
	net.Conn
	noZeroes   bool
	structured bool
	// allocation is the context of base:allocation, if hasAllocation.
	allocation    wire.ContextID
	hasAllocation bool
	info
}

// info is what a server says of an export.
type info struct {
	size        uint64
	flags       wire.TransmissionFlags
	block       nbd.BlockSize
	description string
}

// dial connects, and does what do says, within the time that there is for it.
func (t *Target) dial(ctx context.Context, do func(ctx context.Context, s *session) error) (*session, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTimeout, errors.New("the server did not finish the handshake in time"))
	defer cancel()
	nc, err := t.Dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	s := &session{Conn: nc}
	if err = s.begin(ctx, t); err == nil {
		err = do(ctx, s)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return s, nil
}

// connect opens the export.
func (t *Target) connect(ctx context.Context) (*session, error) {
	return t.dial(ctx, func(_ context.Context, s *session) error { return s.open(t.Export) })
}

// begin does what comes before any question about exports.
func (s *session) begin(ctx context.Context, t *Target) error {
	var greeting [wire.GreetingSize]byte
	if err := s.receive(greeting[:]); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	flags, err := wire.ParseGreeting(greeting[:])
	if err != nil {
		return err
	}
	if flags&wire.FlagFixedNewstyle == 0 {
		return errors.New("the server speaks no fixed newstyle")
	}
	answer := wire.FlagCFixedNewstyle
	if flags&wire.FlagNoZeroes != 0 {
		s.noZeroes = true
		answer |= wire.FlagCNoZeroes
	}
	if _, err := s.Write(binary.BigEndian.AppendUint32(nil, uint32(answer))); err != nil {
		return err
	}
	if err := s.startTLS(ctx, t); err != nil {
		return err
	}
	s.structured, err = granted(s.ask(wire.OptStructuredReply, nil, nil))
	return err
}

// startTLS begins TLS. Nothing of what follows has been read before: every read
// is as long as the message.
func (s *session) startTLS(ctx context.Context, t *Target) error {
	if t.TLS == nil {
		return nil
	}
	ok, err := granted(s.ask(wire.OptStartTLS, nil, nil))
	switch {
	case err != nil:
		return err
	case !ok && t.TLSOptional:
		return nil
	case !ok:
		return errors.New("the server has no TLS")
	}
	c := tls.Client(s.Conn, t.TLS)
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	s.Conn = c
	return nil
}

// granted makes no error of an answer that is only a refusal.
func granted(err error) (bool, error) {
	var r *refusal
	if errors.As(err, &r) {
		return false, nil
	}
	return err == nil, err
}

// open gets everything about an export, and begins transmission.
func (s *session) open(name string) error {
	if s.structured {
		meta := wire.MetaRequest{Name: name, Queries: []string{wire.BaseAllocation}}
		if _, err := granted(s.ask(wire.OptSetMetaContext, meta.Append(nil), s.takeContext)); err != nil {
			return err
		}
	}
	req := wire.InfoRequest{Name: name, Infos: []wire.Info{wire.InfoDescription, wire.InfoBlockSize}}
	seen := false
	err := s.ask(wire.OptGo, req.Append(nil), func(rep wire.OptionReply, p []byte) error {
		known, err := s.takeInfo(rep, p)
		seen = seen || known
		return err
	})
	var r *refusal
	switch {
	case errors.As(err, &r) && r.reply == wire.RepErrUnsup:
		return s.exportName(name)
	case err == nil && !seen:
		return errors.New("the server opens the export, and does not say how large it is")
	}
	return err
}

// takeContext takes an answer to SET_META_CONTEXT.
func (s *session) takeContext(rep wire.OptionReply, p []byte) error {
	if rep != wire.RepMetaContext {
		return fmt.Errorf("SET_META_CONTEXT: an answer of type %d", rep)
	}
	id, name, err := wire.ParseMetaContext(p)
	if err != nil {
		return err
	}
	if name == wire.BaseAllocation {
		s.allocation, s.hasAllocation = id, true
	}
	return nil
}

// takeInfo takes an answer to GO, and reports whether it says how large the
// export is.
func (s *session) takeInfo(rep wire.OptionReply, p []byte) (export bool, err error) {
	if rep != wire.RepInfo || len(p) < 2 {
		return false, fmt.Errorf("GO: an answer of type %d and %d bytes", rep, len(p))
	}
	switch p, kind := p[2:], wire.Info(binary.BigEndian.Uint16(p)); kind {
	case wire.InfoExport:
		s.size, s.flags, err = wire.ParseExportInfo(p)
		return true, err
	case wire.InfoBlockSize:
		s.block.Minimum, s.block.Preferred, s.block.Maximum, err = wire.ParseBlockSizeInfo(p)
	case wire.InfoDescription:
		s.description = string(p)
	}
	return false, err
}

// exportName opens the export of a server that does not know GO.
func (s *session) exportName(name string) error {
	if _, err := s.Write(wire.AppendOption(nil, wire.OptExportName, []byte(name))); err != nil {
		return err
	}
	n := wire.ExportNameReplySize
	if !s.noZeroes {
		n += wire.ExportNameZeroes
	}
	p := make([]byte, n)
	if err := s.receive(p); err != nil {
		return fmt.Errorf("the server does not open the export: %w", err)
	}
	var err error
	s.size, s.flags, err = wire.ParseExportInfo(p[:wire.ExportNameReplySize])
	return err
}

// ask sends an option and gives the answers to each, but for the last one, which
// grants or refuses it. each is nil if there are no others.
func (s *session) ask(opt wire.Option, data []byte, each func(rep wire.OptionReply, p []byte) error) error {
	if _, err := s.Write(wire.AppendOption(nil, opt, data)); err != nil {
		return fmt.Errorf("%v: %w", opt, err)
	}
	for range maxOptionReplies {
		rep, p, err := s.answer(opt)
		switch {
		case err != nil:
			return fmt.Errorf("%v: %w", opt, err)
		case rep.IsError():
			return &refusal{opt, rep, string(p)}
		case rep == wire.RepAck:
			return nil
		case each == nil:
			return fmt.Errorf("%v: an answer of type %d", opt, rep)
		}
		if err := each(rep, p); err != nil {
			return err
		}
	}
	return fmt.Errorf("%v: more than %d answers", opt, maxOptionReplies)
}

// answer reads one answer to opt.
func (s *session) answer(opt wire.Option) (wire.OptionReply, []byte, error) {
	var h [wire.OptionReplyHeaderSize]byte
	if err := s.receive(h[:]); err != nil {
		return 0, nil, err
	}
	to, rep, n, err := wire.ParseOptionReplyHeader(h[:])
	switch {
	case err != nil:
		return 0, nil, err
	case to != opt:
		return 0, nil, fmt.Errorf("an answer to %v", to)
	case n > maxOptionReply:
		return 0, nil, fmt.Errorf("an answer of %d bytes", n)
	}
	p := make([]byte, n)
	return rep, p, s.receive(p)
}

func (s *session) receive(p []byte) error {
	_, err := io.ReadFull(s.Conn, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the server ended the connection")
	}
	return err
}
