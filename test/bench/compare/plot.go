package main

import (
	"fmt"
	"os"
	"strings"
)

// The plot: a row for each job, in it a bar for each contender, of its CPU time in
// relation to nbdkit's.
const (
	labels  = 290 // pixels
	width   = 380 // of nbdkit's bar, times two
	barHigh = 9
)

var colours = map[string]string{"ours": "#2a9d8f", "nbdkit": "#8d99ae", "qemu-nbd": "#b8bfcc", "nbd-server": "#d9dde4"}

func writePlot(path string, jobs []job, r results) error {
	var b strings.Builder
	y := 44
	for _, j := range jobs {
		base := figureOf(r[j.name]["nbdkit"]).CPU
		if base == 0 || strings.Contains(j.name, "idle") {
			continue
		}
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", labels-8, y+3*barHigh, j.name)
		for _, c := range contenders {
			ratio := figureOf(r[j.name][c.name]).CPU / base
			w := min(ratio, 2) * width / 2
			fmt.Fprintf(&b, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", labels, y, w, barHigh-1, colours[c.name])
			fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%d\" font-size=\"8\">%.2f</text>\n", labels+w+3, y+barHigh-2, ratio)
			y += barHigh
		}
		if f := r[j.name]["floor"]; f != nil {
			x := labels + figureOf(f).CPU/base*width/2
			fmt.Fprintf(&b, "<path d=\"M%.1f %d v%d\" stroke=\"#e76f51\" stroke-width=\"2\"/>\n", x, y-4*barHigh, 4*barHigh)
		}
		y += barHigh
	}
	var legend strings.Builder
	x := labels
	for _, c := range contenders {
		fmt.Fprintf(&legend, "<rect x=\"%d\" y=\"26\" width=\"9\" height=\"9\" fill=\"%s\"/><text x=\"%d\" y=\"34\">%s</text>\n", x, colours[c.name], x+12, c.name)
		x += 85
	}
	fmt.Fprintf(&legend, "<path d=\"M%d 26 v9\" stroke=\"#e76f51\" stroke-width=\"2\"/><text x=\"%d\" y=\"34\">floor</text>\n", x, x+8)
	svg := fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"11\">\n"+
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n<text x=\"%d\" y=\"16\" font-weight=\"bold\">Server's CPU time for the same work, nbdkit's = 1 (shorter is better)</text>\n%s%s</svg>\n",
		labels+width+60, y+8, labels-120, legend.String(), b.String())
	return os.WriteFile(path, []byte(svg), 0o644)
}
