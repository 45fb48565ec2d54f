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

	"nbd-ktls-server/ktls"
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

// A way is how the floor sends a file.
type way func(to *net.TCPConn, f *os.File, request int) error

// floor measures what it takes at least to send the file in requests of this size.
func floor(request int, send way) func(*bench) (sample, error) {
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
		err = send(nc, f, request)
		work := float64(*size) / 1024
		return sample{rate: work / time.Since(begun).Seconds(), cpu: (ownCPU() - before) / work}, err
	}
}

// sealAll is one copy in, AES-128-GCM, one copy out.
func sealAll(to *net.TCPConn, f *os.File, request int) error {
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

// sendEncrypted is sendfile(2) to a socket that the kernel encrypts.
func sendEncrypted(to *net.TCPConn, f *os.File, request int) error {
	if _, err := ktls.Attach(to, &ktls.CryptoInfo{Cipher: ktls.AES128GCM, Key: make([]byte, 16)}); err != nil {
		return err
	}
	return sendAll(to, f, request)
}

// sendAll is sendfile(2).
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
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano()).Seconds()
}
