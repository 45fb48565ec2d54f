package concat_test

import (
	"os"
	"path/filepath"
	"testing"

	"nbd-ktls-server/backends/backendtest"
	"nbd-ktls-server/backends/concat"
	"nbd-ktls-server/backends/file"
	"nbd-ktls-server/backends/memory"
	"nbd-ktls-server/nbd"
)

func TestBackend(t *testing.T) {
	backendtest.Run(t, func(t testing.TB) nbd.Backend {
		d, err := concat.New([]nbd.Backend{
			memory.New(64 << 10), memory.New(0), memory.New(448 << 10), memory.New(backendtest.Size - 512<<10),
		})
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

func TestSection(t *testing.T) {
	var parts []nbd.Backend
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := file.Open(path, file.Options{NoLocking: true})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, f)
	}
	d, err := concat.New(parts)
	if err != nil {
		t.Fatal(err)
	}
	a, err := nbd.Resolve(d)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if f, at, ok := a.Section(9000, 100); !ok || at != 9000-8192 || filepath.Base(f.Name()) != "b" {
		t.Errorf("%v %d %v", f, at, ok)
	}
	if _, _, ok := a.Section(8000, 500); ok {
		t.Error("a range in two files is in one")
	}
}
