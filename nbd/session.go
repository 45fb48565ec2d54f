package nbd

import (
	"log/slog"
	"sync"

	"golang.org/x/sync/semaphore"

	"nbd-ktls-server/nbd/wire"
)

// session is the transmission phase of a connection: one export, chosen.
type session struct {
	conn   *conn
	export *Export
	able   *Abilities
	flags  wire.TransmissionFlags
	style  style
	// allocation says that the client may ask for block status.
	allocation bool
	// streamFrom is from how many bytes on data are streamed; 0: never.
	streamFrom int64
	log        *slog.Logger

	r       *input
	replies replies
	slots   *semaphore.Weighted // requests of this connection being worked on
	bytes   *semaphore.Weighted // their payloads
	turn    turn
	over    chan error // why no more requests are read
	working sync.WaitGroup
	stats   stats
	traffic *traffic
}

// newSession begins to serve the export that the client called name.
func newSession(n *negotiation, e *Export, a *Abilities, name string) *session {
	limits := &n.srv.limits
	s := &session{
		conn:       n.conn,
		export:     e,
		able:       a,
		style:      n.style,
		allocation: n.contexts.allocation && n.contexts.export == name,
		log:        n.log.With("export", e.Name),
		r:          n.r,
		replies:    replies{conn: n.conn, style: n.style},
		slots:      semaphore.NewWeighted(int64(limits.Requests)),
		bytes:      semaphore.NewWeighted(limits.Bytes),
		over:       make(chan error, 1),
	}
	s.r.waiting = s.replies.flush
	s.traffic = n.srv.trafficOf(e.Name)
	if fs, ok := n.top.(fileSender); ok && a.Section != nil {
		s.streamFrom = int64(fs.StreamFrom())
	}
	s.flags = a.flags(s.style, s.allocation)
	return s
}

// description is what people are told about the export.
func (s *session) description() string {
	if s.able.Description != "" {
		return s.able.Description
	}
	return s.export.Description
}

// flags computes the transmission flags (proto.md, "Transmission flags").
func (a *Abilities) flags(style style, allocation bool) wire.TransmissionFlags {
	f := wire.FlagHasFlags
	set := func(flag wire.TransmissionFlags, on bool) {
		if on {
			f |= flag
		}
	}
	writable := a.WriteAt != nil
	set(wire.FlagReadOnly, !writable)
	set(wire.FlagSendFlush, a.Sync != nil)
	set(wire.FlagSendFUA, writable && a.Sync != nil)
	set(wire.FlagRotational, a.Rotational)
	set(wire.FlagSendTrim, writable && a.Trim != nil)
	set(wire.FlagSendWriteZeroes, writable && !a.NoZero)
	set(wire.FlagSendFastZero, writable && !a.NoZero && !a.SlowZero)
	set(wire.FlagSendDF, style != simple)
	set(wire.FlagCanMultiConn, a.MultiConn || !writable)
	set(wire.FlagSendCache, a.Cache != nil)
	set(wire.FlagBlockStatusPayload, style == extended && allocation)
	return f
}

// close closes the export.
func (s *session) close() {
	if err := protect(s.log, s.able.close); err != nil {
		s.log.Warn("closing the export failed", "reason", err)
	}
}
