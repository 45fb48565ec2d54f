package wire

import (
	"encoding/binary"
	"fmt"
)

// Command is what a request asks for (proto.md, "Request types").
type Command uint16

const (
	CmdRead        Command = 0 // READ
	CmdWrite       Command = 1 // WRITE
	CmdDisc        Command = 2 // DISC
	CmdFlush       Command = 3 // FLUSH
	CmdTrim        Command = 4 // TRIM
	CmdCache       Command = 5 // CACHE
	CmdWriteZeroes Command = 6 // WRITE_ZEROES
	CmdBlockStatus Command = 7 // BLOCK_STATUS
)

// Cookie ties a reply to its request; its value means nothing to a server.
type Cookie uint64

// Request is a compact request without its payload (proto.md, "Request
// message"). Only a WRITE is followed by one, of Length bytes.
type Request struct {
	Flags   CommandFlags
	Command Command
	Cookie  Cookie
	Offset  uint64
	Length  uint32
}

// ParseRequest parses [RequestSize] bytes.
func ParseRequest(p []byte) (Request, error) {
	if m := binary.BigEndian.Uint32(p); m != MagicRequest {
		return Request{}, fmt.Errorf("request: %w %#x", ErrMagic, m)
	}
	return Request{
		Flags:   CommandFlags(binary.BigEndian.Uint16(p[4:])),
		Command: Command(binary.BigEndian.Uint16(p[6:])),
		Cookie:  Cookie(binary.BigEndian.Uint64(p[8:])),
		Offset:  binary.BigEndian.Uint64(p[16:]),
		Length:  binary.BigEndian.Uint32(p[24:]),
	}, nil
}

// AppendSimpleReply appends a simple reply's header; the data of a successful
// READ follow it.
func AppendSimpleReply(b []byte, errno Errno, cookie Cookie) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicSimpleReply)
	b = binary.BigEndian.AppendUint32(b, uint32(errno))
	return binary.BigEndian.AppendUint64(b, uint64(cookie))
}
