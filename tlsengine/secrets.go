package tlsengine

import (
	"bytes"
	"encoding/hex"
	"errors"
)

// secrets takes the application traffic secrets from crypto/tls. There is one
// public way to them, Config.KeyLogWriter, which is meant for debugging with a
// file: each connection has a writer of its own, this one, which forgets every
// line but two and shows them to nobody but newConn.
type secrets struct {
	client, server trafficSecret
}

// Write takes a line of NSS's key log: a label, the client's random, a secret.
func (s *secrets) Write(line []byte) (int, error) {
	fields := bytes.Fields(line)
	if len(fields) != 3 {
		return 0, errors.New("tls: crypto/tls logs its keys in another format")
	}
	var to *trafficSecret
	switch string(fields[0]) {
	case "CLIENT_TRAFFIC_SECRET_0":
		to = &s.client
	case "SERVER_TRAFFIC_SECRET_0":
		to = &s.server
	default:
		return len(line), nil
	}
	*to = make([]byte, hex.DecodedLen(len(fields[2])))
	_, err := hex.Decode(*to, fields[2])
	return len(line), err
}

func (s *secrets) wipe() {
	clear(s.client)
	clear(s.server)
}
