package filters

import (
	"context"
	"fmt"
	"hash/fnv"
	"math"
	"math/bits"
	"math/rand/v2"
	"sync"

	"nbd-ktls-server/nbd"
	"nbd-ktls-server/plugins/plugin"
)

var evilFilter = plugin.Filter{
	Name: "evil", Summary: "corrupts what is read, to test checksums",
	Usage: "[evil=cosmic-rays|stuck-bits|stuck-wires] (default stuck-bits) [evil-probability=N%|0..1] (default 1e-8, of wires 1e-6) [evil-stuck-probability=N%|0..1] (default 1) [evil-seed=N]",
	Configure: func(p *plugin.Params) (func(*plugin.Source), error) {
		mode, ok := p.String("evil")
		if m, also := p.String("evil-mode"); also && !ok {
			mode, ok = m, true
		}
		if !ok {
			mode = "stuck-bits"
		}
		e, ok := map[string]evil{
			"cosmic-rays": {flips: true, probability: 1e-8}, "cosmic": {flips: true, probability: 1e-8},
			"stuck-bits": {probability: 1e-8}, "stuck-bit": {probability: 1e-8}, "stuck": {probability: 1e-8},
			"stuck-wires": {wires: true, probability: 1e-6}, "stuck-wire": {wires: true, probability: 1e-6},
		}[mode]
		if !ok {
			return nil, fmt.Errorf("evil=%s: it must be one of cosmic-rays, stuck-bits, stuck-wires", mode)
		}
		var err error
		if e.probability, err = probability(p, "evil-probability", e.probability); err != nil {
			return nil, err
		}
		if e.stuck, err = probability(p, "evil-stuck-probability", 1); err != nil {
			return nil, err
		}
		if e.seed, err = p.Uint("evil-seed", rand.Uint64()); err != nil {
			return nil, err
		}
		return func(s *plugin.Source) { s.Edit(e.edit) }, nil
	},
}

// probability returns that of a parameter, or otherwise.
func probability(p *plugin.Params, key string, otherwise float64) (float64, error) {
	s, ok := p.String(key)
	if !ok {
		return otherwise, nil
	}
	n, err := parseProbability(s)
	if err != nil {
		err = fmt.Errorf("%s=%s: %w", key, s, err)
	}
	return n, err
}

// evil is what happens to bits.
type evil struct {
	flips       bool // any bit may flip; else some are stuck
	wires       bool // stuck at their place in a request; else on the disk
	probability float64
	stuck       float64 // the probability that a stuck bit reads so
	seed        uint64
}

// edit corrupts an export in its own way.
func (e evil) edit(_ context.Context, info nbd.OpenInfo, a *nbd.Abilities) error {
	holesAsExtents(a)
	a.ReadNow, a.Section = nil, nil
	name := fnv.New64a()
	name.Write([]byte(info.Name))
	seed := e.seed ^ name.Sum64()
	var mu sync.Mutex
	chance := rand.New(rand.NewPCG(seed, rand.Uint64()))
	if e.flips {
		chance = rand.New(rand.NewPCG(seed, 0))
	}
	read := a.ReadAt
	a.ReadAt = func(p []byte, off int64) (int, error) {
		n, err := read(p, off)
		mu.Lock()
		defer mu.Unlock()
		switch p := p[:max(n, 0)]; {
		case e.flips:
			e.each(p, 0, chance, func(bit *byte, mask byte, _ bool) { *bit ^= mask })
		case e.wires:
			e.each(p, 0, rand.New(rand.NewPCG(seed, 0)), e.stick(chance))
		default:
			e.eachBlock(p, off, seed, e.stick(chance))
		}
		return n, err
	}
	return nil
}

// stick makes a bit what it is stuck at.
func (e evil) stick(chance *rand.Rand) func(b *byte, mask byte, high bool) {
	return func(b *byte, mask byte, high bool) {
		switch {
		case e.stuck < 1 && chance.Float64() >= e.stuck:
		case high:
			*b |= mask
		default:
			*b &^= mask
		}
	}
}

// bitsPerBlock is how many bits are expected to be stuck in a block.
const bitsPerBlock = 100

// eachBlock does f to the bad bits of p, which is at off. They are found again by
// going through those of their block, so that no list of them is needed.
func (e evil) eachBlock(p []byte, off int64, seed uint64, f func(b *byte, mask byte, high bool)) {
	if e.probability <= 0 {
		return
	}
	size := int64(1) << min(62, bits.Len64(uint64(min(bitsPerBlock/8/e.probability, 1<<61))))
	for len(p) > 0 {
		block, in := off/size, off%size
		n := min(int64(len(p)), size-in)
		e.each(p[:n], in, rand.New(rand.NewPCG(seed, uint64(block))), f)
		p, off = p[n:], off+n
	}
}

// each does f to the bad bits of p, which is at off of a block, with whether each
// is high. Between two of them is a geometrically distributed number of others.
func (e evil) each(p []byte, off int64, r *rand.Rand, f func(b *byte, mask byte, high bool)) {
	if e.probability <= 0 {
		return
	}
	from, to := float64(off)*8, float64(off+int64(len(p)))*8
	scale := math.Log1p(-e.probability) // -Inf for 1: no others
	for at := 0.0; ; at++ {
		at += math.Floor(math.Log(1-r.Float64()) / scale)
		high := r.Uint64()&1 != 0
		if at >= to {
			return
		}
		if at >= from {
			bit := int64(at - from)
			f(&p[bit/8], 1<<(bit%8), high)
		}
	}
}
