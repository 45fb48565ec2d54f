//go:build linux

// Command vm runs a program, such as a test, on another kernel: in a virtual
// machine that QEMU emulates, with an initramfs of that program and little else.
//
//	go test -exec 'vm -kernel DIR' ./ktls
//
// DIR is what the script kernel in this directory has made. The machine's first
// serial port is the program's output, the second the kernel's log, the third
// carries the exit status. Nothing of it needs root, or KVM.
//
// The same binary is /init in the machine (guest.go).
package main
