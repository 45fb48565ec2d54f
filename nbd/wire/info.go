package wire

import (
	"encoding/binary"
	"fmt"
)

// Info is a kind of information about an export (proto.md, "NBD_REP_INFO").
type Info uint16

const (
	InfoExport      Info = 0 // EXPORT
	InfoName        Info = 1 // NAME
	InfoDescription Info = 2 // DESCRIPTION
	InfoBlockSize   Info = 3 // BLOCK_SIZE
)

// InfoRequest is the data of INFO and GO: an export and what the client would
// like to know of it.
type InfoRequest struct {
	Name  string
	Infos []Info
}

// Wants reports whether the client asked for i.
func (r *InfoRequest) Wants(i Info) bool {
	for _, x := range r.Infos {
		if x == i {
			return true
		}
	}
	return false
}

// ParseInfoRequest parses the data of INFO or GO; name and list must fill it
// exactly. The result shares no memory with p.
func ParseInfoRequest(p []byte) (*InfoRequest, error) {
	const fixed = 4 + 2 // the two length fields
	if len(p) < fixed {
		return nil, fmt.Errorf("%w: %d bytes, at least %d are needed", ErrMalformed, len(p), fixed)
	}
	nameLen := uint64(binary.BigEndian.Uint32(p))
	if nameLen > uint64(len(p)-fixed) {
		return nil, fmt.Errorf("%w: a name of %d bytes in %d", ErrMalformed, nameLen, len(p)-fixed)
	}
	req := &InfoRequest{Name: string(p[4 : 4+nameLen])}
	list := p[4+nameLen:]
	n := int(binary.BigEndian.Uint16(list))
	list = list[2:]
	if len(list) != 2*n {
		return nil, fmt.Errorf("%w: %d bytes of list for %d information requests", ErrMalformed, len(list), n)
	}
	for i := range n {
		req.Infos = append(req.Infos, Info(binary.BigEndian.Uint16(list[2*i:])))
	}
	return req, CheckName(req.Name)
}

// AppendExportInfo appends the data of REP_INFO, INFO_EXPORT.
func AppendExportInfo(b []byte, size uint64, flags TransmissionFlags) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(InfoExport))
	b = binary.BigEndian.AppendUint64(b, size)
	return binary.BigEndian.AppendUint16(b, uint16(flags))
}

// AppendTextInfo appends the data of REP_INFO, INFO_NAME or INFO_DESCRIPTION.
func AppendTextInfo(b []byte, i Info, text string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(i)), text...)
}

// AppendBlockSizeInfo appends the data of REP_INFO, INFO_BLOCK_SIZE.
func AppendBlockSizeInfo(b []byte, minimum, preferred, maximum uint32) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(InfoBlockSize))
	b = binary.BigEndian.AppendUint32(b, minimum)
	b = binary.BigEndian.AppendUint32(b, preferred)
	return binary.BigEndian.AppendUint32(b, maximum)
}
