package partitioning

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
	"nbd-ktls-server/plugins/plugin"
)

func configured(args ...string) (*plugin.Source, error) {
	return plugin.Configure(Plugin, nil, args, plugin.Host{Log: slog.New(slog.DiscardHandler)})
}

// sfdisk is what sfdisk says about a disk.
type sfdisk struct {
	PartitionTable struct {
		Label      string
		Partitions []struct {
			Start, Size int64
			Type, Name  string
		}
	}
}

func lookAt(t *testing.T, disk string) (s sfdisk) {
	t.Helper()
	path, err := exec.LookPath("sfdisk")
	if err != nil {
		path = "/usr/sbin/sfdisk"
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("NBD_TEST_TOOLS") == "require" {
			t.Fatal(err)
		}
		t.Skip("there is no sfdisk")
	}
	for _, arg := range []string{"--verify", "-J"} {
		out, err := exec.Command(path, arg, disk).CombinedOutput()
		if err != nil || arg == "--verify" && !bytes.Contains(out, []byte("No errors detected")) {
			t.Fatalf("sfdisk %s: %v\n%s", arg, err, out)
		}
		if arg == "-J" {
			if err := json.Unmarshal(out, &s); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// What sfdisk finds are the files, in order, with their types; nothing but the
// files can be changed.
func TestTables(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for i := range 6 {
		path := filepath.Join(dir, fmt.Sprint(i+1))
		content := bytes.Repeat([]byte{byte(i + 1)}, 700*(i+1)) // of no whole sectors
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, path)
	}
	for _, test := range []struct {
		args  []string
		label string
		types string // of the partitions that are files
	}{
		{names[:1], "dos", "83"},
		{append([]string{"mbr-id=0x82", names[0], "mbr-id=default"}, names[1:4]...), "dos", "82 83 83 83"},
		{append([]string{"partition-type=mbr", "alignment=4096"}, names...), "dos", "83 83 83 83 83 83"},
		{append([]string{"partition-type=mbr", "alignment=512"}, names...), "dos", "83 83 83 83 83 83"},
		{names, "gpt", strings.Repeat("0FC63DAF-8483-4772-8E79-3D69D8477DE4 ", 6)},
		{[]string{"partition-type=gpt", "type-guid=C12A7328-F81F-11D2-BA4B-00A0C93EC93B", names[0]}, "gpt", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"},
	} {
		t.Run(fmt.Sprint(len(test.args))+" "+test.label, func(t *testing.T) {
			s, err := configured(test.args...)
			if err != nil {
				t.Fatal(err)
			}
			b, err := s.Open(t.Context(), nbd.OpenInfo{})
			if err != nil {
				t.Fatal(err)
			}
			a, err := nbd.Resolve(b)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			disk := make([]byte, a.Size)
			if _, err := a.ReadAt(disk, 0); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "disk")
			if err := os.WriteFile(path, disk, 0o600); err != nil {
				t.Fatal(err)
			}
			table := lookAt(t, path).PartitionTable
			if table.Label != test.label {
				t.Errorf("a table of type %s, want %s", table.Label, test.label)
			}
			i, types := 0, strings.Fields(test.types)
			for _, p := range table.Partitions {
				if p.Type == "f" || p.Type == "5" { // the extended one
					continue
				}
				at, n := p.Start*sectorSize, int64(700*(i+1))
				want := append(bytes.Repeat([]byte{byte(i + 1)}, int(n)), make([]byte, p.Size*sectorSize-n)...)
				if i >= len(types) || p.Type != types[i] || !bytes.Equal(disk[at:at+p.Size*sectorSize], want) {
					t.Fatalf("partition %d of type %s is not file %d", i+1, p.Type, i+1)
				}
				if _, err := a.WriteAt([]byte{byte(i + 1)}, at+1); err != nil {
					t.Errorf("writing to partition %d: %v", i+1, err)
				}
				i++
			}
			if i != len(types) {
				t.Errorf("%d partitions, want %d", i, len(types))
			}
			if _, err := a.WriteAt([]byte{1}, 0x1be); !errors.Is(err, wire.EIO) {
				t.Errorf("writing to the table: %v", err)
			}
			if _, err := a.WriteAt(disk[:4096], 0); err != nil {
				t.Errorf("writing what is there: %v", err)
			}
		})
	}
}

func TestWrong(t *testing.T) {
	dir := t.TempDir()
	empty, large := filepath.Join(dir, "empty"), filepath.Join(dir, "large")
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.WriteFile(large, nil, 0o600), os.Truncate(large, 3<<40)); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"":                            "from 1 to",
		empty:                         "it is empty",
		"/nowhere":                    "no such file",
		"partition-type=bsd " + large: "mbr or gpt",
		"partition-type=mbr " + large: "too large",
		"alignment=1000 " + large:     "a multiple of 512",
		"mbr-id=256 " + large:         "up to 0xff",
		"type-guid=1 " + large:        "not a GUID",
		"colour=red " + large:         "no such parameter",
	} {
		if _, err := configured(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
	if _, err := configured(large); err != nil { // GPT
		t.Error(err)
	}
}
