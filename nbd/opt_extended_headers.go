package nbd

import "nbd-ktls-server/nbd/wire"

// optExtendedHeaders changes to requests and replies with 64-bit lengths
// (proto.md's extension, "NBD_OPT_EXTENDED_HEADERS").
func (n *negotiation) optExtendedHeaders(data []byte) (*session, error) {
	const opt = wire.OptExtendedHeaders
	if len(data) != 0 {
		return nil, n.refuse(opt, wire.RepErrInvalid, "EXTENDED_HEADERS has no data, but %d bytes came with it", len(data))
	}
	n.style = extended
	n.reply(opt, wire.RepAck, nil)
	return nil, nil
}
