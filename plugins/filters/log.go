package filters

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/plugins/plugin"
)

var logFilter = plugin.Filter{
	Name: "log", Summary: "writes every request to a file, or calls a script for it", Usage: "[logfile=FILE [logappend=BOOL]] [logscript=SCRIPT]",
	Programs: []string{"logscript"},
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		l := &requestLog{readOnly: p.ReadOnly}
		appends, err := p.Bool("logappend", false)
		if err != nil {
			return nil, err
		}
		if path, ok := p.String("logfile"); ok {
			if l.f, err = createOutput(path, appends); err != nil {
				return nil, err
			}
		}
		script, ok := p.String("logscript")
		return func(s *plugin.Source) {
			if ok {
				l.script = startLogScript(script, p.Log)
			}
			if ok || l.f != nil {
				l.edit(s)
			}
		}, nil
	},
}

// requestLog is a file with a line before and a line after each request, in the
// form of nbdkit-log-filter(1), or a script that is called with the same.
type requestLog struct {
	readOnly    bool
	connections atomic.Int64
	lists       atomic.Int64

	mu     sync.Mutex
	f      *os.File   // or nil
	script *logScript // or nil
}

// The kinds of events, as scripts know them.
const (
	logEnter = "ENTER"
	logLeave = "LEAVE"
	logPrint = "PRINT"
)

// logEvent is something that has happened. Numbers are left out if they are 0.
type logEvent struct {
	connection, id int64
	kind           string
	act            string
	fields         []logField
}

// logField is a value with a name. A list is in parentheses.
type logField struct {
	name  string
	value any
}

func hexField(name string, n int64) logField { return logField{name, fmt.Sprintf("%#x", n)} }

func truth(name string, on bool) logField {
	if on {
		return logField{name, 1}
	}
	return logField{name, 0}
}

// line is the event in the file, without the time.
func (e logEvent) line() string {
	var b strings.Builder
	if e.connection > 0 {
		fmt.Fprintf(&b, "connection=%d ", e.connection)
	}
	if e.kind == logLeave {
		b.WriteString("...")
	}
	b.WriteString(e.act)
	if e.id > 0 {
		fmt.Fprintf(&b, " id=%d", e.id)
	}
	for _, f := range e.fields {
		fmt.Fprintf(&b, " %s=%v", f.name, f.value)
	}
	if e.kind == logEnter {
		b.WriteString(" ...")
	}
	return b.String()
}

// environment is the event as a script gets it.
func (e logEvent) environment() []string {
	env := []string{"act=" + e.act, "type=" + e.kind}
	for _, n := range []logField{{"connection", e.connection}, {"id", e.id}} {
		if n.value != int64(0) {
			env = append(env, fmt.Sprintf("%s=%d", n.name, n.value))
		}
	}
	for _, f := range e.fields {
		if s, ok := f.value.(quoted); ok {
			f.value = string(s)
		}
		env = append(env, fmt.Sprintf("%s=%v", f.name, f.value))
	}
	return env
}

// quoted is a string that others choose: it cannot end its line.
type quoted string

func (q quoted) String() string { return fmt.Sprintf("%q", string(q)) }

// put writes the event. An event that cannot be written is lost: a full disk must
// not stop another.
func (l *requestLog) put(e logEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		fmt.Fprintf(l.f, "%s %s\n", time.Now().UTC().Format("2006-01-02 15:04:05.000000"), e.line())
	}
	if l.script != nil {
		l.script.put(e.environment())
	}
}

// do logs e, does f, and logs what came of it: more are fields of that.
func (l *requestLog) do(e logEvent, f func() error, more func() []logField) error {
	e.kind = logEnter
	l.put(e)
	err := f()
	e.kind, e.fields = logLeave, nil
	switch {
	case err != nil:
		e.fields = []logField{{"return", -1}, {"error", errnoName(err)}}
	case more != nil:
		e.fields = append(more(), logField{"return", 0})
	default:
		e.fields = []logField{{"return", 0}}
	}
	l.put(e)
	return err
}

// errnoName is what an error is called in C.
func errnoName(err error) string {
	var errno syscall.Errno
	var answer wire.Errno
	switch {
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	case errors.As(err, &answer):
		return answer.String()
	case errors.Is(err, errors.ErrUnsupported):
		return "ENOTSUP"
	}
	return "EIO"
}

func (l *requestLog) edit(s *plugin.Source) {
	l.put(logEvent{kind: logPrint, act: "Ready", fields: []logField{{"thread_model", threadModelParallel}}})
	s.Edit(l.open)
	if list := s.List; list != nil {
		s.List = func(ctx context.Context, c nbd.Client) (entries []plugin.Entry, err error) {
			e := logEvent{id: l.lists.Add(1), act: "ListExports", fields: []logField{truth("readonly", l.readOnly), truth("tls", c.TLS)}}
			err = l.do(e, func() error { entries, err = list(ctx, c); return err }, func() []logField {
				names := make([]string, len(entries))
				for i := range entries {
					names[i] = quoted(entries[i].Name).String()
				}
				return []logField{{"exports", "(" + strings.Join(names, " ") + ")"}}
			})
			return entries, err
		}
	}
	s.OnClose(l.close)
}

// threadModelParallel is NBDKIT_THREAD_MODEL_PARALLEL, as all plugins here are.
const threadModelParallel = 3

func (l *requestLog) close() error {
	if l.script != nil {
		l.script.close()
	}
	if l.f != nil {
		return l.f.Close()
	}
	return nil
}

// logActs are the names of requests.
var logActs = map[operation]string{
	opRead: "Read", opWrite: "Write", opZero: "Zero", opTrim: "Trim", opFlush: "Flush", opExtents: "Extents", opCache: "Cache",
}

// open logs what a connection can do, and what it does.
func (l *requestLog) open(_ context.Context, info nbd.OpenInfo, a *nbd.Abilities) error {
	id := l.connections.Add(1)
	l.put(logEvent{connection: id, kind: logPrint, act: "Connect", fields: append(
		[]logField{{"export", quoted(info.Name)}, truth("tls", info.Client.TLS)}, abilityFields(a)...)})
	var requests atomic.Int64
	onClose(a, func() {
		l.put(logEvent{connection: id, kind: logPrint, act: "Disconnect", fields: []logField{{"transactions", requests.Load()}}})
	})
	around(a, func(below *nbd.Abilities, r *request, p []byte) error {
		e := logEvent{connection: id, id: requests.Add(1), act: logActs[r.op], fields: requestFields(r)}
		var more func() []logField
		if r.op == opExtents {
			more = func() []logField { return []logField{{"extents", extentList(r)}} }
		}
		return l.do(e, func() error { return r.do(below, p) }, more)
	})
	return nil
}

// abilityFields say what an export can do: 0 not, 1 yes or emulated, 2 by itself.
func abilityFields(a *nbd.Abilities) []logField {
	writable := a.WriteAt != nil
	degree := func(emulated, native bool) int {
		switch {
		case !writable:
			return 0
		case native:
			return 2
		case emulated:
			return 1
		}
		return 0
	}
	cache := 0
	if a.Cache != nil {
		cache = 2
	}
	b := a.BlockSize
	return []logField{
		hexField("size", a.Size), hexField("minsize", int64(b.Minimum)), hexField("prefsize", int64(b.Preferred)), hexField("maxsize", int64(b.Maximum)),
		truth("write", writable), truth("flush", a.Sync != nil), truth("rotational", a.Rotational), truth("trim", writable && a.Trim != nil),
		{"zero", degree(!a.NoZero, !a.NoZero && a.Zero != nil)},
		{"fua", degree(a.Sync != nil, a.WriteFUA != nil)},
		truth("extents", a.Extents != nil || a.Hole != nil),
		{"cache", cache},
		truth("fast_zero", writable && a.Zero != nil && !a.SlowZero),
	}
}

func requestFields(r *request) []logField {
	fields := []logField{hexField("offset", r.off), hexField("count", r.n)}
	switch r.op {
	case opFlush:
		return nil
	case opWrite, opTrim:
		fields = append(fields, truth("fua", r.fua))
	case opZero:
		fields = append(fields, truth("trim", r.flags&nbd.ZeroMayTrim != 0), truth("fua", r.fua), truth("fast", r.flags&nbd.ZeroFast != 0))
	case opExtents:
		fields = append(fields, truth("req_one", r.one))
	}
	return fields
}

// extentList is a list of offsets, lengths and kinds.
func extentList(r *request) string {
	var b bytes.Buffer
	off := r.off
	for i, e := range r.extents {
		if i > 0 {
			b.WriteByte(' ')
		}
		kind := map[[2]bool]string{{true, true}: "hole,zero", {true, false}: "hole", {false, true}: "zero"}[[2]bool{e.Hole, e.Zero}]
		fmt.Fprintf(&b, "%#x %#x %q", off, e.Length, kind)
		off += e.Length
	}
	return "(" + b.String() + ")"
}

// logScript calls a script for one event after the other.
type logScript struct {
	events chan []string
	done   sync.WaitGroup
}

// logBacklog is how many events may wait for the script; then requests do.
const logBacklog = 1024

func startLogScript(script string, log *slog.Logger) *logScript {
	s := &logScript{events: make(chan []string, logBacklog)}
	s.done.Go(func() {
		for env := range s.events {
			cmd := shell(context.Background(), script)
			cmd.Env = append(os.Environ(), env...)
			cmd.Stderr = os.Stderr
			if err := cmd.Run(); err != nil {
				log.Debug("the log script failed", "reason", err)
			}
		}
	})
	return s
}

func (s *logScript) put(env []string) { s.events <- env }

// close waits until the script has heard of everything.
func (s *logScript) close() {
	close(s.events)
	s.done.Wait()
}
