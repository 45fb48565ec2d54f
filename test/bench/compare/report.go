package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// results are samples, by job and contender.
type results map[string]map[string][]sample

func (r results) add(j job, contender string, s sample) {
	if r[j.name] == nil {
		r[j.name] = make(map[string][]sample)
	}
	r[j.name][contender] = append(r[j.name][contender], s)
}

// figures are what came out of them.
type figures map[string]map[string]figure

// figure is what came out of one contender's samples.
type figure struct {
	Rate, RateSpread float64 // units per second, percent
	CPU, CPUSpread   float64 // seconds per unit, percent
	RSS              float64 // MiB
	Calls            float64 `json:",omitempty"` // per unit
	P50, P99         float64 `json:",omitempty"` // µs
}

func (r results) figures() figures {
	all := make(figures)
	for job, contenders := range r {
		all[job] = make(map[string]figure)
		for name, s := range contenders {
			all[job][name] = figureOf(s)
		}
	}
	return all
}

func figureOf(s []sample) figure {
	rate, cpu := func(s sample) float64 { return s.rate }, func(s sample) float64 { return s.cpu }
	return figure{
		Rate: median(s, rate), RateSpread: spread(s, rate), CPU: median(s, cpu), CPUSpread: spread(s, cpu),
		RSS:   median(s, func(s sample) float64 { return s.rss }),
		Calls: median(s, func(s sample) float64 { return s.calls }),
		P50:   median(s, func(s sample) float64 { return s.p50 }), P99: median(s, func(s sample) float64 { return s.p99 }),
	}
}

// units are how rates and CPU times are shown.
func (j job) units() (rate string, cpu string, scale float64) {
	if j.unit == "op" {
		return "op/s", "µs/op", 1e6
	}
	return "GiB/s", "s/GiB", 1
}

// floorName stands beside the names of contenders.
const floorName = "floor"

// A table has a row for each job, and in it a cell for each contender.
type table struct {
	title string
	cell  func(job, figure) string
	// by are the numbers by which ours is compared with the least of the others; 0:
	// with none.
	by []comparison
}

type comparison struct {
	title string
	of    func(figure) float64
	floor bool // compare with that
}

var (
	byCPU     = comparison{"CPU", func(f figure) float64 { return f.CPU }, false}
	byFloor   = comparison{"CPU : floor", func(f figure) float64 { return f.CPU }, true}
	byRate    = comparison{"rate", func(f figure) float64 { return -f.Rate }, false}
	byLatency = comparison{"latency", func(f figure) float64 { return f.P50 }, false}
	byMemory  = comparison{"memory", func(f figure) float64 { return f.RSS }, false}
)

// report prints a table for each of the things that are measured.
func report(jobs []job, cs []contender, f figures) {
	for _, t := range []table{
		{"CPU", func(j job, f figure) string {
			_, unit, scale := j.units()
			return fmt.Sprintf("%.3g %s ±%.0f %%", f.CPU*scale, unit, f.CPUSpread)
		}, []comparison{byCPU, byRate, byFloor}},
		{"rate", func(j job, f figure) string {
			unit, _, _ := j.units()
			return fmt.Sprintf("%.3g %s ±%.0f %%", f.Rate, unit, f.RateSpread)
		}, []comparison{byRate}},
		{"latency: half, 99 %", func(_ job, f figure) string {
			if f.P99 == 0 {
				return ""
			}
			return fmt.Sprintf("%.0f, %.0f µs", f.P50, f.P99)
		}, []comparison{byLatency}},
		{"memory, system calls", func(j job, f figure) string {
			return fmt.Sprintf("%.0f MiB, %.3g", f.RSS, f.Calls)
		}, []comparison{byMemory}},
	} {
		t.print(jobs, cs, f)
	}
	reportGrowth(jobs, f)
}

// print prints a row for each job that others do, too.
func (t table) print(jobs []job, cs []contender, f figures) {
	fmt.Printf("\n| %s |", t.title)
	for _, c := range cs {
		fmt.Printf(" %s |", c.name)
	}
	fmt.Printf(" %s |", floorName)
	for _, by := range t.by {
		fmt.Printf(" %s |", by.title)
	}
	fmt.Printf("\n|%s\n", strings.Repeat("---|", len(cs)+len(t.by)+2))
	for _, j := range jobs {
		if j.serve != nil {
			continue
		}
		fmt.Printf("| %s |", j.name)
		for _, c := range cs {
			fmt.Printf(" %s |", t.cell(j, f[j.name][c.name]))
		}
		if of, ok := f[j.name][floorName]; ok {
			fmt.Printf(" %s |", t.cell(j, of))
		} else {
			fmt.Print(" |")
		}
		for _, by := range t.by {
			fmt.Printf(" %s |", by.ratio(cs, f[j.name]))
		}
		fmt.Println()
	}
}

// ratio is that of ours, which is the first, to the best of the others, or to the
// floor.
func (by comparison) ratio(cs []contender, of map[string]figure) string {
	best := 0.0
	if by.floor {
		best = by.of(of[floorName])
		cs = cs[:1]
	}
	for _, c := range cs {
		if n := by.of(of[c.name]); !c.mine && (best == 0 || n < best) {
			best = n
		}
	}
	if n := by.of(of[cs[0].name]); best != 0 && n != 0 {
		return fmt.Sprintf("%.2f", n/best)
	}
	return ""
}

// reportGrowth prints what there is more of, and what that costs ours.
func reportGrowth(jobs []job, f figures) {
	fmt.Print("\n| how cost grows | CPU, µs/op | latency: half, 99 %, µs | MiB |\n|---|---|---|---|\n")
	for _, j := range jobs {
		if name, ok := strings.CutPrefix(j.name, "growth: "); ok {
			of, latency := f[j.name]["ours"], ""
			if of.P99 > 0 {
				latency = fmt.Sprintf("%.0f, %.0f", of.P50, of.P99)
			}
			fmt.Printf("| %s | %.3g | %s | %.0f |\n", name, of.CPU*1e6, latency, of.RSS)
		}
	}
}

// writeJSON writes what was measured: by job, by contender.
func writeJSON(path string, f figures) error {
	b, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func median(s []sample, f func(sample) float64) float64 {
	v := values(s, f)
	return v[len(v)/2]
}

// spread is half the distance between the quartiles, in percent of the median.
func spread(s []sample, f func(sample) float64) float64 {
	v := values(s, f)
	if v[len(v)/2] == 0 {
		return 0
	}
	return 50 * (v[len(v)*3/4] - v[len(v)/4]) / v[len(v)/2]
}

func values(s []sample, f func(sample) float64) []float64 {
	v := make([]float64, len(s))
	for i := range s {
		v[i] = f(s[i])
	}
	slices.SortFunc(v, cmp.Compare)
	return v
}
