package strictyaml

import (
	"reflect"
	"strings"
)

type field struct {
	name  string
	index int
}

// fieldsOf lists the fields of a struct that a file may name, in order.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if !f.IsExported() || name == "" || name == "-" {
			continue
		}
		out = append(out, field{name: name, index: i})
	}
	return out
}

// Walk visits every scalar, list and map field of the struct that root points
// to, depth first in the order of the fields, with its dotted path. It stops
// at the first error.
func Walk(root any, visit func(path string, v reflect.Value) error) error {
	return walk(reflect.ValueOf(root).Elem(), "", visit)
}

func walk(v reflect.Value, path string, visit func(string, reflect.Value) error) error {
	for _, f := range fieldsOf(v.Type()) {
		fv, at := v.Field(f.index), join(path, f.name)
		var err error
		if fv.Kind() == reflect.Struct && !isScalar(fv.Type()) {
			err = walk(fv, at, visit)
		} else {
			err = visit(at, fv)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// suggestion names the known field closest to the key, when one is near.
func suggestion(key string, fields []field) string {
	best, distance := "", 3
	for _, f := range fields {
		if d := editDistance(key, f.name); d < distance {
			best, distance = f.name, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// editDistance is the Levenshtein distance of two short names.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
