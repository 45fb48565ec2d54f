package nbd

import (
	"errors"

	"nbd-ktls-server/nbd/wire"
)

// errSecured ends a negotiation: the next one is inside TLS.
var errSecured = errors.New("TLS has been started")

var errPipelinedTLS = errors.New("bytes followed STARTTLS before it was answered: the client, or somebody between us, does not keep to the protocol")

// optStartTLS starts TLS (proto.md, "NBD_OPT_STARTTLS").
//
// What arrived behind the option, in plain text and before our answer, could
// only have been meant to be taken for something said inside TLS. A client has
// to wait for the answer, so this one is disconnected.
func (n *negotiation) optStartTLS(data []byte) (*session, error) {
	const opt = wire.OptStartTLS
	switch {
	case !n.offersTLS():
		n.warn("a client that wants TLS was refused", "reason", "this server has TLS switched off")
		return nil, n.refuse(opt, wire.RepErrPolicy, "this server has TLS switched off")
	case len(data) != 0:
		return nil, n.refuse(opt, wire.RepErrInvalid, "STARTTLS has no data, but %d bytes came with it", len(data))
	case n.client.TLS:
		return nil, n.refuse(opt, wire.RepErrInvalid, "TLS has already been started")
	case n.r.Buffered() != 0:
		return nil, errPipelinedTLS
	}
	n.reply(opt, wire.RepAck, nil)
	if err := n.flush(); err != nil {
		return nil, err
	}
	if err := n.startTLS(); err != nil {
		return nil, err
	}
	return nil, errSecured
}
