package interop

import (
	"bufio"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// partitioned makes an image with a partition table and a file system full of
// files.
func partitioned(t *testing.T) string {
	t.Helper()
	need(t, "sfdisk", "mkfs.ext4")
	dir := t.TempDir()
	image, files := filepath.Join(dir, "disk.img"), filepath.Join(dir, "files")
	if err := os.Mkdir(files, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		data := make([]byte, 5<<20)
		rand.Read(data)
		if err := os.WriteFile(filepath.Join(files, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "truncate", "-s", "128M", image)
	run(t, "sh", "-c", "echo '2048,,L' | sfdisk -q "+image)
	run(t, "mkfs.ext4", "-q", "-d", files, "-E", "offset=1048576", image, "126M")
	return image
}

// The program as it is shipped is one static binary.
func TestProgramIsStatic(t *testing.T) {
	out, _ := try(t, "ldd", program)
	if !strings.Contains(out, "not a dynamic executable") {
		t.Errorf("ldd: %s", out)
	}
}

func TestQEMUConvertsThereAndBack(t *testing.T) {
	need(t, "qemu-img")
	image := partitioned(t)
	bothWays(t, func(t *testing.T, flags []string, dir string) {
		disk := sparse(t, 128<<20)
		s := start(t, with(flags, []string{"file", disk})...)
		object, opts := s.qemu(dir)

		run(t, "qemu-img", with([]string{"convert", "-n", "-f", "raw", image}, object, []string{"--target-image-opts", opts})...)
		same(t, image, disk)
		back := filepath.Join(t.TempDir(), "back.img")
		run(t, "qemu-img", with([]string{"convert", "-O", "raw"}, object, []string{"--image-opts", opts, back})...)
		same(t, image, back)
		run(t, "qemu-img", with([]string{"compare"}, object, []string{"--image-opts", opts, "driver=raw,file.filename=" + back})...)
		run(t, "e2fsck", "-fn", back+"?offset=1048576")
		if dir != "" {
			s.log.expect("export opened", "TLS 1.3", "CN=client")
		}
	})
}

func TestNbdcopyWithFourConnections(t *testing.T) {
	need(t, "nbdcopy")
	image := partitioned(t)
	bothWays(t, func(t *testing.T, flags []string, dir string) {
		disk := sparse(t, 128<<20)
		s := start(t, with(flags, []string{"file", disk})...)
		run(t, "nbdcopy", "--connections=4", "--threads=4", "--requests=64", "--flush", image, s.uri(dir))
		same(t, image, disk)
		back := filepath.Join(t.TempDir(), "back.img")
		run(t, "nbdcopy", "--connections=4", "--threads=4", "--requests=64", s.uri(dir), back)
		same(t, image, back)
		if n := strings.Count(s.log.String(), "export opened"); n != 8 {
			t.Errorf("%d connections, want 8", n)
		}
	})
}

func TestQEMUIO(t *testing.T) {
	need(t, "qemu-io")
	bothWays(t, func(t *testing.T, flags []string, dir string) {
		for _, plugin := range [][]string{{"memory", "64M"}, {"file", sparse(t, 64<<20)}} {
			s := start(t, with(flags, plugin)...)
			object, opts := s.qemu(dir)
			out := run(t, "qemu-io", with(object, []string{
				"--image-opts", opts,
				"-c", "write -P 0xaa 1M 20M", "-c", "read -P 0xaa 1M 20M", "-c", "write -f -P 0xbb 5M 512",
				"-c", "read -P 0xbb 5M 512", "-c", "write -z 6M 1M", "-c", "read -P 0 6M 1M",
				"-c", "write -z -u 7M 1M", "-c", "read -P 0 7M 1M", "-c", "discard 8M 1M", "-c", "flush",
				"-c", "aio_write -P 1 30M 1M", "-c", "aio_write -P 2 31M 1M", "-c", "aio_flush",
				"-c", "read -P 1 30M 1M", "-c", "read -P 2 31M 1M", "-c", "map",
			})...)
			if strings.Contains(out, "failed") || !strings.Contains(out, "bytes     allocated at offset") {
				t.Error(out)
			}
		}
	})
}

func TestNbdinfo(t *testing.T) {
	need(t, "nbdinfo")
	dir := certificates(t)
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "-r", "-e", "backup", "pattern", "1M")
	out := run(t, "nbdinfo", "--list", s.uri(dir))
	for _, want := range []string{"newstyle-fixed with TLS", `export="backup"`, "export-size: 1048576", "is_read_only: true", "can_multi_conn: true", "block_size_maximum: 33554432"} {
		if !strings.Contains(out, want) {
			t.Errorf("nbdinfo does not say %q:\n%s", want, out)
		}
	}
	if out, err := try(t, "nbdinfo", strings.Replace(s.uri(dir), "/?", "/other?", 1)); err == nil {
		t.Errorf("an export of another name: %s", out)
	}
}

func TestNbdinfoListsADirectory(t *testing.T) {
	need(t, "nbdinfo")
	images := t.TempDir()
	for _, name := range []string{"one.img", "two.img"} {
		run(t, "truncate", "-s", "1M", filepath.Join(images, name))
	}
	s := start(t, "--tls=off", "file", "dir="+images)
	out := run(t, "nbdinfo", "--list", s.uri(""))
	if !contains(out, `export="one.img"`, `export="two.img"`) {
		t.Error(out)
	}
	run(t, "nbdinfo", s.uri("")+"/two.img")
	if out, err := try(t, "nbdinfo", s.uri("")+"/..%2Ftwo.img"); err == nil {
		t.Error(out)
	}
}

func TestNbdsh(t *testing.T) {
	need(t, "nbdsh")
	bothWays(t, func(t *testing.T, flags []string, dir string) {
		s := start(t, with(flags, []string{"memory", "16M"})...)
		run(t, "nbdsh", "-c", "h.set_uri_allow_local_file(True)", "-c", "h.connect_uri('"+s.uri(dir)+"')", "-c", `
h.pwrite(b"A" * 65536, 100)
assert h.pread(65536, 100) == b"A" * 65536
h.pwrite(b"B" * 512, 8192, nbd.CMD_FLAG_FUA)
h.zero(512, 8192, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(512, 8192) == bytearray(512)
h.trim(4096, 0)
h.flush()
assert h.can_multi_conn() and h.can_fua() and h.can_trim() and h.can_zero()
try:
    h.set_strict_mode(0)
    h.pread(512, 16 * 1024 * 1024)
    assert False
except nbd.Error as e:
    assert e.errnum == 22, e
try:
    h.pwrite(b"x" * 512, 16 * 1024 * 1024)
    assert False
except nbd.Error as e:
    assert e.errnum == 28, e
# many requests in flight
cookies = {}
for i in range(200):
    b = nbd.Buffer.from_bytearray(bytearray([i % 256]) * 4096)
    cookies[h.aio_pwrite(b, i * 4096)] = i
while cookies:
    h.poll(-1)
    for c in list(cookies):
        if h.aio_command_completed(c):
            del cookies[c]
for i in range(200):
    assert h.pread(4096, i * 4096) == bytearray([i % 256]) * 4096
`)
	})
}

// libnbd starts servers in two ways, both of which know only nbdkit's name.
func TestLibnbdStartsUsAsNbdkit(t *testing.T) {
	need(t, "nbdsh")
	dir := t.TempDir()
	nbdkit := filepath.Join(dir, "nbdkit")
	if err := os.Symlink(program, nbdkit); err != nil {
		t.Fatal(err)
	}
	for _, connect := range []string{
		`h.connect_command(["` + nbdkit + `", "-s", "--exit-with-parent", "memory", "1M"])`,
		`h.connect_systemd_socket_activation(["` + nbdkit + `", "memory", "1M"])`,
	} {
		run(t, "nbdsh", "-c", connect, "-c", `
assert h.get_size() == 1024 * 1024
h.pwrite(b"x" * 512, 512)
assert h.pread(512, 512) == b"x" * 512
h.shutdown()
`)
	}
	out := run(t, nbdkit, "memory", "1M", "--run", `nbdinfo --size "$uri"`)
	if out != "1048576\n" {
		t.Errorf("--run: %q", out)
	}
}

// In the background, too, it serves the file that was meant.
func TestNbdkitInTheBackground(t *testing.T) {
	need(t, "nbdinfo")
	dir := t.TempDir()
	t.Chdir(dir)
	run(t, "truncate", "-s", "12345k", "disk.img")
	run(t, "ln", "-s", program, "nbdkit")
	run(t, "./nbdkit", "-U", "sock", "-P", "pid", "file", "disk.img")
	if out := run(t, "nbdinfo", "--size", "nbd+unix:///?socket=sock"); out != "12641280\n" {
		t.Errorf("size %q", out)
	}
	run(t, "sh", "-c", "kill $(cat pid)")
}

// Nobody reads the log any more: the server goes on.
func TestLogReaderGoesAway(t *testing.T) {
	need(t, "nbdinfo")
	t.Chdir(t.TempDir())
	server := exec.Command(program, "--tls=off", "-U", "sock", "memory", "1M")
	log, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	bufio.NewReader(log).ReadString('\n') // it listens
	log.Close()
	for range 3 {
		run(t, "nbdinfo", "nbd+unix:///?socket=sock")
	}
	server.Process.Signal(os.Interrupt)
	if err := server.Wait(); err != nil {
		t.Error(err)
	}
}

func TestSingleOnPipes(t *testing.T) {
	cmd := exec.Command("sh", "-c", `(printf '\0\0\0\3IHAVEOPT\0\0\0\2\0\0\0\0'; sleep 1) | `+program+` --tls=off -s memory 1M | od -An -c | tr -d ' \n'`)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if want := `NBDMAGICIHAVEOPT\0003`; err != nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("%s, %v, want %s…", out, err, want)
	}
}

// The commands that quickstart prints work as printed.
func TestQuickstart(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-system-x86_64")
	s := startProgram(t, "quickstart", "--port", "0")
	commands := regexp.MustCompile(`(?m)^  (\S.*)$`).FindAllStringSubmatch(s.log.String(), -1)
	if len(commands) != 5 {
		t.Fatalf("%d commands:\n%s", len(commands), s.log)
	}
	t.Chdir(t.TempDir())
	for _, c := range commands[:4] {
		run(t, "sh", "-c", c[1])
	}
	if out := run(t, "qemu-img", "info", "copy.qcow2"); !contains(out, "qcow2", "1 GiB") {
		t.Error(out)
	}
	before := strings.Count(s.log.String(), "export opened")
	qemu := exec.Command("sh", "-c", "exec "+commands[4][1])
	var out log
	qemu.Stdout, qemu.Stderr = &out, &out
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	defer qemu.Wait()
	defer qemu.Process.Kill()
	for end := time.Now().Add(patience); strings.Count(s.log.String(), "export opened") == before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("QEMU does not connect:\n%s\n%s", &out, s.log)
		}
	}
}

func TestQuickstartWithAnImage(t *testing.T) {
	need(t, "nbdinfo")
	s := startProgram(t, "quickstart", "--port=0", "-r", sparse(t, 3<<20))
	dir := filepath.Join(stateHome(t), "nbd-ktls-server/pki")
	if out := run(t, "nbdinfo", "--size", s.uri(dir)); out != "3145728\n" {
		t.Errorf("size %q", out)
	}
}

// bootSector makes a disk of size bytes that a PC boots from: it says so on the
// serial port, reads the last sector, repeats what that begins with, and
// powers off through QEMU's debug exit device.
func bootSector(size int, last string) []byte {
	disk := make([]byte, size)
	lba := uint32(size/512 - 1)
	code := []byte{
		0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // xor ax,ax; mov ds,ax; mov es,ax
		0xbe, 0x40, 0x7c, 0xb4, 0x42, // mov si,0x7c40; mov ah,0x42
		0xcd, 0x13, // int 0x13: read the sector that the packet at 0x7c40 names
		0x72, 0x0e, // jc end
		0xbe, 0x00, 0x7e, // mov si,0x7e00
		0xac, 0x84, 0xc0, 0x74, 0x06, // next: lodsb; test al,al; jz end
		0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5, // mov dx,0x3f8; out dx,al; jmp next
		0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4, // end: mov dx,0xf4; mov al,0x10; out dx,al; hlt
	}
	copy(disk, code)
	copy(disk[0x40:], []byte{
		16, 0, 1, 0, 0x00, 0x7e, 0, 0, // disk address packet: one sector to 0:7e00
		byte(lba), byte(lba >> 8), byte(lba >> 16), byte(lba >> 24), 0, 0, 0, 0,
	})
	copy(disk[510:], []byte{0x55, 0xaa})
	copy(disk[size-512:], last+"\x00")
	return disk
}

func TestAMachineBootsFromIt(t *testing.T) {
	need(t, "qemu-system-x86_64")
	dir := certificates(t)
	image := filepath.Join(t.TempDir(), "boot.img")
	if err := os.WriteFile(image, bootSector(16<<20, "booted over TLS"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, "--tls-certificates="+dir, "--tls-verify-peer", "file", image)
	object, _ := s.qemu(dir)
	out, _ := try(t, "qemu-system-x86_64", with(object, []string{
		"-nodefaults", "-display", "none", "-serial", "stdio",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=1",
		"-blockdev", "driver=nbd,node-name=disk,server.type=inet,server.host=localhost,server.port=" + s.port + ",tls-creds=tls0",
		"-device", "virtio-blk-pci,drive=disk",
	})...)
	if !strings.Contains(out, "booted over TLS") {
		t.Errorf("the machine said %q\n%s", out, s.log)
	}
}
