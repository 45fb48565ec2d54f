// Package nbd is the server side of the NBD protocol (proto.md): fixed newstyle
// negotiation, TLS by STARTTLS, and the transmission phase, in front of
// anything that can be read at an offset.
//
// The way through the package is that of a connection:
//
//	server.go      accepts it
//	handshakes.go  bounds how many may be unfinished at once
//	conn.go        runs it through its phases, and ends it
//	negotiate.go   haggles; one file opt_*.go for each option
//	export.go      finds the export, if this client may use it, and opens it
//	backend.go     finds out what the export can do
//	transmit.go    reads requests
//	validate.go    refuses the wrong ones
//	handle.go      works on the others, many at a time
//	reply.go       answers
//
// The package knows no cryptography and no kind of storage: an encrypted
// connection is what [Server.StartTLS] makes of a plain one, and data come from
// a [Backend].
package nbd
