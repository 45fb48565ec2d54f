package main

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

func TestCalm(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	level := new(slog.LevelVar)
	log := slog.New(newCalm(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level}), func() time.Time { return now }))
	say := func(n int) {
		for range n {
			log.With("client", "x").Info("line")
		}
	}
	expect := func(info, left int) {
		t.Helper()
		if n := strings.Count(b.String(), "msg=line"); n != info {
			t.Errorf("%d lines, want %d", n, info)
		}
		if said := strings.Contains(b.String(), "left-out="); said != (left > 0) {
			t.Errorf("what was left out is said: %v, in\n%.200s", said, b.String())
		}
		b.Reset()
	}
	say(logBurst + 7)
	expect(logBurst, 0)
	now = now.Add(time.Second)
	say(2 * logPerSec)
	expect(logPerSec, 7)
	log.Error("line")
	expect(1, 0)
	level.Set(slog.LevelDebug)
	say(3 * logBurst)
	expect(3*logBurst, 0)
}

func TestPriorities(t *testing.T) {
	var b bytes.Buffer
	h := newPriorities(func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return newHandler("text", w, o) }, &b, slog.LevelInfo)
	log := slog.New(h).With("a", 1)
	log.Debug("nothing")
	log.Info("i")
	log.Warn("w")
	log.Error("e")
	const want = "<6>level=INFO msg=i a=1\n<4>level=WARN msg=w a=1\n<3>level=ERROR msg=e a=1\n"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

func TestToJournal(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Setenv("JOURNAL_STREAM", "1:2")
	if toJournal(f) {
		t.Error("a file is not the journal")
	}
}
