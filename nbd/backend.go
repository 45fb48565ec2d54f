package nbd

import (
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/backend"
)

// Backend is one open export: bytes to read at an offset and to write at one.
// It is go-nbd's interface, so every go-nbd backend can be exported as it is.
//
// The server calls ReadAt and WriteAt from many goroutines at once, always
// within the size that [Abilities] had at open. A backend that can do more than
// these four methods is also a [Resolver].
type Backend interface {
	backend.Backend // ReadAt, WriteAt, Size, Sync
}

// Abilities are what an open export can do: resolved once, when it is opened,
// and never asked for again. A nil func is an ability the export has not; the
// transmission flags are computed from these fields and from nothing else.
//
// Offsets and lengths are in bytes. An error becomes the NBD error nearest to
// the errno it wraps, EIO where it wraps none.
type Abilities struct {
	// Size of the export.
	Size int64
	// Description is for people; "": that of the [Export].
	Description string

	// ReadAt fills p from off: fewer bytes are an error.
	ReadAt func(p []byte, off int64) (int, error)
	// ReadNow is ReadAt if that can be done without waiting for a device. If it
	// returns fewer bytes, for whatever reason, ReadAt will be asked. Who replaces
	// ReadAt has to replace or remove this, too.
	ReadNow func(p []byte, off int64) int
	// Section says that n bytes at off are in a file, and where: they may then be
	// sent without being read. Who replaces ReadAt has to replace or remove this,
	// too, and whoever only moves offsets can keep it.
	Section func(off, n int64) (f *os.File, at int64, ok bool)
	// WriteAt writes p at off. Without it the export is read-only.
	WriteAt func(p []byte, off int64) (int, error)
	// WriteFUA is WriteAt that returns once p is on stable storage. Without it
	// the server calls WriteAt, then Sync.
	WriteFUA func(p []byte, off int64) (int, error)
	// Sync returns once every write that returned before it is on stable
	// storage. Without it the export has no FLUSH and no FUA.
	Sync func() error
	// Trim says that n bytes at off are not needed any more. It may do nothing.
	Trim func(off, n int64) error
	// Zero makes n bytes at off read as zeroes. Without it the server writes
	// zeroes.
	Zero func(off, n int64, flags ZeroFlags) error
	// Cache reads n bytes at off ahead. It may do nothing.
	Cache func(off, n int64) error
	// Extents tells where data are within n bytes at off, from off on and
	// without gaps; it may stop early, but not before the first extent. one
	// says that only the first is wanted. Without it and without Hole all is
	// data.
	Extents func(off, n int64, one bool) ([]Extent, error)
	// Hole says whether off is in a hole, and how far that or the data reach:
	// at least one byte, at most n. It is asked for every READ, so it is for
	// backends that can tell at hardly any cost.
	Hole func(off, n int64) (hole bool, length int64)
	// Close is called once, when nothing else is going on any more.
	Close func() error

	// NoZero withholds WRITE_ZEROES: clients write zeroes themselves.
	NoZero bool
	// Buffered says that WriteAt only copies to memory, a page cache perhaps, and
	// will hardly ever wait for a device or for another program. Who replaces
	// WriteAt by something slower has to remove this.
	Buffered bool
	// SlowZero says that Zero is never faster than writing zeroes: clients are
	// told that it does not help to ask for that.
	SlowZero bool
	// MultiConn says that Sync on one connection covers the writes answered on
	// all others (proto.md, NBD_FLAG_CAN_MULTI_CONN).
	MultiConn bool
	// Rotational says that nearby offsets are faster to reach than far ones.
	Rotational bool
	// BlockSize holds the constraints; its zero value has none.
	BlockSize BlockSize
}

// ReadOnly takes away everything that changes the export.
func (a *Abilities) ReadOnly() {
	a.WriteAt, a.WriteFUA, a.Trim, a.Zero = nil, nil, nil, nil
}

// Extent is a range of an export of one kind.
type Extent struct {
	Length int64
	// Hole says that the range is not allocated, Zero that it reads as zeroes.
	Hole, Zero bool
}

// ZeroFlags say how to zero.
type ZeroFlags uint8

const (
	// ZeroMayTrim allows a hole; otherwise the range must stay allocated.
	ZeroMayTrim ZeroFlags = 1 << iota
	// ZeroFast asks to fail at once, with ENOTSUP and the data untouched, if
	// zeroing is no faster than writing.
	ZeroFast
)

// BlockSize holds the block size constraints of an export, in bytes
// (proto.md, "Block size constraints"). Zero fields have the defaults 1, 4096
// and 32 MiB.
type BlockSize struct{ Minimum, Preferred, Maximum uint32 }

// A Resolver is a Backend that can do more, or less, than read, write and sync.
type Resolver interface {
	Backend
	// Resolve edits a, which holds the four methods of [Backend].
	Resolve(a *Abilities) error
}

// Resolve finds out what b can do. If it fails, b is closed.
func Resolve(b Backend) (_ *Abilities, err error) {
	a := &Abilities{ReadAt: b.ReadAt, WriteAt: b.WriteAt, Sync: b.Sync}
	if c, ok := b.(io.Closer); ok {
		a.Close = c.Close
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	if a.Size, err = b.Size(); err != nil {
		return nil, fmt.Errorf("size: %w", err)
	}
	if r, ok := b.(Resolver); ok {
		if err := r.Resolve(a); err != nil {
			return nil, err
		}
	}
	if a.Size < 0 {
		return nil, fmt.Errorf("size: %d is negative", a.Size)
	}
	return a, a.BlockSize.fill(a.Size)
}

// Resolved is a Backend whose abilities are known already, as filters make them:
// to resolve it is to get a.
func Resolved(a *Abilities) Backend { return resolved{a} }

type resolved struct{ a *Abilities }

func (r resolved) Resolve(a *Abilities) error {
	*a = *r.a
	return nil
}

func (r resolved) ReadAt(p []byte, off int64) (int, error) { return r.a.ReadAt(p, off) }

func (r resolved) WriteAt(p []byte, off int64) (int, error) {
	if r.a.WriteAt == nil {
		return 0, syscall.EROFS
	}
	return r.a.WriteAt(p, off)
}

func (r resolved) Size() (int64, error) { return r.a.Size, nil }

func (r resolved) Sync() error {
	if r.a.Sync == nil {
		return nil
	}
	return r.a.Sync()
}

func (r resolved) Close() error { return r.a.close() }

func (a *Abilities) close() error {
	if a.Close == nil {
		return nil
	}
	return a.Close()
}
