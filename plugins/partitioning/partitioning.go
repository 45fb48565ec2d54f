// Package partitioning is the plugin partitioning: a disk made of files that are
// partitions, with a table in front (nbdkit-partitioning-plugin(1)).
package partitioning

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"nbd-ktls-server/backends/concat"
	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// Plugin is the plugin partitioning.
var Plugin = plugin.Plugin{
	Name:      "partitioning",
	Summary:   "a disk made of files that are its partitions",
	Usage:     "partitioning [[alignment=SIZE] [mbr-id=N|default] [type-guid=GUID|default] [file=]FILENAME]... [partition-type=mbr|gpt]",
	Magic:     "file",
	Configure: configure,
}

// partition is one file, and where it is on the disk, in sectors.
type partition struct {
	path      *file.Path
	size      int64 // in bytes
	alignment int64 // in sectors
	mbrID     byte
	typeGUID  guid

	first, last int64
}

const (
	sectorSize       = 512
	defaultAlignment = 1 << 20
	maxAlignment     = 1 << 40
	defaultID        = 0x83
	maxPartitions    = 4096
)

var defaultGUID = mustGUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4") // Linux filesystem data

func configure(p *plugin.Params) (*plugin.Source, error) {
	kind, _ := p.String("partition-type")
	partitions, err := findPartitions(p)
	if err != nil {
		return nil, err
	}
	if kind == "" {
		kind = choose(partitions)
	}
	var layout func([]*partition) ([]piece, error)
	switch kind {
	case "mbr":
		layout = layoutMBR
	case "gpt":
		layout = layoutGPT
	default:
		return nil, fmt.Errorf("partition-type=%s: it must be mbr or gpt", kind)
	}
	pieces, err := layout(partitions)
	if err != nil {
		return nil, err
	}
	return &plugin.Source{Open: func(context.Context, nbd.OpenInfo) (nbd.Backend, error) { return open(pieces) }}, nil
}

// findPartitions takes the files, each with what was said before it.
func findPartitions(p *plugin.Params) (all []*partition, err error) {
	opts := file.Options{ReadOnly: p.ReadOnly}
	now := partition{alignment: defaultAlignment / sectorSize, mbrID: defaultID, typeGUID: defaultGUID}
	for _, v := range p.Rest() {
		switch v.Key {
		case "alignment":
			now.alignment, err = parseAlignment(v.Value)
		case "mbr-id":
			now.mbrID, err = parseID(v.Value)
		case "type-guid":
			now.typeGUID, err = parseTypeGUID(v.Value)
		case "file":
			var one partition
			if one, err = now.of(v.Value, opts); err == nil {
				all = append(all, &one)
			}
		default:
			err = errors.New("there is no such parameter")
		}
		if err != nil {
			return nil, fmt.Errorf("%s=%s: %w", v.Key, v.Value, err)
		}
	}
	if len(all) == 0 || len(all) > maxPartitions {
		return nil, fmt.Errorf("there must be from 1 to %d files", maxPartitions)
	}
	return all, nil
}

// of is a partition like p that is the file called name.
func (p partition) of(name string, opts file.Options) (partition, error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return p, err
	}
	p.path = file.NewPath(path, opts)
	h, err := p.path.Open()
	if err != nil {
		return p, err
	}
	defer h.Close()
	p.size, err = h.Size()
	if err == nil && p.size == 0 {
		err = errors.New("it is empty")
	}
	return p, err
}

func (p *partition) sectors() int64 { return (p.size-1)/sectorSize + 1 }

func parseAlignment(s string) (int64, error) {
	n, err := plugin.ParseSize(s)
	if err == nil && (n < sectorSize || n > maxAlignment || n%sectorSize != 0) {
		err = fmt.Errorf("it is a multiple of %d, at most %d", sectorSize, int64(maxAlignment))
	}
	return n / sectorSize, err
}

func parseID(s string) (byte, error) {
	if s == "default" {
		return defaultID, nil
	}
	n, err := strconv.ParseUint(s, 0, 8)
	if err != nil {
		return 0, errors.New("it is a number up to 0xff")
	}
	return byte(n), nil
}

func parseTypeGUID(s string) (guid, error) {
	if s == "default" {
		return defaultGUID, nil
	}
	return parseGUID(s)
}

// guid as it is on a disk: the first three groups are little endian.
type guid [16]byte

func parseGUID(s string) (g guid, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Trim(s, "{}"), "-", ""))
	if err != nil || len(b) != len(g) {
		return g, errors.New("it is not a GUID")
	}
	for i, from := range []int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		g[i] = b[from]
	}
	return g, nil
}

func mustGUID(s string) guid {
	g, err := parseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// choose is the kind of table where none was asked for.
func choose(partitions []*partition) string {
	var sectors int64
	for _, p := range partitions {
		sectors += p.sectors() + p.alignment
	}
	if len(partitions) > 4 || sectors > maxMBRSector {
		return "gpt"
	}
	return "mbr"
}

// piece is a part of the disk: a partition, a table, or padding of so many bytes.
type piece struct {
	partition *partition
	table     []byte
	padding   int64
}

// open puts the pieces together.
func open(pieces []piece) (nbd.Backend, error) {
	var parts []nbd.Backend
	for _, p := range pieces {
		switch {
		case p.partition != nil:
			h, err := p.partition.path.Open()
			if err != nil {
				if d, e := concat.New(parts); e == nil {
					d.Close()
				}
				return nil, err
			}
			parts = append(parts, sized{h, p.partition.size})
		case p.table != nil:
			parts = append(parts, fixed{table: p.table, size: int64(len(p.table))})
		case p.padding > 0:
			parts = append(parts, fixed{size: p.padding})
		}
	}
	return concat.New(parts)
}

// sized is a file whose size may not have changed since the table was made.
type sized struct {
	*file.Handle
	size int64
}

// Resolve implements [nbd.Resolver].
func (s sized) Resolve(a *nbd.Abilities) error {
	if err := s.Handle.Resolve(a); err != nil {
		return err
	}
	if a.Size != s.size {
		return fmt.Errorf("a partition has %d bytes now, and had %d", a.Size, s.size)
	}
	return nil
}

// arrange puts the pieces of the partitions behind a table, with padding in between,
// and returns where the last ends, in sectors.
func arrange(table []byte, partitions []*partition) (pieces []piece, end int64) {
	pieces = []piece{{table: table}}
	end = int64(len(table)) / sectorSize
	for _, p := range partitions {
		pieces = append(pieces, piece{padding: (p.first - end) * sectorSize}, piece{partition: p},
			piece{padding: p.sectors()*sectorSize - p.size})
		end = p.last + 1
	}
	return pieces, end
}

func align(n, to int64) int64 { return (n + to - 1) / to * to }
