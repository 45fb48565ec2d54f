//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// machine is one run of a program in a virtual machine.
type machine struct {
	kernel                   string // directory
	root                     string // directory of a system to run under, or ""
	without, programs, trees list
	memory, cpus             int
	icount                   bool
	timeout                  time.Duration
	env, args                []string
}

// job is what the guest is told to do.
type job struct {
	Modules []string // in the order in which they are loaded
	Env     []string
	Args    []string
	Systemd bool // the program runs under it
}

// Where things are in the guest.
const (
	jobFile    = "/job.json"
	moduleDir  = "/modules"
	testDir    = "/test"
	testBinary = testDir + "/program"
)

// run boots the machine, and returns the program's exit status.
func (m *machine) run() (int, error) {
	dir, err := os.MkdirTemp("", "vm-*")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	initramfs, log, status := filepath.Join(dir, "initramfs"), filepath.Join(dir, "log"), filepath.Join(dir, "status")
	if err := m.build(initramfs); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.qemuArgs(initramfs, log, status)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Run()
	b, _ := os.ReadFile(status)
	n, aerr := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err == nil && aerr == nil {
		return n, nil
	}
	kernelLog, _ := os.ReadFile(log)
	os.Stderr.Write(kernelLog)
	switch {
	case ctx.Err() != nil:
		return 0, fmt.Errorf("not finished after %v", m.timeout)
	case err != nil:
		return 0, err
	}
	return 0, errors.New("the machine has stopped without an exit status")
}

func (m *machine) qemuArgs(initramfs, log, status string) []string {
	args := []string{
		"-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-kernel", filepath.Join(m.kernel, "vmlinuz"), "-initrd", initramfs,
		"-append", "console=ttyS1 quiet panic=-1 rdinit=/init tsc=reliable mitigations=off 8250.nr_uarts=4 systemd.firstboot=no systemd.show_status=no",
		"-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out",
		"-serial", "file:" + log, "-serial", "file:" + status,
	}
	if m.icount {
		args = append(args, "-icount", "shift=0,sleep=off")
	}
	return args
}

// build makes the initramfs: this program as /init, the one to be run, the
// modules, and what is taken along.
func (m *machine) build(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	a := newArchive(f)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	a.file("/init", self)
	a.file(testBinary, m.args[0])
	if _, err := os.Stat("testdata"); err == nil {
		a.tree(testDir+"/testdata", "testdata")
	}
	j := job{Env: m.env, Args: m.args[1:], Systemd: m.root != ""}
	if m.root != "" {
		a.root(m.root)
	}
	modules, err := findModules(filepath.Join(m.kernel, "modules"), m.without)
	if err != nil {
		return err
	}
	for _, path := range modules {
		a.file(moduleDir+"/"+filepath.Base(path), path)
		j.Modules = append(j.Modules, filepath.Base(path))
	}
	for _, name := range m.programs {
		if err := a.program(name); err != nil {
			return err
		}
	}
	for _, tree := range m.trees {
		path, name, renamed := strings.Cut(tree, "=")
		if !renamed {
			name = path
		}
		a.tree(name, path)
	}
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	a.bytes(jobFile, 0o644, b)
	return a.close()
}
