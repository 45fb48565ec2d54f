package main

import (
	"fmt"
	"os"
	"path/filepath"
)

const port = "12809"

// contender is a server to be measured.
type contender struct {
	name string
	mine bool // one of ours: it is compared with the best of the others
	// encrypts says that without TLS it is no other than the others.
	encrypts bool
	// export is what it calls the file.
	export string
	args   func(b *bench, j job) []string
	// daemon says that it goes into the background, and where is in b.pidFile.
	daemon bool
}

func (b *bench) pidFile() string { return filepath.Join(b.dir, "pid") }

// ours is this server, or another build of it, with more flags.
func ours(name string, program func(*bench) string, more ...string) contender {
	return contender{name: name, mine: true, args: func(b *bench, j job) []string {
		args := []string{program(b), "-p", port, "-i", "127.0.0.1", "-t", "32"}
		switch {
		case !j.tls:
			args = append(args, "--tls=off")
		case j.mutual:
			args = append(args, "--tls-certificates="+j.certificates(b), "--tls-verify-peer")
		default:
			args = append(args, "--tls-certificates="+j.certificates(b))
		}
		if j.tls {
			args = append(args, more...)
		}
		if j.serve == nil {
			return append(args, "file", b.file)
		}
		served := j.serve(b)
		if served[0] == "--config" {
			args = args[:1]
		}
		return append(args, served...)
	}}
}

func built(b *bench) string { return b.program }

// contenders are those on this machine. The first is ours.
func contenders() []contender {
	all := []contender{ours("ours", built)}
	if *before != "" {
		all = append(all, ours("before", func(*bench) string { return *before }))
	}
	return append(all, nbdkit, qemuNBD, nbdServer)
}

// guestContenders are those in a virtual machine, whose kernel may encrypt.
func guestContenders() []contender {
	user := ours("ours, user space", built, "--ktls=off")
	user.encrypts = true
	return []contender{ours("ours, kernel", built, "--ktls=require"), user, nbdkit}
}

var (
	nbdkit = contender{name: "nbdkit", args: func(b *bench, j job) []string {
		args := []string{"nbdkit", "-f", "-p", port, "-i", "127.0.0.1", "-t", "32"}
		if j.tls {
			args = append(args, "--tls=require", "--tls-certificates="+j.certificates(b))
		}
		if j.mutual {
			args = append(args, "--tls-verify-peer")
		}
		return append(args, "file", b.file)
	}}
	qemuNBD = contender{name: "qemu-nbd", args: func(b *bench, j job) []string {
		args := []string{"qemu-nbd", "-t", "-p", port, "-b", "127.0.0.1", "-e", "512", "-f", "raw", "-x", ""}
		if j.tls {
			verify := "off"
			if j.mutual {
				verify = "on"
			}
			args = append(args, "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer="+verify+",dir="+j.certificates(b), "--tls-creds", "tls0")
		}
		return append(args, b.file)
	}}
	nbdServer = contender{name: "nbd-server", export: "disk", daemon: true, args: func(b *bench, j job) []string {
		conf := fmt.Sprintf("[generic]\nlistenaddr = 127.0.0.1\nport = %s\n", port)
		if j.tls { // it asks for a client's certificate, and takes none for an answer
			dir := j.certificates(b)
			conf += fmt.Sprintf("cacertfile = %s/ca-cert.pem\ncertfile = %[1]s/server-cert.pem\nkeyfile = %[1]s/server-key.pem\nforce_tls = true\n", dir) +
				"tlsprio = NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM\n"
		}
		conf += "[disk]\nexportname = " + b.file + "\n"
		path := filepath.Join(b.dir, "nbd-server.conf")
		os.WriteFile(path, []byte(conf), 0o644) // if it fails, the server says so
		return []string{"nbd-server", "-C", path, "-p", b.pidFile()}
	}}
)
