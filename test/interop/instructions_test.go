package interop

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestServerInstructions prints what reading a file costs the server in whole, by
// each of the ways it can go and beside nbdkit. It is for a virtual machine whose
// clock counts instructions (vm -icount), a nanosecond each.
func TestServerInstructions(t *testing.T) {
	if os.Getenv("NBD_TEST_INSTRUCTIONS") == "" {
		t.Skip("NBD_TEST_INSTRUCTIONS is not set")
	}
	const size = 16 << 20
	image := random(t, size)
	dir := certificates(t)
	ways := []struct {
		name string
		args []string
	}{
		{"kernel", []string{program, "-p", "0", "-i", "127.0.0.1", "--ktls=require", "--tls-certificates=" + dir, "file", image}},
		{"user space", []string{program, "-p", "0", "-i", "127.0.0.1", "--ktls=off", "--tls-certificates=" + dir, "file", image}},
		{"plain", []string{program, "-p", "0", "-i", "127.0.0.1", "--tls=off", "file", image}},
		{"nbdkit", []string{"nbdkit", "-f", "-p", "10810", "-i", "127.0.0.1", "--tls=require", "--tls-certificates=" + dir, "file", image}},
		{"nbdkit, plain", []string{"nbdkit", "-f", "-p", "10810", "-i", "127.0.0.1", "file", image}},
	}
	fmt.Println("instructions of the server for each byte that is read:")
	fmt.Printf("%-10s", "request")
	for _, w := range ways {
		fmt.Printf("%16s", w.name)
	}
	for _, request := range []int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20} {
		fmt.Printf("\n%-10d", request)
		for _, w := range ways {
			spent := readAll(t, w.args, dir, request)
			fmt.Printf("%16.3f", float64(spent)/size)
		}
	}
	fmt.Println()
}

// readAll starts a server, reads all of its export with requests of one size, and
// returns what that took of the processor's time, without what starting, a
// handshake and a read of nothing take.
func readAll(t *testing.T, args []string, dir string, request int) time.Duration {
	t.Helper()
	port := "10810"
	var spent func() time.Duration
	var stop func()
	if args[0] == program {
		s := startProgram(t, args[1:]...)
		port, stop = s.port, s.stop
		spent = func() time.Duration { return processorTime(t, s.cmd.Process.Pid) }
	} else {
		cmd := exec.Command(args[0], args[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop = func() { cmd.Process.Kill(); cmd.Wait() }
		spent = func() time.Duration { return processorTime(t, cmd.Process.Pid) }
		time.Sleep(3 * time.Second)
	}
	defer stop()
	uri := "nbd://localhost:" + port
	for _, a := range args {
		if strings.HasPrefix(a, "--tls-certificates") {
			uri = "nbds://localhost:" + port + "?tls-certificates=" + dir
		}
	}
	run(t, "nbdinfo", "--size", uri)
	warm := spent()
	run(t, "nbdinfo", "--size", uri)
	handshake := spent() - warm
	before := spent()
	run(t, "nbdcopy", "--connections=1", "--requests=4", "--request-size="+strconv.Itoa(request), uri, "null:")
	return spent() - before - handshake
}

// processorTime is what all threads of a process have used, those that have ended
// too: its CPU clock (clock_getcpuclockid(3)).
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	const schedClock = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
