package tlsengine

import "io"

const (
	handshakeKeyUpdate = 24
	handshakeHeaderLen = 4
	keyUpdateLen       = handshakeHeaderLen + 1

	updateNotRequested = 0
	updateRequested    = 1
)

// handleHandshake handles a part of a post-handshake message. The only one that
// a client may send us is a KeyUpdate (RFC 8446, Section 4.6).
func (c *Conn) handleHandshake(p []byte) error {
	if len(p) == 0 { // Section 5.1
		return fatal(alertUnexpectedMessage, "an empty handshake record")
	}
	c.in.fragment = append(c.in.fragment, p[:min(len(p), keyUpdateLen+1)]...)
	msg := c.in.fragment
	switch {
	case msg[0] != handshakeKeyUpdate:
		return fatal(alertUnexpectedMessage, "a handshake message of type %d after the handshake", msg[0])
	case len(msg) < handshakeHeaderLen:
		return nil
	case msg[1] != 0 || msg[2] != 0 || msg[3] != 1:
		return fatal(alertDecodeError, "a KeyUpdate of %d bytes", int(msg[1])<<16|int(msg[2])<<8|int(msg[3]))
	case len(msg) < keyUpdateLen:
		return nil
	case len(msg) > keyUpdateLen: // "MUST align with a record boundary", Section 5.1
		return fatal(alertUnexpectedMessage, "something behind a KeyUpdate in its record")
	}
	c.in.fragment = nil
	return c.handleKeyUpdate(msg[handshakeHeaderLen])
}

// handleKeyUpdate begins the peer's next key (Section 4.6.3). Decoding never
// writes: if an update is wanted in return and nobody is writing, a goroutine
// sends it, so that a peer that does not read cannot stop us from reading.
func (c *Conn) handleKeyUpdate(request byte) error {
	if request != updateNotRequested && request != updateRequested {
		return fatal(alertIllegalParameter, "a KeyUpdate with the request %d", request)
	}
	if err := c.in.useless(); err != nil {
		return err
	}
	if err := c.in.update(); err != nil {
		return err
	}
	c.counts.received.Add(1)
	if request == updateRequested && c.updateOwed.CompareAndSwap(false, true) {
		c.answering.Go(func() {
			c.lockOut()
			c.unlockOut()
		})
	}
	return nil
}

// handleAlert handles an alert (Section 6).
func (c *Conn) handleAlert(p []byte) error {
	switch {
	case len(p) == 0:
		return fatal(alertUnexpectedMessage, "an empty alert")
	case len(p) != 2:
		return fatal(alertDecodeError, "an alert of %d bytes", len(p))
	}
	switch a := Alert(p[1]); a {
	case alertCloseNotify:
		return io.EOF
	case alertUserCanceled:
		return c.in.useless()
	default:
		return &RemoteAlert{a} // whatever its level: "all … are fatal", Section 6
	}
}
