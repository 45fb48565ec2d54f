// Compare measures this server beside nbdkit, qemu-nbd and nbd-server: the same
// file from the page cache, the same certificates, one cipher suite, the same
// clients, one server after the other in interleaved rounds.
//
//	go run ./test/bench/compare [-rounds N] [-size MiB] [-only REGEXP] [-before PROGRAM] [-json FILE] [-svg DIR]
//	go run ./test/bench/compare -vm [-json FILE] [-svg DIR]
//
// It needs nbdkit, qemu-nbd, nbd-server, nbdcopy, python3-libnbd, fio and openssl, and
// prints tables in Markdown: medians, and how they compare with the best of the
// others. Machines are noisy: what the ratio of two medians says depends on the
// spread, which is beside it. -before measures another build of this server, too.
//
// The floor is what can be saved by a better server: a loop that has no protocol,
// and only reads the file, encrypts records, and writes them to a socket.
//
// With -vm all is done in a virtual machine whose kernel can encrypt (../../vm),
// emulated: its processor time is in instructions, which do not depend on the
// machine, and are the same in every round.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
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
	fioFor = flag.Duration("fio", 3*time.Second, "how long each fio job runs")
	only   = flag.String("only", "", "measure the jobs whose names match this")
	before = flag.String("before", "", "measure this build of the server, too")
	toFile = flag.String("json", "", "write medians and spreads to this file, too")
	toPlot = flag.String("svg", "", "write plots to this directory, too")
	inVM   = flag.Bool("vm", false, "measure in a virtual machine")
	guest  = flag.Bool("guest", false, "this is the virtual machine; for -vm")
)

func main() {
	if addr := os.Getenv(sinkVariable); addr != "" {
		sink(addr)
		return
	}
	flag.Parse()
	do := run
	if *inVM {
		do = runInVM
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// bench is what all contenders share.
type bench struct {
	dir, program, file string
	pki, rsa           string // directories of certificates: our pki's, and RSA-2048

	guest     bool   // this is a virtual machine
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
	all, cs := allJobs(), contenders()
	if b.guest {
		all, cs = guestJobs(), guestContenders()
	}
	jobs := slices.DeleteFunc(all, func(j job) bool { return !wanted.MatchString(j.name) })
	results := make(results)
	for round := range *rounds {
		for _, j := range jobs {
			if err := b.round(j, cs, results); err != nil {
				return fmt.Errorf("%s: %w", j.name, err)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, *rounds)
	}
	if b.guest {
		return json.NewEncoder(os.Stdout).Encode(results.figures())
	}
	report(jobs, cs, results.figures())
	return publish(results.figures(), map[string]plot{
		"cpu.svg":  {"Server's CPU time for the same work, nbdkit's = 1 (shorter is better)", func(f figure) float64 { return f.CPU }},
		"rate.svg": {"Work in the same time, nbdkit's = 1 (longer is better)", func(f figure) float64 { return f.Rate }},
	}, jobs, cs)
}

// publish writes the files that were asked for.
func publish(f figures, plots map[string]plot, jobs []job, cs []contender) (err error) {
	if *toFile != "" {
		err = writeJSON(*toFile, f)
	}
	if *toPlot != "" {
		for name, p := range plots {
			err = errors.Join(err, p.write(filepath.Join(*toPlot, name), jobs, cs, f))
		}
	}
	return err
}

// round does a job with everybody.
func (b *bench) round(j job, cs []contender, r results) error {
	for _, c := range cs {
		if j.serve != nil && !c.mine || c.encrypts && !j.tls {
			continue
		}
		s, err := b.measure(c, j)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		r.add(j, c.name, s)
	}
	if j.floor == nil {
		return nil
	}
	s, err := j.floor(b)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	r.add(j, floorName, s)
	return nil
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
	if b.guest = *guest; b.guest {
		b.program = guestProgram
	} else if err := build(b.program, "cmd/nbd-ktls-server"); err != nil {
		return nil, err
	}
	priority := filepath.Join(dir, "priority")
	err = errors.Join(
		command(exec.Command(b.program, "pki", b.pki)),
		makeFile(b.file, *size<<20),
		// GnuTLS and Go would choose different suites.
		os.WriteFile(priority, []byte("[overrides]\ntls-disabled-cipher = AES-256-GCM\ntls-disabled-cipher = CHACHA20-POLY1305\n"), 0o644),
		os.Setenv("GNUTLS_SYSTEM_PRIORITY_FILE", priority),
	)
	if !b.guest {
		err = errors.Join(err, makeRSA(b.rsa))
	}
	return b, errors.Join(err, b.installCA())
}

// build makes a static program of one of our packages.
func build(path, pkg string) error {
	cmd := exec.Command("go", "build", "-o", path, "nbd-ktls-server/"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return command(cmd)
}

// makeFile makes a file of random bytes.
func makeFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{}), size)
	return err
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
