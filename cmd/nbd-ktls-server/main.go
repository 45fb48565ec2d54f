// Nbd-ktls-server exports disk images and block devices over TLS to NBD
// clients, with nbdkit's command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	// A log that nobody reads any more must not end the server, as SIGPIPE on
	// the standard streams would. It is caught, not ignored: that the children
	// would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	name := filepath.Base(os.Args[0])
	err := newRoot(name).ExecuteContext(ctx)
	var exit exitStatus
	switch {
	case err == nil:
	case errors.As(err, &exit):
		os.Exit(int(exit))
	default:
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// exitStatus ends the program with this status and without a message.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
