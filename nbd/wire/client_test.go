package wire_test

import (
	"errors"
	"reflect"
	"testing"

	"nbd-ktls-server/nbd/wire"
)

// Each half reads what the other writes. Where a layout is pinned down by
// TestLayouts or TestParseRequest, that pins both.
func TestBothHalvesAgree(t *testing.T) {
	all := func(v ...any) []any { return v }
	hello := wire.AppendGreeting(nil, 3)
	option := wire.AppendOption(nil, wire.OptGo, []byte("xy"))
	reply := wire.AppendOptionReply(nil, wire.OptGo, wire.RepErrPolicy, []byte("no"))
	info := &wire.InfoRequest{Name: "disk", Infos: []wire.Info{wire.InfoBlockSize}}
	meta := &wire.MetaRequest{Name: "disk", Queries: []string{wire.BaseAllocation, "x"}}
	req := wire.Request{Flags: 1, Command: wire.CmdWrite, Cookie: 7, Offset: 1 << 40, Length: 1 << 20}
	chunk := wire.Chunk{Done: true, Type: wire.ReplyError, Cookie: 9, Length: 11}
	ds := []wire.Descriptor{{Length: 512, Flags: 3}, {Length: 1}}
	for name, pair := range map[string][2][]any{
		"greeting":     {all(wire.ParseGreeting(hello)), {wire.HandshakeFlags(3), nil}},
		"option":       {all(wire.ParseOptionHeader(option)), {wire.OptGo, uint32(2), nil}},
		"option reply": {all(wire.ParseOptionReplyHeader(reply)), {wire.OptGo, wire.RepErrPolicy, uint32(2), nil}},
		"info request": {all(wire.ParseInfoRequest(info.Append(nil))), {info, nil}},
		"export info":  {all(wire.ParseExportInfo(wire.AppendExportInfo(nil, 1<<50, 5)[2:])), {uint64(1 << 50), wire.TransmissionFlags(5), nil}},
		"block size":   {all(wire.ParseBlockSizeInfo(wire.AppendBlockSizeInfo(nil, 1, 2, 3)[2:])), {uint32(1), uint32(2), uint32(3), nil}},
		"meta request": {all(wire.ParseMetaRequest(meta.Append(nil))), {meta, nil}},
		"meta context": {all(wire.ParseMetaContext(wire.AppendMetaContext(nil, 4, "base:allocation"))), {wire.ContextID(4), "base:allocation", nil}},
		"server":       {all(wire.ParseServer(wire.AppendServer(nil, "disk", "of mine"))), {"disk", "of mine", nil}},
		"request":      {all(wire.ParseRequest(req.Append(nil))), {req, nil}},
		"simple reply": {all(wire.ParseSimpleReply(wire.AppendSimpleReply(nil, wire.EIO, 8))), {wire.EIO, wire.Cookie(8), nil}},
		"chunk":        {all(wire.ParseStructured(chunk.AppendStructured(nil))), {chunk, nil}},
		"error":        {all(wire.ParseError(wire.AppendError(nil, wire.ENOSPC, "full"))), {wire.ENOSPC, "full", nil}},
		"hole":         {all(wire.ParseOffsetHole(wire.AppendOffsetHole(nil, 1<<40, 512))), {uint64(1 << 40), uint32(512)}},
		"block status": {all(wire.ParseBlockStatus(wire.AppendBlockStatus(nil, 1, ds)[4:])), {ds, nil}},
		"error is one": {all(wire.ReplyErrorOffset.IsError(), wire.ReplyOffsetData.IsError()), {true, false}},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s: %v, want %v", name, pair[0], pair[1])
		}
	}
}

func TestClientParsersRefuse(t *testing.T) {
	err := func(v ...any) error { e, _ := v[len(v)-1].(error); return e }
	for name, test := range map[string]struct{ got, want error }{
		"greeting":     {err(wire.ParseGreeting(make([]byte, wire.GreetingSize))), wire.ErrMagic},
		"oldstyle":     {err(wire.ParseGreeting(append([]byte("NBDMAGIC"), make([]byte, 10)...))), wire.ErrMagic},
		"option reply": {err(wire.ParseOptionReplyHeader(make([]byte, wire.OptionReplyHeaderSize))), wire.ErrMagic},
		"simple reply": {err(wire.ParseSimpleReply(make([]byte, wire.SimpleReplySize))), wire.ErrMagic},
		"chunk":        {err(wire.ParseStructured(make([]byte, wire.StructuredReplySize))), wire.ErrMagic},
		"export info":  {err(wire.ParseExportInfo(make([]byte, 9))), wire.ErrMalformed},
		"block size":   {err(wire.ParseBlockSizeInfo(make([]byte, 11))), wire.ErrMalformed},
		"meta context": {err(wire.ParseMetaContext(make([]byte, 3))), wire.ErrMalformed},
		"server":       {err(wire.ParseServer([]byte{0, 0, 0, 9, 'x'})), wire.ErrMalformed},
		"short error":  {err(wire.ParseError(make([]byte, 5))), wire.ErrMalformed},
		"error 0":      {err(wire.ParseError(make([]byte, 6))), wire.ErrMalformed},
		"error text":   {err(wire.ParseError([]byte{0, 0, 0, 5, 0, 2, 'x'})), wire.ErrMalformed},
		"descriptor":   {err(wire.ParseBlockStatus(make([]byte, 7))), wire.ErrMalformed},
		"empty extent": {err(wire.ParseBlockStatus(make([]byte, 8))), wire.ErrMalformed},
	} {
		if !errors.Is(test.got, test.want) {
			t.Errorf("%s: %v, want %v", name, test.got, test.want)
		}
	}
}
