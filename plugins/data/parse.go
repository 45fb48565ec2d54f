package data

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// parser reads the language of nbdkit-data-plugin(1), "DATA FORMAT".
type parser struct {
	text string
	pos  int
	// lookup finds the value of a $VARIABLE.
	lookup func(name string) (string, bool)
	depth  int
	names  map[string]image // \NAME
}

// maxDepth bounds how deep expressions may be inside each other.
const maxDepth = 100

// maxParts bounds of how many expressions one is made.
const maxParts = 1 << 20

var errEnd = errors.New("something is missing at the end")

// parse reads all of text.
func parse(text string, lookup func(string) (string, bool)) (image, error) {
	p := &parser{text: text, lookup: lookup, names: map[string]image{}}
	l, err := p.list()
	if err == nil && p.pos < len(p.text) {
		err = errors.New("a ')' without '('")
	}
	if err != nil {
		return nil, fmt.Errorf("at character %d: %w", p.pos+1, err)
	}
	return l, nil
}

// list reads expressions up to the end, or to a ')', which it leaves there.
func (p *parser) list() (*list, error) {
	l, at := new(list), int64(0)
	for {
		p.space()
		switch c := p.peek(); c {
		case 0, ')':
			return l, nil
		case '@':
			p.pos++
			var err error
			if at, err = p.offset(at); err != nil {
				return nil, err
			}
			l.end = max(l.end, at)
			continue
		}
		i, err := p.expression()
		if err != nil {
			return nil, err
		}
		if i == nil { // it was given a name
			continue
		}
		if len(l.parts) == maxParts {
			return nil, errors.New("there are too many parts")
		}
		if err := l.add(at, i); err != nil {
			return nil, err
		}
		at += i.size()
	}
}

// offset reads what is behind an @.
func (p *parser) offset(at int64) (int64, error) {
	op := p.peek()
	if op == '+' || op == '-' || op == '^' {
		p.pos++
	}
	n, err := p.number(math.MaxInt64)
	if err != nil {
		return 0, err
	}
	switch k := int64(n); op {
	case '+':
		if k > math.MaxInt64-at {
			return 0, errTooLarge
		}
		return at + k, nil
	case '-':
		if k > at {
			return 0, fmt.Errorf("@-%d is before the beginning", k)
		}
		return at - k, nil
	case '^':
		if k == 0 || at > math.MaxInt64-k {
			return 0, fmt.Errorf("@^%d is no alignment", k)
		}
		return (at + k - 1) / k * k, nil
	default:
		return k, nil
	}
}

// expression reads something and what is behind it: *N, [N:M], ->\NAME.
func (p *parser) expression() (image, error) {
	i, err := p.primary()
	for err == nil {
		p.space()
		switch {
		case p.skip("*"):
			var n uint64
			p.space()
			if n, err = p.number(math.MaxInt64); err == nil {
				i, err = repeat(i, int64(n))
			}
		case p.skip("["):
			i, err = p.slice(i)
		case p.skip("->"):
			p.space()
			if !p.skip(`\`) {
				return nil, errors.New(`a name begins with \`)
			}
			p.names[p.word()] = i
			return nil, nil
		default:
			return i, nil
		}
	}
	return nil, err
}

func (p *parser) slice(i image) (image, error) {
	from, to := int64(0), i.size()
	p.space()
	if p.peek() != ':' {
		n, err := p.number(math.MaxInt64)
		if err != nil {
			return nil, err
		}
		from = int64(n)
	}
	p.space()
	if !p.skip(":") {
		return nil, errors.New("a slice is [FROM:TO]")
	}
	p.space()
	if p.peek() != ']' {
		n, err := p.number(math.MaxInt64)
		if err != nil {
			return nil, err
		}
		to = int64(n)
	}
	p.space()
	if !p.skip("]") {
		return nil, errors.New("']' is missing")
	}
	if from > to || to > i.size() {
		return nil, fmt.Errorf("[%d:%d] is not in %d bytes", from, to, i.size())
	}
	return slice{i, from, to}, nil
}

// primary reads what is no operator.
func (p *parser) primary() (image, error) {
	switch c := p.peek(); {
	case c == '(':
		p.pos++
		return p.group()
	case c == '"':
		p.pos++
		return p.str()
	case c == '<':
		p.pos++
		if p.skip("(") {
			return p.script()
		}
		return p.file()
	case c == '$':
		p.pos++
		return p.variable()
	case c == '\\':
		p.pos++
		name := p.word()
		i, ok := p.names[name]
		if !ok {
			return nil, fmt.Errorf(`there is no \%s`, name)
		}
		return i, nil
	case c == 'l' || c == 'b':
		return p.integer()
	case c >= '0' && c <= '9':
		n, err := p.number(math.MaxUint8)
		if n == 0 {
			return zeroes(1), err
		}
		return literal{byte(n)}, err
	case c == 0:
		return nil, errEnd
	default:
		return nil, fmt.Errorf("%q means nothing here", c)
	}
}

// group reads up to the matching ')'. Names that are given inside are forgotten.
func (p *parser) group() (image, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, errors.New("too deep")
	}
	outer := p.names
	p.names = maps.Clone(outer)
	l, err := p.list()
	p.names = outer
	p.depth--
	if err == nil && !p.skip(")") {
		err = errors.New("')' is missing")
	}
	return l, err
}

// variable reads the text of a parameter or of the environment, as if it stood
// in brackets.
func (p *parser) variable() (image, error) {
	name := p.word()
	text, ok := p.lookup(name)
	if !ok {
		return nil, fmt.Errorf("there is no $%s", name)
	}
	if p.depth >= maxDepth {
		return nil, errors.New("too deep")
	}
	inner := &parser{text: text, lookup: p.lookup, depth: p.depth + 1, names: maps.Clone(p.names)}
	l, err := inner.list()
	if err == nil && inner.pos < len(text) {
		err = errors.New("a ')' without '('")
	}
	if err != nil {
		return nil, fmt.Errorf("in $%s: %w", name, err)
	}
	return l, nil
}

// integer reads le16:N and the like.
func (p *parser) integer() (image, error) {
	for prefix, put := range map[string]func(uint64) []byte{
		"le16:": func(n uint64) []byte { return binary.LittleEndian.AppendUint16(nil, uint16(n)) },
		"be16:": func(n uint64) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) },
		"le32:": func(n uint64) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) },
		"be32:": func(n uint64) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) },
		"le64:": func(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) },
		"be64:": func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) },
	} {
		if p.skip(prefix) {
			n, err := p.number(1<<(8*len(put(0))) - 1)
			return literal(put(n)), err
		}
	}
	return nil, errors.New("words are le16:N, le32:N, le64:N, be16:N, be32:N and be64:N")
}

// number reads a number as C writes them.
func (p *parser) number(most uint64) (uint64, error) {
	digits := p.take(func(r rune) bool { return unicode.Is(unicode.ASCII_Hex_Digit, r) || r == 'x' || r == 'X' })
	n, err := strconv.ParseUint(digits, 0, 64)
	switch {
	case digits == "":
		return 0, errors.New("a number is missing")
	case errors.Is(err, strconv.ErrSyntax):
		return 0, fmt.Errorf("%q is not a number", digits)
	case err != nil || n > most:
		return 0, fmt.Errorf("%s is too large: the largest is %d", digits, most)
	}
	return n, nil
}

// str reads a string as C writes them.
func (p *parser) str() (image, error) {
	var b literal
	for {
		c := p.peek()
		p.pos++
		switch {
		case c == 0:
			return nil, errors.New("a string has no end")
		case c == '"':
			return b, nil
		case c != '\\':
			b = append(b, c)
			continue
		}
		c = p.peek()
		p.pos++
		const from, to = `abfnrtv\'"?`, "\a\b\f\n\r\t\v\\'\"?"
		switch i := strings.IndexByte(from, c); {
		case i >= 0:
			b = append(b, to[i])
		case c == 'x':
			digits := p.text[p.pos:min(p.pos+2, len(p.text))]
			n, err := strconv.ParseUint(digits, 16, 8)
			if err != nil {
				return nil, fmt.Errorf(`\x%s is no character`, digits)
			}
			b = append(b, byte(n))
			p.pos += len(digits)
		case c >= '0' && c <= '7':
			digits := p.text[p.pos-1 : p.pos]
			for len(digits) < 3 && p.peek() >= '0' && p.peek() <= '7' {
				digits += string(p.peek())
				p.pos++
			}
			n, err := strconv.ParseUint(digits, 8, 8)
			if err != nil {
				return nil, fmt.Errorf(`\%s is no character`, digits)
			}
			b = append(b, byte(n))
		default:
			return nil, fmt.Errorf(`\%c is no character`, c)
		}
	}
}

// file reads a file, as much of it as is wanted.
func (p *parser) file() (image, error) {
	name := p.take(func(r rune) bool { return !unicode.IsSpace(r) && !strings.ContainsRune("[]*()", r) })
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return read(f, p.wanted())
}

// script reads the output of a fragment of shell, as much of it as is wanted.
func (p *parser) script() (image, error) {
	from, depth := p.pos, 1
	for ; depth > 0; p.pos++ {
		switch p.peek() {
		case 0:
			return nil, errors.New("a script has no end: ')' is missing")
		case '(':
			depth++
		case ')':
			depth--
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", p.text[from:p.pos-1])
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	want := p.wanted()
	b, err := read(out, want)
	enough := err == nil && want >= 0 && b.size() == want
	if err != nil || enough {
		cancel() // it may be one without an end
	}
	if werr := cmd.Wait(); err == nil && !enough {
		err = werr
	}
	return b, err
}

// wanted is how much of what was just read a slice behind it wants; -1: all.
func (p *parser) wanted() int64 {
	ahead := *p
	ahead.space()
	if !ahead.skip("[") {
		return -1
	}
	ahead.take(func(r rune) bool { return r != ':' && r != ']' })
	ahead.skip(":")
	ahead.space()
	n, err := ahead.number(math.MaxInt64)
	if err != nil {
		return -1
	}
	return int64(n)
}

// read reads n bytes, or as many as there are; -1: all.
func read(r io.Reader, n int64) (literal, error) {
	most := n
	if n < 0 || n > maxData {
		most = maxData + 1
	}
	b, err := io.ReadAll(io.LimitReader(r, most))
	if err == nil && len(b) > maxData {
		err = errTooMuch
	}
	return slices.Clip(b), err
}

// space skips white space and comments.
func (p *parser) space() {
	for {
		p.take(unicode.IsSpace)
		if p.peek() != '#' {
			return
		}
		p.take(func(r rune) bool { return r != '\n' })
	}
}

// word reads a name.
func (p *parser) word() string {
	return p.take(func(r rune) bool {
		return r < 128 && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_' || r == '-')
	})
}

func (p *parser) take(while func(rune) bool) string {
	rest := p.text[p.pos:]
	n := strings.IndexFunc(rest, func(r rune) bool { return !while(r) })
	if n < 0 {
		n = len(rest)
	}
	p.pos += n
	return rest[:n]
}

// peek is the next byte, 0 at the end.
func (p *parser) peek() byte {
	if p.pos == len(p.text) {
		return 0
	}
	return p.text[p.pos]
}

func (p *parser) skip(s string) bool {
	ok := strings.HasPrefix(p.text[p.pos:], s)
	if ok {
		p.pos += len(s)
	}
	return ok
}
