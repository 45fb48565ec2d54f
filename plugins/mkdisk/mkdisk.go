// Package mkdisk are the plugins that make disks for clients: ondemand and tmpdisk
// (nbdkit-ondemand-plugin(1), nbdkit-tmpdisk-plugin(1)).
package mkdisk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"nbd-ktls-server/plugins/plugin"
)

// makeFileSystem is what is run where no command is given.
const makeFileSystem = `set -e
type=${type:-ext4} option=-L
case $type in
ext?) force=-F ;;
xfs) force=-f ;;
*fat | msdos) force=-I option=-n ;;
ntfs) force='-Q -F' ;;
esac
truncate -s "$size" "$disk"
if [ -n "$label" ]; then
	mkfs -t "$type" $force "$option" "$label" "$disk"
else
	mkfs -t "$type" $force "$disk"
fi
`

// maker makes disks, by a fragment of shell with the parameters as variables.
type maker struct {
	script string
	env    []string
	log    *slog.Logger
}

// variable is what a shell takes for the name of one.
var variable = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)

// newMaker takes size, command, and all other parameters.
func newMaker(p *plugin.Params) (*maker, error) {
	size, ok, err := p.Size("size")
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errors.New("a size is needed")
	}
	m := &maker{script: makeFileSystem, env: []string{"size=" + strconv.FormatInt(size, 10)}, log: p.Log}
	command, given := p.String("command")
	if given {
		m.script = command
	}
	for _, v := range p.Rest() {
		switch {
		case v.Key == "disk", !variable.MatchString(v.Key):
			return nil, fmt.Errorf("%s cannot be a variable of the command", v.Key)
		case !given && v.Key != "type" && v.Key != "label":
			return nil, fmt.Errorf("there is no parameter %q, without command=", v.Key)
		}
		m.env = append(m.env, v.Key+"="+v.Value)
	}
	return m, nil
}

// make makes the disk at path. The command, and what it has started, is killed
// when ctx ends.
func (m *maker) make(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", m.script)
	cmd.Env = append(append(os.Environ(), m.env...), "disk="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("making a disk: %w: %s", err, strings.TrimSpace(string(out)))
	}
	m.log.Debug("made a disk", "path", path, "output", string(out))
	return nil
}

// tail keeps the end of what is written.
type tail []byte

// maxTail is how much of it.
const maxTail = 4096

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p[max(0, len(p)-maxTail):]...)
	*t = (*t)[max(0, len(*t)-maxTail):]
	return len(p), nil
}
