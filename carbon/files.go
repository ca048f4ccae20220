package carbon

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"time"
)

// ReadFile reads a table from a file, as ReadTable does.
func ReadFile(path string, kind Kind) (*Table, error) { return ReadFiles(kind, "", path) }

// ReadFiles reads one table from several files, each in a format of ReadTable:
// a file may hold some of the zones, or some of the hours of a zone. In all each
// zone has each hour once, and all zones have the same hours. Factors choose
// between the figures of an export; empty is LifeCycle. Direct is refused for a
// table that has one figure an hour.
func ReadFiles(kind Kind, factors Factors, paths ...string) (*Table, error) {
	if err := kind.validate(); err != nil {
		return nil, err
	}
	switch factors {
	case "":
		factors = LifeCycle
	case LifeCycle, Direct:
	default:
		return nil, fmt.Errorf("carbon: read with factors %q: %w", string(factors), ErrFactors)
	}
	files := make([]contents, 0, len(paths))
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("carbon: open table: %w", err)
		}
		read, err := readSeries(f, path, kind, factors)
		_ = f.Close() // only read
		if err != nil {
			return nil, err
		}
		files = append(files, read)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("carbon: read table: %w", ErrNoRows)
	}
	return join(files, kind)
}

// join makes one table of what the files hold.
func join(files []contents, kind Kind) (*Table, error) {
	type part struct {
		run
		of *contents
	}
	var parts []part
	for i := range files {
		for _, r := range files[i].all {
			parts = append(parts, part{r, &files[i]})
		}
	}
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Or(cmp.Compare(a.zone, b.zone), a.start.Compare(b.start)) })
	t := &Table{kind: kind, name: files[0].file, source: files[0].source}
	if n := len(files) - 1; n > 0 {
		t.source += fmt.Sprintf(" and %d more", n)
		t.name += fmt.Sprintf(" and %d more", n)
	}
	fault := func(p *part, field string, cause error) error {
		return &ParseError{
			Reader: "carbon", File: p.of.file, Line: p.line, Field: field, Value: p.zone + " from " + p.start.Format(time.RFC3339) + " to " + p.end().Format(time.RFC3339), Err: cause,
		}
	}
	ends := make([]time.Time, 0, len(parts))
	for i := range parts {
		p := &parts[i]
		last := len(t.zones) - 1
		if last >= 0 && t.zones[last] == p.zone {
			switch {
			case p.start.Before(ends[last]):
				return nil, fault(p, p.of.when, ErrDuplicateHour)
			case p.start.After(ends[last]):
				return nil, fault(p, p.of.when, ErrGap)
			}
			t.hours[last], ends[last] = append(t.hours[last], p.hours...), p.end()
			continue
		}
		if i == 0 {
			t.start = p.start
		}
		if !p.start.Equal(t.start) {
			return nil, fault(p, p.of.when, ErrOtherHours)
		}
		t.zones, t.hours, ends = append(t.zones, p.zone), append(t.hours, p.hours), append(ends, p.end())
	}
	for i := range parts {
		if k := slices.Index(t.zones, parts[i].zone); !ends[k].Equal(ends[0]) {
			return nil, fault(&parts[i], parts[i].of.when, ErrOtherHours)
		}
	}
	return t, nil
}
