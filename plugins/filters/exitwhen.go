package filters

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var exitWhenFilter = plugin.Filter{
	Name: "exitwhen", Summary: "ends the server when something happens, after the last client",
	Usage:    "[exit-when-file-created=FILE] [exit-when-file-deleted=FILE] [exit-when-pipe-closed=FD] [exit-when-process-exits=PID] [exit-when-script=SCRIPT] [exit-when-poll=SECS]",
	Programs: []string{"exit-when-script"},
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		e := &exitWhen{exit: p.Exit, log: p.Log, done: make(chan struct{})}
		if err := e.parse(p); err != nil {
			return nil, err
		}
		seconds, err := p.Uint("exit-when-poll", 60)
		if err != nil {
			return nil, err
		}
		if seconds == 0 || seconds > uint64(time.Duration(1<<62)/time.Second) {
			return nil, fmt.Errorf("exit-when-poll=%d: it is a positive number of seconds", seconds)
		}
		e.every = time.Duration(seconds) * time.Second
		return e.edit, nil
	},
}

// event is something to wait for.
type event struct {
	name string
	// happened reports whether it has. After an error the server goes on.
	happened func() (bool, error)
}

// exitWhen ends the server after an event: no more clients are let in then, and
// those that are there go on.
type exitWhen struct {
	events []event
	files  []*os.File
	every  time.Duration
	exit   func(why string)
	log    *slog.Logger
	done   chan struct{}

	mu      sync.Mutex
	clients int
	why     string // the event that has happened, or ""
}

func (e *exitWhen) parse(p *plugin.Params) error {
	for key, make := range map[string]func(value string) (func() (bool, error), error){
		"exit-when-file-created":  fileCreated,
		"exit-when-file-exists":   fileCreated,
		"exit-when-file-deleted":  fileDeleted,
		"exit-when-file-unlinked": fileDeleted,
		"exit-when-pipe-closed":   pipeClosed,
		"exit-when-fd-closed":     pipeClosed,
		"exit-when-process-exits": e.processExits,
		"exit-when-pid-exits":     e.processExits,
		"exit-when-script":        scriptSays,
	} {
		for _, value := range p.Strings(key) {
			happened, err := make(value)
			if err != nil {
				return fmt.Errorf("%s=%s: %w", key, value, err)
			}
			e.events = append(e.events, event{key + "=" + value, happened})
		}
	}
	return nil
}

func fileCreated(path string) (func() (bool, error), error) {
	path, err := filepath.Abs(path)
	return func() (bool, error) { return unix.Access(path, unix.R_OK) == nil, nil }, err
}

func fileDeleted(path string) (func() (bool, error), error) {
	path, err := filepath.Abs(path)
	return func() (bool, error) {
		_, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return true, nil
		}
		return false, err
	}, err
}

// pipeClosed waits for the other end of a pipe that was passed to the program.
// Nothing is read from it.
func pipeClosed(number string) (func() (bool, error), error) {
	fd, err := strconv.ParseInt(number, 10, 32)
	if err != nil {
		return nil, errors.New("it is the number of a file descriptor")
	}
	happened := func() (bool, error) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		if _, err := unix.Poll(fds, 0); err != nil {
			return false, os.NewSyscallError("poll", err)
		}
		if fds[0].Revents&unix.POLLNVAL != 0 {
			return false, errors.New("no such file descriptor was passed to the program")
		}
		return fds[0].Revents&unix.POLLHUP != 0, nil
	}
	_, err = happened()
	return happened, err
}

// processExits waits for a process. Its directory in /proc is kept open, as
// another may get its number.
func (e *exitWhen) processExits(number string) (func() (bool, error), error) {
	pid, err := strconv.ParseUint(number, 10, 31)
	if err != nil {
		return nil, errors.New("it is the number of a process")
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	e.files = append(e.files, f)
	return func() (bool, error) {
		_, err := f.ReadAt(make([]byte, 1), 0)
		if errors.Is(err, syscall.ESRCH) {
			return true, nil
		}
		return false, err
	}, nil
}

// statusExit is what a script ends with to say that the server shall end.
const statusExit = 88

func scriptSays(script string) (func() (bool, error), error) {
	return func() (bool, error) {
		err := shell(context.Background(), script).Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == statusExit {
			return true, nil
		}
		return false, err
	}, nil
}

func (e *exitWhen) edit(s *plugin.Source) {
	if len(e.events) == 0 {
		return
	}
	open := s.Open
	s.Open = func(ctx context.Context, info nbd.OpenInfo) (nbd.Backend, error) {
		if why := e.enter(); why != "" {
			return nil, fmt.Errorf("the server ends after its last client: %s", why)
		}
		b, err := open(ctx, info)
		if err != nil {
			e.leave()
			return nil, err
		}
		a, err := nbd.Resolve(b)
		if err != nil {
			e.leave()
			return nil, err
		}
		onClose(a, e.leave)
		return nbd.Resolved(a), nil
	}
	s.OnClose(func() error {
		close(e.done)
		for _, f := range e.files {
			f.Close()
		}
		return nil
	})
	e.poll()
	go e.watch()
}

// enter counts a client, unless no more are let in because of why.
func (e *exitWhen) enter() (why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.check(); e.why == "" {
		e.clients++
	}
	return e.why
}

func (e *exitWhen) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.clients--
	e.check()
	e.exitIfAlone()
}

// poll looks for events while there are no clients; else enter and leave do.
func (e *exitWhen) poll() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.clients == 0 {
		e.check()
		e.exitIfAlone()
	}
}

// check looks whether an event has happened. The caller holds mu.
func (e *exitWhen) check() {
	for _, event := range e.events {
		if e.why != "" {
			return
		}
		happened, err := event.happened()
		if err != nil {
			e.log.Error("an event cannot be watched", "event", event.name, "reason", err)
		}
		if happened {
			e.why = event.name
		}
	}
}

// exitIfAlone ends the server if it is to end. The caller holds mu.
func (e *exitWhen) exitIfAlone() {
	if e.clients == 0 && e.why != "" {
		e.exit(e.why)
	}
}

// watch polls until the source is closed.
func (e *exitWhen) watch() {
	t := time.NewTicker(e.every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			e.poll()
		case <-e.done:
			return
		}
	}
}
