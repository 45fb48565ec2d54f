package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// killDelay is how long a --run command may take to end after it was asked to.
const killDelay = 5 * time.Second

// errExit ends the server because a plugin or filter wants it to end.
var errExit = errors.New("the server has ended by itself")

// unlessExit ends with ctx, but not because of errExit: the command may go on
// without the server then, as it may with nbdkit.
func unlessExit(ctx context.Context) context.Context {
	c, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		if !errors.Is(context.Cause(ctx), errExit) {
			cancel()
		}
	})
	return c
}

// runCommand runs a shell command to its end, and returns its status as an
// exitStatus if that is not zero.
func runCommand(ctx context.Context, command string, env []string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killDelay
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.Is(err, context.Canceled) {
		return nil // we were told to end, and it ended well
	} else if !errors.As(err, &exit) {
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		fmt.Fprintf(os.Stderr, "the command was killed by signal %d (%v)\n", ws.Signal(), ws.Signal())
		return exitStatus(1)
	}
	return exitStatus(exit.ExitCode())
}
