package nbdclient

import (
	"sync"

	"nbd-ktls-server/nbd/wire"
)

// journal keeps what was changed since the last FLUSH: a server that has ended
// may have forgotten it, and is told again. It is what a client of NFS does
// between WRITE and COMMIT (RFC 1813, section 4.8).
type journal struct {
	max int64 // of bytes

	mu      sync.Mutex
	entries []entry
	first   uint64 // the number of entries[0]
	size    int64
	// gap is behind the number of the last change that there was no room for; 0
	// if everything is there.
	gap uint64
}

// entry is a change that the server has acknowledged.
type entry struct {
	req  wire.Request
	data []byte // of a WRITE
}

// entryCost is what an entry is counted for besides its data.
const entryCost = 128

// next is the number of the next change. The caller holds mu.
func (j *journal) next() uint64 { return j.first + uint64(len(j.entries)) }

// add keeps a change, if there is room; else a loss will be a loss.
func (j *journal) add(req wire.Request, data []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	cost := int64(len(data)) + entryCost
	if j.gap == 0 && j.size+cost <= j.max {
		j.entries = append(j.entries, entry{req, append([]byte(nil), data...)})
		j.size += cost
		return
	}
	j.first = j.next() + 1
	j.entries, j.size, j.gap = nil, 0, j.first
}

// mark is to be called before a FLUSH, and flushed with the result after it.
func (j *journal) mark() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.next()
}

// flushed forgets what was acknowledged before mark.
func (j *journal) flushed(mark uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.entries) > 0 && j.first < mark {
		j.size -= int64(len(j.entries[0].data)) + entryCost
		j.entries[0] = entry{}
		j.entries = j.entries[1:]
		j.first++
	}
	if len(j.entries) == 0 {
		j.entries = nil
	}
	if j.gap <= mark {
		j.gap = 0
	}
}

// all returns what is to be told again, and whether that is everything.
func (j *journal) all() (entries []entry, complete bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]entry(nil), j.entries...), j.gap == 0
}

// forget is called when a loss has been reported.
func (j *journal) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.first = j.next()
	j.entries, j.size, j.gap = nil, 0, 0
}
