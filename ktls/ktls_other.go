//go:build !linux

package ktls

import (
	"errors"
	"net"
	"os"
	"syscall"
)

var errNotLinux = errors.New("only Linux has kernel TLS")

// MaxSection and the others are those of Linux; here nothing can be done.
const MaxSection = 1 << 20

type (
	TX      struct{}
	Section struct{}
)

func Probe() (*Support, error)                        { return unsupported(errNotLinux), nil }
func Offload() map[string]string                      { return nil }
func Stats() (map[string]uint64, error)               { return nil, nil }
func Attach(net.Conn, *CryptoInfo) (*TX, error)       { return nil, errNotLinux }
func Load(*os.File, int64, int) (*Section, error)     { return nil, nil }
func (*TX) Rekey(*CryptoInfo) error                   { return errNotLinux }
func (*TX) RecSeq() (uint64, error)                   { return 0, errNotLinux }
func (*TX) WriteRecord(byte, []byte) error            { return errNotLinux }
func (*TX) Drain() error                              { return errNotLinux }
func (*TX) Send([]byte, *Section) error               { return errNotLinux }
func (*Section) SendTo(syscall.RawConn, []byte) error { return errNotLinux }
func (*Section) Free()                                {}
