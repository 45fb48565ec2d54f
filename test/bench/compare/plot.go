package main

import (
	"fmt"
	"os"
	"strings"
)

// A plot has a row for each job, in it a bar for each contender: a figure in
// relation to nbdkit's.
type plot struct {
	title string
	of    func(figure) float64
}

const (
	labels  = 290 // pixels
	width   = 380 // of nbdkit's bar, times two
	barHigh = 9
)

// colours are for ours, which may be several, and the others.
var colours = map[string]string{
	"ours": "#2a9d8f", "before": "#8ecfc7", "ours, kernel": "#2a9d8f", "ours, user space": "#8ecfc7",
	"nbdkit": "#8d99ae", "qemu-nbd": "#b8bfcc", "nbd-server": "#d9dde4",
}

func (p plot) write(path string, jobs []job, cs []contender, f figures) error {
	var b strings.Builder
	y := 44
	for _, j := range jobs {
		of := f[j.name]
		base := p.of(of["nbdkit"])
		if base == 0 || strings.Contains(j.name, "idle") {
			continue
		}
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", labels-8, y+len(cs)*barHigh/2+4, j.name)
		for i, c := range cs {
			if c.encrypts && !j.tls {
				continue
			}
			ratio := p.of(of[c.name]) / base
			w, at := min(ratio, 2)*width/2, y+i*barHigh
			fmt.Fprintf(&b, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", labels, at, w, barHigh-1, colours[c.name])
			fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%d\" font-size=\"8\">%.2f</text>\n", labels+w+3, at+barHigh-2, ratio)
		}
		if of, ok := of[floorName]; ok {
			x := labels + min(p.of(of)/base, 2)*width/2
			fmt.Fprintf(&b, "<path d=\"M%.1f %d v%d\" stroke=\"#e76f51\" stroke-width=\"2\"/>\n", x, y, len(cs)*barHigh)
		}
		y += (len(cs) + 1) * barHigh
	}
	var legend strings.Builder
	x := 40
	for _, c := range cs {
		fmt.Fprintf(&legend, "<rect x=\"%d\" y=\"26\" width=\"9\" height=\"9\" fill=\"%s\"/><text x=\"%d\" y=\"34\">%s</text>\n", x, colours[c.name], x+12, c.name)
		x += 30 + 7*len(c.name)
	}
	fmt.Fprintf(&legend, "<path d=\"M%d 26 v9\" stroke=\"#e76f51\" stroke-width=\"2\"/><text x=\"%d\" y=\"34\">%s</text>\n", x, x+8, floorName)
	svg := fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"11\">\n"+
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n<text x=\"40\" y=\"16\" font-weight=\"bold\">%s</text>\n%s%s</svg>\n",
		labels+width+60, y+8, p.title, legend.String(), b.String())
	return os.WriteFile(path, []byte(svg), 0o644)
}
