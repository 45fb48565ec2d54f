package config

import (
	"errors"
	"fmt"
	"os"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxSize bounds a file: a hundred thousand exports are less.
const maxSize = 64 << 20

// Load reads and checks a file. Errors begin with FILE:LINE:COLUMN.
func Load(file string) (*Config, error) {
	fi, err := os.Stat(file)
	switch {
	case err != nil:
		return nil, err
	case fi.Size() > maxSize:
		return nil, fmt.Errorf("%s: it is larger than %d MiB", file, maxSize>>20)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parse(file, b)
}

func parse(file string, source []byte) (*Config, error) {
	c := &Config{file: file}
	doc, err := parser.ParseBytes(source, 0)
	if err != nil {
		return nil, c.place(err)
	}
	if len(doc.Docs) > 1 {
		return nil, fmt.Errorf("%s: there are %d documents in it", file, len(doc.Docs))
	}
	if len(doc.Docs) == 1 && doc.Docs[0].Body != nil {
		if err := c.decode(doc.Docs[0].Body); err != nil {
			return nil, err
		}
	}
	if path, err := c.check(); err != nil {
		return nil, c.At(path, err)
	}
	return c, nil
}

func (c *Config) decode(doc ast.Node) error {
	c.doc = doc
	// A key without a value would be one that is not there: an access list that
	// lets everybody in.
	v := &nulls{}
	ast.Walk(v, doc)
	if v.first != nil {
		return c.placed(v.first.Position, "a value is missing here")
	}
	if err := yaml.NodeToValue(doc, c, yaml.Strict()); err != nil {
		return c.place(err)
	}
	return nil
}

// nulls looks for the first key without a value.
type nulls struct{ first *token.Token }

func (v *nulls) Visit(n ast.Node) ast.Visitor {
	if m, ok := n.(*ast.MappingValueNode); ok && m.Value.Type() == ast.NullType && v.first == nil {
		v.first = m.Key.GetToken()
	}
	return v
}

// place says where in the file the decoder has found something.
func (c *Config) place(err error) error {
	var te *yaml.TypeError
	if errors.As(err, &te) && te.Token != nil {
		return c.placed(te.Token.Position, fmt.Sprintf("this must be a %v, not a %v", te.DstType, te.SrcType))
	}
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil {
		return fmt.Errorf("%s: %w", c.file, err)
	}
	return c.placed(ye.GetToken().Position, ye.GetMessage())
}

func (c *Config) placed(at *token.Position, what string) error {
	return fmt.Errorf("%s:%d:%d: %s", c.file, at.Line, at.Column, what)
}

// At says where in the file err was found; path is one of the document, as in
// $.exports[3].plugin. Where there is nothing the place is that of what it would
// be in.
func (c *Config) At(path string, err error) error {
	if p, perr := yaml.PathString(path); perr == nil && c.doc != nil {
		if n, ferr := p.FilterNode(c.doc); ferr == nil && n != nil {
			at := n.GetToken().Position
			if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
				at = m.Values[0].Key.GetToken().Position
			}
			return fmt.Errorf("%s:%d:%d: %w", c.file, at.Line, at.Column, err)
		}
	}
	return fmt.Errorf("%s: %w", c.file, err)
}
