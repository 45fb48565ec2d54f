package nbd

import (
	"time"

	"nbd-ktls-server/nbd/wire"
)

// Limits bound what clients can make a server spend. A zero field has the
// default in its comment; a negative one means no limit.
type Limits struct {
	// Connections bounds all connections; more are closed at once. 4096.
	Connections int
	// Handshakes bounds the connections that have not chosen an export yet. The
	// next one waits, and after a second takes the place of the oldest. 100.
	Handshakes int
	// HandshakeTimeout is how long a client has from being accepted until it
	// has chosen an export. 10 seconds.
	HandshakeTimeout time.Duration
	// StallTimeout is how long a client may take to read or write 1 MiB once
	// it has begun to. 60 seconds.
	StallTimeout time.Duration
	// DrainTimeout is how long requests may take to finish when the server
	// shuts down. 10 seconds.
	DrainTimeout time.Duration
	// Requests bounds the requests of one connection that are worked on at the
	// same time. 16.
	Requests int
	// RequestsTotal bounds those of all connections. Each may hold a thread in
	// a system call on a file, and Go ends a program with 10 000 threads. They are
	// counted while a backend works, not while a client sends or takes data. 1024.
	RequestsTotal int
	// Bytes bounds the payloads of one connection that are held in memory.
	// 64 MiB; at least 32 MiB, one payload of the largest size.
	Bytes int64
	// BytesTotal bounds those of all connections, apart from payloads of up to
	// 64 KiB: what large ones do, or clients that are slow to send or to take
	// them, must not stop the small requests of others. 1 GiB.
	BytesTotal int64
}

func (l Limits) filled() Limits {
	setDefault(&l.Connections, 4096)
	setDefault(&l.Handshakes, 100)
	setDefault(&l.HandshakeTimeout, 10*time.Second)
	setDefault(&l.StallTimeout, 60*time.Second)
	setDefault(&l.DrainTimeout, 10*time.Second)
	setDefault(&l.Requests, 16)
	setDefault(&l.RequestsTotal, 1024)
	setDefault(&l.Bytes, 64<<20)
	setDefault(&l.BytesTotal, 1<<30)
	l.Bytes = max(l.Bytes, wire.MaxPayload)
	l.BytesTotal = max(l.BytesTotal, l.Bytes)
	return l
}

func setDefault[T int | int64 | time.Duration](v *T, d T) {
	switch {
	case *v == 0:
		*v = d
	case *v < 0:
		*v = T(1) << 60 // nobody reaches this
	}
}

const (
	// maxOptionLength bounds what a client that has shown nothing yet can make
	// us allocate. The longest option that is not absurd is a GO with a name of
	// 4096 bytes and a few dozen information requests.
	maxOptionLength = 16 << 10

	// discardLimit is the largest payload of a refused WRITE that is read and
	// thrown away; behind a larger one the client is disconnected (proto.md,
	// "Block size constraints": larger than 32 MiB may be).
	discardLimit = 2 * wire.MaxPayload

	// smallPayload is the largest one that BytesTotal does not count.
	smallPayload = 64 << 10

	// stallUnit is what a client must take or give within one StallTimeout.
	stallUnit = 1 << 20

	// stopGrace is how long a client that is haggling when the server shuts
	// down may go on, to be told so.
	stopGrace = time.Second

	// lingerTimeout bounds the wait for a client to close after we have said
	// our last word. Closing with its bytes unread would reset the connection,
	// and the last word (an alert, an error) could be lost.
	lingerTimeout = 2 * time.Second
)

// stallDeadline is when a stallUnit must have been transferred that begins now.
func (l *Limits) stallDeadline() time.Time { return time.Now().Add(l.StallTimeout) }
