package nbd

import "net"

// A tryReader is a connection that has read ahead: TryRead is Read of what it
// has, and returns 0 and no error if that is nothing.
type tryReader interface {
	TryRead(p []byte) (int, error)
}

// source is what a connection reads requests from. Clients send many at a time,
// and the replies leave together: before anything is waited for.
type source struct {
	net.Conn
	waiting func() // is called before a Read that may wait; or nil
}

func (r *source) Read(p []byte) (int, error) {
	if t, ok := r.Conn.(tryReader); ok {
		if n, err := t.TryRead(p); n > 0 || err != nil {
			return n, err
		}
	}
	if r.waiting != nil {
		r.waiting()
	}
	return r.Conn.Read(p)
}
