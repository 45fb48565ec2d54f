package tlsengine

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 8448, Section 3, "Simple 1-RTT Handshake": the client's application
// traffic, TLS_AES_128_GCM_SHA256.
func TestRFC8448(t *testing.T) {
	su := &suites[0]
	client := trafficSecret(unhex(t, "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5"))
	if got := client.key(su); !bytes.Equal(got, unhex(t, "17422dda596ed5d9acd890e3c63f5051")) {
		t.Errorf("key %x", got)
	}
	if got := client.iv(su); !bytes.Equal(got, unhex(t, "5b78923dee08579033e523d9")) {
		t.Errorf("iv %x", got)
	}
	server := trafficSecret(unhex(t, "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"))
	if got := server.key(su); !bytes.Equal(got, unhex(t, "9f02283b6c9c07efc26bb9f2ac92e356")) {
		t.Errorf("server's key %x", got)
	}

	data := make([]byte, 50)
	for i := range data {
		data[i] = byte(i)
	}
	records := []struct {
		typ     contentType
		content []byte
		want    string
	}{
		{typeApplicationData, data, "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4"},
		{typeAlert, []byte{1, 0}, "17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3"},
	}
	for _, spare := range []bool{false, true} {
		out, in := halfConn{suite: su}, halfConn{suite: su}
		if err := out.setSecret(bytes.Clone(client)); err != nil {
			t.Fatal(err)
		}
		if err := in.setSecret(bytes.Clone(client)); err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			content := append(bytes.Clone(r.content), 0xdb)
			got := out.seal(nil, r.typ, content[:len(r.content)], spare)
			if !bytes.Equal(got, unhex(t, r.want)) {
				t.Errorf("spare %v: record %x", spare, got)
			}
			if !bytes.Equal(content, append(bytes.Clone(r.content), 0xdb)) {
				t.Errorf("spare %v: sealing has changed its input", spare)
			}
			typ, back, err := in.open(got[recordHeaderLen:], got)
			if err != nil || typ != r.typ || !bytes.Equal(back, r.content) {
				t.Errorf("opened: %d %x %v", typ, back, err)
			}
		}
	}
}

// Every suite, through an update: what one side seals the other opens, once.
func TestSuites(t *testing.T) {
	for i := range suites {
		su := &suites[i]
		secret := bytes.Repeat([]byte{7}, su.hash().Size())
		out, in := halfConn{suite: su}, halfConn{suite: su}
		out.setSecret(bytes.Clone(secret))
		in.setSecret(bytes.Clone(secret))
		for generation := range 3 {
			for range 5 {
				r := out.seal(nil, typeApplicationData, []byte("hello"), false)
				if _, _, err := in.open(make([]byte, 100), bytes.Clone(r)); err != nil {
					t.Fatalf("suite %#x, generation %d: %v", su.id, generation, err)
				}
				if _, _, err := in.open(make([]byte, 100), r); err == nil {
					t.Fatalf("suite %#x: a record was opened twice", su.id)
				}
				in.seq--
			}
			if err := out.update(); err != nil {
				t.Fatal(err)
			}
			r := out.seal(nil, typeApplicationData, []byte("hello"), false)
			if _, _, err := in.open(make([]byte, 100), bytes.Clone(r)); err == nil {
				t.Fatalf("suite %#x: a record under the next key was opened with the last", su.id)
			}
			in.update()
			if _, _, err := in.open(make([]byte, 100), r); err != nil {
				t.Fatalf("suite %#x: after the update: %v", su.id, err)
			}
		}
	}
}
