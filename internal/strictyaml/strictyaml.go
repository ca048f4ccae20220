// Package strictyaml reads YAML files that people write by hand: every field
// must be known, every value must be of its field's kind, nothing is converted
// or rounded in silence, and every error names file, line and field.
//
// It owns decoding only; what a value means is checked by the caller, who asks
// the Document for the line of a field so that those errors read the same. It
// does no I/O. A Document is not changed after Decode and may be shared.
//
//	doc, err := strictyaml.Decode("mesh.yaml", data, &file)
//	...
//	return doc.Errorf("regions.eu-north.pue", "must be 1 or more, got %v", pue)
package strictyaml

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// MaxSize is the largest document read, in bytes. Hand-written files are far
// smaller; the bound keeps a wrong path from eating memory.
const MaxSize = 1 << 20

// maxDepth bounds nesting, so that a hostile file cannot exhaust the stack.
const maxDepth = 32

// Error is one thing wrong in a file.
type Error struct {
	File  string
	Line  int    // 1-based; 0 when the field is nowhere in the file
	Field string // dotted path; "" for the document as a whole
	What  string
}

// Error reads "mesh.yaml:12: regions.eu.pue: must be 1 or more".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": ")
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.What)
	return b.String()
}

// Document remembers where each field of a decoded file stood.
type Document struct {
	file  string
	lines map[string]int
	keys  map[string][]string
}

// Errorf makes an error about the field. When the field is absent, the line is
// that of its nearest parent in the file.
func (d *Document) Errorf(field, format string, args ...any) *Error {
	return &Error{File: d.file, Line: d.Line(field), Field: field, What: fmt.Sprintf(format, args...)}
}

// Line is the line of the field, or of its nearest parent; 0 when there is none.
func (d *Document) Line(field string) int {
	for path := field; ; {
		if line, ok := d.lines[path]; ok {
			return line
		}
		dot := strings.LastIndexByte(path, '.')
		if dot < 0 {
			return 0
		}
		path = path[:dot]
	}
}

// Has reports whether the file names the field.
func (d *Document) Has(field string) bool {
	_, ok := d.lines[field]
	return ok
}

// Keys lists the keys of the mapping at the path in the order of the file; the
// path "" is the top.
func (d *Document) Keys(path string) []string { return d.keys[path] }

// Decode reads one YAML document into the struct that into points to. Fields
// that the document does not name, or names with a null, keep their value, so
// defaults are set before the call. Maps and lists replace what was there.
//
// The Document is not nil even with an error. The error joins every *Error
// found, in the order of the file.
func Decode(name string, data []byte, into any) (*Document, error) {
	d := &Document{file: name, lines: map[string]int{}, keys: map[string][]string{}}
	if len(data) > MaxSize {
		return d, &Error{File: name, What: fmt.Sprintf("is %d bytes, more than the %d read", len(data), MaxSize)}
	}
	root, err := parse(name, data)
	if err != nil || root == nil {
		return d, err
	}
	dec := &decoder{doc: d}
	dec.value(root, reflect.ValueOf(into).Elem(), "", 0)
	return d, errors.Join(dec.errs...)
}

// parse returns the body of the only document; nil for an empty file.
func parse(name string, data []byte) (root ast.Node, err error) {
	// The parser has panicked on malformed input before; a bad file is the
	// user's error, not ours.
	defer func() {
		if p := recover(); p != nil {
			root, err = nil, &Error{File: name, What: "is not YAML"}
		}
	}()
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, syntaxError(name, err)
	}
	var bodies []ast.Node
	for _, doc := range file.Docs {
		if doc == nil || doc.Body == nil {
			continue
		}
		if _, ok := doc.Body.(*ast.CommentGroupNode); ok {
			continue
		}
		bodies = append(bodies, doc.Body)
	}
	switch len(bodies) {
	case 0:
		return nil, nil
	case 1:
		return bodies[0], nil
	default:
		return nil, &Error{File: name, Line: lineOf(bodies[1]), What: "has a second document; one file is one document"}
	}
}

func lineOf(n ast.Node) int {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return 0
	}
	return n.GetToken().Position.Line
}
