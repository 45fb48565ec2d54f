package nbd

import (
	"errors"
	"fmt"

	"nbd-ktls-server/nbd/wire"
)

// optInfo describes an export (proto.md, "NBD_OPT_INFO").
func (n *negotiation) optInfo(data []byte) (*session, error) {
	s, err := n.describe(wire.OptInfo, data)
	if s != nil {
		s.close()
	}
	return nil, err
}

// optGo describes an export and begins to serve it (proto.md, "NBD_OPT_GO").
func (n *negotiation) optGo(data []byte) (*session, error) {
	s, err := n.describe(wire.OptGo, data)
	if s == nil {
		return nil, err
	}
	return s, nil
}

// describe opens an export and tells the client about it. Without a session
// and an error the client has been refused.
func (n *negotiation) describe(opt wire.Option, data []byte) (*session, error) {
	req, err := wire.ParseInfoRequest(data)
	if err != nil {
		return nil, n.refuse(opt, wire.RepErrInvalid, "%v", err)
	}
	s, err := n.open(req.Name)
	if err != nil {
		return nil, n.refuseExport(opt, req.Name, err)
	}
	for _, info := range s.infos(req) {
		n.reply(opt, wire.RepInfo, info)
	}
	n.reply(opt, wire.RepAck, nil)
	return s, nil
}

// infos returns the data of the REP_INFO replies to req.
func (s *session) infos(req *wire.InfoRequest) [][]byte {
	infos := [][]byte{wire.AppendExportInfo(nil, uint64(s.able.Size), s.flags)}
	if b := s.able.BlockSize; req.Wants(wire.InfoBlockSize) || !b.isDefault() {
		infos = append(infos, wire.AppendBlockSizeInfo(nil, b.Minimum, b.Preferred, b.Maximum))
	}
	if req.Wants(wire.InfoName) {
		infos = append(infos, wire.AppendTextInfo(nil, wire.InfoName, s.export.Name))
	}
	if req.Wants(wire.InfoDescription) && s.description() != "" {
		infos = append(infos, wire.AppendTextInfo(nil, wire.InfoDescription, s.description()))
	}
	return infos
}

// errTLSOnly means that the export can be had, but not in plain text.
var errTLSOnly = errors.New("the export needs TLS")

// open authorises the client and opens the export it named, in this order.
func (n *negotiation) open(name string) (*session, error) {
	e, err := n.srv.Exports.Lookup(n.ctx, n.client, name)
	if err != nil {
		return nil, n.hide(err)
	}
	if e.TLSOnly && !n.client.TLS {
		return nil, errTLSOnly
	}
	a, err := e.open(n.conn, name)
	if err != nil {
		return nil, n.hide(fmt.Errorf("opening it: %w", err))
	}
	return newSession(n, e, a, name), nil
}

// hide makes an unknown export look like one that needs TLS, where TLS could
// still be started: in plain text nobody learns which exports exist.
func (n *negotiation) hide(err error) error {
	if errors.Is(err, ErrNoExport) && n.offersTLS() && !n.client.TLS {
		return fmt.Errorf("%w, or %w", errTLSOnly, err)
	}
	return err
}

// refuseExport tells the client why it does not get an export, and the log a
// little more.
func (n *negotiation) refuseExport(opt wire.Option, name string, err error) error {
	n.warn("an export was refused", "export", abridge(name), "option", opt, "identity", identity(n.client), "reason", err)
	switch {
	case errors.Is(err, errTLSOnly) && n.offersTLS():
		return n.refuse(opt, wire.RepErrTLSReqd, "send STARTTLS first")
	case errors.Is(err, ErrNoExport), errors.Is(err, errTLSOnly):
		return n.refuse(opt, wire.RepErrUnknown, "there is no such export")
	}
	return n.refuse(opt, wire.RepErrUnknown, "the export cannot be opened; the server's log says why")
}

// abridge makes a name that a client made up fit for the log.
func abridge(name string) string {
	const enough = 128
	if len(name) <= enough {
		return name
	}
	return name[:enough] + "…"
}
