package data

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

func content(t *testing.T, args ...string) (string, error) {
	t.Helper()
	s, err := plugin.Configure(Plugin, nil, args, plugin.Host{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", err
	}
	b, err := s.Open(t.Context(), nbd.OpenInfo{})
	if err != nil {
		return "", err
	}
	a, err := nbd.Resolve(b)
	if err != nil {
		return "", err
	}
	p := make([]byte, min(a.Size, 1<<20))
	_, err = a.ReadAt(p, 0)
	return string(p), err
}

func TestData(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("from_environment", `"e"`)
	zero := func(n int) string { return strings.Repeat("\x00", n) }
	for args, want := range map[string]string{
		"":                                    "",
		"1 0x10 010":                          "\x01\x10\x08",
		"0 1 2 3 @0x1fe 0x55 0xaa":            "\x00\x01\x02\x03" + zero(0x1fa) + "\x55\xaa",
		"@^0x200 1 @+2 2 @-4 3":               "\x03\x00\x00\x02",
		"1 @^8 2":                             "\x01" + zero(7) + "\x02",
		"1 @^8":                               "\x01" + zero(7),
		"1 2 3 @1 9":                          "\x01\x09\x03",
		"le16:0x0102 be16:0x0102":             "\x02\x01\x01\x02",
		"le32:1 be32:1":                       "\x01\x00\x00\x00\x00\x00\x00\x01",
		"le64:1 be64:0xffffffffffffffff":      "\x01" + zero(7) + strings.Repeat("\xff", 8),
		`"a\n\x41\101\"\\"`:                   "a\nAA\"\\",
		`("ab")*3`:                            "ababab",
		`"ab"*3`:                              "ababab",
		`0xff * 2 * 2`:                        strings.Repeat("\xff", 4),
		`(("a" "b")*2 "c")*2`:                 "ababcababc",
		`("a" @4)*2`:                          "a" + zero(3) + "a" + zero(3),
		`"abcdef"[2:4]`:                       "cd",
		`"abcdef"[:2] "abcdef"[4:]`:           "abef",
		`("abc"*100)[299:]`:                   "c",
		`("abc"*100000000)[5:8]`:              "cab",
		`"ab"*0 "c"`:                          "c",
		`(0*1000000000000)[999999999999:]`:    "\x00",
		`"a" -> \x \x \x`:                     "aa",
		`("a" -> \x "b" \x) "c"`:              "bac",
		`("a")->\x (\x -> \y \y \y)*2`:        "aaaa",
		"1 # one\n2":                          "\x01\x02",
		"<" + file:                            "content",
		"<" + file + "[:3]*2":                 "concon",
		"<(printf %s '(a)')":                  "(a)",
		"<(while :; do echo y; done)[:5]":     "y\ny\ny",
		"</dev/zero[:4] 1":                    zero(4) + "\x01",
		"$v*2|v=1 2":                          "\x01\x02\x01\x02",
		"$from_environment":                   "e",
		"1 2 3|size=2":                        "\x01\x02",
		"1|size=4":                            "\x01" + zero(3),
		"raw=text":                            "text",
		"base64=aGVsbG8gbmJka2l0IHVzZXI=":     "hello nbdkit user",
		"@0x3ff 1 @0x3fffffffffffffff|size=4": zero(4),
	} {
		t.Run(args, func(t *testing.T) {
			split := strings.Split(args, "|")
			if !strings.Contains(split[0], "=") || split[0][0] == '(' || split[0][0] == '"' {
				split[0] = "data=" + split[0]
			}
			got, err := content(t, split...)
			if err != nil || got != want {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		})
	}
}

func TestWrongData(t *testing.T) {
	started := time.Now()
	for text, want := range map[string]string{
		"256":                           "too large",
		"le16:65536":                    "too large",
		"le24:1":                        "words are",
		"08":                            "is not a number",
		"x":                             "means nothing",
		"(1":                            "')' is missing",
		"1)":                            "without '('",
		`"a`:                            "no end",
		`"\q"`:                          `\q is no character`,
		`"\xg"`:                         "no character",
		`"\777"`:                        "no character",
		"<(echo":                        "no end",
		"<(exit 3)":                     "exit status 3",
		"</nowhere":                     "no such file",
		`\x`:                            `no \x`,
		`(1 -> \x) \x`:                  `no \x`,
		"$nowhere_at_all":               "there is no $nowhere_at_all",
		"$v":                            "too deep", // v=$v
		"@-1":                           "before the beginning",
		"@^0":                           "no alignment",
		"@0x7fffffffffffffff 1":         "larger than",
		`"abc"[2:1]`:                    "is not in 3 bytes",
		`"abc"[:4]`:                     "is not in 3 bytes",
		`"abc"[1]`:                      "a slice is",
		"1*9223372036854775807*2":       "larger than",
		"1*0x100000000":                 "more than",
		"</dev/zero":                    "more than",
		strings.Repeat("(", 200):        "too deep",
		strings.Repeat("(1 ", 50) + "1": "')' is missing",
		`(1*1000000000000)[1:2] (1 0*1000000 2)*1000000000000`:                           "more than",
		`1 -> \a ` + strings.Repeat(`(\a \a \a \a \a \a \a \a \a \a) -> \a `, 15) + `\a`: "more than",
	} {
		t.Run(text, func(t *testing.T) {
			if _, err := content(t, "data="+text, "v=$v"); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
	if took := time.Since(started); took > time.Minute {
		t.Errorf("that took %v", took)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("\"\\x0")
	f.Add(`0 1 (le16:5 "a")*3 @^8 -> \x \x[1:2] # c`)
	f.Fuzz(func(t *testing.T, text string) {
		if strings.ContainsAny(text, "<$") { // no files, no scripts
			t.Skip()
		}
		i, err := parse(text, nil)
		if err != nil || i.size() > 1<<20 {
			return
		}
		if _, err := write(i, i.size()); err != nil {
			t.Skip()
		}
	})
}
