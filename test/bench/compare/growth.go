package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// growth are jobs that show what costs more when there is more of something, and
// what should not. They are about ours alone.
func growth() (all []job) {
	add := func(name string, serve func(*bench) []string, do func(*client) (done, error)) *job {
		if serve == nil {
			serve = func(b *bench) []string { return []string{"file", b.file} }
		}
		all = append(all, job{name: "growth: " + name, unit: "op", tls: true, serve: serve, do: do})
		return &all[len(all)-1]
	}
	for _, n := range []int{1, 10, 100, 1000} {
		add(fmt.Sprintf("%d idle connections, random read", n), nil, beside(n))
	}
	for _, n := range []int{1, 100, 10_000} {
		add(fmt.Sprintf("%d exports, connect to the last", n), exports(n), handshakes).export = fmt.Sprintf("export-%d", n)
	}
	for _, size := range []int{1 << 30, 64 << 30, 1 << 40, 8 << 40} {
		add(sizeName(size)+" sparse, random read", sparse(int64(size)), fio("randread", 4<<10, 32, "--size=64m"))
		add(sizeName(size)+" sparse, map", sparse(int64(size)), mapIt)
	}
	for size := 512; size <= 32<<20; size *= 4 {
		add("read "+sizeName(size), nil, fio("read", size, 4))
	}
	return all
}

// beside is fio beside idle connections.
func beside(n int) func(*client) (done, error) {
	return func(c *client) (done, error) {
		release, err := c.hold(n)
		if err != nil {
			return done{}, err
		}
		defer release()
		before := cpuTime(c.server)
		d, err := fio("randread", 4<<10, 32)(c)
		d.cpu = (cpuTime(c.server) - before) / d.work
		d.memory = proportional(c.server)
		return d, err
	}
}

// exports is a configuration with many of them.
func exports(n int) func(*bench) []string {
	return func(b *bench) []string {
		var text strings.Builder
		fmt.Fprintf(&text, "listen: [{tcp: '127.0.0.1:%s'}]\ntls: {certificates: %s}\nlog: {level: warn}\nexports:\n", port, b.pki)
		for i := range n {
			fmt.Fprintf(&text, "  - {name: export-%d, plugin: file, parameters: {file: %s}}\n", i+1, b.file)
		}
		path := filepath.Join(b.dir, "config.yaml")
		os.WriteFile(path, []byte(text.String()), 0o600) // if it fails, the server says so
		return []string{"--config", path}
	}
}

// sparse is an image with data in its first 64 MiB alone.
func sparse(size int64) func(*bench) []string {
	return func(b *bench) []string {
		path := filepath.Join(b.dir, "sparse.img")
		os.Remove(path)
		f, err := os.Create(path)
		if err == nil {
			defer f.Close()
			f.Write(make([]byte, 64<<20))
			f.Truncate(size) // if it fails, the table shows it
		}
		return []string{"file", path}
	}
}

// mapIt asks where data are.
func mapIt(c *client) (done, error) {
	const n = 20
	for range n {
		if err := command(exec.Command("nbdinfo", "--map", "--totals", c.uri)); err != nil {
			return done{}, err
		}
	}
	return done{work: n}, nil
}
