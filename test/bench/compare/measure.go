package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sample is one measurement.
type sample struct {
	rate  float64 // units per second
	cpu   float64 // server's CPU seconds per unit
	rss   float64 // server's memory, MiB
	calls float64 // server's system calls per unit; 0: not known
	// Latencies of the client's requests, in microseconds; 0: not known.
	p50, p99 float64
}

// measure starts a server, and does a job.
func (b *bench) measure(c contender, j job) (s sample, err error) {
	pid, stop, err := b.start(c, j)
	if err != nil {
		return s, err
	}
	defer stop()
	export := c.export + j.export
	cl := &client{b, "nbd://localhost:" + port + "/" + export, pid, j.unit}
	if j.tls {
		cl.uri = "nbds://localhost:" + port + "/" + export
		if j.rsa { // the others are where clients look for them
			cl.uri += "?tls-certificates=" + j.certificates(b)
		}
	}
	for range 200 {
		if err = exec.Command("nbdinfo", "--size", cl.uri).Run(); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return s, fmt.Errorf("the server cannot be reached: %w", err)
	}
	calls := countCalls(b, pid)
	before, begun := cpuTime(pid), time.Now()
	d, err := j.do(cl)
	took := time.Since(begun)
	if err != nil {
		return s, err
	}
	s.calls = calls() / d.work
	s.p50, s.p99 = float64(d.p50)/1e3, float64(d.p99)/1e3
	s.rate = d.work / took.Seconds()
	s.cpu = (cpuTime(pid) - before) / d.work
	if d.cpu > 0 {
		s.cpu = d.cpu
	}
	if s.rss = d.memory; s.rss == 0 {
		s.rss = peakRSS(pid)
	}
	return s, nil
}

// start starts a server.
func (b *bench) start(c contender, j job) (pid int, stop func(), err error) {
	args := c.args(b, j)
	server := exec.Command(args[0], args[1:]...)
	if !c.daemon {
		err := server.Start()
		return server.Process.Pid, func() { server.Process.Kill(); server.Wait() }, err
	}
	if err := command(server); err != nil {
		return 0, nil, err
	}
	for range 200 {
		p, _ := os.ReadFile(b.pidFile())
		if pid, err = strconv.Atoi(strings.TrimSpace(string(p))); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return pid, func() {
		os.Remove(b.pidFile())
		for syscall.Kill(pid, syscall.SIGTERM) == nil {
			time.Sleep(20 * time.Millisecond)
		}
	}, err
}

// tree is a process and its children.
func tree(pid int) []int {
	all := []int{pid}
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range children {
		b, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(b)) {
			child, _ := strconv.Atoi(f)
			all = append(all, child)
		}
	}
	return all
}

// cpuTime is what a process and its children have used so far, in seconds: their
// clocks (clock_getcpuclockid(3)), and what proc(5) says of children that have
// ended.
func cpuTime(pid int) (seconds float64) {
	const schedClock = 2
	const ticksPerSecond = 100 // on every machine that this will run on
	for _, pid := range tree(pid) {
		var ts unix.Timespec
		if unix.ClockGettime(int32(^pid<<3|schedClock), &ts) != nil {
			continue
		}
		seconds += time.Duration(ts.Nano()).Seconds()
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, after, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(after)
		if len(f) < 15 {
			continue
		}
		for _, ticks := range f[13:15] { // of children that have been waited for: user, system
			n, _ := strconv.ParseFloat(ticks, 64)
			seconds += n / ticksPerSecond
		}
	}
	return seconds
}

// peakRSS is in MiB.
func peakRSS(pid int) (mib float64) {
	for _, pid := range tree(pid) {
		mib += kib(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:") / 1024
	}
	return mib
}

// proportional is the memory of a process and its children, each page counted
// once, in MiB.
func proportional(pid int) (mib float64) {
	for _, pid := range tree(pid) {
		mib += kib(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:") / 1024
	}
	return mib
}

func kib(path, key string) float64 {
	b, _ := os.ReadFile(path)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			n, _ := strconv.ParseFloat(f[1], 64)
			return n
		}
	}
	return 0
}

// countCalls counts a process's system calls with perf(1), if that can be.
func countCalls(b *bench, pid int) (stop func() float64) {
	path := filepath.Join(b.dir, "perf")
	cmd := exec.Command("perf", "stat", "-x,", "-o", path, "-e", "raw_syscalls:sys_enter", "-p", strconv.Itoa(pid))
	if cmd.Start() != nil {
		return func() float64 { return 0 }
	}
	time.Sleep(100 * time.Millisecond) // for it to attach
	return func() float64 {
		cmd.Process.Signal(syscall.SIGINT)
		var ended *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
			return 0
		}
		out, _ := os.ReadFile(path)
		for line := range strings.Lines(string(out)) {
			if count, _, ok := strings.Cut(line, ","); ok && strings.Contains(line, "sys_enter") {
				n, _ := strconv.ParseFloat(count, 64)
				return n
			}
		}
		return 0
	}
}
