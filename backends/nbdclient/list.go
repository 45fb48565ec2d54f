package nbdclient

import (
	"context"
	"fmt"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

// List returns the exports that the server lists, without all they could say.
func (t *Target) List(ctx context.Context) (all []nbd.Export, err error) {
	s, err := t.dial(ctx, func(_ context.Context, s *session) error {
		err := s.ask(wire.OptList, nil, func(rep wire.OptionReply, p []byte) error {
			if rep != wire.RepServer {
				return fmt.Errorf("LIST: an answer of type %d", rep)
			}
			name, details, err := wire.ParseServer(p)
			all = append(all, nbd.Export{Name: name, Description: details})
			return err
		})
		if err == nil {
			_, err = s.Write(wire.AppendOption(nil, wire.OptAbort, nil))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, s.Close()
}
