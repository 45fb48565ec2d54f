package partitioning

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"unicode/utf16"
)

// UEFI 2.10, Section 5: "GUID Partition Table (GPT) Disk Layout".
const (
	entrySize     = 128
	minEntries    = 128
	protectiveID  = 0xee
	headerSize    = 92
	headerVersion = 0x00010000
)

// layoutGPT makes a table of GUIDs at the beginning, and another at the end.
func layoutGPT(partitions []*partition) ([]piece, error) {
	count := int64(align(int64(max(len(partitions), minEntries)), sectorSize/entrySize))
	tableSectors := count * entrySize / sectorSize
	usable := 2 + tableSectors // behind the protective MBR, the header and the table
	end := usable
	for i, p := range partitions {
		if p.size > math.MaxInt64/2 || end > math.MaxInt64/sectorSize/2 {
			return nil, fmt.Errorf("with partition %d the disk is too large", i+1)
		}
		end = p.place(end)
	}
	total := end + tableSectors + 1
	entries := entriesOf(partitions, count)
	disk := sha256.Sum256(entries) // it has to be a different one for every disk

	head := make([]byte, 2*sectorSize)
	sign(head)
	entry(head, 0, protectiveID, 1, min(total-1, math.MaxUint32))
	copy(head[0x1be+1:], []byte{0x00, 0x02, 0x00})
	header(head[sectorSize:], gptHeader{1, total - 1, usable, end - 1, 2, count}, guid(disk[:16]), entries)
	tail := make([]byte, sectorSize)
	header(tail, gptHeader{total - 1, 1, usable, end - 1, end, count}, guid(disk[:16]), entries)

	pieces, _ := arrange(append(head, entries...), partitions)
	return append(pieces, piece{table: append(entries[:len(entries):len(entries)], tail...)}), nil
}

// gptHeader is what is different in the two headers, in sectors.
type gptHeader struct{ self, other, firstUsable, lastUsable, entries, count int64 }

func header(b []byte, h gptHeader, disk guid, entries []byte) {
	le := binary.LittleEndian
	copy(b, "EFI PART")
	le.PutUint32(b[8:], headerVersion)
	le.PutUint32(b[12:], headerSize)
	le.PutUint64(b[24:], uint64(h.self))
	le.PutUint64(b[32:], uint64(h.other))
	le.PutUint64(b[40:], uint64(h.firstUsable))
	le.PutUint64(b[48:], uint64(h.lastUsable))
	copy(b[56:], disk[:])
	le.PutUint64(b[72:], uint64(h.entries))
	le.PutUint32(b[80:], uint32(h.count))
	le.PutUint32(b[84:], entrySize)
	le.PutUint32(b[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:headerSize]))
}

func entriesOf(partitions []*partition, count int64) []byte {
	b := make([]byte, count*entrySize)
	le := binary.LittleEndian
	for i, p := range partitions {
		e := b[i*entrySize:][:entrySize]
		copy(e, p.typeGUID[:])
		own := sha256.Sum256(fmt.Appendf(nil, "%d %d %d", i, p.first, p.size))
		copy(e[16:], own[:16])
		le.PutUint64(e[32:], uint64(p.first))
		le.PutUint64(e[40:], uint64(p.last))
		for k, c := range utf16.Encode([]rune(fmt.Sprintf("Partition %d", i+1))) {
			le.PutUint16(e[56+2*k:], c)
		}
	}
	return b
}
