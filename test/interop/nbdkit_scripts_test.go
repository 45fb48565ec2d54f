package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestScriptsOfNBDKit runs scripts that were written for nbdkit under nbdkit and
// under this program with the same command line: clients must not see a
// difference, apart from those that requests.py leaves out.
func TestScriptsOfNBDKit(t *testing.T) {
	nbdkit, err := exec.LookPath("nbdkit")
	if err != nil {
		t.Fatal(err)
	}
	ours := filepath.Join(t.TempDir(), "nbdkit")
	if err := os.Symlink(program, ours); err != nil {
		t.Fatal(err)
	}
	images := t.TempDir()
	for _, name := range []string{"apple", "pear"} {
		if err := os.WriteFile(filepath.Join(images, name), []byte(name+string(make([]byte, 128<<10))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	script := func(name string, args ...string) []string {
		return append([]string{"sh", filepath.Join("testdata/scripts", name)}, args...)
	}
	for _, test := range []struct {
		name string
		args []string
	}{
		{"ramdisk", script("ramdisk.sh", "1M")},
		{"ramdisk, read-only", append([]string{"-r"}, script("ramdisk.sh", "size=1M")...)},
		{"ramdisk without size", script("ramdisk.sh")},
		{"ramdisk with an unknown parameter", script("ramdisk.sh", "colour=red")},
		{"errors", script("errors.sh")},
		{"directory", script("directory.sh", "dir="+images)},
		{"directory, unknown name", append([]string{"-e", "plum"}, script("directory.sh", "dir="+images)...)},
		{"directory, forbidden name", append([]string{"-e", "../apple"}, script("directory.sh", "dir="+images)...)},
		{"directory without a method magic_config_key", script("directory.sh", images)},
		{"private", script("private.sh")},
		{"python", script("python.sh")},
		{"python takes no parameters", script("python.sh", "a=b")},
		{"refuses", script("refuses.sh")},
		{"zero", script("zero.sh")},
		{"descriptions", script("descriptions.sh")},
		{"unknown", script("unknown.sh")},
		{"bad size", script("badsize.sh")},
		{"no script", script("nowhere.sh")},
		{"eval, read-only", []string{"eval", "get_size=echo 64M", "pread=dd if=/dev/zero count=$3 iflag=count_bytes status=none"}},
		{"eval, a file", []string{
			"eval",
			`config=ln -sf "$(realpath "$3")" $tmpdir/file`,
			"get_size=stat -Lc %s $tmpdir/file",
			"pread=dd if=$tmpdir/file skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none",
			"pwrite=dd of=$tmpdir/file seek=$4 conv=notrunc oflag=seek_bytes status=none",
			"flush=exit 0", "extents=echo 0 1M", "cache=exit 0", "file=" + disk,
		}},
		{"eval, missing", []string{"eval", "get_size=echo 1M", "pread=exit 1", "missing=echo EPERM >&2; exit 2"}},
		{"eval, unknown parameter", []string{"eval", "get_size=echo 1M", "pread=exit 1", "colour=red"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			type result struct {
				Output string
				Status int
			}
			run := func(program string) (r result) {
				cmd := exec.Command(program, append([]string{"-U", "-"}, test.args...)...)
				cmd.Args = append(cmd.Args, "--run", `/usr/bin/python3 testdata/requests.py "$uri" && nbdinfo --list "$uri" 2>/dev/null | grep -E '^export|description'; true`)
				out, err := cmd.Output()
				if cmd.ProcessState == nil {
					t.Fatal(err)
				}
				return result{string(out), cmd.ProcessState.ExitCode()}
			}
			want, got := run(nbdkit), run(ours)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-nbdkit +ours:\n%s", diff)
			}
		})
	}
}
