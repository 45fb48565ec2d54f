package interop

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestScriptsOfNBDKit runs scripts that were written for nbdkit under nbdkit and
// under this program with the same command line: clients must not see a
// difference, apart from those that requests.py leaves out.
func TestScriptsOfNBDKit(t *testing.T) {
	nbdkit, ours := nbdkits(t)
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
			besideNBDKit(t, nbdkit, ours, test.args)
		})
	}
}

// nbdkits are Debian's nbdkit, and this program under that name.
func nbdkits(t *testing.T) (nbdkit, ours string) {
	t.Helper()
	nbdkit, err := exec.LookPath("nbdkit")
	if err != nil {
		t.Fatal(err)
	}
	ours = filepath.Join(t.TempDir(), "nbdkit")
	if err := os.Symlink(program, ours); err != nil {
		t.Fatal(err)
	}
	return nbdkit, ours
}

// besideNBDKit runs both with the same command line, and fails the test if a client
// sees a difference.
func besideNBDKit(t *testing.T, nbdkit, ours string, args []string) {
	t.Helper()
	type result struct {
		Output string
		Status int
	}
	run := func(program string) (r result) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, append([]string{"-U", "-"}, args...)...)
		cmd.Args = append(cmd.Args, "--run", `/usr/bin/python3 testdata/requests.py "$uri" && nbdinfo --list "$uri" 2>/dev/null | grep -E '^export|description'; true`)
		cmd.WaitDelay = time.Second
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
}

// TestFiltersOfNBDKit compares filters likewise, apart from extents, since
// nbdkit's disk in memory has other pages. Its filter cow cannot zero.
func TestFiltersOfNBDKit(t *testing.T) {
	nbdkit, ours := nbdkits(t)
	disk := filepath.Join(t.TempDir(), "disk")
	for _, args := range []string{
		"--filter=offset memory 1M offset=4K range=64K",
		"--filter=offset memory 1M offset=2M",
		"--filter=offset --filter=truncate memory 10000 round-up=64K offset=512",
		"--filter=truncate memory 1M truncate=512K",
		"--filter=truncate memory 4600 truncate=64K",
		"--filter=nozero memory 1M",
		"--filter=nozero memory 1M zeromode=notrim fastzeromode=slow",
		"--filter=nozero memory 1M zeromode=notrim fastzeromode=none",
		"--filter=noextents memory 1M",
		"--filter=nocache memory 1M cachemode=nop",
		"--filter=nocache memory 1M",
		"--filter=fua memory 1M fuamode=force",
		"--filter=fua memory 1M fuamode=discard",
		"--filter=protect memory 1M protect=4096-4100",
		"--filter=protect memory 1M protect=~0-64K",
		"--filter=partition memory 1M partition=1",
		"--filter=partition memory 1M",
		"--filter=error memory 1M error=ENOSPC error-pwrite-rate=100%",
		"--filter=error memory 1M error-pread=EINVAL error-pread-rate=1 error-zero=EPERM error-zero-rate=1",
		"--filter=error memory 1M error=EFUN",
		"--filter=delay memory 1M rdelay=1ms delay-write=1ms",
		"--filter=tls-fallback memory 1M",
		"--filter=multi-conn memory 1M multi-conn-mode=disable",
		"--filter=ip memory 1M deny=allipv6",
		"--filter=ip memory 1M deny=colour",
		"--filter=limit memory 1M limit=2",
		"--filter=exportname memory 1M exportname-list=explicit exportname=x exportname=y default-export=x exportdesc=fixed:z",
		"--filter=rate memory 1M rate=1G",
		"--filter=nosuch memory 1M",
		"-r --filter=offset file FILE offset=1K",
		"--filter=blocksize memory 1M minblock=1000",
		"--filter=checkwrite memory 64K",
		"--filter=readahead memory 1M",
		"nbd command=nbdkit arg=memory arg=1M",
		"nbd command=nbdkit arg=-r arg=pattern arg=64K",
		"nbd hostname=localhost socket=/nosuch",
		"nbd",
	} {
		t.Run(args, func(t *testing.T) {
			content := make([]byte, 128<<10)
			copy(content[1000:], "some data")
			if err := os.WriteFile(disk, content, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("NO_EXTENTS", "1")
			besideNBDKit(t, nbdkit, ours, strings.Fields(strings.ReplaceAll(args, "FILE", disk)))
		})
	}
}
