package filters

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var partitionFilter = plugin.Filter{
	Name: "partition", Summary: "one partition of the disk", Usage: "partition=NUMBER [partition-sectorsize=512|4096]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		number, err := p.Uint("partition", 0)
		if err != nil {
			return nil, err
		}
		sector, given, err := p.Size("partition-sectorsize")
		switch {
		case err != nil:
			return nil, err
		case number == 0:
			return nil, errors.New("partition= is needed, and counts from 1")
		case !given:
			sector = 512
		case sector != 512 && sector != 4096:
			return nil, errors.New("partition-sectorsize must be 512 or 4096")
		}
		return edit(func(a *nbd.Abilities) error {
			t := table{a.ReadAt, a.Size, sector}
			start, length, err := t.find(number)
			if err != nil {
				return err
			}
			if start < 0 || length <= 0 || start > a.Size || length > a.Size-start {
				return fmt.Errorf("partition %d, %d bytes at %d, is not within the disk of %d", number, length, start, a.Size)
			}
			window(a, start, length)
			return nil
		}), nil
	},
}

// table reads a partition table.
type table struct {
	readAt func([]byte, int64) (int, error)
	size   int64
	sector int64
}

// maxLogical bounds the chain of logical partitions, which may be a circle.
const maxLogical = 128

// find returns where a partition is, in bytes.
func (t table) find(number uint64) (start, length int64, err error) {
	mbr, err := t.read(0, 512)
	if err != nil {
		return 0, 0, err
	}
	if mbr[510] != 0x55 || mbr[511] != 0xaa {
		return 0, 0, errors.New("there is no partition table")
	}
	if t.size >= 2*t.sector+16<<10 {
		header, err := t.read(t.sector, 512)
		if err != nil {
			return 0, 0, err
		}
		if bytes.HasPrefix(header, []byte("EFI PART")) {
			return t.gpt(header, number)
		}
	}
	return t.mbr(mbr, number)
}

func (t table) read(off, n int64) ([]byte, error) {
	if off < 0 || off > t.size-n {
		return nil, fmt.Errorf("the partition table goes on at %d, beyond the end", off)
	}
	b := make([]byte, n)
	_, err := t.readAt(b, off)
	return b, err
}

// gpt finds a partition of a GUID partition table (UEFI, Section 5.3).
func (t table) gpt(header []byte, number uint64) (start, length int64, err error) {
	at := binary.LittleEndian.Uint64(header[72:])
	count, size := binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
	switch {
	case number > uint64(count):
		return 0, 0, fmt.Errorf("there is no partition %d: the table has %d entries", number, count)
	case size < 128 || size > 4096 || at > uint64(t.size/t.sector):
		return 0, 0, errors.New("the partition table is damaged")
	}
	e, err := t.read(int64(at)*t.sector+int64(number-1)*int64(size), 128)
	if err != nil {
		return 0, 0, err
	}
	if isZero(e[:16]) {
		return 0, 0, fmt.Errorf("there is no partition %d", number)
	}
	first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
	if last < first || last >= uint64(t.size/t.sector) {
		return 0, 0, fmt.Errorf("partition %d, sectors %d to %d, is not within the disk", number, first, last)
	}
	return int64(first) * t.sector, int64(last-first+1) * t.sector, nil
}

// An entry of a master boot record.
type mbrEntry struct {
	kind          byte
	start, length int64 // in sectors
}

func parseMBREntry(b []byte) mbrEntry {
	return mbrEntry{b[4], int64(binary.LittleEndian.Uint32(b[8:])), int64(binary.LittleEndian.Uint32(b[12:]))}
}

func (e mbrEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// mbr finds a primary partition, 1 to 4, or a logical one, from 5 on.
func (t table) mbr(b []byte, number uint64) (start, length int64, err error) {
	missing := fmt.Errorf("there is no partition %d", number)
	if number <= 4 {
		e := parseMBREntry(b[446+16*(number-1):])
		switch {
		case e.kind == 0 || e.length == 0:
			return 0, 0, missing
		case e.extended():
			return 0, 0, fmt.Errorf("partition %d is the extended one, which holds others", number)
		}
		return e.start * t.sector, e.length * t.sector, nil
	}
	for i := range 4 {
		e := parseMBREntry(b[446+16*i:])
		if e.extended() {
			return t.logical(e.start, number, missing)
		}
	}
	return 0, 0, missing
}

// logical follows the chain of boot records in an extended partition at base.
func (t table) logical(base int64, number uint64, missing error) (start, length int64, err error) {
	at := base
	for i := uint64(5); i < 5+maxLogical; i++ {
		b, err := t.read(at*t.sector, 512)
		if err != nil {
			return 0, 0, err
		}
		if b[510] != 0x55 || b[511] != 0xaa {
			return 0, 0, errors.New("the partition table is damaged")
		}
		e, next := parseMBREntry(b[446:]), parseMBREntry(b[462:])
		if i == number && e.length > 0 {
			return (at + e.start) * t.sector, e.length * t.sector, nil
		}
		if !next.extended() || next.start == 0 {
			return 0, 0, missing
		}
		at = base + next.start
	}
	return 0, 0, missing
}
