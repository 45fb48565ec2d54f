// Package interop runs the program, built as it is shipped, against the clients
// that people use.
package interop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// program is the path of the program under test.
var program string

func TestMain(m *testing.M) {
	// A virtual machine has no compiler, and brings the program along.
	if program = os.Getenv("NBD_TEST_PROGRAM"); program != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "interop-*")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "nbd-ktls-server")
	build := exec.Command("go", "build", "-o", program, "nbd-ktls-server/cmd/nbd-ktls-server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building: %v\n%s", err, out)
		os.Exit(1)
	}
	// Debian's nbdsh is a module of Debian's Python, which another one in front
	// of it in PATH does not have.
	os.Setenv("PATH", "/usr/bin:"+os.Getenv("PATH"))
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// patience bounds every wait for a program.
const patience = 2 * time.Minute

// need skips the test unless the tools are there. ./test/run installs them and
// sets NBD_TEST_TOOLS=require, with which their absence is a failure.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("NBD_TEST_TOOLS") == "require" {
				t.Fatalf("%v", err)
			}
			t.Skipf("%v; ./test/run installs what is needed", err)
		}
	}
}

// run runs a program, and fails the test if that fails. It returns what it said
// on both outputs.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// try runs a program that may fail.
func try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end: %w", err)
	}
	return string(out), err
}

// server is a running server.
type server struct {
	t    *testing.T
	cmd  *exec.Cmd
	port string
	log  *log
	done chan struct{}
	// killed says that it need not end in good order.
	killed bool
}

// start starts a server on a free loopback port.
func start(t *testing.T, args ...string) *server {
	t.Helper()
	return startProgram(t, append([]string{"-i", "127.0.0.1", "-p", "0"}, args...)...)
}

// printed is how the program says on which port it listens: -p 0 prints nothing
// else, quickstart a command with it in.
var printed = regexp.MustCompile(`^([0-9]+)$|-blockdev .*server\.port=([0-9]+)`)

// startProgram starts the program and waits until it prints its port.
func startProgram(t *testing.T, args ...string) *server {
	t.Helper()
	s := &server{t: t, cmd: exec.Command(program, args...), log: &log{t: t}, done: make(chan struct{})}
	s.cmd.Stderr = s.log
	s.cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+stateHome(t))
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	slow := time.AfterFunc(patience, func() { s.cmd.Process.Kill() })
	defer slow.Stop()
	r := bufio.NewReader(out)
	for s.port == "" {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("the server did not start:\n%s", s.log)
		}
		s.log.Write([]byte(line))
		if m := printed.FindStringSubmatch(strings.TrimSuffix(line, "\n")); m != nil {
			s.port = m[1] + m[2]
		}
	}
	go func() {
		io.Copy(s.log, r)
		s.cmd.Wait()
		close(s.done)
	}()
	return s
}

// startOn starts a program that will listen on a port, and waits until it does.
func startOn(t *testing.T, port, name string, args ...string) *server {
	t.Helper()
	s := &server{t: t, cmd: exec.Command(name, args...), port: port, log: &log{t: t}, done: make(chan struct{})}
	s.cmd.Stderr = s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	go func() {
		s.cmd.Wait()
		close(s.done)
	}()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not listen: %v\n%s", name, err, s.log)
		}
	}
}

// freePort is a port that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// stop ends the server, which must go in good order.
func (s *server) stop() {
	s.cmd.Process.Signal(os.Interrupt)
	select {
	case <-s.done:
		if code := s.cmd.ProcessState.ExitCode(); code != 0 && !s.killed && !s.t.Failed() {
			s.t.Errorf("the server ended with status %d:\n%s", code, s.log)
		}
	case <-time.After(30 * time.Second):
		s.t.Errorf("the server did not end:\n%s", s.log)
		s.cmd.Process.Kill()
	}
}

// uri is where libnbd finds the server; dir is "" without TLS.
func (s *server) uri(dir string) string {
	if dir == "" {
		return "nbd://localhost:" + s.port
	}
	return "nbds://localhost:" + s.port + "/?tls-certificates=" + dir
}

// qemu is how QEMU's programs find the server: with an --object, if there is TLS,
// and the options of an image.
func (s *server) qemu(dir string) (object []string, image string) {
	image = "driver=nbd,host=localhost,port=" + s.port
	if dir == "" {
		return nil, image
	}
	return []string{"--object", "tls-creds-x509,id=tls0,dir=" + dir + ",endpoint=client"}, image + ",tls-creds=tls0"
}

// bothWays runs a test with mutual TLS and without. flags are the server's; dir
// is the client's directory, or "".
func bothWays(t *testing.T, f func(t *testing.T, flags []string, dir string)) {
	t.Run("TLS", func(t *testing.T) {
		dir := certificates(t)
		f(t, []string{"--tls-certificates=" + dir, "--tls-verify-peer"}, dir)
	})
	t.Run("plain", func(t *testing.T) { f(t, []string{"--tls=off"}, "") })
}

// with joins slices of arguments.
func with(parts ...[]string) []string { return slices.Concat(parts...) }

// log collects what a program says.
type log struct {
	t  *testing.T
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// expect waits until one line contains all of words.
func (l *log) expect(words ...string) {
	l.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for line := range strings.Lines(l.String()) {
			if contains(line, words...) {
				return
			}
		}
	}
	l.t.Errorf("no line of the log contains %q:\n%s", words, l)
}

func contains(s string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// certificates makes a certificate directory with the program.
func certificates(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	run(t, program, "pki", dir)
	return dir
}

// same fails the test unless two files have the same bytes.
func same(t *testing.T, a, b string) {
	t.Helper()
	if out, err := try(t, "cmp", a, b); err != nil {
		t.Errorf("%s and %s differ: %s", filepath.Base(a), filepath.Base(b), out)
	}
}

// sparse makes an empty file of size bytes.
func sparse(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	return path
}

var stateHomes sync.Map // of *testing.T

func stateHome(t *testing.T) string {
	if d, ok := stateHomes.Load(t); ok {
		return d.(string)
	}
	d := t.TempDir()
	stateHomes.Store(t, d)
	return d
}
