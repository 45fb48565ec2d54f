package interop

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// TestSystemCallsPerRequest counts what small requests cost that arrive 28 at a
// time: a system call on the file each, and a few on the socket for all of them.
// Counts do not depend on the machine, and do not rise by themselves.
func TestSystemCallsPerRequest(t *testing.T) {
	const batch, batches = 28, 20 // too few batches for a reader to become patient
	for _, test := range []struct {
		command     wire.Command
		length      uint32 // of WRITEs so that they come in one record
		tls         bool
		read, write float64 // at most, for each request
	}{
		{wire.CmdRead, 4096, false, 1.25, 0.2},
		{wire.CmdRead, 4096, true, 1.25, 0.2},
		{wire.CmdWrite, 512, false, 0.25, 1.2},
		{wire.CmdWrite, 512, true, 0.25, 1.2},
	} {
		t.Run(fmt.Sprintf("%v, TLS %v", test.command, test.tls), func(t *testing.T) {
			image := random(t, 8<<20)
			p := nbdtest.NewPKI(t)
			args := []string{"--tls=off", "file", image}
			if test.tls {
				args = []string{"--ktls=off", "--tls-certificates=" + p.Dir, "file", image}
			}
			s := start(t, args...)
			var reads, writes int64
			for range 3 {
				c := nbdtest.Hello(t, s.addr())
				if test.tls {
					c.StartTLS(p.Client(nil))
				}
				c.Go("")
				all, reply := requests(test.command, test.length, batch)
				r, w := s.calls()
				for range batches {
					c.Send(all)
					if _, err := io.ReadFull(c, reply); err != nil {
						t.Fatal(err)
					}
				}
				r2, w2 := s.calls()
				reads, writes = reads+r2-r, writes+w2-w
				c.Disconnect()
			}
			const total = 3 * batches * batch
			perRead, perWrite := float64(reads)/total, float64(writes)/total
			t.Logf("for each request %.2f system calls that read, %.2f that write", perRead, perWrite)
			if perRead > test.read || perWrite > test.write {
				t.Errorf("more than %v that read or %v that write", test.read, test.write)
			}
		})
	}
}

// requests returns n requests, and room for what they are answered.
func requests(cmd wire.Command, length uint32, n int) (all, reply []byte) {
	size := wire.SimpleReplySize
	for i := range n {
		all = (&wire.Request{Command: cmd, Cookie: wire.Cookie(i), Offset: uint64(i) * uint64(length), Length: uint64(length)}).Append(all)
		if cmd == wire.CmdWrite {
			all = append(all, make([]byte, length)...)
		}
	}
	if cmd == wire.CmdRead {
		size += int(length)
	}
	return all, make([]byte, n*size)
}

// calls are the server's system calls so far that read and that write (proc(5),
// /proc/PID/io).
func (s *server) calls() (read, write int64) {
	return s.io("syscr"), s.io("syscw")
}

// io is a counter of /proc/PID/io.
func (s *server) io(counter string) int64 {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if name == counter {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return n
		}
	}
	s.t.Fatalf("/proc/PID/io has no %s", counter)
	return 0
}
