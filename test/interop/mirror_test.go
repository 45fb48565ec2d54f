package interop

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// qmp is a connection to QEMU's monitor.
type qmp struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

func dialQMP(t *testing.T, path string) *qmp {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		nc, err := net.Dial("unix", path)
		if err == nil {
			nc.SetDeadline(time.Now().Add(patience))
			q := &qmp{t, nc, bufio.NewReader(nc)}
			q.r.ReadString('\n') // the greeting
			q.do("qmp_capabilities", nil)
			return q
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// do executes a command.
func (q *qmp) do(command string, args map[string]any) {
	q.t.Helper()
	msg := map[string]any{"execute": command}
	if args != nil {
		msg["arguments"] = args
	}
	b, _ := json.Marshal(msg)
	q.nc.Write(append(b, '\n'))
	for {
		m := q.next()
		if m["error"] != nil {
			q.t.Fatalf("%s: %v", command, m["error"])
		}
		if _, ok := m["return"]; ok {
			return
		}
	}
}

// wait waits for an event.
func (q *qmp) wait(event string) {
	q.t.Helper()
	for q.next()["event"] != event {
	}
}

func (q *qmp) next() (m map[string]any) {
	q.t.Helper()
	line, err := q.r.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &m)
	}
	if err != nil {
		q.t.Fatalf("QMP: %v", err)
	}
	return m
}

// writer is a disk whose machine writes a counter to one sector after the
// other of the second half of its first 16 MiB, for ever.
func writer(size int) []byte {
	disk := make([]byte, size)
	copy(disk, []byte{
		0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // xor ax,ax; mov ds,ax; mov es,ax
		0x66, 0xff, 0x06, 0x00, 0x7e, // next: inc dword [0x7e00]
		0xff, 0x06, 0x48, 0x7c, // inc word [0x7c48]: the packet's sector
		0x81, 0x26, 0x48, 0x7c, 0xff, 0x3f, // and word [0x7c48],0x3fff
		0x81, 0x0e, 0x48, 0x7c, 0x00, 0x40, // or word [0x7c48],0x4000
		0xbe, 0x40, 0x7c, 0xb8, 0x00, 0x43, 0xcd, 0x13, // mov si,0x7c40; mov ax,0x4300; int 0x13
		0xeb, 0xe1, // jmp next
	})
	copy(disk[0x40:], []byte{16, 0, 1, 0, 0x00, 0x7e})
	copy(disk[510:], []byte{0x55, 0xaa})
	for i := 512; i < 8<<20; i++ {
		disk[i] = byte(i >> 9)
	}
	return disk
}

// A running machine's disk is mirrored to our export, and the machine goes on
// there: storage migration.
func TestBlockdevMirror(t *testing.T) {
	need(t, "qemu-system-x86_64")
	bothWays(t, mirror)
}

func mirror(t *testing.T, flags []string, dir string) {
	const size = 64 << 20
	source := filepath.Join(t.TempDir(), "source.img")
	if err := os.WriteFile(source, writer(size), 0o600); err != nil {
		t.Fatal(err)
	}
	target := sparse(t, size)
	s := start(t, with(flags, []string{"file", target})...)
	object, _ := s.qemu(dir)
	monitor := filepath.Join(t.TempDir(), "qmp")
	var out log
	qemu := exec.Command("qemu-system-x86_64", with(object, []string{
		"-nodefaults", "-display", "none",
		"-qmp", "unix:" + monitor + ",server=on,wait=off",
		"-blockdev", "driver=file,node-name=source,filename=" + source,
		"-device", "virtio-blk-pci,drive=source,id=disk",
	})...)
	qemu.Stdout, qemu.Stderr = &out, &out
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	defer qemu.Wait()
	defer qemu.Process.Kill()
	changed(t, source) // the machine runs

	q := dialQMP(t, monitor)
	node := map[string]any{
		"driver": "nbd", "node-name": "target",
		"server": map[string]string{"type": "inet", "host": "localhost", "port": s.port},
	}
	if dir != "" {
		node["tls-creds"] = "tls0"
	}
	q.do("blockdev-add", node)
	q.do("blockdev-mirror", map[string]any{"job-id": "mirror", "device": "source", "target": "target", "sync": "full"})
	q.wait("BLOCK_JOB_READY")
	q.do("stop", nil) // so that both can be compared
	q.do("job-complete", map[string]any{"id": "mirror"})
	q.wait("BLOCK_JOB_COMPLETED")
	same(t, source, target)

	q.do("cont", nil)
	changed(t, target) // the machine goes on with our export
	q.do("quit", nil)
	if err := qemu.Wait(); err != nil {
		t.Errorf("QEMU: %v\n%s", err, &out)
	}
	s.log.expect("connection closed", "the client disconnected", "errors=0")
}

// changed waits until the counter's sectors change.
func changed(t *testing.T, path string) {
	t.Helper()
	sum := func() string { return run(t, "sh", "-c", "tail -c +8388609 "+path+" | head -c 8388608 | cksum") }
	first := sum()
	for end := time.Now().Add(patience); sum() == first; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing is written to %s", path)
		}
	}
}
