//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guest is /init: it prepares the machine, runs the program, writes down its
// exit status and switches off. It does not return.
func guest() {
	finish(prepareAndRun())
}

// finish writes down the exit status, and switches off.
func finish(status int, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm: in the machine:", err)
		status = 125
	}
	if f, err := os.OpenFile("/dev/ttyS2", os.O_WRONLY, 0); err == nil {
		fmt.Fprintln(f, status)
		unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) // tcdrain(3)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func prepareAndRun() (int, error) {
	for _, m := range []struct{ what, where string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
	} {
		os.MkdirAll(m.where, 0o755)
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return 0, fmt.Errorf("mounting %s: %w", m.where, err)
		}
	}
	j, err := readJob()
	if err != nil {
		return 0, err
	}
	for _, name := range j.Modules {
		if err := load(filepath.Join(moduleDir, name)); err != nil {
			return 0, fmt.Errorf("loading %s: %w", name, err)
		}
	}
	if err := loopbackUp(); err != nil {
		return 0, fmt.Errorf("lo: %w", err)
	}
	os.Symlink("/proc/self/fd", "/dev/fd")
	os.MkdirAll("/root", 0o700)
	os.MkdirAll("/etc", 0o755)
	for name, text := range etc {
		if err := os.WriteFile(filepath.Join("/etc", name), []byte(text), 0o644); err != nil {
			return 0, err
		}
	}
	if j.Systemd {
		return 0, startSystemd()
	}
	return runJob()
}

// etc is what programs want to find there.
var etc = map[string]string{
	"hosts":  "127.0.0.1 localhost\n",
	"passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
	"group":  "root:x:0:\nnogroup:x:65534:\n",
	// So that systemd does not ask who it is, as it does at the first start.
	"machine-id": "5d0c1b6e7f2a4c3d8e9f0a1b2c3d4e5f\n",
}

// underSystemd is the argument with which systemd starts this program.
const underSystemd = "under-systemd"

// testUnit runs this program when the machine is up.
const testUnit = `[Unit]
Requires=basic.target
After=basic.target
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/init ` + underSystemd + `
TimeoutStartSec=infinity
`

// startSystemd becomes systemd.
func startSystemd() error {
	const units = "/run/systemd/system"
	if err := errors.Join(
		os.MkdirAll(units, 0o755),
		os.WriteFile(units+"/test.service", []byte(testUnit), 0o644),
	); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init", "--unit=test.service"}, os.Environ())
}

// readJob finds out what to do, and begins to print to the first serial port.
func readJob() (j job, err error) {
	out, err := rawTerminal("/dev/ttyS0")
	if err != nil {
		return j, err
	}
	os.Stdout, os.Stderr = out, out
	b, err := os.ReadFile(jobFile)
	if err != nil {
		return j, err
	}
	return j, json.Unmarshal(b, &j)
}

// runJob runs the program.
func runJob() (int, error) {
	j, err := readJob()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(testBinary, j.Args...)
	cmd.Dir = testDir
	cmd.Env = append(j.Env, "PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "TMPDIR=/tmp", "NBD_TEST_VM=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	begun := time.Now()
	err = cmd.Run()
	if up, uerr := os.ReadFile("/proc/uptime"); uerr == nil {
		fmt.Printf("vm: ran for %v; up %s", time.Since(begun).Round(time.Millisecond), up)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// rawTerminal opens a serial port over which bytes go as they are.
func rawTerminal(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	return f, unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) { // ENODEV: not for this processor
		return nil
	}
	return err
}

// loopbackUp is 'ip link set lo up'.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(ifr))); errno != 0 {
		return errno
	}
	return nil
}
