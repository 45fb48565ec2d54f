package filters

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// cowBlock is the unit of what is copied.
const cowBlock = 64 << 10

var cowFilter = plugin.Filter{
	Name: "cow", Summary: "keeps changes in a temporary file, and what is below as it is",
	Usage: "no parameters; TMPDIR says where the file is",
	Configure: func(*plugin.Params) (func(*plugin.Source), error) {
		c := &cow{overlays: make(map[string]*overlay)}
		return func(s *plugin.Source) {
			s.Edit(c.open)
			s.OnClose(c.close)
		}, nil
	},
}

// cow holds the changes of each export for as long as the server runs.
type cow struct {
	mu       sync.Mutex
	overlays map[string]*overlay
}

func (c *cow) open(_ context.Context, info nbd.OpenInfo, a *nbd.Abilities) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.overlays[info.Name]
	if o == nil {
		f, err := temporary(a.Size)
		if err != nil {
			return err
		}
		o = &overlay{file: f, size: a.Size, have: make([]bool, (a.Size+cowBlock-1)/cowBlock)}
		c.overlays[info.Name] = o
	}
	if o.size != a.Size {
		return fmt.Errorf("what is below the changes has %d bytes now, not %d", a.Size, o.size)
	}
	o.edit(a)
	return nil
}

func (c *cow) close() error {
	for _, o := range c.overlays {
		o.file.Close()
	}
	return nil
}

// temporary makes a file that is gone with us.
func temporary(size int64) (*file.File, error) {
	dir, err := os.MkdirTemp("", "nbd-ktls-server-cow-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "changes")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	return file.Open(path, file.Options{NoLocking: true})
}

// overlay are the changes of one export.
type overlay struct {
	file *file.File
	size int64

	mu   sync.RWMutex
	have []bool // the blocks that are in file
}

// edit puts the overlay over a.
func (o *overlay) edit(a *nbd.Abilities) {
	below := *a
	*a = nbd.Abilities{
		Size: below.Size, Description: below.Description, Close: below.Close, BlockSize: below.BlockSize,
		Cache: below.Cache, Rotational: below.Rotational, MultiConn: true,
	}
	a.ReadAt = func(p []byte, off int64) (int, error) {
		o.mu.RLock()
		defer o.mu.RUnlock()
		return len(p), o.each(off, int64(len(p)), func(off, n int64, have bool) error {
			q := p[:n]
			p = p[n:]
			return o.read(&below, q, off, have)
		})
	}
	a.Section = func(off, n int64) (f *os.File, at int64, ok bool) {
		o.mu.RLock()
		defer o.mu.RUnlock()
		o.each(off, n, func(runOff, runN int64, have bool) error {
			switch {
			case runOff != off || runN != n: // some here, some there
			case have:
				f, at, ok = o.file.Section(off, n)
			case below.Section != nil:
				f, at, ok = below.Section(off, n)
			}
			return nil
		})
		return f, at, ok
	}
	a.WriteAt = func(p []byte, off int64) (int, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if err := o.copyEdges(&below, off, int64(len(p))); err != nil {
			return 0, err
		}
		n, err := o.file.WriteAt(p, off)
		if err == nil {
			o.mark(off, int64(n))
		}
		return n, err
	}
	a.Zero = func(off, n int64, flags nbd.ZeroFlags) error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if err := o.copyEdges(&below, off, n); err != nil {
			return err
		}
		err := o.file.Zero(off, n, flags|nbd.ZeroMayTrim)
		if err == nil {
			o.mark(off, n)
		}
		return err
	}
	a.Trim = func(off, n int64) error { return a.Zero(off, n, nbd.ZeroMayTrim) }
	a.Sync = func() error { return nil } // nothing of it outlives the server
	a.WriteFUA = a.WriteAt
}

func (o *overlay) read(below *nbd.Abilities, p []byte, off int64, have bool) error {
	readAt := below.ReadAt
	if have {
		readAt = o.file.ReadAt
	}
	if n, err := readAt(p, off); n < len(p) {
		return fmt.Errorf("%d of %d bytes were read at %d: %w", n, len(p), off, err)
	}
	return nil
}

// each calls f for the runs of n bytes at off that are on one side.
func (o *overlay) each(off, n int64, f func(off, n int64, have bool) error) error {
	for end := off + n; off < end; {
		i := off / cowBlock
		have := o.have[i]
		for i++; i*cowBlock < end && o.have[i] == have; i++ {
		}
		k := min(i*cowBlock, end) - off
		if err := f(off, k, have); err != nil {
			return err
		}
		off += k
	}
	return nil
}

// copyEdges copies the blocks of which n bytes at off change a part. The caller
// holds mu, changes them, and marks them all.
func (o *overlay) copyEdges(below *nbd.Abilities, off, n int64) error {
	if n == 0 {
		return nil
	}
	first, last := off/cowBlock, (off+n-1)/cowBlock
	for _, i := range []int64{first, last} {
		from, to := i*cowBlock, min((i+1)*cowBlock, o.size)
		if o.have[i] || off <= from && to <= off+n {
			continue
		}
		buf := make([]byte, to-from)
		if err := o.read(below, buf, from, false); err != nil {
			return err
		}
		if _, err := o.file.WriteAt(buf, from); err != nil {
			return err
		}
		o.have[i] = true
	}
	return nil
}

// mark notes that the blocks of n bytes at off are here.
func (o *overlay) mark(off, n int64) {
	for i := off / cowBlock; i*cowBlock < off+n; i++ {
		o.have[i] = true
	}
}
