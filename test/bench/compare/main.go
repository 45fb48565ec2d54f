// Compare measures this server beside nbdkit and qemu-nbd: the same file from the
// page cache, the same certificates, one cipher suite, the same clients, one
// server after the other in interleaved rounds.
//
//	go run ./test/bench/compare [-rounds N] [-size MiB] [-tls=false] [-only REGEXP] [-json FILE]
//
// It needs nbdkit, qemu-nbd, nbdcopy and fio, and prints medians, and how they
// compare with the better of the other two. Machines are noisy: what the ratio of
// two medians says depends on the spread, which is beside it.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	rounds = flag.Int("rounds", 5, "how often everything is measured")
	size   = flag.Int64("size", 1024, "size of the file in MiB")
	useTLS = flag.Bool("tls", true, "encrypt")
	fioFor = flag.Duration("fio", 3*time.Second, "how long each fio job runs, a second at least")
	only   = flag.String("only", "", "measure the jobs whose names match this")
	toFile = flag.String("json", "", "write medians and spreads to this file, too")
)

const port = "12809"

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// contender is a server to be measured.
type contender struct {
	name string
	args func(b *bench) []string
}

var contenders = []contender{
	{"ours", func(b *bench) []string {
		args := []string{b.program, "-p", port, "-i", "127.0.0.1", "-t", "32", "--tls=off"}
		if *useTLS {
			args = append(args[:len(args)-1], "--tls-certificates="+b.pki)
		}
		return append(args, "file", b.file)
	}},
	{"nbdkit", func(b *bench) []string {
		args := []string{"nbdkit", "-f", "-p", port, "-i", "127.0.0.1", "-t", "32"}
		if *useTLS {
			args = append(args, "--tls=require", "--tls-certificates="+b.pki)
		}
		return append(args, "file", b.file)
	}},
	{"qemu-nbd", func(b *bench) []string {
		args := []string{"qemu-nbd", "-t", "-p", port, "-b", "127.0.0.1", "-e", "16", "-f", "raw", "-x", ""}
		if *useTLS {
			args = append(args, "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=off,dir="+b.pki, "--tls-creds", "tls0")
		}
		return append(args, b.file)
	}},
}

// job is something that a client does.
type job struct {
	name string
	unit string // of work: CPU is given for each
	do   func(b *bench) (done, error)
}

// done is what a client has done, and how long most of its requests took.
type done struct {
	work     float64
	p50, p99 time.Duration // 0: it does not say
}

var jobs = []job{
	{"read, 64 KiB, 1 connection", "GiB", nbdcopy(64<<10, 1)},
	{"read, 256 KiB, 1 connection", "GiB", nbdcopy(256<<10, 1)},
	{"read, 256 KiB, 4 connections", "GiB", nbdcopy(256<<10, 4)},
	{"read, 1 MiB, 1 connection", "GiB", nbdcopy(1<<20, 1)},
	{"write, 64 KiB, depth 16", "GiB", fio("write", 64<<10, 16)},
	{"write, 256 KiB, depth 16", "GiB", fio("write", 256<<10, 16)},
	{"random read, 4 KiB, depth 1", "op", fio("randread", 4<<10, 1)},
	{"random read, 4 KiB, depth 32", "op", fio("randread", 4<<10, 32)},
	{"random write, 4 KiB, depth 1", "op", fio("randwrite", 4<<10, 1)},
	{"random write, 4 KiB, depth 32", "op", fio("randwrite", 4<<10, 32)},
	{"random, half of it reads, 4 KiB, depth 32", "op", fio("randrw", 4<<10, 32)},
}

// sample is one measurement.
type sample struct {
	rate float64 // units per second
	cpu  float64 // server's CPU seconds per unit
	rss  float64 // server's peak, MiB
	// Latencies of the client's requests, in microseconds; 0: not known.
	p50, p99 float64
}

type bench struct {
	dir, program, pki, file string

	installed string // the link that installCA has made
}

func run() error {
	b, err := prepare()
	if err != nil {
		return err
	}
	defer b.cleanUp()
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	jobs := slices.DeleteFunc(slices.Clone(jobs), func(j job) bool { return !wanted.MatchString(j.name) })
	results := make(map[string]map[string][]sample) // job, contender
	for round := range *rounds {
		for _, j := range jobs {
			for _, c := range contenders {
				s, err := b.measure(c, j)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, j.name, err)
				}
				if results[j.name] == nil {
					results[j.name] = make(map[string][]sample)
				}
				results[j.name][c.name] = append(results[j.name][c.name], s)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, *rounds)
	}
	report(jobs, results)
	if *toFile == "" {
		return nil
	}
	return writeJSON(*toFile, results)
}

// prepare makes what all contenders share.
func prepare() (*bench, error) {
	dir, err := os.MkdirTemp("", "compare-*")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, program: filepath.Join(dir, "nbd-ktls-server"), pki: filepath.Join(dir, "pki"), file: filepath.Join(dir, "disk.img")}
	build := exec.Command("go", "build", "-o", b.program, "nbd-ktls-server/cmd/nbd-ktls-server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	priority := filepath.Join(dir, "priority")
	err = errors.Join(
		command(build),
		command(exec.Command(b.program, "pki", b.pki)),
		command(exec.Command("dd", "if=/dev/urandom", "of="+b.file, "bs=1M", fmt.Sprint("count=", *size), "status=none")),
		// GnuTLS and Go would choose different suites.
		os.WriteFile(priority, []byte("[overrides]\ndefault-priority-string = NORMAL:-CIPHER-ALL:+AES-128-GCM\n"), 0o644),
		os.Setenv("GNUTLS_SYSTEM_PRIORITY_FILE", priority),
	)
	return b, errors.Join(err, b.installCA())
}

// installCA puts the CA where fio's client looks for it, which cannot be changed:
// unless something is there.
func (b *bench) installCA() error {
	home, err := os.UserHomeDir()
	dir := filepath.Join(home, ".pki/libnbd")
	if os.Geteuid() == 0 {
		dir = "/etc/pki/libnbd"
	}
	if err != nil || !*useTLS {
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

func (b *bench) uri() string {
	if *useTLS {
		return "nbds://localhost:" + port + "/"
	}
	return "nbd://localhost:" + port + "/"
}

// measure starts a server, does a job once to warm up and once in earnest.
func (b *bench) measure(c contender, j job) (s sample, err error) {
	args := c.args(b)
	server := exec.Command(args[0], args[1:]...)
	if err := server.Start(); err != nil {
		return s, err
	}
	defer server.Wait()
	defer server.Process.Kill()
	for range 200 {
		if err = exec.Command("nbdinfo", "--size", b.uri()).Run(); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return s, fmt.Errorf("the server cannot be reached: %w", err)
	}
	before, begun := cpuTime(server.Process.Pid), time.Now()
	d, err := j.do(b)
	if err != nil {
		return s, err
	}
	work := d.work
	s.p50, s.p99 = float64(d.p50)/1e3, float64(d.p99)/1e3
	s.rate = work / time.Since(begun).Seconds()
	s.cpu = (cpuTime(server.Process.Pid) - before) / work
	s.rss = peakRSS(server.Process.Pid)
	return s, nil
}

// nbdcopy reads the whole file; the work is in GiB.
func nbdcopy(request, connections int) func(*bench) (done, error) {
	return func(b *bench) (done, error) {
		n := strconv.Itoa(connections)
		err := command(exec.Command("nbdcopy", "--connections="+n, "--threads="+n, "--requests=64",
			"--request-size="+strconv.Itoa(request), b.uri(), "null:"))
		return done{work: float64(*size) / 1024}, err
	}
}

// fio does input or output; the work is in operations if they are small, else in
// GiB.
func fio(rw string, block, depth int) func(*bench) (done, error) {
	return func(b *bench) (d done, err error) {
		cmd := exec.Command("fio", "--name=x", "--ioengine=nbd", "--uri="+b.uri(), "--rw="+rw, "--bs="+strconv.Itoa(block), "--randrepeat=0",
			"--norandommap", "--iodepth="+strconv.Itoa(depth), "--time_based", fmt.Sprint("--runtime=", fioFor.Seconds()), "--output-format=json")
		cmd.Dir = b.dir
		out, err := cmd.Output()
		if err != nil {
			return d, err
		}
		type side struct {
			TotalIOs float64                                       `json:"total_ios"`
			Clat     struct{ Percentile map[string]time.Duration } `json:"clat_ns"`
		}
		var r struct{ Jobs []struct{ Read, Write side } }
		if i := strings.IndexByte(string(out), '{'); i > 0 {
			out = out[i:]
		}
		if err := json.Unmarshal(out, &r); err != nil || len(r.Jobs) == 0 {
			return d, fmt.Errorf("fio: %w", err)
		}
		for _, s := range []side{r.Jobs[0].Read, r.Jobs[0].Write} {
			d.work += s.TotalIOs
			d.p50 = max(d.p50, s.Clat.Percentile["50.000000"])
			d.p99 = max(d.p99, s.Clat.Percentile["99.000000"])
		}
		if block > 4<<10 {
			d.work *= float64(block) / (1 << 30)
		}
		return d, nil
	}
}

// cpuTime is what a process has used so far, in seconds: proc(5).
func cpuTime(pid int) float64 {
	const ticksPerSecond = 100 // on every machine that this will run on
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(after)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / ticksPerSecond
}

func peakRSS(pid int) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "VmHWM:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	return 0
}

func report(jobs []job, results map[string]map[string][]sample) {
	for _, j := range jobs {
		fmt.Printf("\n%s\n", j.name)
		r := results[j.name]
		scale, cpuUnit, rateUnit := 1.0, "s/GiB", "GiB/s"
		if j.unit == "op" {
			scale, cpuUnit, rateUnit = 1e6, "µs/op", "op/s"
		}
		rate := func(s sample) float64 { return s.rate }
		cpu := func(s sample) float64 { return s.cpu * scale }
		rss := func(s sample) float64 { return s.rss }
		for _, c := range contenders {
			latency := ""
			if p99 := median(r[c.name], func(s sample) float64 { return s.p99 }); p99 > 0 {
				latency = fmt.Sprintf(" %7.0f µs, 99 %% %7.0f µs", median(r[c.name], func(s sample) float64 { return s.p50 }), p99)
			}
			fmt.Printf("  %-9s %10.4g %-6s (±%2.0f%%) %8.3g %s (±%2.0f%%) %6.0f MiB%s\n", c.name,
				median(r[c.name], rate), rateUnit, spread(r[c.name], rate), median(r[c.name], cpu), cpuUnit, spread(r[c.name], cpu), median(r[c.name], rss), latency)
		}
		bestRate := max(median(r["nbdkit"], rate), median(r["qemu-nbd"], rate))
		bestCPU := min(median(r["nbdkit"], cpu), median(r["qemu-nbd"], cpu))
		fmt.Printf("  ratio     %10.2f                 %8.2f\n", median(r["ours"], rate)/bestRate, median(r["ours"], cpu)/max(bestCPU, 1e-9))
	}
}

// figure is what came out of one contender's samples.
type figure struct {
	Rate, RateSpread float64 // units per second, percent
	CPU, CPUSpread   float64 // seconds per unit, percent
	RSS              float64 // MiB
	P50, P99         float64 `json:",omitempty"` // µs
}

// writeJSON writes what was measured: by job, by contender.
func writeJSON(path string, results map[string]map[string][]sample) error {
	all := make(map[string]map[string]figure)
	for job, r := range results {
		all[job] = make(map[string]figure)
		for name, s := range r {
			rate, cpu := func(s sample) float64 { return s.rate }, func(s sample) float64 { return s.cpu }
			all[job][name] = figure{
				Rate: median(s, rate), RateSpread: spread(s, rate), CPU: median(s, cpu), CPUSpread: spread(s, cpu),
				RSS: median(s, func(s sample) float64 { return s.rss }),
				P50: median(s, func(s sample) float64 { return s.p50 }), P99: median(s, func(s sample) float64 { return s.p99 }),
			}
		}
	}
	b, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func median(s []sample, f func(sample) float64) float64 {
	v := values(s, f)
	return v[len(v)/2]
}

// spread is half the distance between the quartiles, in percent of the median.
func spread(s []sample, f func(sample) float64) float64 {
	v := values(s, f)
	if v[len(v)/2] == 0 {
		return 0
	}
	return 50 * (v[len(v)*3/4] - v[len(v)/4]) / v[len(v)/2]
}

func values(s []sample, f func(sample) float64) []float64 {
	v := make([]float64, len(s))
	for i := range s {
		v[i] = f(s[i])
	}
	slices.SortFunc(v, cmp.Compare)
	return v
}
