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

// figure is what came out of one contender's samples.
type figure struct {
	Rate, RateSpread float64 // units per second, percent
	CPU, CPUSpread   float64 // seconds per unit, percent
	RSS              float64 // MiB
	Calls            float64 `json:",omitempty"` // per unit
	P50, P99         float64 `json:",omitempty"` // µs
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

// report prints a table for each of the things that are measured.
func report(jobs []job, r results) {
	table := func(title string, cell func(j job, f figure) string, ratio func(ours figure, others []figure) string) {
		fmt.Printf("\n| %s | ours | nbdkit | qemu-nbd | nbd-server | floor | ratio |\n|---|---|---|---|---|---|---|\n", title)
		for _, j := range jobs {
			row := "| " + j.name
			var others []figure
			for _, name := range []string{"ours", "nbdkit", "qemu-nbd", "nbd-server", "floor"} {
				if r[j.name][name] == nil {
					row += " | "
					continue
				}
				f := figureOf(r[j.name][name])
				row += " | " + cell(j, f)
				if name != "ours" && name != "floor" {
					others = append(others, f)
				}
			}
			fmt.Println(row + " | " + strings.Trim(ratio(figureOf(r[j.name]["ours"]), others), "+InfNa") + " |")
		}
	}
	table("CPU", func(j job, f figure) string {
		_, unit, scale := j.units()
		return fmt.Sprintf("%.3g %s ±%.0f %%", f.CPU*scale, unit, f.CPUSpread)
	}, func(ours figure, others []figure) string {
		return fmt.Sprintf("%.2f", ours.CPU/least(others, func(f figure) float64 { return f.CPU }))
	})
	table("rate", func(j job, f figure) string {
		unit, _, _ := j.units()
		return fmt.Sprintf("%.3g %s ±%.0f %%", f.Rate, unit, f.RateSpread)
	}, func(ours figure, others []figure) string {
		return fmt.Sprintf("%.2f", -ours.Rate/least(others, func(f figure) float64 { return -f.Rate }))
	})
	table("latency: half, 99 %", func(_ job, f figure) string {
		if f.P99 == 0 {
			return ""
		}
		return fmt.Sprintf("%.0f, %.0f µs", f.P50, f.P99)
	}, func(ours figure, others []figure) string {
		if ours.P50 == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f", ours.P50/least(others, func(f figure) float64 { return f.P50 }))
	})
	table("memory, system calls", func(j job, f figure) string {
		return fmt.Sprintf("%.0f MiB, %.3g", f.RSS, f.Calls)
	}, func(ours figure, others []figure) string {
		return fmt.Sprintf("%.2f", ours.RSS/least(others, func(f figure) float64 { return f.RSS }))
	})
}

// least is the least of f; none is nothing to be compared with.
func least(figures []figure, f func(figure) float64) float64 {
	if len(figures) == 0 {
		return 0
	}
	return f(slices.MinFunc(figures, func(a, b figure) int { return cmp.Compare(f(a), f(b)) }))
}

// writeJSON writes what was measured: by job, by contender.
func writeJSON(path string, r results) error {
	all := make(map[string]map[string]figure)
	for job, contenders := range r {
		all[job] = make(map[string]figure)
		for name, s := range contenders {
			all[job][name] = figureOf(s)
		}
	}
	b, err := json.MarshalIndent(all, "", "\t")
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
