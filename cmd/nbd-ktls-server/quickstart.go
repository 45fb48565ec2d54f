package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// quickstartSize is the size of the disk made if no image is given.
const quickstartSize = 1 << 30

func newQuickstart() *cobra.Command {
	o := newOptions("nbd-ktls-server")
	cmd := &cobra.Command{
		Use:   "quickstart [IMAGE]",
		Short: "Export an image with mutual TLS, and show how to use it",
		Long: `Make certificates if there are none, and a sparse image if none is given, and
export it to clients on this machine that have the certificates. The commands
to use it with are printed.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			image, err := quickstartImage(args)
			if err != nil {
				return err
			}
			return o.quickstart(cmd.Context(), image)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.port, "port", "p", o.port, "listen on this TCP port; 0 picks a free one")
	f.BoolVarP(&o.readonly, "readonly", "r", false, "refuse every change")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log more")
	return cmd
}

// quickstartImage returns the image to export, made if need be.
func quickstartImage(args []string) (string, error) {
	if len(args) > 0 {
		return filepath.Abs(args[0])
	}
	state, err := stateDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(state, "quickstart.img")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return path, nil
	} else if err != nil {
		return "", err
	}
	return path, errors.Join(f.Truncate(quickstartSize), f.Close())
}

func (o *options) quickstart(ctx context.Context, image string) error {
	o.ipaddr, o.tlsCertificates = "localhost", autoCertificates
	log := o.newLog()
	source, err := o.newSource("file", []string{"file=" + image}, log, func() {})
	if err != nil {
		return err
	}
	srv, err := o.newServer(source, log)
	if err != nil {
		return err
	}
	ls, err := o.listen(ctx)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w; choose another port with --port, or --port=0", err)
	} else if err != nil {
		return err
	}
	defer ls.close()
	fmt.Print(quickstartText(image, o.location(ls)))
	return o.serveOn(ctx, srv, ls, log)
}

// quickstartText shows what to do with the export.
func quickstartText(image string, at location) string {
	comma := func(s string) string { return strings.ReplaceAll(s, ",", ",,") } // QEMU's escape
	uri := shellQuote(at.uri())
	creds := shellQuote("tls-creds-x509,id=tls0,dir=" + comma(at.tlsDir) + ",endpoint=client")
	opts := shellQuote("driver=nbd,host=" + at.host + ",port=" + at.port + ",tls-creds=tls0")
	blockdev := shellQuote("driver=nbd,node-name=disk,server.type=inet,server.host=" + at.host +
		",server.port=" + at.port + ",tls-creds=tls0")
	return strings.Join([]string{
		"",
		"Exporting " + image + " with mutual TLS, to clients on this machine.",
		"Certificates: " + at.tlsDir,
		"",
		"libnbd (Debian: libnbd-bin)",
		"  nbdinfo " + uri,
		"  nbdcopy --progress " + uri + " copy.img",
		"QEMU (Debian: qemu-utils, qemu-system-x86)",
		"  qemu-img info --object " + creds + " --image-opts " + opts,
		"  qemu-img convert -p -O qcow2 --object " + creds + " --image-opts " + opts + " copy.qcow2",
		"  qemu-system-x86_64 -m 1G -object " + creds + " -blockdev " + blockdev + " -device virtio-blk-pci,drive=disk",
		"",
		"Stop it with Ctrl-C.",
		"",
		"",
	}, "\n")
}

// shellQuote quotes s for a POSIX shell, unless that is not needed.
func shellQuote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,@%+", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
