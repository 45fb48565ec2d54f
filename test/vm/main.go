//go:build linux

package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"time"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	if os.Getpid() == 1 {
		guest()
	}
	if len(os.Args) == 2 && os.Args[1] == underSystemd {
		finish(runJob())
	}
	m := &machine{env: testEnv()}
	flag.StringVar(&m.kernel, "kernel", "", "directory of a kernel and its modules")
	flag.Var(&m.without, "without", "leave out this kernel module")
	flag.Var(&m.programs, "program", "take this program of the host's along, with its libraries")
	flag.Var(&m.trees, "tree", "take this directory or file of the host's along; HOST=GUEST gives it another name there")
	flag.StringVar(&m.root, "root", "", "a Debian system, unpacked to this directory: the program runs under its systemd")
	flag.IntVar(&m.memory, "memory", 1500, "MiB of memory")
	flag.IntVar(&m.cpus, "cpus", 1, "processors")
	flag.BoolVar(&m.icount, "icount", false, "let the machine's clock count instructions: a nanosecond each")
	flag.DurationVar(&m.timeout, "timeout", 10*time.Minute, "give up after this time")
	flag.Parse()
	if flag.NArg() == 0 || m.kernel == "" {
		fmt.Fprintln(os.Stderr, "usage: vm -kernel DIR [flags] PROGRAM [ARG]...")
		os.Exit(2)
	}
	m.args = flag.Args()
	status, err := m.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
	os.Exit(status)
}

// testEnv is the part of the environment that the program gets to see.
func testEnv() (env []string) {
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "NBD_TEST_") {
			env = append(env, e)
		}
	}
	return env
}
