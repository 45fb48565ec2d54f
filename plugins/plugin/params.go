package plugin

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Params are the parameters of a command line. Each has to be asked for; one that
// was not is an error, so that a misspelt key does not pass in silence. What one
// filter has asked for the others and the plugin do not see.
type Params struct {
	Host

	given  []Param
	asking int // who: the filters from 1 on, then the plugin
}

// Param is a parameter as it was given.
type Param struct {
	Key, Value string

	taken int // by whom; 0: nobody
}

// keyed matches key=value as nbdkit does; anything else is a bare value.
var keyed = regexp.MustCompile(`(?s)^([A-Za-z][A-Za-z0-9._-]*)=(.*)$`)

func parse(args []string, magic string) (*Params, error) {
	p := &Params{}
	for _, arg := range args {
		key, value := magic, arg
		if m := keyed.FindStringSubmatch(arg); m != nil {
			key, value = m[1], m[2]
		}
		if key == "" {
			return nil, fmt.Errorf("%q is not key=value", arg)
		}
		p.given = append(p.given, Param{Key: key, Value: value})
	}
	return p, nil
}

// visible reports whether whoever asks may see g.
func (p *Params) visible(g *Param) bool { return g.taken == 0 || g.taken == p.asking }

// String returns the value of key, and whether it was given. Given twice is an
// error that is found at the end.
func (p *Params) String(key string) (value string, ok bool) {
	for i := range p.given {
		if g := &p.given[i]; g.Key == key && p.visible(g) {
			g.taken = p.asking
			return g.Value, true
		}
	}
	return "", false
}

// Strings returns all values of key, in order.
func (p *Params) Strings(key string) (values []string) {
	for i := range p.given {
		if g := &p.given[i]; g.Key == key && p.visible(g) {
			g.taken = p.asking
			values = append(values, g.Value)
		}
	}
	return values
}

// Rest returns all parameters that nobody has taken yet, in order.
func (p *Params) Rest() (rest []Param) {
	for i := range p.given {
		if g := &p.given[i]; g.taken == 0 {
			g.taken = p.asking
			rest = append(rest, *g)
		}
	}
	return rest
}

// Choice returns the value of key, which must be one of choices; the first one
// is the default.
func (p *Params) Choice(key string, choices ...string) (string, error) {
	v, ok := p.String(key)
	if !ok {
		return choices[0], nil
	}
	if !slices.Contains(choices, v) {
		return "", fmt.Errorf("%s=%s: it must be one of %s", key, v, strings.Join(choices, ", "))
	}
	return v, nil
}

// Size returns the size that key gives, and whether it was given.
func (p *Params) Size(key string) (int64, bool, error) { return as(p, key, ParseSize) }

// Bool returns the truth value of key, or otherwise.
func (p *Params) Bool(key string, otherwise bool) (bool, error) {
	return or(p, key, otherwise, ParseBool)
}

// Uint returns the number that key gives, or otherwise.
func (p *Params) Uint(key string, otherwise uint64) (uint64, error) {
	return or(p, key, otherwise, func(s string) (uint64, error) {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			err = fmt.Errorf("%q is not a number", s)
		}
		return n, err
	})
}

// Duration returns the time that key gives, or otherwise.
func (p *Params) Duration(key string, otherwise time.Duration) (time.Duration, error) {
	return or(p, key, otherwise, ParseDuration)
}

func as[T any](p *Params, key string, parse func(string) (T, error)) (v T, ok bool, err error) {
	s, ok := p.String(key)
	if !ok {
		return v, false, nil
	}
	if v, err = parse(s); err != nil {
		err = fmt.Errorf("%s: %w", key, err)
	}
	return v, true, err
}

func or[T any](p *Params, key string, otherwise T, parse func(string) (T, error)) (T, error) {
	v, ok, err := as(p, key, parse)
	if !ok {
		v = otherwise
	}
	return v, err
}

// ParseBool reads a truth value as nbdkit_parse_bool(3) does.
func ParseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "true", "t", "yes", "y", "on":
		return true, nil
	case "0", "false", "f", "no", "n", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

// ParseDuration reads a time as nbdkit_parse_delay(3) does: seconds, which may
// have a fraction, or a number with one of the units s, ms, us (μs), ns.
func ParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		d, err = time.ParseDuration(s + "s")
	}
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time: seconds, or a number with s, ms, us or ns", s)
	}
	return d, nil
}

// unused reports parameters that nobody has asked for.
func (p *Params) unused() error {
	taken := make(map[string]bool)
	for _, g := range p.given {
		if g.taken != 0 {
			taken[g.Key] = true
		}
	}
	for _, g := range p.given {
		switch {
		case g.taken == 0 && taken[g.Key]:
			return fmt.Errorf("%s was given twice", g.Key)
		case g.taken == 0:
			return fmt.Errorf("there is no parameter %q", g.Key)
		}
	}
	return nil
}
