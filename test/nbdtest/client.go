// Package nbdtest is a raw NBD client for tests: it sends exactly the bytes it
// is told to, before TLS and inside it, and reports what comes back. It shares
// the numbers of nbd/wire but none of its code, so that an error there cannot
// cancel itself out.
package nbdtest

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"nbd-ktls-server/nbd/wire"
)

// patience bounds every wait for the server.
const patience = 20 * time.Second

// Client is one connection. Its methods fail the test if the server does
// something that the protocol does not allow at that point.
type Client struct {
	T testing.TB
	net.Conn
	raw net.Conn
}

// Dial connects to a server.
func Dial(t testing.TB, addr net.Addr) *Client {
	t.Helper()
	nc, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return &Client{T: t, Conn: nc, raw: nc}
}

// Send sends bytes; integers are big endian.
func (c *Client) Send(parts ...any) {
	c.T.Helper()
	if _, err := c.Write(Bytes(parts...)); err != nil {
		c.T.Fatalf("sending: %v", err)
	}
}

// Bytes joins strings, byte slices and fixed-size values.
func Bytes(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		case []byte:
			b.Write(p)
		default:
			if err := binary.Write(&b, binary.BigEndian, p); err != nil {
				panic(err)
			}
		}
	}
	return b.Bytes()
}

// Receive reads n bytes.
func (c *Client) Receive(n int) []byte {
	c.T.Helper()
	p := make([]byte, n)
	if k, err := io.ReadFull(c, p); err != nil {
		c.T.Fatalf("got %d of %d bytes: %v", k, n, err)
	}
	return p
}

func (c *Client) u16() uint16 { c.T.Helper(); return binary.BigEndian.Uint16(c.Receive(2)) }
func (c *Client) u32() uint32 { c.T.Helper(); return binary.BigEndian.Uint32(c.Receive(4)) }
func (c *Client) u64() uint64 { c.T.Helper(); return binary.BigEndian.Uint64(c.Receive(8)) }

// ExpectEnd fails unless the server ends the connection without another byte.
func (c *Client) ExpectEnd() {
	c.T.Helper()
	n, err := io.Copy(io.Discard, c)
	if n != 0 {
		c.T.Fatalf("%d more bytes instead of the end", n)
	}
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		c.T.Fatalf("the connection did not end: %v", err)
	}
}

// Greet reads the greeting and answers with flags.
func (c *Client) Greet(flags uint32) wire.HandshakeFlags {
	c.T.Helper()
	f := c.Greeting()
	c.Send(flags)
	return f
}

// Greeting reads the greeting.
func (c *Client) Greeting() wire.HandshakeFlags {
	c.T.Helper()
	if got := string(c.Receive(16)); got != "NBDMAGICIHAVEOPT" {
		c.T.Fatalf("greeting %q", got)
	}
	return wire.HandshakeFlags(c.u16())
}

// Hello connects, and greets as every modern client does.
func Hello(t testing.TB, addr net.Addr) *Client {
	t.Helper()
	c := Dial(t, addr)
	c.Greet(3)
	return c
}

// Option sends an option.
func (c *Client) Option(opt wire.Option, data ...any) {
	c.T.Helper()
	d := Bytes(data...)
	c.Send("IHAVEOPT", uint32(opt), uint32(len(d)), d)
}

// Reply is one answer to an option.
type Reply struct {
	Option wire.Option
	Type   wire.OptionReply
	Data   []byte
}

// Reply reads one answer to an option.
func (c *Client) Reply() Reply {
	c.T.Helper()
	if m := c.u64(); m != 0x3e889045565a9 {
		c.T.Fatalf("option reply magic %#x", m)
	}
	r := Reply{Option: wire.Option(c.u32()), Type: wire.OptionReply(c.u32())}
	n := c.u32()
	if n > 1<<20 {
		c.T.Fatalf("an option reply of %d bytes", n)
	}
	r.Data = c.Receive(int(n))
	return r
}

// Ask sends an option and reads its answers: the ones that inform and the final
// one, an ACK or an error.
func (c *Client) Ask(opt wire.Option, data ...any) (infos []Reply, final Reply) {
	c.T.Helper()
	c.Option(opt, data...)
	for {
		r := c.Reply()
		if r.Option != opt {
			c.T.Fatalf("a reply to %v, not to %v", r.Option, opt)
		}
		if r.Type == wire.RepAck || r.Type.IsError() {
			return infos, r
		}
		infos = append(infos, r)
	}
}

// Expect asks, and fails unless the final answer is want.
func (c *Client) Expect(want wire.OptionReply, opt wire.Option, data ...any) []Reply {
	c.T.Helper()
	infos, final := c.Ask(opt, data...)
	if final.Type != want {
		c.T.Fatalf("%v was answered %v %q, want %v", opt, final.Type, final.Data, want)
	}
	if want == wire.RepAck && len(final.Data) != 0 {
		c.T.Fatalf("an ACK with data %q", final.Data)
	}
	return infos
}

// InfoRequest is the data of INFO and GO.
func InfoRequest(name string, infos ...wire.Info) []byte {
	return Bytes(uint32(len(name)), name, uint16(len(infos)), infos)
}

// Export is what a server says about an export.
type Export struct {
	Size                          uint64
	Flags                         wire.TransmissionFlags
	Minimum, Preferred, Maximum   uint32
	Name, Description             string
	HasBlock, HasName, HasDescrip bool
}

// ParseInfos puts REP_INFO replies together.
func (c *Client) ParseInfos(infos []Reply) Export {
	c.T.Helper()
	var e Export
	seen := false
	for _, r := range infos {
		if r.Type != wire.RepInfo || len(r.Data) < 2 {
			c.T.Fatalf("a %v of %d bytes among the information", r.Type, len(r.Data))
		}
		d := r.Data[2:]
		switch kind := wire.Info(binary.BigEndian.Uint16(r.Data)); kind {
		case wire.InfoExport:
			if len(d) != 10 {
				c.T.Fatalf("INFO_EXPORT of %d bytes", len(d))
			}
			seen = true
			e.Size, e.Flags = binary.BigEndian.Uint64(d), wire.TransmissionFlags(binary.BigEndian.Uint16(d[8:]))
		case wire.InfoBlockSize:
			if len(d) != 12 {
				c.T.Fatalf("INFO_BLOCK_SIZE of %d bytes", len(d))
			}
			e.HasBlock = true
			e.Minimum, e.Preferred, e.Maximum = binary.BigEndian.Uint32(d), binary.BigEndian.Uint32(d[4:]), binary.BigEndian.Uint32(d[8:])
		case wire.InfoName:
			e.HasName, e.Name = true, string(d)
		case wire.InfoDescription:
			e.HasDescrip, e.Description = true, string(d)
		default:
			c.T.Fatalf("information of kind %v", kind)
		}
	}
	if !seen {
		c.T.Fatal("no INFO_EXPORT")
	}
	return e
}

// Go chooses an export.
func (c *Client) Go(name string) Export {
	c.T.Helper()
	return c.ParseInfos(c.Expect(wire.RepAck, wire.OptGo, InfoRequest(name, wire.InfoBlockSize, wire.InfoName, wire.InfoDescription)))
}

// StartTLS asks for TLS and does the handshake.
func (c *Client) StartTLS(config *tls.Config) {
	c.T.Helper()
	c.Expect(wire.RepAck, wire.OptStartTLS)
	tc := tls.Client(c.raw, config)
	if err := tc.Handshake(); err != nil {
		c.T.Fatalf("TLS handshake: %v", err)
	}
	c.Conn = tc
}

// Request sends a compact request.
func (c *Client) Request(cmd wire.Command, flags wire.CommandFlags, cookie, offset uint64, length uint32, payload ...any) {
	c.T.Helper()
	c.Send(uint32(0x25609513), uint16(flags), uint16(cmd), cookie, offset, length, Bytes(payload...))
}

// SimpleReply reads a simple reply's header.
func (c *Client) SimpleReply() (cookie uint64, errno wire.Errno) {
	c.T.Helper()
	if m := c.u32(); m != 0x67446698 {
		c.T.Fatalf("simple reply magic %#x", m)
	}
	errno = wire.Errno(c.u32())
	return c.u64(), errno
}

// Do sends a request without data in its reply, and returns the error.
func (c *Client) Do(cmd wire.Command, flags wire.CommandFlags, offset uint64, length uint32, payload ...any) wire.Errno {
	c.T.Helper()
	const cookie = 0xfeedfacecafebeef
	c.Request(cmd, flags, cookie, offset, length, payload...)
	got, errno := c.SimpleReply()
	if got != cookie {
		c.T.Fatalf("cookie %#x, want %#x", got, uint64(cookie))
	}
	return errno
}

// Pread reads from the export.
func (c *Client) Pread(offset uint64, length uint32) ([]byte, wire.Errno) {
	c.T.Helper()
	if errno := c.Do(wire.CmdRead, 0, offset, length); errno != 0 {
		return nil, errno
	}
	return c.Receive(int(length)), 0
}

// Disconnect ends the connection in good order.
func (c *Client) Disconnect() {
	c.T.Helper()
	c.Request(wire.CmdDisc, 0, 0, 0, 0)
	c.ExpectEnd()
}

// Chunk is one chunk of a structured or extended reply.
type Chunk struct {
	Done   bool
	Type   wire.ChunkType
	Cookie uint64
	Offset uint64 // of the request, in extended replies
	Data   []byte
}

// maxChunk bounds what a test is willing to take.
const maxChunk = 33 << 20

// Chunk reads a chunk of a structured reply.
func (c *Client) Chunk() Chunk {
	c.T.Helper()
	if m := c.u32(); m != 0x668e33ef {
		c.T.Fatalf("structured reply magic %#x", m)
	}
	k := c.chunkHead()
	k.Data = c.chunkData(uint64(c.u32()))
	return k
}

// ExtendedChunk reads a chunk of an extended reply.
func (c *Client) ExtendedChunk() Chunk {
	c.T.Helper()
	if m := c.u32(); m != 0x6e8a278c {
		c.T.Fatalf("extended reply magic %#x", m)
	}
	k := c.chunkHead()
	k.Offset = c.u64()
	k.Data = c.chunkData(c.u64())
	return k
}

func (c *Client) chunkHead() Chunk {
	c.T.Helper()
	flags := c.u16()
	if flags&^1 != 0 {
		c.T.Fatalf("reply flags %#x", flags)
	}
	return Chunk{Done: flags&1 != 0, Type: wire.ChunkType(c.u16()), Cookie: c.u64()}
}

func (c *Client) chunkData(n uint64) []byte {
	c.T.Helper()
	if n > maxChunk {
		c.T.Fatalf("a chunk of %d bytes", n)
	}
	return c.Receive(int(n))
}

// Error returns what an error chunk says.
func (k Chunk) Error() (errno wire.Errno, text string, offset uint64) {
	if len(k.Data) < 6 {
		return 0, "", 0
	}
	errno = wire.Errno(binary.BigEndian.Uint32(k.Data))
	n := int(binary.BigEndian.Uint16(k.Data[4:]))
	if k.Type == wire.ReplyErrorOffset && len(k.Data) == 6+n+8 {
		offset = binary.BigEndian.Uint64(k.Data[6+n:])
	} else if k.Type != wire.ReplyError || len(k.Data) != 6+n {
		return 0, "", 0
	}
	return errno, string(k.Data[6 : 6+n]), offset
}

// ChunkedReply is the chunks of one reply.
type ChunkedReply []Chunk

// Chunks reads chunks up to the one that ends a reply.
func (c *Client) Chunks(next func() Chunk) (r ChunkedReply) {
	c.T.Helper()
	for {
		k := next()
		r = append(r, k)
		if k.Done {
			return r
		}
	}
}

// Content puts the content of a reply to a READ together, and fails the test
// unless its chunks cover the request exactly once, none is empty, and holes
// and data are where the protocol allows them. It returns how many chunks hold
// content, and the error that ended the reply.
func (c *Client) Content(r ChunkedReply, offset uint64, length uint32) (data []byte, chunks, holes int, errno wire.Errno) {
	c.T.Helper()
	data = make([]byte, length)
	covered := make([]bool, length)
	cover := func(at, n uint64) []byte {
		if n == 0 || at < offset || at-offset+n > uint64(length) {
			c.T.Fatalf("a chunk of %d bytes at %d, for a READ of %d at %d", n, at, length, offset)
		}
		for i := at - offset; i < at-offset+n; i++ {
			if covered[i] {
				c.T.Fatalf("byte %d comes twice", offset+i)
			}
			covered[i] = true
		}
		chunks++
		return data[at-offset:][:n]
	}
	for _, k := range r {
		switch k.Type {
		case wire.ReplyOffsetData:
			if len(k.Data) < 9 {
				c.T.Fatalf("OFFSET_DATA of %d bytes", len(k.Data))
			}
			copy(cover(binary.BigEndian.Uint64(k.Data), uint64(len(k.Data)-8)), k.Data[8:])
		case wire.ReplyOffsetHole:
			if len(k.Data) != 12 {
				c.T.Fatalf("OFFSET_HOLE of %d bytes", len(k.Data))
			}
			cover(binary.BigEndian.Uint64(k.Data), uint64(binary.BigEndian.Uint32(k.Data[8:])))
			holes++
		case wire.ReplyNone:
			if !k.Done || len(k.Data) != 0 {
				c.T.Fatalf("NONE with %d bytes, done %v", len(k.Data), k.Done)
			}
		case wire.ReplyError, wire.ReplyErrorOffset:
			if errno, _, _ = k.Error(); errno == 0 {
				c.T.Fatalf("malformed error chunk %x", k.Data)
			}
		default:
			c.T.Fatalf("%v in the reply to a READ", k.Type)
		}
	}
	for i := range covered {
		if !covered[i] && errno == 0 {
			c.T.Fatalf("byte %d is missing", offset+uint64(i))
		}
	}
	return data, chunks, holes, errno
}

// ExtendedRequest sends an extended request.
func (c *Client) ExtendedRequest(cmd wire.Command, flags wire.CommandFlags, cookie, offset, length uint64, payload ...any) {
	c.T.Helper()
	c.Send(uint32(0x21e41c71), uint16(flags), uint16(cmd), cookie, offset, length, Bytes(payload...))
}

// MetaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func MetaRequest(name string, queries ...string) []byte {
	b := Bytes(uint32(len(name)), name, uint32(len(queries)))
	for _, q := range queries {
		b = append(b, Bytes(uint32(len(q)), q)...)
	}
	return b
}
