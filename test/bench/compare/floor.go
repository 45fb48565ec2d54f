package main

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// sinkVariable makes another process of us, which reads what the floor sends.
const sinkVariable = "COMPARE_SINK"

func sink(addr string) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	for p := make([]byte, 256<<10); err == nil; {
		_, err = nc.Read(p)
	}
}

const (
	record   = 16 << 10
	overhead = 5 + 1 + 16 // header, content type, tag
)

// floor measures what it takes at least to send the file in requests of this
// size: with TLS one copy in, AES-128-GCM, one copy out; without it sendfile(2).
func floor(request int, tls bool) func(*bench) (sample, error) {
	return func(b *bench) (s sample, err error) {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return s, err
		}
		defer l.Close()
		self, err := os.Executable()
		if err != nil {
			return s, err
		}
		peer := exec.Command(self)
		peer.Env = append(os.Environ(), sinkVariable+"="+l.Addr().String())
		if err := peer.Start(); err != nil {
			return s, err
		}
		defer peer.Wait()
		nc, err := l.AcceptTCP()
		if err != nil {
			return s, err
		}
		defer nc.Close()
		f, err := os.Open(b.file)
		if err != nil {
			return s, err
		}
		defer f.Close()
		before, begun := ownCPU(), time.Now()
		if tls {
			err = sealAll(nc, f, request)
		} else {
			err = sendAll(nc, f, request)
		}
		work := float64(*size) / 1024
		return sample{rate: work / time.Since(begun).Seconds(), cpu: (ownCPU() - before) / work}, err
	}
}

func sealAll(to net.Conn, f *os.File, request int) error {
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	in, out := make([]byte, request), make([]byte, 0, request+request/record*overhead)
	var nonce [12]byte
	for seq := uint64(0); ; {
		if _, err := io.ReadFull(f, in); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		out = out[:0]
		for p := in; len(p) > 0; p = p[record:] {
			binary.BigEndian.PutUint64(nonce[4:], seq)
			seq++
			header := len(out)
			out = append(out, 23, 3, 3, 0x40, 0x11)
			out = aead.Seal(out, nonce[:], p[:record], out[header:])
			out = append(out, 0) // as many bytes as a real record
		}
		if _, err := to.Write(out); err != nil {
			return err
		}
	}
}

func sendAll(to *net.TCPConn, f *os.File, request int) error {
	for {
		n, err := io.CopyN(to, f, int64(request)) // sendfile(2)
		if err == io.EOF && n == 0 {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// ownCPU is what this process has used so far, in seconds.
func ownCPU() float64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
