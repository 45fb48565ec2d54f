package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"os/exec"
	"syscall"

	"nbd-ktls-server/systemd"
)

// Called nbdkit, the program goes into the background unless told otherwise,
// and the one that was started returns when clients can connect. A Go program
// cannot fork: it starts itself again, in a session of its own, with a pipe on
// which to say that it is ready.

// detachedEnv marks the one in the background.
const detachedEnv = "_NBD_KTLS_SERVER_DETACHED"

// readyFD is its end of the pipe.
const readyFD = 3

func detached() bool { return os.Getenv(detachedEnv) != "" }

// detaches reports whether nbdkit would fork (nbdkit(1), --foreground).
func (o *options) detaches() bool {
	return o.nbdkit && !o.foreground && !o.single && o.run == "" && !o.exitWithParent && !systemd.Activated()
}

// detach starts the program in the background and waits until it is ready.
func detach(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path: exe, Args: os.Args, Env: append(os.Environ(), detachedEnv+"=1"),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles:  []*os.File{w}, // becomes readyFD
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if n, _ := io.Copy(io.Discard, r); n > 0 {
		return nil
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) {
		return exitStatus(max(exit.ExitCode(), 1)) // it has said why
	}
	return errors.New("the process in the background ended before it was ready")
}

// toSyslog lets the log go to syslog(3), or nowhere if there is none.
func toSyslog() {
	sl, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, nbdkitName)
	if err != nil {
		logTo.to(io.Discard)
		return
	}
	logTo.to(sl)
}

// finishDetaching is called by the one in the background when clients can
// connect. From here on the log goes to syslog(3).
func (o *options) finishDetaching() error {
	os.Unsetenv(detachedEnv)
	if o.logTo == "" {
		toSyslog()
	}
	streams := []int{0, 1, 2}
	if o.logTo == "stderr" {
		streams = streams[:2]
	}
	if err := errors.Join(os.Chdir("/"), toDevNull(streams...)); err != nil {
		return err
	}
	ready := os.NewFile(readyFD, "ready")
	defer ready.Close()
	_, err := fmt.Fprintln(ready, "ready")
	return err
}
