// Package vsock has connections between a virtual machine and its host, vsock(7),
// which package net does not know.
package vsock

import "fmt"

// Any is the CID of a listener for every machine.
const Any = 1<<32 - 1

// Addr is the address of one end.
type Addr struct{ CID, Port uint32 }

// Network implements net.Addr.
func (Addr) Network() string { return "vsock" }

// String implements net.Addr.
func (a Addr) String() string {
	if a.CID == Any {
		return fmt.Sprintf("*:%d", a.Port)
	}
	return fmt.Sprintf("%d:%d", a.CID, a.Port)
}
