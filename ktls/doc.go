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
//
// # What it costs
//
// Instructions of the sending thread for one reply of a file in the page cache,
// AES-128-GCM, Linux 7.3 emulated with AES-NI, VAES and AVX2 as QEMU has them
// (tlsengine's TestInstructions, vm -icount):
//
//	bytes       kernel, splice   kernel, write      user space   plain, splice    plain, write
//	1024                 19783           13732           12570           15844            9026
//	4096                 31409           28830           29252           13636           18548
//	16384                79466           88805           97193           15424           57146
//	65536               271672          327175          370493           25817          214990
//	262144             1049542         1288454         1473136           75831          853017
//	1048576            4152006         5164020         5909164          279958         3400817
//
// Splicing is cheaper than a read and a write from 16 KiB on (but see [StreamFrom]), and
// at 256 KiB costs 0.71 of what user space does. Of its 4.0 instructions for a byte
// one zeroes the pages that the records are put into (init_on_alloc, which Debian's
// kernels have on: without it, 3.0), and most of the rest is AES-GCM. Both, and
// copies, take real processors fewer cycles: "rep stosb" counts as one instruction
// for each byte.
//
// Why only what is sent is the kernel's: instructions of the receiving thread for
// one message in records of 16 KiB, TLS_RX and read(2) against records that are
// opened in place here, likewise (TestInstructionsOfReceiving). The kernel reads
// record by record, and user space many with one system call.
//
//	bytes             kernel      user space
//	1024               15527            3676
//	4096               31374           11977
//	16384              95248           56280
//	65536             362972          231604
//	262144           1446531          919339
//	1048576          5538702         3769494
//
// At 256 KiB it would cost 1.57 of what it does now, and key updates of clients
// would need the kernel's help: it is left out.
package ktls
