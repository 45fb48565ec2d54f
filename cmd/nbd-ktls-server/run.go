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
