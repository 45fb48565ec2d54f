//go:build linux

package main

import (
	"bytes"
	"debug/elf"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// wanted are the modules that a test may need. What a kernel has built in, or
// has under another name, is not there and not missed: a test finds out. The
// kernel would load the parts of a cipher by itself, had it a modprobe.
var wanted = []string{
	"crypto_simd", "aesni-intel", "ctr", "gcm", "ghash-generic", "ghash-clmulni-intel", "seqiv",
	"chacha", "chacha_generic", "chacha-x86_64", "poly1305_generic", "poly1305-x86_64", "chacha20poly1305",
	"tls", "virtio_pci", "virtio_blk", "nbd", "loop", "dm-mod", "ext4", "vsock_loopback",
}

// findModules returns the files of the wanted modules and of those they depend
// on, each after what it depends on.
func findModules(dir string, without []string) ([]string, error) {
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[canonical(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var order []string
	var add func(name string) error
	add = func(name string) error {
		path := files[canonical(name)]
		if path == "" || slices.Contains(order, path) || slices.Contains(without, name) {
			return nil
		}
		deps, err := dependencies(path)
		if err != nil {
			return err
		}
		for _, d := range deps {
			if err := add(d); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// canonical is a module's name in one spelling.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// dependencies reads "depends=" of a module's section .modinfo.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, nil
	}
	b, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, line := range bytes.Split(b, []byte{0}) {
		if d, ok := bytes.CutPrefix(line, []byte("depends=")); ok && len(d) > 0 {
			return strings.Split(string(d), ","), nil
		}
	}
	return nil, nil
}
