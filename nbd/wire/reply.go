package wire

import "encoding/binary"

// AppendSimpleReply appends a simple reply's header; the data of a successful
// READ follow it (proto.md, "Simple reply message").
func AppendSimpleReply(b []byte, errno Errno, cookie Cookie) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicSimpleReply)
	b = binary.BigEndian.AppendUint32(b, uint32(errno))
	return binary.BigEndian.AppendUint64(b, uint64(cookie))
}

// ChunkType says what a chunk of a structured or extended reply holds (proto.md,
// "Structured reply types").
type ChunkType uint16

const (
	ReplyNone           ChunkType = 0         // NONE
	ReplyOffsetData     ChunkType = 1         // OFFSET_DATA
	ReplyOffsetHole     ChunkType = 2         // OFFSET_HOLE
	ReplyBlockStatus    ChunkType = 5         // BLOCK_STATUS
	ReplyBlockStatusExt ChunkType = 6         // BLOCK_STATUS_EXT
	ReplyError          ChunkType = 1<<15 + 1 // ERROR
	ReplyErrorOffset    ChunkType = 1<<15 + 2 // ERROR_OFFSET
)

// ReplyFlagDone marks the last chunk of a reply.
const ReplyFlagDone uint16 = 1 << 0

// Chunk is the header of one chunk of a reply; Length bytes of payload follow.
type Chunk struct {
	Done   bool
	Type   ChunkType
	Cookie Cookie
	Offset uint64 // of the request; in extended replies only
	Length uint32
}

func (c *Chunk) flags() uint16 {
	if c.Done {
		return ReplyFlagDone
	}
	return 0
}

// AppendStructured appends the header of a structured reply chunk (proto.md,
// "Structured reply chunk message").
func (c *Chunk) AppendStructured(b []byte) []byte {
	b = c.appendCommon(b, MagicStructuredReply)
	return binary.BigEndian.AppendUint32(b, c.Length)
}

// AppendExtended appends the header of an extended reply chunk ("Extended reply
// chunk message").
func (c *Chunk) AppendExtended(b []byte) []byte {
	b = c.appendCommon(b, MagicExtendedReply)
	b = binary.BigEndian.AppendUint64(b, c.Offset)
	return binary.BigEndian.AppendUint64(b, uint64(c.Length))
}

func (c *Chunk) appendCommon(b []byte, magic uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, c.flags())
	b = binary.BigEndian.AppendUint16(b, uint16(c.Type))
	return binary.BigEndian.AppendUint64(b, uint64(c.Cookie))
}

// Sizes of what precedes, in the payload of a chunk, what it is about.
const (
	OffsetDataSize = 8     // then the data
	OffsetHoleSize = 8 + 4 // all there is
)

// AppendOffsetHole appends the payload of an OFFSET_HOLE.
func AppendOffsetHole(b []byte, offset uint64, length uint32) []byte {
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, length)
}

// AppendError appends the payload of an ERROR; that of an ERROR_OFFSET has the
// offset behind it. A text too long is cut.
func AppendError(b []byte, errno Errno, text string) []byte {
	text = text[:min(len(text), MaxString)]
	b = binary.BigEndian.AppendUint32(b, uint32(errno))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}
