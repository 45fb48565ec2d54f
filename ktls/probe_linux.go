package ktls

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var probed struct {
	mu      sync.Mutex
	support *Support
}

// Probe finds out what the kernel can do, by doing it on connections to itself:
// versions say little, as distributions port features back. What it found out is
// remembered, unless a module could be loaded yet. It fails if there is no
// loopback device to try on.
func Probe() (*Support, error) {
	probed.mu.Lock()
	defer probed.mu.Unlock()
	if probed.support != nil {
		return probed.support, nil
	}
	s, err := probe()
	if err == nil && !errors.Is(s.ULP, unix.ENOENT) {
		probed.support = s
	}
	return s, err
}

func probe() (*Support, error) {
	s := unsupported(nil)
	for _, c := range Ciphers {
		if err := s.try(c); err != nil {
			return nil, err
		}
		if s.ULP != nil {
			return unsupported(s.ULP), nil
		}
	}
	return s, nil
}

// try tries one cipher. Its error is one of trying.
func (s *Support) try(c Cipher) error {
	conn, far, err := loopback()
	if err != nil {
		return err
	}
	defer conn.Close()
	defer far.Close() // a listener would reset what it has not accepted
	rc, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	info := &CryptoInfo{Cipher: c, Key: make([]byte, c.keyLen())} // nothing is ever sent
	return control(rc, func(fd int) error {
		if err := setULP(fd); err != nil {
			s.ULP = explainULP(err)
			return nil
		}
		s.TX[c] = setCrypto(fd, optTX, info)
		s.RX[c] = setCrypto(fd, optRX, info)
		if s.TX[c] == nil && c == Ciphers[0] {
			s.Rekey = setCrypto(fd, optTX, info)
		}
		return nil
	})
}

// loopback connects to itself, and returns both ends.
func loopback() (near, far net.Conn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		if l, err = lc.Listen(ctx, "tcp", "[::1]:0"); err != nil {
			return nil, nil, err
		}
	}
	defer l.Close()
	if near, err = new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	if far, err = l.Accept(); err != nil {
		near.Close()
	}
	return near, far, err
}
