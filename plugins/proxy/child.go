package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// child is a server that runs for us, and again if it ends. It gets its socket as
// systemd passes one (sd_listen_fds(3)).
type child struct {
	argv []string
	log  *slog.Logger

	once  sync.Once
	first chan error // the result of the first start
	stop  chan struct{}
	ended chan struct{} // closed when it will not run again
	dir   string
	// termDelay is how long it may take to end after SIGTERM.
	termDelay time.Duration
}

const (
	// restartDelay is between the end of a child and the next one.
	restartDelay     = time.Second
	defaultTermDelay = 5 * time.Second
	maxLine          = 64 << 10
)

func newChild(argv []string, log *slog.Logger) *child {
	return &child{
		argv: argv, log: log, termDelay: defaultTermDelay,
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
}

func (c *child) socket() string { return filepath.Join(c.dir, "nbd.sock") }

func (c *child) dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", c.socket())
}

// start runs the child, if it has never been.
func (c *child) start() (err error) {
	c.once.Do(func() {
		if c.dir, err = os.MkdirTemp("", "nbd-ktls-server-"); err != nil {
			close(c.ended)
			return
		}
		c.first = make(chan error)
		go c.supervise()
		err = <-c.first
	})
	return err
}

// end ends the child.
func (c *child) end() {
	c.once.Do(func() { close(c.ended) })
	close(c.stop)
	<-c.ended
	if c.dir != "" {
		os.RemoveAll(c.dir)
	}
}

// supervise runs the child again and again. It stays on its thread, as the child
// gets a signal when the thread that has started it ends.
func (c *child) supervise() {
	runtime.LockOSThread()
	defer close(c.ended)
	for first := true; ; first = false {
		cmd, err := c.run()
		if first {
			c.first <- err
			if err != nil {
				return
			}
		}
		if err == nil {
			err = c.wait(cmd)
		}
		select {
		case <-c.stop:
			return
		default:
		}
		c.log.Warn("the server that is run has ended, and is run again", "command", c.argv[0], "reason", err)
		select {
		case <-time.After(restartDelay):
		case <-c.stop:
			return
		}
	}
}

// activate tells a program about its socket: the number of its own process it
// knows only itself.
const activate = `export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"`

// run starts the child, on a new socket that nobody else has: without the child,
// it refuses connections.
func (c *child) run() (*exec.Cmd, error) {
	os.Remove(c.socket())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.socket(), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	l.Close()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command("/bin/sh", append([]string{"-c", activate, "sh"}, c.argv...)...)
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = childAttr()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, err
	}
	go c.logLines(r)
	return cmd, nil
}

// wait waits for the end of the child, and ends it when that is wanted.
func (c *child) wait(cmd *exec.Cmd) error {
	exited := make(chan struct{})
	defer close(exited)
	go func() {
		select {
		case <-exited:
			return
		case <-c.stop:
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(c.termDelay):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	}()
	if err := cmd.Wait(); err != nil {
		return err
	}
	return fmt.Errorf("%s exited", c.argv[0])
}

// logLines logs what the child prints.
func (c *child) logLines(r io.ReadCloser) {
	defer r.Close()
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		c.log.Info("the server that is run says", "line", s.Text())
	}
	io.Copy(io.Discard, r)
}
