// Package ktls moves the sending direction of a TLS 1.3 connection into the
// Linux kernel: tls.rst ("Kernel TLS") and <linux/tls.h>. It knows sockets,
// pipes and keys; what TLS is, its user knows.
//
// The receiving direction stays where it is: a socket with TLS_TX alone reads
// as plain TCP does.
//
// What the kernel does not do, and its user has to: it serialises nothing
// between a write, a splice and a new key (one lock has to cover them all), it
// keeps a record open after MSG_MORE and encrypts it under whatever key is then
// the current one, it frees a record that close finds unsent ([TX.Drain]), and it
// never gives the upper layer protocol back.
package ktls
