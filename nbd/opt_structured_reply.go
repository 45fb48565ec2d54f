package nbd

import "nbd-ktls-server/nbd/wire"

// optStructuredReply changes from simple replies to structured ones (proto.md,
// "NBD_OPT_STRUCTURED_REPLY").
func (n *negotiation) optStructuredReply(data []byte) (*session, error) {
	const opt = wire.OptStructuredReply
	switch {
	case len(data) != 0:
		return nil, n.refuse(opt, wire.RepErrInvalid, "STRUCTURED_REPLY has no data, but %d bytes came with it", len(data))
	case n.style == extended:
		return nil, n.refuse(opt, wire.RepErrExtHeaderReqd, "extended headers have been agreed on")
	}
	n.style = structured
	n.reply(opt, wire.RepAck, nil)
	return nil, nil
}
