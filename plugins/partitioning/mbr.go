package partitioning

import (
	"encoding/binary"
	"errors"
)

const (
	// maxMBRSector is behind the last sector that a table of this kind can name.
	maxMBRSector = 1<<32 - 1
	extendedID   = 0x0f // with LBA
	primaries    = 4
)

var errTooLargeForMBR = errors.New("the disk is too large for partition-type=mbr: use gpt")

// layoutMBR makes a table of the kind of DOS. Of more than four partitions, those
// from the fourth on are in an extended partition, each behind a table of its own.
func layoutMBR(partitions []*partition) ([]piece, error) {
	direct, logical := partitions, []*partition(nil)
	if len(partitions) > primaries {
		direct, logical = partitions[:primaries-1], partitions[primaries-1:]
	}
	table := make([]byte, sectorSize)
	sign(table)
	end := int64(1)
	for i, p := range direct {
		end = p.place(end)
		entry(table, i, p.mbrID, p.first, p.sectors())
	}
	if end > maxMBRSector {
		return nil, errTooLargeForMBR
	}
	pieces, end := arrange(table, direct)
	if logical == nil {
		return pieces, nil
	}
	return appendLogical(pieces, table, logical, end)
}

// place puts a partition at or behind a sector, and returns the one behind it.
func (p *partition) place(at int64) int64 {
	p.first = align(at, p.alignment)
	p.last = p.first + p.sectors() - 1
	return p.last + 1
}

// appendLogical puts partitions into an extended one that begins at a sector, or
// behind it (osdev's "Extended Boot Record": offsets of the partition are from its
// table, those of the next table from the extended partition).
func appendLogical(pieces []piece, mbr []byte, logical []*partition, end int64) ([]piece, error) {
	begin := align(end, logical[0].alignment)
	tables := make([][]byte, len(logical))
	at := begin
	var where []int64 // of the tables
	for i, p := range logical {
		tables[i] = make([]byte, sectorSize)
		sign(tables[i])
		where = append(where, at)
		next := p.place(at + 1)
		entry(tables[i], 0, p.mbrID, p.first-at, p.sectors())
		if i > 0 {
			entry(tables[i-1], 1, extendedID, at-begin, next-at)
		}
		at = next
	}
	if at > maxMBRSector {
		return nil, errTooLargeForMBR
	}
	entry(mbr, primaries-1, extendedID, begin, at-begin)
	for i, p := range logical {
		inner, _ := arrange(tables[i], nil)
		pieces = append(pieces, piece{padding: (where[i] - end) * sectorSize})
		pieces = append(pieces, inner...)
		pieces = append(pieces, piece{padding: (p.first - where[i] - 1) * sectorSize}, piece{partition: p},
			piece{padding: p.sectors()*sectorSize - p.size})
		end = p.last + 1
	}
	return pieces, nil
}

// entry writes entry i of a table. What it says in cylinders, heads and sectors is
// more than those can say: look at the others.
func entry(table []byte, i int, id byte, first, sectors int64) {
	e := table[0x1be+16*i:][:16]
	copy(e[1:], []byte{0xfe, 0xff, 0xff})
	e[4] = id
	copy(e[5:], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(e[8:], uint32(first))
	binary.LittleEndian.PutUint32(e[12:], uint32(sectors))
}

func sign(table []byte) { copy(table[0x1fe:], []byte{0x55, 0xaa}) }
