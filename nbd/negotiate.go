package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"nbd-ktls-server/nbd/wire"
)

// negotiation is one run of option haggling. STARTTLS ends it and a new one
// begins on the encrypted connection, from nothing: what a client, or somebody
// in its place, said in plain text has no effect on what follows (proto.md,
// "NBD_OPT_STARTTLS"; CVE-2021-3716 was a server that kept some of it).
type negotiation struct {
	*conn
	r      *input
	flags  wire.ClientFlags
	out    []byte // replies to the current option, sent together
	nagged bool   // the log has been told that this client was refused something

	style    style // of requests and replies, agreed on so far
	contexts contexts
}

// negotiate is the handshake phase.
func (c *conn) negotiate() (*session, error) {
	t := time.AfterFunc(c.srv.limits.HandshakeTimeout, func() { c.abort(errTimeout) })
	defer t.Stop()
	flags, err := c.greet()
	if err != nil {
		return nil, err
	}
	if c.srv.ForceTLS && flags&wire.FlagCFixedNewstyle == 0 {
		return nil, errOldClient
	}
	for {
		n := &negotiation{conn: c, r: &input{conn: c.top, ahead: smallAhead}, flags: flags}
		s, err := n.haggle()
		if s == nil {
			n.r.free()
		}
		if err != errSecured {
			return s, err
		}
	}
}

// haggle answers options until one of them ends the negotiation: with a session,
// with errSecured, or for good.
func (n *negotiation) haggle() (*session, error) {
	for {
		opt, data, err := n.readOption()
		if err != nil {
			return nil, err
		}
		s, err := n.answer(opt, data)
		if flushErr := n.flush(); err == nil {
			err = flushErr
		}
		if err != nil && s != nil {
			s.close() // the client has gone before it could be told
			s = nil
		}
		if err != nil || s != nil {
			return s, err
		}
	}
}

// readOption reads one option. Data longer than maxOptionLength are read past,
// not stored, and returned as nil: so the next option is found, and the
// deadline for the negotiation bounds the work.
func (n *negotiation) readOption() (wire.Option, []byte, error) {
	var h [wire.OptionHeaderSize]byte
	if k, err := io.ReadFull(n.r, h[:]); err != nil {
		if k == 0 && errors.Is(err, io.EOF) {
			return 0, nil, errHangup
		}
		return 0, nil, fmt.Errorf("reading an option: %w", err)
	}
	opt, length, err := wire.ParseOptionHeader(h[:])
	if err != nil {
		return 0, nil, err
	}
	if length > maxOptionLength {
		if _, err := io.CopyN(io.Discard, n.r, int64(length)); err != nil {
			return 0, nil, fmt.Errorf("reading past %d bytes of %v: %w", length, opt, err)
		}
		return opt, nil, nil
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(n.r, data); err != nil {
		return 0, nil, fmt.Errorf("reading %d bytes of %v: %w", length, opt, err)
	}
	return opt, data, nil
}

// answer handles one option. An error ends the connection; otherwise the reply
// is in n.out.
func (n *negotiation) answer(opt wire.Option, data []byte) (*session, error) {
	n.log.Debug("option", "option", opt, "bytes", len(data))
	if n.isStopping() && opt != wire.OptAbort {
		return nil, n.refuse(opt, wire.RepErrShutdown, "this server is shutting down")
	}
	if n.needsTLS() && opt != wire.OptStartTLS && opt != wire.OptAbort {
		return nil, n.refusePlain(opt)
	}
	h, ok := options[opt]
	switch {
	case !ok, slices.Contains(n.srv.Unsupported, opt):
		return nil, n.refuse(opt, wire.RepErrUnsup, "this server has no option %d", uint32(opt))
	case data == nil && opt == wire.OptExportName:
		return nil, fmt.Errorf("%v: the name is longer than %d bytes", opt, wire.MaxString)
	case data == nil:
		return nil, n.refuse(opt, wire.RepErrTooBig, "the longest option this server reads has %d bytes", maxOptionLength)
	}
	return h(n, data)
}

// options says which file answers which option.
var options = map[wire.Option]func(*negotiation, []byte) (*session, error){
	wire.OptExportName: (*negotiation).optExportName,
	wire.OptAbort:      (*negotiation).optAbort,
	wire.OptList:       (*negotiation).optList,
	wire.OptStartTLS:   (*negotiation).optStartTLS,
	wire.OptInfo:       (*negotiation).optInfo,
	wire.OptGo:         (*negotiation).optGo,

	wire.OptStructuredReply: (*negotiation).optStructuredReply,
	wire.OptListMetaContext: (*negotiation).optListMetaContext,
	wire.OptSetMetaContext:  (*negotiation).optSetMetaContext,
	wire.OptExtendedHeaders: (*negotiation).optExtendedHeaders,
}

// offersTLS reports whether STARTTLS would be heard: "NOTLS mode" is for
// clients without fixed newstyle negotiation, too.
func (n *negotiation) offersTLS() bool {
	return n.srv.StartTLS != nil && n.flags&wire.FlagCFixedNewstyle != 0
}

// errOldClient: the specification would have such a client served in plain text
// (proto.md, "TLS versions"), which an operator who requires TLS does not want.
var errOldClient = errors.New("the client cannot do fixed newstyle negotiation, hence no TLS, which this server requires")

// needsTLS reports whether nothing may be served yet (proto.md, "FORCEDTLS
// mode").
func (n *negotiation) needsTLS() bool { return n.srv.ForceTLS && !n.client.TLS }

// refusePlain answers an option that needs TLS first.
func (n *negotiation) refusePlain(opt wire.Option) error {
	n.warn("a client without TLS was refused", "option", opt, "reason", "this server requires TLS")
	if opt == wire.OptExportName {
		return fmt.Errorf("%v before STARTTLS, and this server requires TLS", opt) // it has no error reply
	}
	return n.refuse(opt, wire.RepErrTLSReqd, "this server requires TLS: send STARTTLS first")
}

// warn logs why a client is refused something: once, then it is a matter for
// debugging, or a client could fill the log.
func (n *negotiation) warn(msg string, attrs ...any) {
	level := slog.LevelWarn
	if n.nagged {
		level = slog.LevelDebug
	}
	n.nagged = true
	n.log.Log(n.ctx, level, msg, attrs...)
}

// reply appends an answer that is not the last one, or an ACK.
func (n *negotiation) reply(opt wire.Option, rep wire.OptionReply, data []byte) {
	n.out = wire.AppendOptionReply(n.out, opt, rep, data)
}

// refuse answers opt with an error and a sentence for the person at the client.
// It drops replies already gathered for the option, and returns nil: an option
// refused is not a reason to end the connection.
func (n *negotiation) refuse(opt wire.Option, rep wire.OptionReply, format string, args ...any) error {
	msg := fmt.Sprintf(format, args...)
	n.log.Debug("option refused", "option", opt, "reply", rep, "reason", msg)
	n.out = n.out[:0]
	n.reply(opt, rep, []byte(msg))
	return nil
}

// flush sends the gathered replies.
func (n *negotiation) flush() error {
	if len(n.out) == 0 {
		return nil
	}
	_, err := n.top.Write(n.out)
	n.out = n.out[:0]
	if err != nil {
		return fmt.Errorf("sending an option reply: %w", err)
	}
	return nil
}

// checkClientFlags parses the client flags and reports those that may not be
// set: the client speaks something that we do not (proto.md, "Client flags").
func checkClientFlags(p [wire.ClientFlagsSize]byte) (wire.ClientFlags, error) {
	const known = wire.FlagCFixedNewstyle | wire.FlagCNoZeroes
	flags := wire.ClientFlags(binary.BigEndian.Uint32(p[:]))
	switch {
	case flags&^known == 0:
		return flags, nil
	case p[0] == 0x16 && p[1] == 3: // a TLS handshake record
		return 0, errors.New("the client began with a TLS handshake, but NBD begins in plain text and changes to TLS by STARTTLS")
	}
	return 0, fmt.Errorf("the client set unknown flags: %#x", uint32(flags))
}
