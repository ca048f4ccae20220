package registry

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of a Registry.
var (
	// ErrUnknownFunction is wrapped by UnknownFunctionError.
	ErrUnknownFunction = errors.New("unknown function")
	// ErrUnknownTenant is wrapped by UnknownTenantError.
	ErrUnknownTenant = errors.New("unknown tenant")
	// ErrUnknownVersion: no version has that digest here; it may be on its way
	// from the cell that made it.
	ErrUnknownVersion = errors.New("unknown function version")
	// ErrClockBehind: the clock is more than MaxAhead behind a version already
	// merged, so an edit made now would be refused everywhere.
	ErrClockBehind = errors.New("clock is behind the registry")
	// ErrInvalid is wrapped by InvalidError.
	ErrInvalid = errors.New("invalid function")
)

// UnknownFunctionError says which function was asked for and which one may
// have been meant.
type UnknownFunctionError struct {
	Tenant string
	Name   string
	// Suggestion is the tenant's function with the nearest name, or empty.
	Suggestion string
}

func (e *UnknownFunctionError) Error() string {
	return unknown("function", e.Tenant+"/"+e.Name, ErrUnknownFunction, e.Suggestion)
}

// Unwrap returns ErrUnknownFunction.
func (e *UnknownFunctionError) Unwrap() error { return ErrUnknownFunction }

// UnknownTenantError says which tenant was asked for and which one may have
// been meant.
type UnknownTenantError struct {
	Name string
	// Suggestion is the tenant with the nearest name, or empty.
	Suggestion string
}

func (e *UnknownTenantError) Error() string {
	return unknown("tenant", e.Name, ErrUnknownTenant, e.Suggestion)
}

// Unwrap returns ErrUnknownTenant.
func (e *UnknownTenantError) Unwrap() error { return ErrUnknownTenant }

func unknown(what, name string, cause error, suggestion string) string {
	s := fmt.Sprintf("registry: find %s %.80q: %v", what, name, cause)
	if suggestion != "" {
		s += fmt.Sprintf(" (did you mean %q?)", suggestion)
	}
	return s
}

// InvalidError lists everything that is wrong with a spec.
type InvalidError struct {
	// Fields is not empty, and in the order of the fields.
	Fields []FieldError
}

// FieldError is one thing that is wrong with a spec.
type FieldError struct {
	// Field is the path of the field in isobar.v1.FunctionSpec:
	// "variants[0].resources.cpu".
	Field string
	// Message says what it must be.
	Message string
	// Line is where it stands in the manifest, from 1; 0 without a manifest.
	Line int
}

func (e FieldError) String() string {
	if e.Line > 0 {
		return fmt.Sprintf("line %d: %s: %s", e.Line, e.Field, e.Message)
	}
	return e.Field + ": " + e.Message
}

func (e *InvalidError) Error() string {
	all := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		all[i] = f.String()
	}
	return "registry: " + ErrInvalid.Error() + ": " + strings.Join(all, "; ")
}

// Unwrap returns ErrInvalid.
func (e *InvalidError) Unwrap() error { return ErrInvalid }

// nearest is the candidate that is fewest edits from name, if that is few for
// its length; of several, the first.
func nearest(name string, candidates []string) string {
	const longest = 63 // no name is longer, and the work grows with the square
	if name == "" || len(name) > longest {
		return ""
	}
	best, found := 1+max(1, len(name)/3), ""
	for _, c := range candidates {
		if d := distance(name, c); d < best {
			best, found = d, c
		}
	}
	return found
}

// distance counts the insertions, deletions, substitutions and swaps of
// neighbours that make a into b.
func distance(a, b string) int {
	older, old, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range old {
		old[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(old[j+1]+1, row[j]+1, old[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], older[j-1]+1)
			}
		}
		older, old, row = old, row, older
	}
	return old[len(b)]
}
