package nbd

import (
	"errors"
	"fmt"

	"nbd-ktls-server/nbd/wire"
)

// optExportName chooses an export the old way (proto.md,
// "NBD_OPT_EXPORT_NAME"). It has no error reply: whatever is wrong ends the
// connection, without a word.
func (n *negotiation) optExportName(data []byte) (*session, error) {
	name := string(data)
	if n.style == extended {
		return nil, errors.New("EXPORT_NAME does not go with extended headers")
	}
	if err := wire.CheckName(name); err != nil {
		return nil, fmt.Errorf("EXPORT_NAME: %w", err)
	}
	s, err := n.open(name)
	if err != nil {
		return nil, fmt.Errorf("EXPORT_NAME %q: %w", abridge(name), err)
	}
	zeroes := n.flags&wire.FlagCNoZeroes == 0
	n.out = wire.AppendExportNameReply(n.out, uint64(s.able.Size), s.flags, zeroes)
	return s, nil
}
