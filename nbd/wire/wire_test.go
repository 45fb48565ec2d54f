package wire_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"nbd-ktls-server/nbd/wire"
)

// The bytes of proto.md's figures, written out by hand.
func TestLayouts(t *testing.T) {
	for _, test := range []struct {
		name string
		got  []byte
		want string
	}{
		{"greeting", wire.AppendGreeting(nil, 3), "4e42444d41474943 49484156454f5054 0003"},
		{"option reply", wire.AppendOptionReply(nil, wire.OptGo, wire.RepErrTLSReqd, []byte("x")), "0003e889045565a9 00000007 80000005 00000001 78"},
		{"server", wire.AppendServer(nil, "ab", "c"), "00000002 6162 63"},
		{"export name", wire.AppendExportNameReply(nil, 0x0102030405060708, 5, false), "0102030405060708 0005"},
		{"info export", wire.AppendExportInfo(nil, 0x0102030405060708, 0x0dd), "0000 0102030405060708 00dd"},
		{"info name", wire.AppendTextInfo(nil, wire.InfoName, "x"), "0001 78"},
		{"info block size", wire.AppendBlockSizeInfo(nil, 1, 4096, 1<<25), "0003 00000001 00001000 02000000"},
		{"simple reply", wire.AppendSimpleReply(nil, wire.EINVAL, 0x1122334455667788), "67446698 00000016 1122334455667788"},
	} {
		want, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(test.want), []byte(" "), nil)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(test.got, want) {
			t.Errorf("%s: %x, want %x", test.name, test.got, want)
		}
	}
	if got := wire.AppendExportNameReply(nil, 1, 1, true); len(got) != 10+124 {
		t.Errorf("EXPORT_NAME with zeroes: %d bytes", len(got))
	}
}

func TestParseRequest(t *testing.T) {
	p, _ := hex.DecodeString("25609513" + "0003" + "0006" + "1122334455667788" + "8000000000000001" + "fffffffe")
	got, err := wire.ParseRequest(p)
	want := wire.Request{Flags: 3, Command: wire.CmdWriteZeroes, Cookie: 0x1122334455667788, Offset: 1<<63 + 1, Length: 0xfffffffe}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	p[0] = 0
	if _, err := wire.ParseRequest(p); !errors.Is(err, wire.ErrMagic) {
		t.Errorf("bad magic: %v", err)
	}
}

func TestNames(t *testing.T) {
	for v, want := range map[interface{ String() string }]string{
		wire.OptStartTLS: "STARTTLS", wire.RepErrTLSReqd: "ERR_TLS_REQD", wire.CmdWriteZeroes: "WRITE_ZEROES",
		wire.InfoBlockSize: "BLOCK_SIZE", wire.Option(99): "Option(99)",
	} {
		if got := v.String(); got != want {
			t.Errorf("%T: %q, want %q", v, got, want)
		}
	}
	if got := wire.EIO.Error(); got != "NBD_EIO" {
		t.Error(got)
	}
}

// Whatever comes in: no panic, and what is taken says the same when written
// again.
func FuzzParseInfoRequest(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x04disk\x00\x02\x00\x01\x00\x03"))
	f.Add([]byte("\xff\xff\xff\xffx\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		req, err := wire.ParseInfoRequest(p)
		if err != nil {
			return
		}
		b := []byte{0, 0, byte(len(req.Name) >> 8), byte(len(req.Name))}
		b = append(b, req.Name...)
		b = append(b, byte(len(req.Infos)>>8), byte(len(req.Infos)))
		for _, i := range req.Infos {
			b = append(b, byte(i>>8), byte(i))
		}
		if !bytes.Equal(b, p) {
			t.Errorf("%x became %x", p, b)
		}
		for _, i := range req.Infos {
			if !req.Wants(i) {
				t.Errorf("%v is in the list", i)
			}
		}
	})
}

func FuzzParseMetaRequest(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x04disk\x00\x00\x00\x02\x00\x00\x00\x05base:\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, p []byte) {
		req, err := wire.ParseMetaRequest(p)
		if err != nil {
			return
		}
		put := func(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }
		b := append(put(nil, len(req.Name)), req.Name...)
		b = put(b, len(req.Queries))
		for _, q := range req.Queries {
			b = append(put(b, len(q)), q...)
		}
		if !bytes.Equal(b, p) {
			t.Errorf("%x became %x", p, b)
		}
	})
}

func FuzzParseRequests(f *testing.F) {
	f.Add(make([]byte, wire.ExtendedRequestSize))
	f.Add([]byte("\x25\x60\x95\x13\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x02\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		wire.ParseStatusRequest(p)
		if len(p) < wire.ExtendedRequestSize {
			return
		}
		wire.ParseOptionHeader(p)
		if r, err := wire.ParseRequest(p); err == nil && r.Length > 1<<32-1 {
			t.Errorf("a compact length of %d", r.Length)
		}
		wire.ParseExtendedRequest(p)
	})
}

func TestParseOptionHeader(t *testing.T) {
	opt, n, err := wire.ParseOptionHeader([]byte("IHAVEOPT\x00\x00\x00\x07\x01\x02\x03\x04"))
	if !reflect.DeepEqual([]any{opt, n, err}, []any{wire.OptGo, uint32(0x01020304), error(nil)}) {
		t.Error(opt, n, err)
	}
}
