package filters

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var openOnceFilter = plugin.Filter{
	Name: "openonce", Summary: "opens each export once, for all connections", Usage: "no parameters",
	Configure: func(*plugin.Params) (func(*plugin.Source), error) {
		return func(s *plugin.Source) {
			o := &openOnce{open: s.Open, exports: make(map[onceKey]*openedOnce)}
			s.Open = o.share
			s.OnClose(o.close)
		}, nil
	},
}

// maxOpen bounds how many exports stay open: clients may choose names.
const maxOpen = 1024

// openOnce keeps what has been opened until the server ends.
type openOnce struct {
	open func(context.Context, nbd.OpenInfo) (nbd.Backend, error)

	mu      sync.Mutex
	exports map[onceKey]*openedOnce
}

// onceKey is what makes a difference to what is opened.
type onceKey struct {
	name          string
	readOnly, tls bool
}

// openedOnce is an export; the first one opens it while others wait.
type openedOnce struct {
	mu   sync.Mutex
	able *nbd.Abilities
}

func (o *openOnce) share(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
	e, err := o.find(onceKey{info.Name, info.ReadOnly, info.Client.TLS})
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.able == nil {
		// It outlives the connection, which nothing below may end.
		info.Disconnect = func(error, bool) {}
		b, err := o.open(context.WithoutCancel(ctx), info)
		if err != nil {
			return nil, err
		}
		if e.able, err = nbd.Resolve(b); err != nil {
			return nil, err
		}
	}
	a := *e.able
	a.Close = nil
	return nbd.Resolved(&a), nil
}

func (o *openOnce) find(k onceKey) (*openedOnce, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := o.exports[k]
	if e == nil {
		if len(o.exports) >= maxOpen {
			o.forget()
		}
		if len(o.exports) >= maxOpen {
			return nil, fmt.Errorf("the openonce filter has %d exports open, and no more may stay so", len(o.exports))
		}
		e = &openedOnce{}
		o.exports[k] = e
	}
	return e, nil
}

// forget forgets what could not be opened. The caller holds mu.
func (o *openOnce) forget() {
	for k, e := range o.exports {
		if e.mu.TryLock() {
			if e.able == nil {
				delete(o.exports, k)
			}
			e.mu.Unlock()
		}
	}
}

func (o *openOnce) close() (err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.exports {
		if e.able != nil && e.able.Close != nil {
			err = errors.Join(err, e.able.Close())
		}
	}
	return err
}
