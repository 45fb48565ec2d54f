package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPluginsOfNBDKit runs plugins under Debian's nbdkit and under this program,
// likewise: what is read, what fails, and what is said of the disk is the same.
func TestPluginsOfNBDKit(t *testing.T) {
	need(t, "nbdkit")
	nbdkit, ours := nbdkits(t)
	tmp := t.TempDir()
	files := []string{filepath.Join(tmp, "one"), filepath.Join(tmp, "two")}
	for _, args := range []string{
		"data|0 1 2 3 @0x1fe 0x55 0xaa",
		`data|("Hello" 0x55 *3 @^8)*100 -> \x \x[3:200] "\n" le32:1 @-2 be16:2|size=1M`,
		"data|<ONE[:100]*4 <(printf '%s' abc)",
		"data|$v*2|v=( 1 2 @4 )",
		"data|raw=text",
		"data|base64=aGVsbG8gbmJka2l0IHVzZXI=|size=64K",
		"data|(",
		"data|1|base64=aGVs",
		"data",
		"full|1M",
		"full",
		"zero",
		"info|exportname",
		"info|mode=address",
		"info|colour",
		"pattern|1M",
		"null|1M",
		"partitioning",
		"partitioning|ONE|partition-type=bsd",
		"ondemand|1M",
		"ondemand|1M|dir=/nowhere",
		"tmpdisk",
		"random|1M|seed=often",
		"sparse-random|percent=200|1M",
	} {
		t.Run(args, func(t *testing.T) {
			for i, f := range files {
				if err := os.WriteFile(f, []byte(strings.Repeat(string(rune('a'+i)), 64<<10)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("NO_EXTENTS", "1")
			args := strings.Split(strings.NewReplacer("ONE", files[0], "TWO", files[1]).Replace(args), "|")
			besideNBDKit(t, nbdkit, ours, args)
		})
	}
}
