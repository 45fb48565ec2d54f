package filters

import (
	"bytes"
	"fmt"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/nbd/wire"
)

var checkwriteFilter = always("checkwrite", "compares what is written with what is there, to test what copies disks", checkWrite)

// checkBlock is how much is read at once, to be compared.
const checkBlock = 64 << 10

func checkWrite(a *nbd.Abilities) {
	read := a.ReadAt
	a.WriteAt = func(p []byte, off int64) (int, error) {
		mem := make([]byte, min(len(p), checkBlock))
		for n := 0; n < len(p); {
			have := mem[:min(len(mem), len(p)-n)]
			if err := all(have)(read(have, off+int64(n))); err != nil {
				return n, err
			}
			if !bytes.Equal(have, p[n:n+len(have)]) {
				return n, differs(off + int64(n))
			}
			n += len(have)
		}
		return len(p), nil
	}
	a.WriteFUA = a.WriteAt
	a.Sync = func() error { return nil }
	isZero := func(off, n int64) error {
		mem := make([]byte, min(n, checkBlock))
		for n > 0 {
			have := mem[:min(n, checkBlock)]
			if err := all(have)(read(have, off)); err != nil {
				return err
			}
			if len(bytes.Trim(have, "\x00")) > 0 {
				return differs(off)
			}
			off, n = off+int64(len(have)), n-int64(len(have))
		}
		return nil
	}
	a.Trim = isZero
	a.Zero = func(off, n int64, _ nbd.ZeroFlags) error { return isZero(off, n) }
	a.SlowZero, a.NoZero, a.MultiConn = false, false, true
}

func differs(off int64) error {
	return fmt.Errorf("what is written is not what is there, in the %d bytes from %d on: %w", checkBlock, off, wire.EIO)
}
