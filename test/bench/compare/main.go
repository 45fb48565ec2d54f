// Compare measures this server beside nbdkit, qemu-nbd and nbd-server: the same
// file from the page cache, the same certificates, one cipher suite, the same
// clients, one server after the other in interleaved rounds.
//
//	go run ./test/bench/compare [-rounds N] [-size MiB] [-only REGEXP] [-json FILE] [-svg FILE]
//
// It needs nbdkit, qemu-nbd, nbd-server, nbdcopy, python3-libnbd, fio and openssl, and
// prints a table in Markdown: medians, and how they compare with the best of the
// others. Machines are noisy: what the ratio of two medians says depends on the
// spread, which is beside it.
//
// The floor is what can be saved by a better server: a loop that has no protocol,
// and only reads the file, encrypts records, and writes them to a socket.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

var (
	rounds = flag.Int("rounds", 5, "how often everything is measured")
	size   = flag.Int64("size", 1024, "size of the file in MiB")
	fioFor = flag.Duration("fio", 3*time.Second, "how long each fio job runs, a second at least")
	only   = flag.String("only", "", "measure the jobs whose names match this")
	toFile = flag.String("json", "", "write medians and spreads to this file, too")
	toPlot = flag.String("svg", "", "write a plot of the CPU time to this file, too")
)

func main() {
	if addr := os.Getenv(sinkVariable); addr != "" {
		sink(addr)
		return
	}
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// bench is what all contenders share.
type bench struct {
	dir, program, file string
	pki, rsa           string // directories of certificates: our pki's, and RSA-2048

	installed string // the link that installCA has made
}

func run() error {
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	b, err := prepare()
	if err != nil {
		return err
	}
	defer b.cleanUp()
	jobs := slices.DeleteFunc(allJobs(), func(j job) bool { return !wanted.MatchString(j.name) })
	results := make(results)
	for round := range *rounds {
		for _, j := range jobs {
			for _, c := range contenders {
				s, err := b.measure(c, j)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, j.name, err)
				}
				results.add(j, c.name, s)
			}
			if j.floor == nil {
				continue
			}
			s, err := j.floor(b)
			if err != nil {
				return fmt.Errorf("floor, %s: %w", j.name, err)
			}
			results.add(j, "floor", s)
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, *rounds)
	}
	report(jobs, results)
	if *toFile != "" {
		err = writeJSON(*toFile, results)
	}
	if *toPlot != "" {
		err = errors.Join(err, writePlot(*toPlot, jobs, results))
	}
	return err
}

// prepare makes what all contenders share.
func prepare() (*bench, error) {
	dir, err := os.MkdirTemp("", "compare-*")
	if err != nil {
		return nil, err
	}
	b := &bench{
		dir: dir, program: filepath.Join(dir, "nbd-ktls-server"), file: filepath.Join(dir, "disk.img"),
		pki: filepath.Join(dir, "pki"), rsa: filepath.Join(dir, "rsa"),
	}
	build := exec.Command("go", "build", "-o", b.program, "nbd-ktls-server/cmd/nbd-ktls-server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	priority := filepath.Join(dir, "priority")
	err = errors.Join(
		command(build),
		command(exec.Command(b.program, "pki", b.pki)),
		makeRSA(b.rsa),
		command(exec.Command("dd", "if=/dev/urandom", "of="+b.file, "bs=1M", fmt.Sprint("count=", *size), "status=none")),
		// GnuTLS and Go would choose different suites.
		os.WriteFile(priority, []byte("[overrides]\ntls-disabled-cipher = AES-256-GCM\ntls-disabled-cipher = CHACHA20-POLY1305\n"), 0o644),
		os.Setenv("GNUTLS_SYSTEM_PRIORITY_FILE", priority),
	)
	return b, errors.Join(err, b.installCA())
}

// makeRSA makes certificates as OpenSSL's users would.
func makeRSA(dir string) error {
	err := os.Mkdir(dir, 0o700)
	for _, name := range []string{"ca", "server", "client"} {
		cmd := exec.Command("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", name+"-key.pem", "-out", name+"-cert.pem")
		if name == "ca" {
			cmd.Args = append(cmd.Args, "-subj", "/CN=ca")
		} else {
			cmd.Args = append(cmd.Args, "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-subj", "/CN=localhost",
				"-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE")
		}
		cmd.Dir = dir
		err = errors.Join(err, command(cmd))
	}
	return err
}

// installCA puts the CA where fio's client looks for it, which cannot be changed:
// unless something is there.
func (b *bench) installCA() error {
	home, err := os.UserHomeDir()
	dir := filepath.Join(home, ".pki/libnbd")
	if os.Geteuid() == 0 {
		dir = "/etc/pki/libnbd"
	}
	if err != nil {
		return err
	}
	if to, err := os.Readlink(dir); err == nil && strings.Contains(to, "/compare-") {
		os.Remove(dir) // of an earlier run
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.Symlink(b.pki, dir)); err != nil {
		return err
	}
	b.installed = dir
	return nil
}

func (b *bench) cleanUp() {
	os.RemoveAll(b.dir)
	if b.installed != "" {
		os.Remove(b.installed)
	}
}

func command(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
