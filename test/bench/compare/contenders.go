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
	// export is what it calls the file.
	export string
	args   func(b *bench, j job) []string
	// daemon says that it goes into the background, and where is in b.pidFile.
	daemon bool
}

func (b *bench) pidFile() string { return filepath.Join(b.dir, "pid") }

var contenders = []contender{
	{"ours", "", func(b *bench, j job) []string {
		args := []string{b.program, "-p", port, "-i", "127.0.0.1", "-t", "32"}
		if !j.tls {
			args = append(args, "--tls=off")
		} else {
			args = append(args, "--tls-certificates="+j.certificates(b))
		}
		if j.mutual {
			args = append(args, "--tls-verify-peer")
		}
		return append(args, "file", b.file)
	}, false},
	{"nbdkit", "", func(b *bench, j job) []string {
		args := []string{"nbdkit", "-f", "-p", port, "-i", "127.0.0.1", "-t", "32"}
		if j.tls {
			args = append(args, "--tls=require", "--tls-certificates="+j.certificates(b))
		}
		if j.mutual {
			args = append(args, "--tls-verify-peer")
		}
		return append(args, "file", b.file)
	}, false},
	{"qemu-nbd", "", func(b *bench, j job) []string {
		args := []string{"qemu-nbd", "-t", "-p", port, "-b", "127.0.0.1", "-e", "512", "-f", "raw", "-x", ""}
		if j.tls {
			verify := "off"
			if j.mutual {
				verify = "on"
			}
			args = append(args, "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer="+verify+",dir="+j.certificates(b), "--tls-creds", "tls0")
		}
		return append(args, b.file)
	}, false},
	{"nbd-server", "disk", func(b *bench, j job) []string {
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
	}, true},
}
