package ktls

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Stats reads the kernel's counters of this network namespace
// (/proc/net/tls_stat): TlsCurrTxSw, TlsTxRekeyOk … They are nil while the tls
// module is not loaded.
func Stats() (map[string]uint64, error) {
	b, err := os.ReadFile("/proc/net/tls_stat")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	stats := make(map[string]uint64)
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		name, value, _ := strings.Cut(strings.ReplaceAll(lines.Text(), "\t", " "), " ")
		if n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64); err == nil {
			stats[name] = n
		}
	}
	return stats, nil
}
