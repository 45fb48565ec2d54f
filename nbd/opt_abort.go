package nbd

import "nbd-ktls-server/nbd/wire"

// optAbort ends the connection (proto.md, "NBD_OPT_ABORT"). Data that come with
// it are ignored, and the client need not wait for the answer.
func (n *negotiation) optAbort([]byte) (*session, error) {
	n.reply(wire.OptAbort, wire.RepAck, nil)
	return nil, errAbort
}
