//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// archive writes a cpio archive in the "newc" format, which the kernel unpacks
// (initramfs-buffer-format.rst). The first error is kept.
type archive struct {
	w    *bufio.Writer
	n    int64
	ino  int
	seen map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), seen: make(map[string]bool)}
}

// entry writes the header of a file of size bytes; its parents come first.
func (a *archive) entry(name string, mode, size int64) bool {
	name = strings.TrimPrefix(filepath.Clean(name), "/")
	if a.err != nil || name == "" || a.seen[name] {
		return false
	}
	a.seen[name] = true
	if dir := filepath.Dir(name); dir != "." {
		a.entry(dir, 0o40755, 0)
	}
	a.header(name, mode, size)
	return true
}

func (a *archive) header(name string, mode, size int64) {
	a.ino++
	a.printf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
}

func (a *archive) printf(format string, args ...any) {
	n, err := fmt.Fprintf(a.w, format, args...)
	a.n += int64(n)
	a.err = first(a.err, err)
}

// pad fills up to a multiple of four.
func (a *archive) pad() {
	for a.n%4 != 0 {
		a.printf("\x00")
	}
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) bytes(name string, perm int64, b []byte) {
	if a.entry(name, 0o100000|perm, int64(len(b))) {
		a.printf("%s", b)
		a.pad()
	}
}

// file adds the host's file at path.
func (a *archive) file(name, path string) {
	f, err := os.Open(path)
	if err != nil {
		a.err = first(a.err, err)
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		a.err = first(a.err, err)
		return
	}
	if !a.entry(name, 0o100000|int64(fi.Mode().Perm()), fi.Size()) {
		return
	}
	n, err := io.Copy(a.w, f)
	a.n += n
	a.err = first(a.err, err)
	a.pad()
}

// tree adds the host's directory, or file, at path; links are followed.
func (a *archive) tree(name, path string) {
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := os.Stat(p)
		if err == nil && fi.Mode().IsRegular() {
			a.file(name+strings.TrimPrefix(p, path), p)
		}
		return nil
	})
	a.err = first(a.err, err)
}

// root adds what is in the host's directory dir, with links as they are.
func (a *archive) root(dir string) {
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(p, dir)
		if err != nil || name == "" {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch mode := info.Mode(); {
		case mode.IsDir():
			a.entry(name, 0o40000|int64(mode.Perm()), 0)
		case mode.IsRegular():
			a.file(name, p)
		case mode&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			if a.entry(name, 0o120777, int64(len(target))) {
				a.printf("%s", target)
				a.pad()
			}
		}
		return nil
	})
	a.err = first(a.err, err)
}

// program adds a program of the host's with its libraries, where they are there.
func (a *archive) program(name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	a.file("/bin/"+filepath.Base(name), path)
	return a.libraries(path)
}

// libraries adds what a program or library is linked with, as ldd(1) says.
func (a *archive) libraries(path string) error {
	out, err := exec.Command("ldd", path).Output()
	if err != nil && !strings.Contains(string(out), "not a dynamic") {
		return nil // a script, or static
	}
	for _, field := range strings.Fields(string(out)) {
		if strings.HasPrefix(field, "/") {
			a.file(field, field)
		}
	}
	return nil
}

func (a *archive) close() error {
	a.header("TRAILER!!!", 0, 0)
	return first(a.err, a.w.Flush())
}
