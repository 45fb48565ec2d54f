package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nbd-ktls-server/cmd/nbd-ktls-server/config"
	"nbd-ktls-server/plugins"
)

// sandbox is what the process may reach of the file system, for ever: with
// Landlock it cannot become more (landlock(7)).
type sandbox struct {
	read, write []string // directories, and what is in them
	devices     []string
}

// everywhere is what every program needs: names, certificates of authorities, what
// the kernel says, and places for temporary files.
func everywhere() *sandbox {
	return &sandbox{
		read:    []string{"/etc", "/usr", "/lib", "/proc", "/sys", "/dev", "/run/systemd"},
		write:   []string{os.TempDir(), "/var/tmp"},
		devices: []string{os.DevNull},
	}
}

// sandboxOf is the sandbox for a configuration. why is an export whose programs
// could not run in it, or "".
func (o *options) sandboxOf(c *config.Config) (box *sandbox, why string) {
	box = everywhere()
	box.read = append(box.read, filepath.Dir(absolute(o.config)))
	if c.TLS.Certificates != "" {
		box.read = append(box.read, absolute(c.TLS.Certificates))
	}
	for _, l := range c.Listen {
		if l.Unix != "" {
			box.write = append(box.write, filepath.Dir(l.Unix))
		}
	}
	for _, path := range []string{o.metrics, o.pidfile} {
		if strings.ContainsRune(path, '/') {
			box.write = append(box.write, filepath.Dir(absolute(path)))
		}
	}
	for i := range c.Exports {
		e := &c.Exports[i]
		if plugins.RunsPrograms(e.Plugin, e.Filters, e.Args()) {
			why = e.Title()
		}
		for _, arg := range e.Args() {
			_, value, _ := strings.Cut(arg, "=")
			box.add(value, e.ReadOnly)
		}
	}
	return box, why
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return path
}

// add adds what the value of a parameter names, if it names something. Of a file
// it is the directory: images are replaced by others.
func (b *sandbox) add(value string, readOnly bool) {
	path := absolute(value)
	info, err := os.Stat(path)
	switch {
	case err == nil && info.Mode()&fs.ModeDevice != 0:
		b.devices = append(b.devices, path)
		return
	case err == nil && !info.IsDir():
		path = filepath.Dir(path)
	case err != nil && !strings.ContainsRune(value, '/'):
		return
	case err != nil: // it may come later
		path = filepath.Dir(path)
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			return
		}
	}
	if readOnly {
		b.read = append(b.read, path)
	} else {
		b.write = append(b.write, path)
	}
}

// covers reports the first thing that other has and b has not.
func (b *sandbox) covers(other *sandbox) error {
	for _, w := range other.write {
		if !within(w, b.write) {
			return outside(w)
		}
	}
	for _, r := range other.read {
		if !within(r, b.read) && !within(r, b.write) {
			return outside(r)
		}
	}
	for _, d := range other.devices {
		if !slices.Contains(b.devices, d) {
			return outside(d)
		}
	}
	return nil
}

func outside(path string) error {
	return fmt.Errorf("%s is not among what this process can reach: restart needed", path)
}

func within(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
	})
}

// errNoLandlock means that the kernel has no Landlock.
var errNoLandlock = errors.New("the kernel has no Landlock")

// confine confines the process to what its configuration names, unless exports
// run programs.
func (s *service) confine(c *config.Config) error {
	box, why := s.o.sandboxOf(c)
	if why != "" {
		s.log.Info("the process is not confined to its files", "reason", "an export runs programs", "export", why)
		return nil
	}
	switch err := box.enter(); {
	case errors.Is(err, errNoLandlock):
		s.log.Info("the process is not confined to its files", "reason", err)
		return nil
	case err != nil:
		return fmt.Errorf("landlock: %w", err)
	}
	s.box = box
	s.log.Info("the process is confined to its files", "write", summary(box.write), "devices", len(box.devices)-1)
	return nil
}

// summary names a few directories.
func summary(dirs []string) string {
	dirs = slices.Compact(slices.Sorted(slices.Values(dirs)))
	if len(dirs) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(dirs[:5], " "), len(dirs)-5)
	}
	return strings.Join(dirs, " ")
}

// fits reports why a configuration cannot be had without a restart.
func (s *service) fits(c *config.Config) error {
	if s.box == nil {
		return nil
	}
	box, why := s.o.sandboxOf(c)
	if why != "" {
		return fmt.Errorf("export %s runs programs, which this process cannot: restart needed", why)
	}
	return s.box.covers(box)
}
