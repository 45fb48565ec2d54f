package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"nbd-ktls-server/ktls"
)

func newProbe() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "probe",
		Short: "Tell what this machine's kernel can do for TLS, and what to do if it cannot",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := newReport()
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(r)
			}
			r.print(cmd.OutOrStdout())
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// report is what the probe command prints.
type report struct {
	Kernel  string                  `json:"kernel"`
	ULP     answer                  `json:"ulp"`
	Ciphers map[string]cipherReport `json:"ciphers"`
	Rekey   answer                  `json:"rekey"`
	Offload map[string]string       `json:"tls-hw-tx-offload"` // by network interface
	Stats   map[string]uint64       `json:"tls_stat,omitempty"`
	// Auto is what --ktls=auto comes to.
	Auto   string   `json:"auto"`
	Advice []string `json:"advice,omitempty"`
}

type cipherReport struct {
	TX answer `json:"tx"`
	RX answer `json:"rx"`
}

// answer is a yes, or a no with its reason.
type answer struct {
	OK  bool   `json:"ok"`
	Why string `json:"why,omitempty"`
}

func newAnswer(err error) answer {
	if err != nil {
		return answer{Why: err.Error()}
	}
	return answer{OK: true}
}

func (a answer) String() string {
	if a.OK {
		return "yes"
	}
	return "no: " + a.Why
}

func newReport() (*report, error) {
	s, err := ktls.Probe()
	if err != nil {
		return nil, fmt.Errorf("trying out the kernel: %w", err)
	}
	r := &report{
		Kernel: kernelRelease(), ULP: newAnswer(s.ULP), Rekey: newAnswer(s.Rekey),
		Ciphers: make(map[string]cipherReport), Offload: ktls.Offload(), Auto: "the kernel encrypts what is sent over TCP",
	}
	for _, c := range ktls.Ciphers {
		r.Ciphers[c.String()] = cipherReport{newAnswer(s.TX[c]), newAnswer(s.RX[c])}
	}
	if r.Stats, err = ktls.Stats(); err != nil {
		return nil, err
	}
	if err := s.Sends(ktls.AES128GCM); err != nil {
		r.Auto = "user space encrypts what is sent"
		r.Advice = advice(s, r.Kernel)
	}
	return r, nil
}

// advice says what would help.
func advice(s *ktls.Support, kernel string) []string {
	switch {
	case s.ULP == nil && s.Rekey != nil:
		return []string{
			"use Linux 6.14 or newer (this is " + kernel + "), or a distribution's kernel with the change of keys in it",
			"or use --ktls=require: the kernel encrypts, and a connection ends, cleanly, when it needs a new key, after 64 GiB or more",
		}
	case s.ULP != nil && moduleExists(kernel):
		return []string{"load the module: modprobe tls", "at every boot: echo tls > /etc/modules-load.d/tls.conf"}
	case s.ULP != nil:
		return []string{"use a kernel with CONFIG_TLS: this one has no module tls in /lib/modules/" + kernel}
	}
	return nil
}

func moduleExists(kernel string) bool {
	b, err := os.ReadFile("/lib/modules/" + kernel + "/modules.dep")
	return err == nil && strings.Contains(string(b), "net/tls/tls.ko")
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "Linux %s\n", r.Kernel)
	fmt.Fprintf(w, "  TCP upper layer protocol tls  %v\n", r.ULP)
	if r.ULP.OK {
		for _, name := range slices.Sorted(maps.Keys(r.Ciphers)) {
			c := r.Ciphers[name]
			fmt.Fprintf(w, "  %-18s sending    %v\n  %-18s receiving  %v\n", name, c.TX, "", c.RX)
		}
		fmt.Fprintf(w, "  changing keys                 %v\n", r.Rekey)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Offload)) {
		fmt.Fprintf(w, "  %s: tls-hw-tx-offload %s\n", name, r.Offload[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Stats)) {
		if r.Stats[name] > 0 {
			fmt.Fprintf(w, "  %-28s  %d\n", name, r.Stats[name])
		}
	}
	fmt.Fprintf(w, "--ktls=auto: %s\n", r.Auto)
	for _, a := range r.Advice {
		fmt.Fprintf(w, "  %s\n", a)
	}
}
