package nbd

import (
	"math/bits"
	"sync"

	"nbd-ktls-server/nbd/wire"
)

// headroom is kept free in front of a payload, for the header of the reply that
// will carry it.
const headroom = wire.ExtendedReplySize + wire.OffsetDataSize

// tailroom is kept free behind it: an encrypting connection has a use for a byte
// there (net.Buffers given to WriteBuffers).
const tailroom = 1

// buffer holds the payload of one request or reply.
type buffer struct {
	mem   []byte
	n     int
	class int // of the pool it came from; -1: none
}

// Buffers are pooled by size: powers of two from 4 KiB to 1 MiB. Larger ones
// are rare, and better given back to the collector.
const (
	minBufferBits = 12
	maxBufferBits = 20
)

var bufferPools [maxBufferBits - minBufferBits + 1]sync.Pool

// newBuffer returns a buffer for n bytes, with anything in it.
func newBuffer(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), minBufferBits) - minBufferBits
	if class >= len(bufferPools) {
		return &buffer{mem: make([]byte, headroom+n+tailroom), n: n, class: -1}
	}
	b, _ := bufferPools[class].Get().(*buffer)
	if b == nil {
		b = &buffer{mem: make([]byte, headroom+1<<(class+minBufferBits)+tailroom), class: class}
	}
	b.n = n
	return b
}

// data is the payload.
func (b *buffer) data() []byte { return b.mem[headroom : headroom+b.n] }

// message is the payload with header in front of it.
func (b *buffer) message(header []byte) []byte {
	p := b.mem[headroom-len(header) : headroom+b.n]
	copy(p, header)
	return p
}

// free gives b back. Nothing may hold a slice of it any more.
func (b *buffer) free() {
	if b.class >= 0 {
		bufferPools[b.class].Put(b)
	}
}
