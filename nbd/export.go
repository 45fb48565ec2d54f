package nbd

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
)

// ErrNoExport means that there is no such export, or none this client may know
// of: the two look the same to it.
var ErrNoExport = errors.New("no such export")

// Client is what is known of the other end before an export is opened.
type Client struct {
	Addr net.Addr
	// Credentials are those of the process at the other end of a Unix socket; nil
	// if they are not known.
	Credentials *Credentials
	// TLS says that the connection is encrypted.
	TLS bool
	// Certificates are the verified client certificate and its issuers, leaf
	// first; nil without one.
	Certificates []*x509.Certificate
}

// Credentials are those of a process when it connected (unix(7), SO_PEERCRED).
type Credentials struct {
	PID      int32
	UID, GID uint32
}

// Exports are what a server offers.
type Exports interface {
	// Lookup returns the export called name, "" being the default one, or
	// ErrNoExport: also for a name that c may not use. It opens nothing.
	Lookup(ctx context.Context, c Client, name string) (*Export, error)
	// List returns the exports that c may know of.
	List(ctx context.Context, c Client) ([]Export, error)
}

// Export is something that can be opened.
type Export struct {
	// Name is the canonical name: what a client that asked for "" may be told.
	Name string
	// Description is for people.
	Description string
	// TLSOnly hides the export from clients that have not negotiated TLS
	// (proto.md, "SELECTIVETLS mode").
	TLSOnly bool
	// ReadOnly refuses every change, whatever the backend could do.
	ReadOnly bool
	// Open opens the export for one connection, after the client has been
	// authorised. ctx ends with the connection. Whether connections share
	// state is for the export to decide.
	Open func(ctx context.Context, info OpenInfo) (Backend, error)
}

// OpenInfo says for whom an export is opened.
type OpenInfo struct {
	// Name is the name that the client asked for, possibly "".
	Name     string
	ReadOnly bool
	Client   Client
	// Disconnect ends the connection because of why: at once, or softly, when
	// the requests that were received have been answered.
	Disconnect func(why error, hard bool)
}

// open opens e for c and finds out what it can do.
func (e *Export) open(c *conn, name string) (a *Abilities, err error) {
	err = protect(c.log, func() error {
		b, err := e.Open(c.ctx, OpenInfo{Name: name, ReadOnly: e.ReadOnly, Client: c.client, Disconnect: c.disconnect})
		if err != nil {
			return err
		}
		a, err = Resolve(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	if e.ReadOnly {
		a.ReadOnly()
	}
	return a, nil
}

// ExportList offers a fixed list of exports to everybody. The default export is
// the one named "", else the only one.
type ExportList []Export

// Lookup implements [Exports].
func (l ExportList) Lookup(_ context.Context, _ Client, name string) (*Export, error) {
	for i := range l {
		if l[i].Name == name {
			return &l[i], nil
		}
	}
	if name == "" && len(l) == 1 {
		return &l[0], nil
	}
	return nil, ErrNoExport
}

// List implements [Exports].
func (l ExportList) List(context.Context, Client) ([]Export, error) { return l, nil }
