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

// Request is a request without its payload (proto.md, "Request message"). If it
// is a compact one, only a WRITE is followed by a payload; if it is extended,
// any with CmdFlagPayloadLen. The payload has Length bytes.
type Request struct {
	Flags   CommandFlags
	Command Command
	Cookie  Cookie
	Offset  uint64
	Length  uint64 // of the payload, or else of what the command is about
}

// ParseExtendedRequest parses [ExtendedRequestSize] bytes.
func ParseExtendedRequest(p []byte) (Request, error) {
	if m := binary.BigEndian.Uint32(p); m != MagicExtendedRequest {
		return Request{}, fmt.Errorf("extended request: %w %#x", ErrMagic, m)
	}
	r := parseCommon(p)
	r.Length = binary.BigEndian.Uint64(p[24:])
	return r, nil
}

// ParseRequest parses a compact request, [RequestSize] bytes.
func ParseRequest(p []byte) (Request, error) {
	if m := binary.BigEndian.Uint32(p); m != MagicRequest {
		return Request{}, fmt.Errorf("request: %w %#x", ErrMagic, m)
	}
	r := parseCommon(p)
	r.Length = uint64(binary.BigEndian.Uint32(p[24:]))
	return r, nil
}

func parseCommon(p []byte) Request {
	return Request{
		Flags:   CommandFlags(binary.BigEndian.Uint16(p[4:])),
		Command: Command(binary.BigEndian.Uint16(p[6:])),
		Cookie:  Cookie(binary.BigEndian.Uint64(p[8:])),
		Offset:  binary.BigEndian.Uint64(p[16:]),
	}
}

// StatusRequest is the payload of a BLOCK_STATUS: how much is asked about, and
// which contexts the answer is to be limited to.
type StatusRequest struct {
	Length   uint64
	Contexts []ContextID
}

// ParseStatusRequest parses the payload of a BLOCK_STATUS.
func ParseStatusRequest(p []byte) (StatusRequest, error) {
	if len(p) < 8 || len(p)%4 != 0 {
		return StatusRequest{}, fmt.Errorf("BLOCK_STATUS: %w: a payload of %d bytes", ErrMalformed, len(p))
	}
	r := StatusRequest{Length: binary.BigEndian.Uint64(p)}
	for p = p[8:]; len(p) > 0; p = p[4:] {
		r.Contexts = append(r.Contexts, ContextID(binary.BigEndian.Uint32(p)))
	}
	return r, nil
}
