package sh

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

// lines are the lines of a text that end with a newline: what is behind the last
// one does not count.
func lines(text string) []string {
	all := strings.Split(text, "\n")
	return all[:len(all)-1]
}

// parseExports reads what list_exports and default_export print.
func parseExports(text string) (entries []plugin.Entry, err error) {
	all := lines(text)
	form := "NAMES"
	if len(all) > 0 {
		switch all[0] {
		case "NAMES", "INTERLEAVED", "NAMES+DESCRIPTIONS":
			form, all = all[0], all[1:]
		}
	}
	switch {
	case form == "NAMES":
		for _, name := range all {
			entries = append(entries, plugin.Entry{Name: name})
		}
	case len(all)%2 != 0:
		return nil, fmt.Errorf("%s: there is a name without a description", form)
	case form == "INTERLEAVED":
		for i := 0; i < len(all); i += 2 {
			entries = append(entries, plugin.Entry{Name: all[i], Description: all[i+1]})
		}
	default:
		half := len(all) / 2
		for i := range half {
			entries = append(entries, plugin.Entry{Name: all[i], Description: all[half+i]})
		}
	}
	return entries, nil
}

// parseBlockSize reads three sizes.
func parseBlockSize(text string) (b nbd.BlockSize, err error) {
	fields := strings.Fields(text)
	if len(fields) != 3 {
		return b, fmt.Errorf("block_size printed %q, not three sizes", text)
	}
	for i, to := range []*uint32{&b.Minimum, &b.Preferred, &b.Maximum} {
		n, err := plugin.ParseSize(fields[i])
		if err != nil {
			return b, fmt.Errorf("block_size: %w", err)
		}
		*to = uint32(min(n, 1<<32-1))
	}
	return b, nil
}

// parseExtents reads lines of offset, length and type. They begin at off at the
// latest, and have no gaps; what lies before off does not matter.
func parseExtents(text string, off, n int64) (all []nbd.Extent, err error) {
	end := off + n
	at := off
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		e, start, err := parseExtent(fields)
		if err != nil {
			return nil, fmt.Errorf("extents printed %q: %w", line, err)
		}
		stop := min(start+e.Length, end)
		if stop <= at {
			continue
		}
		if start > at {
			return nil, fmt.Errorf("extents said nothing of %d to %d", at, start)
		}
		e.Length = stop - at
		if all = append(all, e); stop == end {
			break
		}
		at = stop
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("extents said nothing of %d", off)
	}
	return all, nil
}

func parseExtent(fields []string) (e nbd.Extent, start int64, err error) {
	if len(fields) < 2 || len(fields) > 3 {
		return e, 0, errors.New("it is not offset, length and type")
	}
	if start, err = plugin.ParseSize(fields[0]); err != nil {
		return e, 0, err
	}
	if e.Length, err = plugin.ParseSize(fields[1]); err != nil {
		return e, 0, err
	}
	if start+e.Length < start {
		return e, 0, errors.New("it ends behind all there can be")
	}
	if len(fields) == 3 {
		e.Hole, e.Zero = parseType(fields[2])
	}
	return e, start, err
}

// parseType reads the type of an extent: a number, of which bit 0 is a hole and
// bit 1 zeroes, or a text with these words in it, as nbdkit does.
func parseType(s string) (hole, zero bool) {
	if n, err := strconv.ParseUint(s, 0, 32); err == nil {
		return n&1 != 0, n&2 != 0
	}
	return strings.Contains(s, "hole"), strings.Contains(s, "zero")
}
