package interop

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A client that is killed in the middle of a write leaves the server serving.
func TestKilledClients(t *testing.T) {
	need(t, "nbdcopy", "nbdinfo")
	dir := certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "file", sparse(t, 8<<30))
	for i := range 10 {
		before := strings.Count(s.log.String(), "export opened")
		cmd := exec.Command("nbdcopy", "--connections=4", "--threads=4", "--requests=64", dataFile(t), s.uri(dir))
		if i%2 == 0 { // a pipe without end
			cmd = exec.Command("sh", "-c", "exec nbdcopy --synchronous - '"+s.uri(dir)+"' </dev/zero")
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for strings.Count(s.log.String(), "export opened") == before {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(5+7*i) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
	}
	s.log.expect("connection broken", "written=")
	run(t, "nbdinfo", s.uri(dir))
}

var data struct {
	once sync.Once
	path string
}

// dataFile is a GiB of data to copy.
func dataFile(t *testing.T) string {
	data.once.Do(func() {
		data.path = filepath.Join(filepath.Dir(program), "data.img")
		f, err := os.Create(data.path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		io.Copy(f, io.LimitReader(repeater("data"), 1<<30))
	})
	return data.path
}

type repeater string

func (r repeater) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r[i%len(r)]
	}
	return len(p), nil
}

// Ten thousand connections that send rubbish, at random or nearly right, neither
// crash the server nor make it grow.
func TestRandomStreams(t *testing.T) {
	need(t, "nbdinfo")
	dir := certificates(t)
	for name, args := range map[string][]string{
		"plain":      {"--tls=off", "memory", "64M"},
		"TLS forced": {"--tls-certificates=" + dir, "memory", "64M"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, args...)
			const clients = 32
			streams := 5000 // of each kind
			if os.Getenv("NBD_TEST_FULL") != "" {
				streams = 100_000
			}
			rubbish(t, s, 500, clients) // what is needed once
			before := s.rss()
			rubbish(t, s, streams, clients)
			after := s.rss()
			t.Logf("%d streams: %d KiB before, %d KiB after; %d reached an export", streams, before, after, strings.Count(s.log.String(), "export opened"))
			if after > before+16<<10 {
				t.Errorf("the server grew from %d KiB to %d KiB", before, after)
			}
			if name == "plain" {
				run(t, "nbdinfo", s.uri(""))
			} else {
				run(t, "nbdinfo", s.uri(dir))
			}
			if strings.Contains(s.log.String(), "panic") {
				t.Errorf("a panic:\n%s", s.log)
			}
		})
	}
}

// rubbish makes n connections, some at the same time, that send random streams.
func rubbish(t *testing.T, s *server, n, clients int) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 4711))
			for range n / clients {
				nc, err := net.Dial("tcp", "127.0.0.1:"+s.port)
				if err != nil {
					t.Error(err)
					return
				}
				nc.SetDeadline(time.Now().Add(30 * time.Second))
				leave := r.IntN(4) == 0 // at once, with a reset
				done := make(chan struct{})
				go func() {
					io.Copy(io.Discard, nc)
					close(done)
				}()
				nc.Write(stream(r))
				if !leave {
					nc.(*net.TCPConn).CloseWrite()
					<-done // the server has read all it wants
				}
				nc.(*net.TCPConn).SetLinger(0)
				nc.Close()
			}
		})
	}
	wg.Wait()
}

// stream is a random stream of bytes: more often than not the beginning is
// right, so that the rest is read further in.
func stream(r *rand.Rand) []byte {
	var b bytes.Buffer
	put := func(v any) { binary.Write(&b, binary.BigEndian, v) }
	noise := func(n int) {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		b.Write(p)
	}
	if r.IntN(5) == 0 {
		noise(r.IntN(2000))
		return b.Bytes()
	}
	put(uint32(3))
	for range r.IntN(6) {
		b.WriteString("IHAVEOPT")
		put(r.Uint32N(13))
		n := r.Uint32N(300)
		switch r.IntN(10) {
		case 0:
			put(r.Uint32()) // a lie
		default:
			put(n)
		}
		noise(int(n))
	}
	if r.IntN(2) == 0 { // into transmission
		b.WriteString("IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00")
		for range r.IntN(20) {
			put(uint32(0x25609513))
			put(uint16(r.Uint32() & r.Uint32() & r.Uint32()))
			put(uint16(r.Uint32N(10)))
			put(r.Uint64())
			put(r.Uint64() >> r.UintN(64))
			n := r.Uint32() >> r.UintN(32)
			put(n)
			if r.IntN(3) > 0 {
				noise(int(min(n, 5000)))
			}
		}
	}
	noise(r.IntN(100))
	return b.Bytes()
}

// rss is the server's resident memory in KiB.
func (s *server) rss() int {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	s.t.Fatal("no VmRSS")
	return 0
}

// The server does not write an image that a virtual machine writes, and the
// other way round.
func TestImageLocksWithQEMU(t *testing.T) {
	need(t, "qemu-io", "nbdinfo")
	image := sparse(t, 1<<20)
	s := start(t, "--tls=off", "file", image)
	info := exec.Command("nbdsh", "-u", s.uri(""), "-c", "import time; print('ready', flush=True); time.sleep(60)")
	out, _ := info.StdoutPipe()
	if err := info.Start(); err != nil {
		t.Fatal(err)
	}
	defer info.Wait()
	defer info.Process.Kill()
	io.ReadFull(out, make([]byte, 6))
	if out, err := try(t, "qemu-io", "-f", "raw", "-c", "write 0 512", image); err == nil || !strings.Contains(out, "lock") {
		t.Errorf("QEMU writes what we export: %v %s", err, out)
	}
	info.Process.Kill()
	s.log.expect("connection closed")

	qemu := exec.Command("qemu-io", "-f", "raw", image)
	in, _ := qemu.StdinPipe()
	said, _ := qemu.StdoutPipe()
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	defer qemu.Wait()
	defer in.Close()
	io.WriteString(in, "write 0 512\n")
	bufio.NewReader(said).ReadString('\n') // it has the image
	if out, err := try(t, "nbdinfo", s.uri("")); err == nil {
		t.Errorf("we export what QEMU writes: %s", out)
	}
	s.log.expect("an export was refused", "QEMU's image lock is taken")
}
