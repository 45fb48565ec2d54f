// Package tlsengine is TLS for a server that speaks first in plain text and is
// then asked to encrypt: [Server.StartTLS] makes an encrypted connection of a
// plain one (RFC 8446; RFC 5246 for clients that know nothing newer).
//
// crypto/tls does the handshake and, for now, the records.
package tlsengine
