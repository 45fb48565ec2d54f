package tlsengine

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbd-ktls-server/ktls"
)

// TestInstructions prints what it costs to send replies of a file from the page
// cache, by each of the ways there are: the table in ktls/doc.go. It is for a
// virtual machine whose clock counts instructions (vm -icount), a nanosecond
// each.
func TestInstructions(t *testing.T) {
	if os.Getenv("NBD_TEST_INSTRUCTIONS") == "" {
		t.Skip("NBD_TEST_INSTRUCTIONS is not set")
	}
	content := make([]byte, 8<<20)
	stream(content, 0)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	header := make([]byte, 16)
	read := func(c *Conn) func([]byte, int64, int) error {
		return func(buf []byte, off int64, n int) error {
			copy(buf, header)
			if _, err := f.ReadAt(buf[16:16+n], off); err != nil {
				return err
			}
			return c.WriteBuffers(net.Buffers{buf[: 16+n : 16+n+1]})
		}
	}
	splice := func(c *Conn) func([]byte, int64, int) error {
		return func(_ []byte, off int64, n int) error {
			handled, err := c.SendFile(header, f, off, int64(n), nil)
			if !handled && err == nil {
				return errNotHandled
			}
			return err
		}
	}
	ways := []struct {
		name string
		ktls KTLS
		send func(*Conn) func([]byte, int64, int) error
	}{
		{"kernel, splice", KTLSRequire, splice},
		{"kernel, write", KTLSRequire, read},
		{"user space", KTLSOff, read},
		{"plain, splice", KTLSOff, func(c *Conn) func([]byte, int64, int) error {
			rc, _ := c.raw.SyscallConn()
			return func(_ []byte, off int64, n int) error {
				s, err := ktls.Load(f, off, n)
				if s == nil {
					return err
				}
				defer s.Free()
				return s.SendTo(rc, header)
			}
		}},
		{"plain, write", KTLSOff, func(c *Conn) func([]byte, int64, int) error {
			return func(buf []byte, off int64, n int) error {
				if _, err := f.ReadAt(buf[16:16+n], off); err != nil {
					return err
				}
				_, err := c.raw.Write(buf[:16+n])
				return err
			}
		}},
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-10s", "bytes")
	for _, w := range ways {
		fmt.Fprintf(&table, "%16s", w.name)
	}
	for n := 1024; n <= 1<<20; n *= 4 {
		fmt.Fprintf(&table, "\n%-10d", n)
		for _, w := range ways {
			server, c := connect(t, Options{KTLS: w.ktls}, nil)
			go sink(c.nc.(*net.TCPConn))
			cost := cost(t, w.send(server), n)
			fmt.Fprintf(&table, "%16.0f", float64(cost))
			server.Close()
			c.nc.Close()
		}
	}
	fmt.Println("instructions for each reply, the sending thread's:")
	fmt.Println(table.String())
}

// TestInstructionsOfReceiving prints likewise what it costs to receive writes of a
// client, which sends records of 16 KiB: opened here, or by the kernel.
func TestInstructionsOfReceiving(t *testing.T) {
	if os.Getenv("NBD_TEST_INSTRUCTIONS") == "" {
		t.Skip("NBD_TEST_INSTRUCTIONS is not set")
	}
	ways := []struct {
		name    string
		receive func(*Conn) io.Reader
	}{
		{"kernel", func(c *Conn) io.Reader { c.receiveInKernel(t); return c.raw }},
		{"user space", func(c *Conn) io.Reader { return c }},
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-10s", "bytes")
	for _, w := range ways {
		fmt.Fprintf(&table, "%16s", w.name)
	}
	for n := 1024; n <= 1<<20; n *= 4 {
		fmt.Fprintf(&table, "\n%-10d", n)
		for _, w := range ways {
			server, c := connect(t, Options{KTLS: KTLSOff}, nil)
			r := w.receive(server)
			const times = 40
			var records []byte
			for range times {
				for left := n; left > 0; left -= min(left, maxPlaintext) {
					records = append(records, c.record(typeApplicationData, make([]byte, min(left, maxPlaintext)), 0)...)
				}
			}
			go c.nc.Write(records)
			buf := make([]byte, n)
			cost := costOf(t, times, func(int) error {
				_, err := io.ReadFull(r, buf)
				return err
			})
			fmt.Fprintf(&table, "%16.0f", float64(cost))
			server.Close()
			c.nc.Close()
		}
	}
	fmt.Println("instructions for each message, the receiving thread's:")
	fmt.Println(table.String())
}

// receiveInKernel gives the kernel the keys of the receiving direction, which
// nothing but this measurement does (struct tls12_crypto_info_aes_gcm_128).
func (c *Conn) receiveInKernel(t *testing.T) {
	t.Helper()
	info := c.in.cryptoInfo()
	b := binary.NativeEndian.AppendUint16(nil, 0x0304)
	b = binary.NativeEndian.AppendUint16(b, uint16(ktls.AES128GCM))
	b = append(b, info.IV[4:]...)
	b = append(b, info.Key...)
	b = append(b, info.IV[:4]...)
	b = binary.BigEndian.AppendUint64(b, info.RecSeq)
	rc, err := c.raw.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) {
		if err = unix.SetsockoptString(int(fd), unix.SOL_TCP, unix.TCP_ULP, "tls"); err == nil {
			err = unix.SetsockoptString(int(fd), unix.SOL_TLS, 2, string(b)) // TLS_RX
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sink throws away what comes, without copying it.
func sink(nc *net.TCPConn) {
	rc, err := nc.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<20)
	for n := 1; n > 0; {
		rc.Read(func(fd uintptr) bool {
			n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return err != unix.EAGAIN
		})
	}
}

// cost is what one call of send costs this thread.
func cost(t *testing.T, send func([]byte, int64, int) error, n int) time.Duration {
	buf := make([]byte, 16+n+1)
	times := min(max(1<<20/n, 16), 200)
	return costOf(t, times+4, func(i int) error { return send(buf, int64(i%(8<<20/n)*n), n) })
}

// costOf is what one call of f costs this thread, after the first four.
func costOf(t *testing.T, times int, f func(i int) error) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var begun unix.Timespec
	for i := range times {
		if i == 4 { // warm
			unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &begun)
		}
		if err := f(i); err != nil {
			t.Fatal(err)
		}
	}
	var ended unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ended)
	return time.Duration(ended.Nano()-begun.Nano()) / time.Duration(times-4)
}
