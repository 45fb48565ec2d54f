package nbdclient_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"nbd-ktls-server/backends/nbdclient"
	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/test/nbdtest"
)

// serverOf is a server that reads an option or a request, says what comes next,
// and so on; then it waits for the end.
func serverOf(t *testing.T, says ...[]byte) func(context.Context) (net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				p := make([]byte, 4096)
				for i, s := range says {
					c.Write(s)
					if i == 0 {
						io.ReadFull(c, p[:4]) // the client's flags
					}
					if n, _ := c.Read(p); n == 0 {
						return
					}
				}
				io.Copy(io.Discard, c)
			}()
		}
	}()
	return dialing(l.Addr())
}

const size, contextID = 1 << 20, 7

var (
	greeting = wire.AppendGreeting(nil, wire.FlagFixedNewstyle|wire.FlagNoZeroes)
	flags    = wire.FlagHasFlags | wire.FlagSendFlush
)

func answer(opt wire.Option, rep wire.OptionReply, data []byte) []byte {
	return wire.AppendOptionReply(nil, opt, rep, data)
}

func with(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// Servers that say something wrong before the first request.
func TestWrongHandshakes(t *testing.T) {
	structured := answer(wire.OptStructuredReply, wire.RepAck, nil)
	simple := answer(wire.OptStructuredReply, wire.RepErrUnsup, nil)
	meta := answer(wire.OptSetMetaContext, wire.RepAck, nil)
	info := func(size uint64) []byte {
		return answer(wire.OptGo, wire.RepInfo, wire.AppendExportInfo(nil, size, flags))
	}
	ack := answer(wire.OptGo, wire.RepAck, nil)
	for name, test := range map[string]struct {
		says [][]byte
		want string // in the error; "": none
	}{
		"right":            {[][]byte{greeting, structured, meta, with(info(size), ack)}, ""},
		"simple replies":   {[][]byte{greeting, simple, with(info(size), ack)}, ""},
		"EXPORT_NAME":      {[][]byte{greeting, simple, answer(wire.OptGo, wire.RepErrUnsup, nil), wire.AppendExportNameReply(nil, size, flags, false)}, ""},
		"no NBD":           {[][]byte{[]byte("HTTP/1.1 400 Bad Request\r\n")}, "magic"},
		"oldstyle":         {[][]byte{with([]byte("NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"), make([]byte, 136))}, "newstyle"},
		"not fixed":        {[][]byte{wire.AppendGreeting(nil, 0)}, "fixed newstyle"},
		"another option":   {[][]byte{greeting, answer(wire.OptGo, wire.RepAck, nil)}, "an answer to GO"},
		"a long answer":    {[][]byte{greeting, answer(wire.OptStructuredReply, wire.RepErrUnsup, make([]byte, 1<<20))}, "1048576 bytes"},
		"no size":          {[][]byte{greeting, structured, meta, ack}, "how large"},
		"no flags":         {[][]byte{greeting, structured, meta, with(answer(wire.OptGo, wire.RepInfo, wire.AppendExportInfo(nil, size, 0)), ack)}, "flags"},
		"too large":        {[][]byte{greeting, structured, meta, with(info(1<<63), ack)}, "size"},
		"short info":       {[][]byte{greeting, structured, meta, answer(wire.OptGo, wire.RepInfo, []byte{0})}, "1 bytes"},
		"no such export":   {[][]byte{greeting, structured, meta, answer(wire.OptGo, wire.RepErrUnknown, []byte("no"))}, nbd.ErrNoExport.Error()},
		"a strange answer": {[][]byte{greeting, answer(wire.OptStructuredReply, wire.RepServer, nil)}, "type 2"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := nbdclient.New(t.Context(), nbdclient.Target{Dial: serverOf(t, test.says...)}, options(t))
			if err == nil {
				defer c.Close()
			}
			if errors.Is(err, nbd.ErrNoExport) {
				err = nbd.ErrNoExport
			}
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// chunk is one chunk of the reply to the first request.
func chunk(done bool, typ wire.ChunkType, payload []byte) []byte {
	c := wire.Chunk{Done: done, Type: typ, Cookie: 1, Length: uint32(len(payload))}
	return append(c.AppendStructured(nil), payload...)
}

func data(off uint64, n int) []byte {
	return append(binary.BigEndian.AppendUint64(nil, off), make([]byte, n)...)
}

// Servers that answer a READ of 1024 bytes at 512, or a BLOCK_STATUS of it, with
// something wrong: the connection ends, and what was wrong is in the log.
func TestWrongReplies(t *testing.T) {
	const structured, simple = true, false
	all := chunk(true, wire.ReplyOffsetData, data(512, 1024))
	extents := func(id wire.ContextID) []byte {
		return wire.AppendBlockStatus(nil, id, []wire.Descriptor{{Length: 1024}})
	}
	for name, test := range map[string]struct {
		structured, status bool
		reply              []byte
		want               string // of the log; "": there is no error
	}{
		"right":                 {structured, false, all, ""},
		"right, in pieces":      {structured, false, with(chunk(false, wire.ReplyOffsetData, data(1024, 512)), chunk(true, wire.ReplyOffsetHole, wire.AppendOffsetHole(nil, 512, 512))), ""},
		"right and simple":      {simple, false, append(wire.AppendSimpleReply(nil, 0, 1), make([]byte, 1024)...), ""},
		"right status":          {structured, true, chunk(true, wire.ReplyBlockStatus, extents(contextID)), ""},
		"simple, to READ":       {structured, false, wire.AppendSimpleReply(nil, 0, 1), "a simple reply"},
		"simple, to status":     {structured, true, wire.AppendSimpleReply(nil, 0, 1), "a simple reply"},
		"structured unasked":    {simple, false, all, "magic"},
		"rubbish":               {structured, false, []byte("GET / HTTP/1.1\r\n\r\n"), "magic"},
		"another cookie":        {structured, false, wire.AppendSimpleReply(nil, 0, 2), "no request"},
		"too little":            {structured, false, chunk(true, wire.ReplyOffsetData, data(512, 1023)), "without all data"},
		"nothing":               {structured, false, chunk(true, wire.ReplyNone, nil), "without all data"},
		"twice":                 {structured, false, with(chunk(false, wire.ReplyOffsetData, data(512, 512)), chunk(true, wire.ReplyOffsetData, data(1023, 512))), "twice"},
		"behind the end":        {structured, false, chunk(true, wire.ReplyOffsetData, data(513, 1024)), "1024 bytes at 513"},
		"before the beginning":  {structured, false, chunk(true, wire.ReplyOffsetData, data(511, 1024)), "1024 bytes at 511"},
		"far away":              {structured, false, chunk(true, wire.ReplyOffsetHole, wire.AppendOffsetHole(nil, 1<<63, 1<<31)), "bytes at 9223372036854775808"},
		"a long hole":           {structured, false, chunk(true, wire.ReplyOffsetHole, wire.AppendOffsetHole(nil, 512, 1<<32-1)), "4294967295 bytes"},
		"no data":               {structured, false, chunk(true, wire.ReplyOffsetData, data(512, 0)), "type 1 and 8 bytes"},
		"none, not done":        {structured, false, chunk(false, wire.ReplyNone, nil), "type 0"},
		"status for data":       {structured, false, chunk(true, wire.ReplyBlockStatus, extents(contextID)), "type 5"},
		"data for status":       {structured, true, all, "type 1"},
		"another context":       {structured, true, chunk(true, wire.ReplyBlockStatus, extents(8)), "context 8"},
		"status twice":          {structured, true, with(chunk(false, wire.ReplyBlockStatus, extents(contextID)), chunk(true, wire.ReplyBlockStatus, extents(contextID))), "two BLOCK_STATUS"},
		"a large error":         {structured, false, chunk(true, wire.ReplyError, make([]byte, 1<<16)), "type 32769"},
		"an error that is none": {structured, false, chunk(true, wire.ReplyError, make([]byte, 6)), "ERROR"},
		"an unknown chunk":      {structured, false, chunk(true, 99, nil), "type 99"},
	} {
		t.Run(name, func(t *testing.T) {
			says := [][]byte{greeting}
			if test.structured {
				says = append(says, answer(wire.OptStructuredReply, wire.RepAck, nil),
					with(answer(wire.OptSetMetaContext, wire.RepMetaContext, wire.AppendMetaContext(nil, contextID, wire.BaseAllocation)), answer(wire.OptSetMetaContext, wire.RepAck, nil)))
			} else {
				says = append(says, answer(wire.OptStructuredReply, wire.RepErrUnsup, nil))
			}
			says = append(says, with(answer(wire.OptGo, wire.RepInfo, wire.AppendExportInfo(nil, size, flags)), answer(wire.OptGo, wire.RepAck, nil)), test.reply)
			o, log := options(t), nbdtest.NewLog(t)
			o.Reconnect, o.Log = 0, log.Logger()
			c := open(t, nbdclient.Target{Dial: serverOf(t, says...)}, o)
			defer c.Close()
			a := abilities(t, c)
			var err error
			if test.status {
				_, err = a.Extents(512, 1024, false)
			} else {
				_, err = a.ReadAt(make([]byte, 1024), 512)
			}
			if (err == nil) != (test.want == "") {
				t.Fatalf("%v, want %q", err, test.want)
			}
			if err != nil {
				log.Expect("the connection to the server was lost", test.want)
			}
		})
	}
}

// Errors are passed on, and the connection lives.
func TestErrors(t *testing.T) {
	failing := failing{}
	c := open(t, nbdclient.Target{Dial: dialing(exporting(t, func() nbd.Backend { return failing }))}, options(t))
	defer c.Close()
	a := abilities(t, c)
	for range 2 {
		if _, err := a.ReadAt(make([]byte, 512), 0); !errors.Is(err, wire.ENOMEM) {
			t.Errorf("%v, want ENOMEM", err)
		}
		if _, err := a.WriteAt(make([]byte, 512), 0); !errors.Is(err, wire.ENOSPC) {
			t.Errorf("%v, want ENOSPC", err)
		}
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error)  { return 0, wire.ENOMEM }
func (failing) WriteAt([]byte, int64) (int, error) { return 0, wire.ENOSPC }
func (failing) Size() (int64, error)               { return size, nil }
func (failing) Sync() error                        { return nil }

func TestList(t *testing.T) {
	addr := nbdtest.Serve(t, &nbd.Server{Log: nbdtest.NewLog(t).Logger(), Exports: nbd.ExportList{{Name: "a", Description: "the first"}, {Name: "b"}}})
	all, err := (&nbdclient.Target{Dial: dialing(addr)}).List(t.Context())
	if err != nil || len(all) != 2 || all[0].Name != "a" || all[0].Description != "the first" || all[1].Name != "b" {
		t.Errorf("%v, %v", all, err)
	}
}
