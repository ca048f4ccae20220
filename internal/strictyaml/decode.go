package strictyaml

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

type decoder struct {
	doc  *Document
	errs []error
}

func (d *decoder) failf(n ast.Node, path, format string, args ...any) {
	d.errs = append(d.errs, &Error{
		File: d.doc.file, Line: lineOf(n), Field: path, What: fmt.Sprintf(format, args...),
	})
}

func (d *decoder) value(n ast.Node, v reflect.Value, path string, depth int) {
	if depth > maxDepth {
		d.failf(n, path, "is nested deeper than %d levels", maxDepth)
		return
	}
	if n == nil {
		return
	}
	switch n.(type) {
	case *ast.NullNode:
		return
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		d.failf(n, path, "uses an anchor, alias or tag; write the value out")
		return
	}
	if v.Kind() == reflect.Pointer {
		fresh := reflect.New(v.Type().Elem())
		before := len(d.errs)
		d.value(n, fresh.Elem(), path, depth)
		if len(d.errs) == before {
			v.Set(fresh)
		}
		return
	}
	switch {
	case isScalar(v.Type()):
		d.scalar(n, v, path)
	case v.Kind() == reflect.Struct:
		d.structure(n, v, path, depth)
	case v.Kind() == reflect.Map:
		d.mapping(n, v, path, depth)
	case v.Kind() == reflect.Slice:
		d.list(n, v, path, depth)
	default:
		d.failf(n, path, "cannot hold a value of kind %s", v.Kind())
	}
}

// pairs yields the entries of a mapping with their keys' text.
func (d *decoder) pairs(n ast.Node, path string, each func(key string, keyNode, value ast.Node)) {
	var entries []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		entries = m.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{m}
	default:
		d.failf(n, path, "must be a mapping of names to values, got %s", describe(n))
		return
	}
	seen := map[string]bool{}
	for _, e := range entries {
		key, ok := keyText(e.Key)
		if !ok {
			d.failf(e.Key, path, "has a key that is not a plain name")
			continue
		}
		if seen[key] {
			d.failf(e.Key, join(path, key), "is given twice")
			continue
		}
		seen[key] = true
		d.doc.lines[join(path, key)] = lineOf(e.Key)
		d.doc.keys[path] = append(d.doc.keys[path], key)
		each(key, e.Key, e.Value)
	}
}

func (d *decoder) structure(n ast.Node, v reflect.Value, path string, depth int) {
	fields := fieldsOf(v.Type())
	d.pairs(n, path, func(key string, keyNode, value ast.Node) {
		for _, f := range fields {
			if f.name == key {
				d.value(value, v.Field(f.index), join(path, key), depth+1)
				return
			}
		}
		d.failf(keyNode, join(path, key), "unknown field%s", suggestion(key, fields))
	})
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, path string, depth int) {
	if v.Type().Key().Kind() != reflect.String {
		d.failf(n, path, "cannot hold a mapping")
		return
	}
	m := reflect.MakeMap(v.Type())
	d.pairs(n, path, func(key string, _, value ast.Node) {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(value, e, join(path, key), depth+1)
		m.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), e)
	})
	v.Set(m)
}

func (d *decoder) list(n ast.Node, v reflect.Value, path string, depth int) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.failf(n, path, "must be a list, got %s", describe(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.doc.lines[at] = lineOf(item)
		if _, null := item.(*ast.NullNode); null || item == nil {
			d.failf(cmp.Or[ast.Node](item, seq), at, "is empty")
			continue
		}
		d.value(item, out.Index(i), at, depth+1)
	}
	v.Set(out)
}

func (d *decoder) scalar(n ast.Node, v reflect.Value, path string) {
	text, kind, ok := scalarText(n)
	if !ok {
		d.failf(n, path, "must be %s, got %s", wanted(v.Type()), describe(n))
		return
	}
	// A quoted number is text and a bare number is not: guessing hides errors.
	if !accepts(v.Type(), kind) {
		d.failf(n, path, "must be %s, got %s %q", wanted(v.Type()), kind, text)
		return
	}
	if err := SetScalar(v, text); err != nil {
		d.failf(n, path, "%v", err)
	}
}

// IsScalar reports whether a value of the type is written as one word: text,
// number, yes or no, duration, time, or a type that reads its own text.
func IsScalar(t reflect.Type) bool { return isScalar(t) }

func isScalar(t reflect.Type) bool {
	if t == reflect.TypeFor[time.Duration]() || reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return true
	}
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64:
		return true
	default:
		return false
	}
}

// SetScalar parses the text as the type of v and stores it, as Decode does;
// it serves values from the environment. v must be settable.
func SetScalar(v reflect.Value, text string) error {
	if v.Type() == reflect.TypeFor[time.Duration]() {
		dur, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("must be a duration such as 10s or 24h, got %q", text)
		}
		v.SetInt(int64(dur))
		return nil
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			if _, isTime := u.(*time.Time); isTime {
				return fmt.Errorf("must be a time such as 2022-01-01T00:00:00Z, got %q", text)
			}
			return err
		}
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("must be true or false, got %q", text)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("must be a whole number, got %q", text)
		}
		v.SetInt(i)
	case reflect.Float64:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("must be a finite number, got %q", text)
		}
		v.SetFloat(f)
	default:
		return fmt.Errorf("cannot be set from text")
	}
	return nil
}

// kind is how a scalar is written in the file.
type kind string

const (
	text   kind = "text"
	number kind = "the number"
	truth  kind = "the truth value"
)

func scalarText(n ast.Node) (string, kind, bool) {
	switch s := n.(type) {
	case *ast.StringNode:
		if s.Token.Type == token.StringType && exponent(s.Value) {
			return s.Value, number, true
		}
		return s.Value, text, true
	case *ast.LiteralNode:
		return s.Value.Value, text, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, number, true
	case *ast.BoolNode:
		return n.GetToken().Value, truth, true
	default:
		return "", "", false
	}
}

// exponent reports whether an unquoted word is a number like 1e-06. YAML says it
// is one, and the encoder writes such; the parser takes it for text when it has
// no point.
func exponent(word string) bool {
	mantissa, power, ok := strings.Cut(strings.ToLower(word), "e")
	if !ok {
		return false
	}
	_, err := strconv.ParseInt(mantissa, 10, 64)
	_, err2 := strconv.ParseInt(power, 10, 64)
	return err == nil && err2 == nil
}

func accepts(t reflect.Type, k kind) bool {
	if t == reflect.TypeFor[time.Duration]() {
		return k == text
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return k != truth
	}
	switch t.Kind() {
	case reflect.String:
		return k == text
	case reflect.Bool:
		return k == truth
	default:
		return k == number
	}
}

func wanted(t reflect.Type) string {
	if t == reflect.TypeFor[time.Duration]() {
		return "a duration with its unit, such as 10s"
	}
	switch t.Kind() {
	case reflect.String:
		return "text (quote it)"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	default:
		return "a single value"
	}
}

func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	default:
		if t, k, ok := scalarText(n); ok {
			return fmt.Sprintf("%s %q", k, t)
		}
		return "something else"
	}
}

func keyText(n ast.MapKeyNode) (string, bool) {
	if node, ok := n.(ast.Node); ok {
		if t, _, ok := scalarText(node); ok && t != "" {
			return t, true
		}
	}
	return "", false
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func syntaxError(name string, err error) error {
	var ye yaml.Error
	if errors.As(err, &ye) && ye.GetToken() != nil && ye.GetToken().Position != nil {
		return &Error{File: name, Line: ye.GetToken().Position.Line, What: ye.GetMessage()}
	}
	return &Error{File: name, What: strings.TrimSpace(err.Error())}
}
