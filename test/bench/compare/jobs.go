package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// job is something that a client does.
type job struct {
	name string
	unit string // of work: CPU is given for each
	// tls says that it is encrypted, rsa that the certificates are RSA ones, mutual
	// that the client has to show one.
	tls, rsa, mutual bool
	// serve is what ours serves instead of the file, or a whole configuration;
	// nobody else is measured.
	serve  func(b *bench) []string
	export string // that the client chooses
	do     func(c *client) (done, error)
	floor  func(b *bench) (sample, error) // or nil
}

// certificates is where they are.
func (j job) certificates(b *bench) string {
	if j.rsa {
		return b.rsa
	}
	return b.pki
}

// client is what a job needs to know.
type client struct {
	*bench
	uri    string
	server int    // process ID
	unit   string // of work
}

// done is what a client has done, and how long most of its requests took.
type done struct {
	work     float64
	p50, p99 time.Duration // 0: it does not say
	memory   float64       // of the server while it was done, MiB; 0: its peak
	cpu      float64       // of the server for a unit of it, if that is not all it has used
}

func allJobs() []job {
	var all []job
	for _, tls := range []bool{true, false} {
		how, least := "TLS: ", way(sealAll)
		if !tls {
			how, least = "plain: ", sendAll
		}
		add := func(name, unit string, do func(*client) (done, error), floor func(*bench) (sample, error)) {
			all = append(all, job{name: how + name, unit: unit, tls: tls, do: do, floor: floor})
		}
		add("read 64 KiB", "GiB", nbdcopy(64<<10, 1), floor(64<<10, least))
		add("read 256 KiB", "GiB", nbdcopy(256<<10, 1), floor(256<<10, least))
		add("read 256 KiB, 4 connections", "GiB", nbdcopy(256<<10, 4), nil)
		add("read 1 MiB", "GiB", nbdcopy(1<<20, 1), floor(1<<20, least))
		add("write 64 KiB", "GiB", fio("write", 64<<10, 16), nil)
		add("write 256 KiB", "GiB", fio("write", 256<<10, 16), nil)
		add("write 1 MiB", "GiB", fio("write", 1<<20, 4), nil)
		add("random read 4 KiB, depth 1", "op", fio("randread", 4<<10, 1), nil)
		add("random read 4 KiB, depth 32", "op", fio("randread", 4<<10, 32), nil)
		add("random write 4 KiB, depth 1", "op", fio("randwrite", 4<<10, 1), nil)
		add("random write 4 KiB, depth 32", "op", fio("randwrite", 4<<10, 32), nil)
		add("random read and write 4 KiB, depth 32", "op", fio("randrw", 4<<10, 32), nil)
	}
	for _, n := range []int{1, 16, 256} {
		all = append(all, job{name: fmt.Sprintf("TLS: %d idle connections", n), unit: "op", tls: true, do: hold(n)})
	}
	all = append(all,
		job{name: "mutual TLS handshake, ECDSA P-256", unit: "op", tls: true, mutual: true, do: handshakes},
		job{name: "mutual TLS handshake, RSA-2048", unit: "op", tls: true, mutual: true, rsa: true, do: handshakes})
	return append(all, growth()...)
}

// guestJobs are done in a virtual machine.
func guestJobs() (all []job) {
	for _, tls := range []bool{true, false} {
		how, least := "TLS: ", way(sendEncrypted)
		if !tls {
			how, least = "plain: ", sendAll
		}
		for _, size := range []int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20} {
			all = append(all, job{name: how + "read " + sizeName(size), unit: "GiB", tls: tls, do: nbdcopy(size, 1), floor: floor(size, least)})
		}
		all = append(all,
			job{name: how + "write 256 KiB", unit: "GiB", tls: tls, do: fio("write", 256<<10, 16)},
			job{name: how + "random read 4 KiB, depth 32", unit: "op", tls: tls, do: fio("randread", 4<<10, 32)})
	}
	return all
}

// sizeName is a number of bytes as people write it.
func sizeName(n int) string {
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 1<<10 {
			return fmt.Sprint(n, " ", unit)
		}
		n >>= 10
	}
	return fmt.Sprint(n, " TiB")
}

// nbdcopy reads the whole file; the work is in GiB.
func nbdcopy(request, connections int) func(*client) (done, error) {
	return func(c *client) (done, error) {
		n := strconv.Itoa(connections)
		err := command(exec.Command("nbdcopy", "--connections="+n, "--threads="+n, "--requests=64",
			"--request-size="+strconv.Itoa(request), c.uri, "null:"))
		return done{work: float64(*size) / 1024}, err
	}
}

// fio does input or output; the work is in operations if they are small, else in
// GiB.
func fio(rw string, block, depth int, more ...string) func(*client) (done, error) {
	return func(c *client) (d done, err error) {
		cmd := exec.Command("fio", "--name=x", "--ioengine=nbd", "--uri="+c.uri, "--rw="+rw, "--bs="+strconv.Itoa(block), "--randrepeat=0",
			"--norandommap", "--iodepth="+strconv.Itoa(depth), "--time_based", fmt.Sprintf("--runtime=%dms", fioFor.Milliseconds()), "--output-format=json")
		cmd.Args = append(cmd.Args, more...)
		cmd.Dir = c.dir
		var why strings.Builder
		cmd.Stderr = &why
		out, err := cmd.Output()
		if err != nil {
			return d, fmt.Errorf("fio: %w\n%s%s", err, why.String(), out)
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
		if c.unit == "GiB" {
			d.work *= float64(block) / (1 << 30)
		}
		return d, nil
	}
}

// handshakes connects again and again; the work is in connections.
func handshakes(c *client) (done, error) {
	const n = 50
	for range n {
		if err := exec.Command("nbdinfo", "--size", c.uri).Run(); err != nil {
			return done{}, err
		}
	}
	return done{work: n}, nil
}

// hold opens connections, reads from each, and asks for the server's memory.
func hold(n int) func(*client) (done, error) {
	return func(c *client) (done, error) {
		release, err := c.hold(n)
		if err != nil {
			return done{}, err
		}
		defer release()
		return done{work: float64(n), memory: proportional(c.server)}, nil
	}
}

// hold opens connections, and reads from each.
func (c *client) hold(n int) (release func(), err error) {
	cmd := exec.Command("/usr/bin/python3", "-c", fmt.Sprintf(`
import nbd, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
all = []
for i in range(%d):
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.connect_uri(%q)
    h.pread(262144, 0)
    all.append(h)
print("open", flush=True)
input()
`, n, c.uri))
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	release = func() {
		in.Close()
		cmd.Wait() // it complains of the end of its input
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		release()
		return nil, fmt.Errorf("python3-libnbd: %w", err)
	}
	return release, nil
}
