package file

import (
	"io/fs"
	"os"
	"slices"
	"sync"
)

// Shares lets all connections to one file use one open File, so that they hold
// its locks together and all hear of a failed sync. The file is opened for the
// first of them and closed after the last. What counts is the file, not its
// name: a new image moved to an old one's name is another file. The zero value
// is ready to use.
type Shares struct {
	mu   sync.Mutex
	open []*shared // the files that are open: few, next to what opening one costs
}

type shared struct {
	*File
	info  fs.FileInfo
	users int
}

// Open returns the File for one more user, who has to close it. stat says which
// file is meant, open opens it.
func (s *Shares) Open(stat func() (fs.FileInfo, error), open func() (*File, error)) (*Handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := stat()
	if err != nil {
		return nil, err
	}
	for _, sh := range s.open {
		if os.SameFile(sh.info, info) {
			sh.users++
			return &Handle{File: sh.File, shares: s}, nil
		}
	}
	f, err := open()
	if err != nil {
		return nil, err
	}
	if info, err = f.f.Stat(); err != nil {
		f.Close()
		return nil, err
	}
	s.open = append(s.open, &shared{File: f, info: info, users: 1})
	return &Handle{File: f, shares: s}, nil
}

// Handle is one user's hold on a shared File.
type Handle struct {
	*File
	shares *Shares
}

// Close gives the File back; it is closed if nobody else uses it.
func (h *Handle) Close() error {
	s := h.shares
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.open, func(sh *shared) bool { return sh.File == h.File })
	if s.open[i].users--; s.open[i].users > 0 {
		return nil
	}
	s.open = slices.Delete(s.open, i, i+1)
	return h.File.Close()
}

// Path exports the file that path names, whichever that is when it is opened.
type Path struct {
	path   string
	opts   Options
	shares Shares
}

// NewPath returns an export of the file at path.
func NewPath(path string, o Options) *Path { return &Path{path: path, opts: o} }

// Open opens the file, or shares it with those who have.
func (p *Path) Open() (*Handle, error) {
	return p.shares.Open(
		func() (fs.FileInfo, error) { return os.Stat(p.path) },
		func() (*File, error) { return Open(p.path, p.opts) },
	)
}
