package nbd

import "net"

// An idleReader is a connection that says when it has to wait: ReadIdle is Read,
// and calls idle before.
type idleReader interface {
	ReadIdle(p []byte, idle func()) (int, error)
}

// source is what a connection reads requests from. Clients send many at a time,
// and the replies leave together: before anything is waited for.
type source struct {
	net.Conn
	waiting func() // is called before a Read that may wait; or nil
}

func (r *source) Read(p []byte) (int, error) {
	if c, ok := r.Conn.(idleReader); ok {
		return c.ReadIdle(p, r.waiting)
	}
	if r.waiting != nil {
		r.waiting()
	}
	return r.Conn.Read(p)
}
