// Package tlsengine is TLS for a server that speaks first in plain text and is
// then asked to encrypt: [Server.StartTLS] makes an encrypted connection of a
// plain one (RFC 8446; RFC 5246 for clients that know nothing newer).
//
//	config.go         reads certificates
//	server.go         does the handshake, by crypto/tls, and takes over
//	boundary.go       so that no byte behind the handshake is lost
//	secrets.go        takes the traffic secrets
//	verify.go         decides about the client's certificate
//	keyschedule.go    makes keys of secrets
//	halfconn.go       is one direction: keys and sequence number
//	record.go         seals and opens records
//	conn.go           is the connection that comes of it
//	reader.go         collects records
//	writer.go         sends them, many at a time
//	posthandshake.go  answers KeyUpdates and alerts
//
// crypto/tls does the handshake and nothing else, for TLS 1.3: a record layer of
// our own can go on from any secret and sequence number, reads and writes many
// records for each system call, and answers a KeyUpdate without stopping the
// reader. With TLS 1.2 the records stay crypto/tls's.
package tlsengine
