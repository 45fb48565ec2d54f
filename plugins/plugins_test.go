package plugins

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

func TestParameters(t *testing.T) {
	img := filepath.Join(t.TempDir(), "a=b.img")
	if err := os.WriteFile(img, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(img))
	for _, test := range []struct {
		plugin, args string
		size         int64
		wrong        string // part of the error
	}{
		{plugin: "memory", args: "1M", size: 1 << 20},
		{plugin: "memory", args: "size=1M allocator=sparse", size: 1 << 20},
		{plugin: "null", args: "", size: 0},
		{plugin: "null", args: "2s", size: 1024},
		{plugin: "pattern", args: "size=10", size: 10},
		{plugin: "file", args: "./a=b.img", size: 512}, // no key has a slash
		{plugin: "file", args: "file=a=b.img fadvise=random locking=off", size: 512},
		{plugin: "split", args: "./a=b.img ./a=b.img locking=off", size: 1024},
		{plugin: "split", args: "", wrong: "at least one file="},
		{plugin: "split", args: "file=/nowhere", wrong: "no such file"},
		{plugin: "example", args: "10 byte=65", size: 10},
		{plugin: "example", args: "10 byte=256", wrong: "from 0 to 255"},
		{plugin: "memory", args: "", wrong: "a size is needed"},
		{plugin: "pattern", args: "", wrong: "a size is needed"},
		{plugin: "memory", args: "1M 2M", wrong: "size was given twice"},
		{plugin: "memory", args: "1M colour=red", wrong: `no parameter "colour"`},
		{plugin: "memory", args: "1M allocator=zstd", wrong: "must be one of sparse"},
		{plugin: "memory", args: "lots", wrong: "is not a size"},
		{plugin: "file", args: "", wrong: "either file= or dir="},
		{plugin: "file", args: "x dir=y", wrong: "either file= or dir="},
		{plugin: "file", args: "x cache=none", wrong: "cache=none"},
		{plugin: "file", args: "dir=/nowhere", wrong: "no such file"},
		{plugin: "nothing", wrong: `no plugin "nothing"; there are data, eval, example, file, full`},
	} {
		t.Run(test.plugin+" "+test.args, func(t *testing.T) {
			size, err := configure(test.plugin, strings.Fields(test.args))
			switch {
			case test.wrong == "" && err != nil:
				t.Error(err)
			case test.wrong != "" && (err == nil || !strings.Contains(err.Error(), test.wrong)):
				t.Errorf("error %v, want %q", err, test.wrong)
			case size != test.size:
				t.Errorf("size %d, want %d", size, test.size)
			}
		})
	}
}

func configure(name string, args []string) (int64, error) {
	s, err := Configure(name, nil, args, plugin.Host{})
	if err != nil {
		return 0, err
	}
	b, err := s.Open(context.Background(), nbd.OpenInfo{})
	if err != nil {
		return 0, err
	}
	a, err := nbd.Resolve(b)
	if err != nil {
		return 0, err
	}
	if a.Close != nil {
		defer a.Close()
	}
	return a.Size, nil
}
