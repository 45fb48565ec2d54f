package ktls

import (
	"runtime"
	"sync/atomic"
	"time"
)

// patience is how long a reader asks again and again whether there is something to
// be read, before it goes to sleep. A peer that sends a request, and the next when
// it has the reply, costs both ends a thread's way to sleep and back each time:
// about as much processor time as its answer takes to come, if that is near. For
// others it is nothing: it grows when it was enough, and shrinks when it was not
// (as the kernel's halt_poll_ns does for virtual machines).
//
// fio, TLS, 4 KiB, depth 1, two cores, without and with it: reads 14 and 27
// thousand in a second for 33 and 32 µs of processor time each, writes 15 and 21
// for 44 and 38.
type patience struct {
	limit time.Duration
	reads int // since there was nothing to be read
	waits int
}

const (
	maxPatience = 50 * time.Microsecond
	// retryPatience is after how many waits it is tried whether the peer has become
	// faster.
	retryPatience = 64
)

// patient is how many readers are patient now. They are not to keep everybody
// else from the processors.
var patient atomic.Int32

var now = time.Now // which a test replaces

func mayBePatient() bool { return int(patient.Load()) < runtime.GOMAXPROCS(0)/2 }

// read counts a read that has read something.
func (p *patience) read() { p.reads++ }

// wait calls again until it reports false, or too much time has passed, and returns
// what it has reported last.
func (p *patience) wait(again func() bool) bool {
	alternate := p.reads == 1 // request, reply, request, reply
	p.reads = 0
	if p.waits++; p.waits%retryPatience == 0 {
		p.limit = maxPatience
	}
	if !alternate || p.limit == 0 || !mayBePatient() {
		return true
	}
	patient.Add(1)
	defer patient.Add(-1)
	begun := now()
	for again() {
		if now().Sub(begun) > p.limit {
			p.limit /= 2
			if p.limit < time.Microsecond {
				p.limit = 0
			}
			return true
		}
	}
	p.limit = min(max(p.limit, 2*now().Sub(begun)), maxPatience)
	return false
}
