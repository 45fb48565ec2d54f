package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

//go:generate go tool stringer -linecomment -type=Option,OptionReply,Info,Command,ChunkType,Errno -output=strings.go

// Option is what a client asks for while haggling (proto.md, "Option types").
type Option uint32

const (
	OptExportName      Option = 1  // EXPORT_NAME
	OptAbort           Option = 2  // ABORT
	OptList            Option = 3  // LIST
	OptPeekExport      Option = 4  // PEEK_EXPORT
	OptStartTLS        Option = 5  // STARTTLS
	OptInfo            Option = 6  // INFO
	OptGo              Option = 7  // GO
	OptStructuredReply Option = 8  // STRUCTURED_REPLY
	OptListMetaContext Option = 9  // LIST_META_CONTEXT
	OptSetMetaContext  Option = 10 // SET_META_CONTEXT
	OptExtendedHeaders Option = 11 // EXTENDED_HEADERS
)

// OptionReply is the type of an answer to an option (proto.md, "Option reply
// types"). The high bit marks an error.
type OptionReply uint32

const (
	RepAck         OptionReply = 1 // ACK
	RepServer      OptionReply = 2 // SERVER
	RepInfo        OptionReply = 3 // INFO
	RepMetaContext OptionReply = 4 // META_CONTEXT

	RepErrUnsup         OptionReply = repErr + 1  // ERR_UNSUP
	RepErrPolicy        OptionReply = repErr + 2  // ERR_POLICY
	RepErrInvalid       OptionReply = repErr + 3  // ERR_INVALID
	RepErrPlatform      OptionReply = repErr + 4  // ERR_PLATFORM
	RepErrTLSReqd       OptionReply = repErr + 5  // ERR_TLS_REQD
	RepErrUnknown       OptionReply = repErr + 6  // ERR_UNKNOWN
	RepErrShutdown      OptionReply = repErr + 7  // ERR_SHUTDOWN
	RepErrBlockSizeReqd OptionReply = repErr + 8  // ERR_BLOCK_SIZE_REQD
	RepErrTooBig        OptionReply = repErr + 9  // ERR_TOO_BIG
	RepErrExtHeaderReqd OptionReply = repErr + 10 // ERR_EXT_HEADER_REQD

	repErr = 1 << 31
)

// IsError reports whether r refuses the option.
func (r OptionReply) IsError() bool { return r&repErr != 0 }

// ErrMagic is wrapped when a message does not start with its magic number:
// the stream is out of step and cannot be read on.
var ErrMagic = errors.New("bad magic number")

// ErrMalformed is wrapped when a payload contradicts its own lengths.
var ErrMalformed = errors.New("malformed")

// AppendGreeting appends what a server says first (proto.md, "Fixed newstyle
// negotiation").
func AppendGreeting(b []byte, flags HandshakeFlags) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicNBD)
	b = binary.BigEndian.AppendUint64(b, MagicOption)
	return binary.BigEndian.AppendUint16(b, uint16(flags))
}

// ParseOptionHeader reads what precedes an option's data, [OptionHeaderSize]
// bytes; length is that of the data which follows.
func ParseOptionHeader(p []byte) (opt Option, length uint32, err error) {
	if m := binary.BigEndian.Uint64(p); m != MagicOption {
		return 0, 0, fmt.Errorf("option: %w %#x", ErrMagic, m)
	}
	return Option(binary.BigEndian.Uint32(p[8:])), binary.BigEndian.Uint32(p[12:]), nil
}

// AppendOptionReply appends one answer to opt.
func AppendOptionReply(b []byte, opt Option, rep OptionReply, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOptionReply)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, uint32(rep))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// AppendServer appends the data of a REP_SERVER: one export and what is to be
// said about it.
func AppendServer(b []byte, name, details string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	return append(b, details...)
}

// AppendExportNameReply appends the only answer to EXPORT_NAME; zeroes says
// whether the 124 unused bytes follow.
func AppendExportNameReply(b []byte, size uint64, flags TransmissionFlags, zeroes bool) []byte {
	b = binary.BigEndian.AppendUint64(b, size)
	b = binary.BigEndian.AppendUint16(b, uint16(flags))
	if zeroes {
		b = append(b, make([]byte, ExportNameZeroes)...)
	}
	return b
}
