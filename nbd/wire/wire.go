// Package wire is the NBD protocol as bytes: the constants of proto.md,
// "Values", and functions that parse and append its messages.
//
// It does no input or output, starts no goroutines and allocates nothing that
// a peer can size: whoever reads from the network bounds a length first, reads
// that many bytes, and hands them here whole. All integers are big endian.
package wire

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The magic numbers of proto.md, "Values".
const (
	MagicNBD         uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	MagicOption      uint64 = 0x49484156454F5054 // "IHAVEOPT"
	MagicOptionReply uint64 = 0x0003e889045565a9

	MagicRequest         uint32 = 0x25609513
	MagicExtendedRequest uint32 = 0x21e41c71
	MagicSimpleReply     uint32 = 0x67446698
	MagicStructuredReply uint32 = 0x668e33ef
	MagicExtendedReply   uint32 = 0x6e8a278c
)

// Sizes of the fixed parts of messages, in bytes.
const (
	GreetingSize          = 8 + 8 + 2
	ClientFlagsSize       = 4
	OptionHeaderSize      = 8 + 4 + 4
	OptionReplyHeaderSize = 8 + 4 + 4 + 4
	ExportNameReplySize   = 8 + 2 // without the zeroes
	ExportNameZeroes      = 124
	RequestSize           = 4 + 2 + 2 + 8 + 8 + 4
	ExtendedRequestSize   = 4 + 2 + 2 + 8 + 8 + 8
	SimpleReplySize       = 4 + 4 + 8
	StructuredReplySize   = 4 + 2 + 2 + 8 + 4
	ExtendedReplySize     = 4 + 2 + 2 + 8 + 8 + 8
)

// MaxString bounds every string of the protocol: "the maximum length of a
// string is 4096 bytes" (proto.md, "Conventions").
const MaxString = 4096

// MaxPayload is the largest payload of a request or reply, 32 MiB: a server
// serves at least this much (proto.md, "Block size constraints"), and clients
// expect no more of one that says nothing else.
const MaxPayload = 1 << 25

// ErrName is wrapped by the errors of [CheckName].
var ErrName = errors.New("bad export name")

// CheckName reports whether name may be an export name: UTF-8, without NUL,
// at most [MaxString] bytes (proto.md, "Conventions").
func CheckName(name string) error {
	switch {
	case len(name) > MaxString:
		return fmt.Errorf("%w: %d bytes, the longest is %d", ErrName, len(name), MaxString)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w: it contains a NUL", ErrName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: it is not UTF-8", ErrName)
	}
	return nil
}
