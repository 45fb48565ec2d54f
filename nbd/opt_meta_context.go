package nbd

import (
	"errors"
	"slices"

	"nbd-ktls-server/nbd/wire"
)

// allocationID is the number of base:allocation, the only metadata context.
const allocationID wire.ContextID = 1

// contexts are the metadata contexts that a client has set, and the export for
// which it did: they count if it then chooses that one.
type contexts struct {
	export     string
	allocation bool // base:allocation
}

// optListMetaContext names metadata contexts (proto.md,
// "NBD_OPT_LIST_META_CONTEXT"): those that match a query, or all.
func (n *negotiation) optListMetaContext(data []byte) (*session, error) {
	const opt = wire.OptListMetaContext
	req, err := n.metaRequest(opt, data)
	if req == nil {
		return nil, err
	}
	if len(req.Queries) == 0 || matches(req.Queries, wire.BaseAllocation, "base:") {
		n.reply(opt, wire.RepMetaContext, wire.AppendMetaContext(nil, 0, wire.BaseAllocation))
	}
	n.reply(opt, wire.RepAck, nil)
	return nil, nil
}

// optSetMetaContext selects metadata contexts (proto.md,
// "NBD_OPT_SET_META_CONTEXT"), in place of those selected before, even if it
// fails.
func (n *negotiation) optSetMetaContext(data []byte) (*session, error) {
	const opt = wire.OptSetMetaContext
	n.contexts = contexts{}
	req, err := n.metaRequest(opt, data)
	if req == nil {
		return nil, err
	}
	n.contexts = contexts{export: req.Name, allocation: matches(req.Queries, wire.BaseAllocation)}
	if n.contexts.allocation {
		n.reply(opt, wire.RepMetaContext, wire.AppendMetaContext(nil, allocationID, wire.BaseAllocation))
	}
	n.reply(opt, wire.RepAck, nil)
	return nil, nil
}

// metaRequest parses the data of both options, and looks the export up. Without
// a request and an error the client has been refused: in SELECTIVETLS an export
// that needs TLS does not exist here, as these options have no TLS_REQD.
func (n *negotiation) metaRequest(opt wire.Option, data []byte) (*wire.MetaRequest, error) {
	if n.style == simple {
		return nil, n.refuse(opt, wire.RepErrInvalid, "metadata contexts need structured replies: send STRUCTURED_REPLY first")
	}
	req, err := wire.ParseMetaRequest(data)
	if err != nil {
		return nil, n.refuse(opt, wire.RepErrInvalid, "%v", err)
	}
	e, err := n.srv.Exports.Lookup(n.ctx, n.client, req.Name)
	if err == nil && e.TLSOnly && !n.client.TLS {
		err = ErrNoExport
	}
	switch {
	case err == nil:
		return req, nil
	case !errors.Is(err, ErrNoExport):
		n.warn("an export cannot be looked up", "export", abridge(req.Name), "reason", err)
	}
	return nil, n.refuse(opt, wire.RepErrUnknown, "there is no such export")
}

// matches reports whether one of queries is one of wanted. Namespaces that we do
// not know, and names that we do not know in ours, select nothing.
func matches(queries []string, wanted ...string) bool {
	return slices.ContainsFunc(queries, func(q string) bool { return slices.Contains(wanted, q) })
}
