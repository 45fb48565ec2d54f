package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// guestProgram is where our server is in the virtual machine.
const guestProgram = "/test/nbd-ktls-server"

// kernelSuite is the Debian release whose kernel it has: one that changes keys.
const kernelSuite = "trixie-backports"

// runInVM does in a virtual machine what -guest does, and reports it.
func runInVM() error {
	dir, err := os.MkdirTemp("", "compare-vm-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	out, err := boot(dir)
	if err != nil {
		return err
	}
	var f figures
	at := bytes.IndexByte(out, '{')
	if at < 0 || json.NewDecoder(bytes.NewReader(out[at:])).Decode(&f) != nil {
		return fmt.Errorf("the machine has printed:\n%s", out)
	}
	jobs, cs := guestJobs(), guestContenders()
	reportGuest(jobs, cs, f)
	return publish(f, map[string]plot{
		"kernel.svg": {"Server's instructions for the same work, nbdkit's = 1 (shorter is better)", func(f figure) float64 { return f.CPU }},
	}, jobs, cs)
}

// boot boots the machine, with all that is needed there, and returns what it
// prints.
func boot(dir string) ([]byte, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	kernel := filepath.Join(cache, "nbd-ktls-server/linux", kernelSuite) // where test/run has it, too
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "nbd-ktls-server").Output()
	if err != nil {
		return nil, err
	}
	if err := command(exec.Command(filepath.Join(strings.TrimSpace(string(module)), "test/vm/kernel"), kernelSuite, kernel)); err != nil {
		return nil, err
	}
	for name, pkg := range map[string]string{"server": "cmd/nbd-ktls-server", "vm": "test/vm", "compare": "test/bench/compare"} {
		if err := build(filepath.Join(dir, name), pkg); err != nil {
			return nil, err
		}
	}
	config, err := exec.Command("nbdkit", "--dump-config").Output()
	if err != nil {
		return nil, err
	}
	_, plugins, _ := strings.Cut(string(config), "plugindir=")
	plugins, _, _ = strings.Cut(plugins, "\n")
	cmd := exec.Command(filepath.Join(dir, "vm"), "-kernel", kernel, "-icount", "-memory", "2500", "-timeout", "1h",
		"-program", "nbdinfo", "-program", "nbdcopy", "-program", "fio", "-program", "nbdkit", "-tree", plugins+"/nbdkit-file-plugin.so",
		"-tree", filepath.Join(dir, "server")+"="+guestProgram, filepath.Join(dir, "compare"),
		"-guest", "-rounds=1", "-size=16", "-fio=200ms", "-only="+*only)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return out, err
}

// reportGuest prints a table of instructions, and how ours compare.
func reportGuest(jobs []job, cs []contender, f figures) {
	fmt.Printf("\n| instructions of the server for each byte, or operation |")
	for _, c := range cs {
		fmt.Printf(" %s |", c.name)
	}
	fmt.Printf(" %s | kernel : nbdkit | kernel : user space | user space : nbdkit | kernel : floor |\n|---%s|\n", floorName, strings.Repeat("|---", len(cs)+5))
	for _, j := range jobs {
		of := f[j.name]
		if of == nil {
			continue
		}
		scale, digits := 1e9/(1<<30), 2
		if j.unit == "op" {
			scale, digits = 1e9, 0
		}
		fmt.Printf("| %s |", j.name)
		cell := func(name string) {
			if f, ok := of[name]; ok {
				fmt.Printf(" %.*f |", digits, f.CPU*scale)
			} else {
				fmt.Print(" |")
			}
		}
		for _, c := range cs {
			cell(c.name)
		}
		cell(floorName)
		kernel, user, other, floor := of[cs[0].name].CPU, of[cs[1].name].CPU, of[cs[2].name].CPU, of[floorName].CPU
		for _, ratio := range [][2]float64{{kernel, other}, {kernel, user}, {user, other}, {kernel, floor}} {
			if ratio[0] == 0 || ratio[1] == 0 {
				fmt.Print(" |")
			} else {
				fmt.Printf(" %.2f |", ratio[0]/ratio[1])
			}
		}
		fmt.Println()
	}
}
