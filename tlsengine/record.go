package tlsengine

import (
	"encoding/binary"
)

// The record layer (RFC 8446, Section 5).
const (
	recordHeaderLen = 5
	maxPlaintext    = 1 << 14
	maxCiphertext   = maxPlaintext + 256
	tagLen          = 16 // of every suite
	recordOverhead  = recordHeaderLen + 1 + tagLen
	maxRecord       = recordHeaderLen + maxCiphertext
	legacyVersion   = 0x0303
	innerTypeLen    = 1 // of the type inside
)

// contentType is the type of a record.
type contentType uint8

const (
	typeChangeCipherSpec contentType = 20
	typeAlert            contentType = 21
	typeHandshake        contentType = 22
	typeApplicationData  contentType = 23
)

// seal appends a record of content, at most maxPlaintext bytes, to dst. spare
// says that the byte behind content may be used meanwhile; without it content
// is copied, as the inner type has to follow it. dst must not overlap content.
func (h *halfConn) seal(dst []byte, typ contentType, content []byte, spare bool) []byte {
	n := len(content) + innerTypeLen + tagLen
	dst = append(dst, byte(typeApplicationData), legacyVersion>>8, legacyVersion&0xff, byte(n>>8), byte(n))
	header := dst[len(dst)-recordHeaderLen:]
	if !spare {
		at := len(dst)
		dst = append(append(dst, content...), byte(typ))
		return h.aead.Seal(dst[:at], h.nextNonce(), dst[at:], header)
	}
	inner := content[:len(content)+1]
	saved := inner[len(content)]
	inner[len(content)] = byte(typ)
	dst = h.aead.Seal(dst, h.nextNonce(), inner, header)
	inner[len(content)] = saved
	return dst
}

// recordLen returns the length of the record at the beginning of p, header
// included; 0 if the header is not all there.
func recordLen(p []byte) (int, error) {
	if len(p) < recordHeaderLen {
		return 0, nil
	}
	// The version is not looked at: "legacy_record_version MUST be ignored for
	// all purposes" (Section 5.1).
	switch n := int(binary.BigEndian.Uint16(p[3:])); {
	case contentType(p[0]) == typeChangeCipherSpec || contentType(p[0]) == typeAlert || contentType(p[0]) == typeHandshake:
		return 0, fatal(alertUnexpectedMessage, "a record of type %d that is not encrypted", p[0])
	case contentType(p[0]) != typeApplicationData:
		return 0, fatal(alertUnexpectedMessage, "a record of unknown type %d", p[0])
	case n > maxCiphertext:
		return 0, fatal(alertRecordOverflow, "a record of %d bytes", n)
	default:
		return recordHeaderLen + n, nil
	}
}

// open decrypts a record to dst, which may be the place of its own ciphertext,
// and returns what is in it, without padding.
func (h *halfConn) open(dst, record []byte) (typ contentType, content []byte, err error) {
	header, ciphertext := record[:recordHeaderLen], record[recordHeaderLen:]
	if len(ciphertext) < tagLen+innerTypeLen {
		return 0, nil, fatal(alertBadRecordMAC, "a record of %d bytes", len(ciphertext))
	}
	inner, err := h.aead.Open(dst[:0], h.nextNonce(), ciphertext, header)
	if err != nil {
		return 0, nil, fatal(alertBadRecordMAC, "a record that does not decrypt")
	}
	// "the remaining encrypted portion … exceed 2^14 + 1 octets" (Section 5.4).
	if len(inner) > maxPlaintext+innerTypeLen {
		return 0, nil, fatal(alertRecordOverflow, "a record with %d bytes in it", len(inner))
	}
	i := len(inner) - 1
	for i >= 0 && inner[i] == 0 {
		i--
	}
	if i < 0 {
		return 0, nil, fatal(alertUnexpectedMessage, "a record of padding alone")
	}
	return contentType(inner[i]), inner[:i], nil
}
