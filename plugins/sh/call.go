package sh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/plugins/plugin"
)

// Script is an executable that does what its first argument, a method, says.
type Script struct {
	// Command is what is run for a method; its arguments follow.
	Command func(method string) []string
	// Dir is $tmpdir.
	Dir string
	plugin.Host
}

// The statuses that a script ends with (nbdkit-sh-plugin(3), "Exit codes").
const (
	statusMissing        = 2
	statusFalse          = 3
	statusExitOK         = 4
	statusExitError      = 5
	statusDisconnect     = 6
	statusDisconnectOK   = 7
	statusDisconnectFail = 8
)

var (
	errMissing = errors.New("the script has no such method")
	errFalse   = errors.New("the script says no")
	errTooMuch = errors.New("the script printed more than it may")
)

const (
	// maxText bounds what a script prints where a line or a list is wanted, and
	// what it says about an error.
	maxText   = 1 << 20
	maxStderr = 16 << 10
	// killDelay is how long a pipe may stay open, by a grandchild that has it,
	// after a script has ended.
	killDelay = time.Second
)

// A call is one method to be called.
type call struct {
	method string
	args   []string
	stdin  []byte
	limit  int // of what it may print; 0: maxText
	// disconnect ends the connection it is for; nil if it is for none.
	disconnect func(why error, hard bool)
}

// do runs the script. It is killed, with its children, when ctx ends. The
// error is errMissing, errFalse, or one that wraps a [wire.Errno].
func (s *Script) do(ctx context.Context, c call) ([]byte, error) {
	if c.limit == 0 {
		c.limit = maxText
	}
	argv := append(s.Command(c.method), c.args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "tmpdir="+s.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	if c.stdin != nil {
		cmd.Stdin = bytes.NewReader(c.stdin) // one that does not read it is no error
	}
	out, stderr := &bounded{limit: c.limit, full: errTooMuch}, &bounded{limit: maxStderr}
	cmd.Stdout, cmd.Stderr = out, stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has ended well, and left a child behind
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w: %w", c.method, wire.EIO, context.Cause(ctx))
	}
	if out.cut {
		return nil, fmt.Errorf("%s: %w: %w: %d bytes", c.method, wire.EIO, errTooMuch, c.limit)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, fmt.Errorf("%s: %w: %w", c.method, wire.EIO, err)
	}
	if err := s.judge(&c, cmd.ProcessState, stderr.buf.String()); err != nil {
		return nil, err
	}
	return out.buf.Bytes(), nil
}

// judge makes an error of what a script has ended with.
func (s *Script) judge(c *call, state *os.ProcessState, stderr string) error {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Errorf("%s: %w: the script was killed by signal %v", c.method, wire.EIO, ws.Signal())
	}
	status := state.ExitCode()
	why := fmt.Errorf("the script's %s asked for it", c.method)
	switch status {
	case 0:
		return nil
	case statusMissing:
		return errMissing
	case statusFalse:
		return errFalse
	case statusExitOK, statusExitError:
		s.Exit(why.Error())
	case statusDisconnect, statusDisconnectOK, statusDisconnectFail:
		if c.disconnect != nil {
			c.disconnect(why, status == statusDisconnect)
		}
	}
	if status == statusExitOK || status == statusDisconnectOK {
		return nil
	}
	otherwise := wire.EIO
	if status == statusExitError || status == statusDisconnectFail {
		otherwise = wire.ESHUTDOWN
	}
	err := parseError(stderr, otherwise)
	s.Log.Debug("the script failed", "method", c.method, "status", status, "stderr", stderr)
	return err
}

// Error is what a script says about its failure.
type Error struct {
	Errno wire.Errno
	Text  string
}

func (e *Error) Error() string {
	if e.Text == "" {
		return "the script failed without a word"
	}
	return e.Text
}

// Unwrap returns the NBD error.
func (e *Error) Unwrap() error { return e.Errno }

// errnos are the words that the text of an error may begin with. Where NBD has no
// such error for any request it is the one that nbdkit sends.
var errnos = map[string]wire.Errno{
	"EPERM": wire.EPERM, "EROFS": wire.EPERM, "EIO": wire.EIO, "ENOMEM": wire.ENOMEM, "EINVAL": wire.EINVAL,
	"ENOSPC": wire.ENOSPC, "EDQUOT": wire.ENOSPC, "EFBIG": wire.ENOSPC, "ESHUTDOWN": wire.ESHUTDOWN,
	"EOVERFLOW": wire.EOVERFLOW, "ENOTSUP": wire.ENOTSUP, "EOPNOTSUPP": wire.ENOTSUP,
}

// parseError reads what a script has written to its standard error: perhaps the
// name of an errno, then perhaps a text.
func parseError(stderr string, otherwise wire.Errno) *Error {
	text := strings.TrimSpace(stderr)
	word, rest, _ := strings.Cut(strings.ReplaceAll(text, "\n", " "), " ")
	errno, ok := errnos[strings.ToUpper(word)]
	switch {
	case !ok:
		return &Error{otherwise, text}
	case strings.TrimSpace(rest) == "":
		return &Error{errno, "the script said " + word}
	}
	return &Error{errno, strings.TrimSpace(text[len(word):])}
}

// bounded keeps the first bytes of what is written; then it is full. It is a
// Writer and nothing else: the ReadFrom of a Buffer knows no bounds.
type bounded struct {
	buf   bytes.Buffer
	limit int
	full  error // for whoever writes more; nil: the rest is forgotten
	cut   bool
}

func (b *bounded) Write(p []byte) (int, error) {
	n := len(p)
	if room := b.limit - b.buf.Len(); n > room {
		p, b.cut = p[:room], true
	}
	b.buf.Write(p)
	if b.cut && b.full != nil {
		return len(p), b.full
	}
	return n, nil
}
