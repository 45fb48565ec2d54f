package plugin

import (
	"math"
	"testing"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "1b": 1, "1B": 1, "2k": 2048, "2K": 2048, "3m": 3 << 20, "1G": 1 << 30, "4t": 4 << 40,
		"5P": 5 << 50, "7E": 7 << 60, "3s": 1536, "3S": 1536,
		"9223372036854775807": math.MaxInt64,
	} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "k", "-1", "+1", "1x", "1kb", "1.5G", " 1", "1 ", "0x10", "9223372036854775808", "8E", "99999999999999999999"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q was taken for %d", s, got)
		}
	}
}
