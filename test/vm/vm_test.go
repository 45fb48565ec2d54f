//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain is the program in the machine, too: it does what its arguments say.
func TestMain(m *testing.M) {
	if os.Getenv("NBD_TEST_VM") == "" {
		os.Exit(m.Run())
	}
	switch os.Args[1] {
	case "exit":
		fmt.Printf("%q %s\n", os.Args[2:], os.Getenv("NBD_TEST_OF_VM"))
		os.Exit(7)
	case "panic":
		err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
		fmt.Println("still alive:", err)
	case "hang":
		fmt.Println("hanging")
		time.Sleep(time.Hour)
	}
}

// What goes wrong in a machine must not look like success.
func TestMachine(t *testing.T) {
	kernels := os.Getenv("NBD_TEST_KERNELS")
	if kernels == "" {
		t.Skip("./test/run has kernels")
	}
	tmp := t.TempDir()
	vm, guest := filepath.Join(tmp, "vm"), filepath.Join(tmp, "guest")
	for _, args := range [][]string{{"build", "-o", vm, "."}, {"test", "-c", "-o", guest, "."}} {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // the machine has no C library
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for _, test := range []struct {
		name   string
		flags  []string
		args   []string
		status int
		says   []string
	}{
		{"status and arguments", nil, []string{"exit", "a b", "", `"$c"`}, 7, []string{`["a b" "" "\"$c\""] of the test`}},
		{"panic", nil, []string{"panic"}, 1, []string{"sysrq triggered crash", "without an exit status"}},
		{"hang", []string{"-timeout", "20s"}, []string{"hang"}, 1, []string{"hanging", "not finished after 20s"}},
		{"no kernel", []string{"-kernel", "/nowhere"}, []string{"exit"}, 1, []string{"/nowhere"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			args := append([]string{"-kernel", filepath.Join(kernels, "trixie")}, test.flags...)
			cmd := exec.CommandContext(ctx, vm, append(append(args, guest), test.args...)...)
			cmd.Env = append(os.Environ(), "NBD_TEST_OF_VM=of the test")
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != test.status {
				t.Errorf("%v, want status %d\n%s", err, test.status, out)
			}
			for _, s := range test.says {
				if !strings.Contains(string(out), s) {
					t.Errorf("%q is not said:\n%s", s, out)
				}
			}
		})
	}
}
