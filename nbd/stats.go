package nbd

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"nbd-ktls-server/nbd/wire"
)

// stats counts what a session did, for the log.
type stats struct {
	requests, errors        atomic.Int64
	bytesRead, bytesWritten atomic.Int64
}

func (st *stats) attrs() []any {
	return []any{
		"requests", st.requests.Load(), "errors", st.errors.Load(),
		"read", st.bytesRead.Load(), "written", st.bytesWritten.Load(),
	}
}

// Connection describes one that there is.
type Connection struct {
	Client Client
	// Export is "" until one has been chosen.
	Export   string
	ReadOnly bool
	// TLS says how the connection is encrypted, for people.
	TLS   string
	Begun time.Time

	Requests, Errors, BytesRead, BytesWritten int64
}

// Connections describes the connections that there are, the oldest first.
func (s *Server) Connections() []Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Connection, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c.describe())
	}
	slices.SortFunc(all, func(a, b Connection) int { return a.Begun.Compare(b.Begun) })
	return all
}

func (c *conn) describe() Connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := Connection{Client: c.client, TLS: encryption(c.top), Begun: c.begun}
	if s := c.session; s != nil {
		d.Export, d.ReadOnly = s.export.Name, s.able.WriteAt == nil
		d.Requests, d.Errors = s.stats.requests.Load(), s.stats.errors.Load()
		d.BytesRead, d.BytesWritten = s.stats.bytesRead.Load(), s.stats.bytesWritten.Load()
	}
	return d
}

// Traffic is what went on in an export since the server began.
type Traffic struct {
	Export string
	// Commands that were answered at least once.
	Commands []CommandTraffic
	// Streamed are the bytes of READs that were sent without having been read
	// into memory.
	Streamed int64
	// InFlight are the requests that have not been answered yet.
	InFlight int64
}

// CommandTraffic is the part of one command.
type CommandTraffic struct {
	Command wire.Command
	// Requests that were answered, Errors of them with an error; Bytes that were
	// read or written by the others.
	Requests, Errors, Bytes int64
	// Took counts the requests that took no longer than each of LatencyBounds,
	// and those that took longer; Total is the time of all together.
	Took  []int64
	Total time.Duration
}

// LatencyBounds divide the time from a request's arrival, its payload not
// included, to its reply.
var LatencyBounds = [...]time.Duration{
	20 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond,
	200 * time.Millisecond, time.Second, 10 * time.Second,
}

const (
	commandCount = int(wire.CmdBlockStatus) + 1
	// maxTraffic bounds how many names are told apart: where clients may make
	// them up, the rest is counted together.
	maxTraffic = 10_000
	others     = "…"
)

// traffic counts what goes on in an export.
type traffic struct {
	commands [commandCount]struct {
		requests, errors, bytes, total atomic.Int64
		took                           [len(LatencyBounds) + 1]atomic.Int64
	}
	streamed, inFlight atomic.Int64
}

// trafficOf returns the counters of an export.
func (s *Server) trafficOf(export string) *traffic {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.traffic == nil {
		s.traffic = make(map[string]*traffic)
	}
	if len(s.traffic) >= maxTraffic && s.traffic[export] == nil {
		export = others
	}
	t := s.traffic[export]
	if t == nil {
		t = new(traffic)
		s.traffic[export] = t
	}
	return t
}

// Traffic is what went on in the exports that were opened.
func (s *Server) Traffic() []Traffic {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Traffic, 0, len(s.traffic))
	for name, t := range s.traffic {
		all = append(all, t.describe(name))
	}
	slices.SortFunc(all, func(a, b Traffic) int { return strings.Compare(a.Export, b.Export) })
	return all
}

func (t *traffic) describe(name string) Traffic {
	d := Traffic{Export: name, Streamed: t.streamed.Load(), InFlight: t.inFlight.Load()}
	for i := range t.commands {
		c := &t.commands[i]
		n := c.requests.Load()
		if n == 0 {
			continue
		}
		ct := CommandTraffic{
			Command: wire.Command(i), Requests: n, Errors: c.errors.Load(), Bytes: c.bytes.Load(),
			Total: time.Duration(c.total.Load()),
		}
		for j := range c.took {
			ct.Took = append(ct.Took, c.took[j].Load())
		}
		d.Commands = append(d.Commands, ct)
	}
	return d
}

// began counts a request that has arrived, finished one that was answered.
func (t *traffic) began(req *request) {
	req.begun = time.Now()
	t.inFlight.Add(1)
}

func (t *traffic) finished(req *request) {
	t.inFlight.Add(-1)
	if int(req.Command) >= commandCount {
		return
	}
	c := &t.commands[req.Command]
	took := time.Since(req.begun)
	c.requests.Add(1)
	c.total.Add(int64(took))
	i, _ := slices.BinarySearch(LatencyBounds[:], took)
	c.took[i].Add(1)
	switch {
	case req.failed:
		c.errors.Add(1)
	case req.Command == wire.CmdRead || req.Command == wire.CmdWrite:
		c.bytes.Add(int64(req.Length))
	}
}

// Counts are totals since the server began.
type Counts struct {
	// Accepted connections, and Refused ones because there were too many; Failed
	// are those that came to no export because something was wrong.
	Accepted, Refused, Failed int64
}

// Counts returns them.
func (s *Server) Counts() Counts {
	return Counts{s.accepted.Load(), s.refused.Load(), s.failed.Load()}
}
