package pattern_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"nbd-ktls-server/backends/pattern"
)

func TestPatternAtEveryAlignment(t *testing.T) {
	var want []byte
	for off := uint64(0); off < 128; off += 8 {
		want = binary.BigEndian.AppendUint64(want, off)
	}
	b := pattern.New(int64(len(want)))
	for from := range len(want) {
		for to := from; to <= len(want); to++ {
			got := make([]byte, to-from)
			if n, err := b.ReadAt(got, int64(from)); n != len(got) || err != nil || !bytes.Equal(got, want[from:to]) {
				t.Fatalf("%d to %d: %x, %d, %v", from, to, got, n, err)
			}
		}
	}
}
