package wire

import (
	"encoding/binary"
	"fmt"
)

// What a client appends and parses: the other half of each message.

// ParseGreeting parses what a server says first, [GreetingSize] bytes.
func ParseGreeting(p []byte) (HandshakeFlags, error) {
	if m := binary.BigEndian.Uint64(p); m != MagicNBD {
		return 0, fmt.Errorf("greeting: %w %#x", ErrMagic, m)
	}
	if m := binary.BigEndian.Uint64(p[8:]); m != MagicOption {
		return 0, fmt.Errorf("greeting: %w %#x: the server does not speak newstyle", ErrMagic, m)
	}
	return HandshakeFlags(binary.BigEndian.Uint16(p[16:])), nil
}

// AppendOption appends an option.
func AppendOption(b []byte, opt Option, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ParseOptionReplyHeader parses what precedes the data of an answer to an option,
// [OptionReplyHeaderSize] bytes; length is that of the data.
func ParseOptionReplyHeader(p []byte) (opt Option, rep OptionReply, length uint32, err error) {
	if m := binary.BigEndian.Uint64(p); m != MagicOptionReply {
		return 0, 0, 0, fmt.Errorf("option reply: %w %#x", ErrMagic, m)
	}
	u32 := binary.BigEndian.Uint32
	return Option(u32(p[8:])), OptionReply(u32(p[12:])), u32(p[16:]), nil
}

// Append appends the data of INFO or GO.
func (r *InfoRequest) Append(b []byte) []byte {
	b = appendString(b, r.Name)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Infos)))
	for _, i := range r.Infos {
		b = binary.BigEndian.AppendUint16(b, uint16(i))
	}
	return b
}

// ParseExportInfo parses what [AppendExportInfo] appends, less the kind.
func ParseExportInfo(p []byte) (size uint64, flags TransmissionFlags, err error) {
	if len(p) != ExportNameReplySize {
		return 0, 0, fmt.Errorf("INFO_EXPORT: %w: %d bytes", ErrMalformed, len(p))
	}
	return binary.BigEndian.Uint64(p), TransmissionFlags(binary.BigEndian.Uint16(p[8:])), nil
}

// ParseBlockSizeInfo parses what [AppendBlockSizeInfo] appends, less the kind.
func ParseBlockSizeInfo(p []byte) (minimum, preferred, maximum uint32, err error) {
	if len(p) != 3*4 {
		return 0, 0, 0, fmt.Errorf("INFO_BLOCK_SIZE: %w: %d bytes", ErrMalformed, len(p))
	}
	u32 := binary.BigEndian.Uint32
	return u32(p), u32(p[4:]), u32(p[8:]), nil
}

// Append appends the data of LIST_META_CONTEXT or SET_META_CONTEXT.
func (r *MetaRequest) Append(b []byte) []byte {
	b = appendString(b, r.Name)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Queries)))
	for _, q := range r.Queries {
		b = appendString(b, q)
	}
	return b
}

// ParseMetaContext parses the data of a REP_META_CONTEXT.
func ParseMetaContext(p []byte) (id ContextID, name string, err error) {
	if len(p) < 4 || len(p) > 4+MaxString {
		return 0, "", fmt.Errorf("META_CONTEXT: %w: %d bytes", ErrMalformed, len(p))
	}
	return ContextID(binary.BigEndian.Uint32(p)), string(p[4:]), nil
}

// ParseServer parses the data of a REP_SERVER.
func ParseServer(p []byte) (name, details string, err error) {
	name, p, err = cutString(p)
	if err == nil {
		err = CheckName(name)
	}
	if err != nil {
		return "", "", fmt.Errorf("SERVER: %w", err)
	}
	return name, string(p), nil
}

// Append appends a compact request, whose Length has to fit 32 bits; the payload
// of a WRITE follows it.
func (r *Request) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicRequest)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Flags))
	b = binary.BigEndian.AppendUint16(b, uint16(r.Command))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Cookie))
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	return binary.BigEndian.AppendUint32(b, uint32(r.Length))
}

// ParseSimpleReply parses a simple reply's header, [SimpleReplySize] bytes.
func ParseSimpleReply(p []byte) (Errno, Cookie, error) {
	if m := binary.BigEndian.Uint32(p); m != MagicSimpleReply {
		return 0, 0, fmt.Errorf("simple reply: %w %#x", ErrMagic, m)
	}
	return Errno(binary.BigEndian.Uint32(p[4:])), Cookie(binary.BigEndian.Uint64(p[8:])), nil
}

// ParseStructured parses the header of a structured reply chunk,
// [StructuredReplySize] bytes.
func ParseStructured(p []byte) (Chunk, error) {
	if m := binary.BigEndian.Uint32(p); m != MagicStructuredReply {
		return Chunk{}, fmt.Errorf("structured reply: %w %#x", ErrMagic, m)
	}
	return Chunk{
		Done:   binary.BigEndian.Uint16(p[4:])&ReplyFlagDone != 0,
		Type:   ChunkType(binary.BigEndian.Uint16(p[6:])),
		Cookie: Cookie(binary.BigEndian.Uint64(p[8:])),
		Length: binary.BigEndian.Uint32(p[16:]),
	}, nil
}

// IsError reports whether the chunk makes its reply an error. Types that are not
// known may be errors, too (proto.md, "Error chunk types").
func (t ChunkType) IsError() bool { return t&(1<<15) != 0 }

// ParseOffsetHole parses the payload of an OFFSET_HOLE, [OffsetHoleSize] bytes.
func ParseOffsetHole(p []byte) (offset uint64, length uint32) {
	return binary.BigEndian.Uint64(p), binary.BigEndian.Uint32(p[8:])
}

// ParseError parses the payload of an ERROR, or of another error chunk: what is
// behind the text is left out.
func ParseError(p []byte) (Errno, string, error) {
	if len(p) < 6 {
		return 0, "", fmt.Errorf("ERROR: %w: %d bytes", ErrMalformed, len(p))
	}
	errno, n := Errno(binary.BigEndian.Uint32(p)), int(binary.BigEndian.Uint16(p[4:]))
	if errno == 0 || n > len(p)-6 || n > MaxString {
		return 0, "", fmt.Errorf("ERROR: %w: error %d, and a text of %d bytes in %d", ErrMalformed, errno, n, len(p)-6)
	}
	return errno, string(p[6 : 6+n]), nil
}

// ParseBlockStatus parses the descriptors of a BLOCK_STATUS, all of p.
func ParseBlockStatus(p []byte) ([]Descriptor, error) {
	if len(p)%8 != 0 {
		return nil, fmt.Errorf("BLOCK_STATUS: %w: %d bytes of descriptors", ErrMalformed, len(p))
	}
	ds := make([]Descriptor, len(p)/8)
	for i := range ds {
		d := p[8*i:]
		ds[i] = Descriptor{Length: uint64(binary.BigEndian.Uint32(d)), Flags: StateFlags(binary.BigEndian.Uint32(d[4:]))}
		if ds[i].Length == 0 {
			return nil, fmt.Errorf("BLOCK_STATUS: %w: an extent of no bytes", ErrMalformed)
		}
	}
	return ds, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
