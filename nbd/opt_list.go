package nbd

import (
	"fmt"

	"nbd-ktls-server/nbd/wire"
)

// optList names the exports (proto.md, "NBD_OPT_LIST"): one REP_SERVER each,
// without those that need TLS first.
func (n *negotiation) optList(data []byte) (*session, error) {
	if len(data) != 0 {
		return nil, n.refuse(wire.OptList, wire.RepErrInvalid, "LIST has no data, but %d bytes came with it", len(data))
	}
	exports, err := n.srv.Exports.List(n.ctx, n.client)
	if err != nil {
		n.warn("cannot list the exports", "reason", err)
		return nil, n.refuse(wire.OptList, wire.RepErrPlatform, "the exports cannot be listed")
	}
	for i := range exports {
		if exports[i].TLSOnly && !n.client.TLS || wire.CheckName(exports[i].Name) != nil {
			continue // not to be known, or not to be asked for
		}
		n.reply(wire.OptList, wire.RepServer, wire.AppendServer(nil, exports[i].Name, exports[i].Description))
		if len(n.out) > maxOptionLength { // a long list is sent in pieces
			if err := n.flush(); err != nil {
				return nil, fmt.Errorf("LIST: %w", err)
			}
		}
	}
	n.reply(wire.OptList, wire.RepAck, nil)
	return nil, nil
}
