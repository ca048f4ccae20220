package carbon

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// timeColumn is the header of the column that holds each row's hour.
	timeColumn = "datetime_utc"
	// maxTableBytes bounds a table, unpacked.
	maxTableBytes = 64 << 20
	// maxIntensity is far above any grid; a value beyond it is in another unit.
	maxIntensity = 100_000
)

// What can be wrong with a table, as the cause of a ParseError.
var (
	ErrMissingColumn   = errors.New("missing column")
	ErrDuplicateColumn = errors.New("duplicate column")
	ErrNoRows          = errors.New("no rows")
	ErrSyntax          = errors.New("not a row of the table")
	ErrBadTime         = errors.New("not a full hour in UTC, as 2022-01-01T00:00:00Z")
	ErrDuplicateHour   = errors.New("hour given twice")
	ErrUnsorted        = errors.New("hours not in order")
	ErrGap             = errors.New("gap before this hour")
	ErrNotANumber      = errors.New("not a number")
	ErrNegative        = errors.New("negative intensity")
	ErrTooHigh         = errors.New("intensity beyond any grid, in gCO2eq/kWh")
	ErrTooLarge        = errors.New("table too large")
)

// ParseError says where a table is wrong.
type ParseError struct {
	File  string
	Line  int    // from 1
	Field string // the column's name; empty for the whole row
	Value string // what stands there, shortened
	Err   error  // one of the errors above, or that of the reader
}

func (e *ParseError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "carbon: read %s:%d:", e.File, e.Line)
	if e.Field != "" {
		fmt.Fprintf(&b, " %s:", e.Field)
	}
	fmt.Fprintf(&b, " %v", e.Err)
	if e.Value != "" {
		fmt.Fprintf(&b, ": %q", e.Value)
	}
	return b.String()
}

// Unwrap is the cause.
func (e *ParseError) Unwrap() error { return e.Err }

// ReadTable reads a table: CSV, gzipped or not, with the column datetime_utc
// and one column a zone, a row an hour without gaps, values in gCO2eq/kWh. It
// is strict: the first thing that is wrong is returned as a *ParseError. name
// stands for the file in errors and in Reading.Source; kind is what the
// figures measure.
func ReadTable(r io.Reader, name string, kind Kind) (*Table, error) {
	if err := kind.validate(); err != nil {
		return nil, err
	}
	plain, err := unpack(r)
	if err != nil {
		return nil, &ParseError{File: name, Line: 1, Err: err}
	}
	p := tableParser{name: name, rows: csv.NewReader(&limited{r: plain, left: maxTableBytes})}
	p.rows.ReuseRecord = true
	if err := p.header(); err != nil {
		return nil, err
	}
	for {
		more, err := p.row()
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	if p.count == 0 {
		return nil, &ParseError{File: name, Line: 1, Err: ErrNoRows}
	}
	return p.table(kind), nil
}

// limited fails, unlike io.LimitedReader, when there is more: a table cut
// short would look whole.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	if l.left -= int64(n); l.left < 0 {
		return 0, ErrTooLarge
	}
	return n, err
}

// unpack sees through gzip and through a byte order mark.
func unpack(r io.Reader) (io.Reader, error) {
	buffered := bufio.NewReader(r)
	if head, err := buffered.Peek(2); err == nil && head[0] == 0x1f && head[1] == 0x8b {
		packed, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, err
		}
		buffered = bufio.NewReader(packed)
	}
	if head, err := buffered.Peek(3); err == nil && string(head) == "\ufeff" {
		if _, err := buffered.Discard(3); err != nil {
			return nil, err
		}
	}
	return buffered, nil
}

type tableParser struct {
	name   string
	rows   *csv.Reader
	zones  []string // by column; the time column's is timeColumn
	when   int      // the time column
	values [][]float64
	start  time.Time
	count  int
}

func (p *tableParser) header() error {
	record, err := p.rows.Read()
	if errors.Is(err, io.EOF) {
		return &ParseError{File: p.name, Line: 1, Field: timeColumn, Err: ErrMissingColumn}
	}
	if err != nil {
		return p.syntax(err)
	}
	p.zones, p.when = slices.Clone(record), slices.Index(record, timeColumn)
	if p.when < 0 {
		return p.fault(0, timeColumn, "", ErrMissingColumn)
	}
	if len(p.zones) == 1 {
		return p.fault(0, "zone", "", ErrMissingColumn)
	}
	for i, zone := range p.zones {
		if zone == "" || strings.TrimSpace(zone) != zone {
			return p.fault(i, fmt.Sprintf("column %d", i+1), zone, ErrMissingColumn)
		}
		if slices.Index(p.zones, zone) < i {
			return p.fault(i, zone, "", ErrDuplicateColumn)
		}
	}
	p.values = make([][]float64, len(p.zones))
	return nil
}

// row reads one row; more is false at the end.
func (p *tableParser) row() (more bool, err error) {
	record, err := p.rows.Read()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, p.syntax(err)
	}
	if err := p.hour(record[p.when]); err != nil {
		return false, err
	}
	for i, field := range record {
		if i == p.when {
			continue
		}
		x, cause := intensity(field)
		if cause != nil {
			return false, p.fault(i, p.zones[i], field, cause)
		}
		p.values[i] = append(p.values[i], x)
	}
	p.count++
	return true, nil
}

// hour checks that the row's time follows the last one by an hour.
func (p *tableParser) hour(field string) error {
	at, err := time.Parse(time.RFC3339, field)
	if err != nil || !at.Equal(at.Truncate(time.Hour)) {
		return p.fault(p.when, timeColumn, field, ErrBadTime)
	}
	if _, offset := at.Zone(); offset != 0 {
		return p.fault(p.when, timeColumn, field, ErrBadTime)
	}
	if p.count == 0 {
		p.start = at.UTC()
		return nil
	}
	expected := p.start.Add(time.Duration(p.count) * time.Hour)
	switch {
	case at.Equal(expected):
		return nil
	case at.After(expected):
		return p.fault(p.when, timeColumn, field, ErrGap)
	case at.Before(expected.Add(-time.Hour)):
		return p.fault(p.when, timeColumn, field, ErrUnsorted)
	default:
		return p.fault(p.when, timeColumn, field, ErrDuplicateHour)
	}
}

// intensity reads a plain decimal number. What strconv would also take, as
// "inf" or hexadecimal, has no place in a table.
func intensity(field string) (float64, error) {
	if field == "" || strings.Trim(field, "0123456789.eE+-") != "" {
		return 0, ErrNotANumber
	}
	x, err := strconv.ParseFloat(field, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) && math.IsInf(x, 0), x > maxIntensity:
		if x < 0 {
			return 0, ErrNegative
		}
		return 0, ErrTooHigh
	case err != nil:
		return 0, ErrNotANumber
	case x < 0:
		return 0, ErrNegative
	}
	return x + 0, nil
}

func (p *tableParser) table(kind Kind) *Table {
	columns := make([]int, 0, len(p.zones)-1)
	for i := range p.zones {
		if i != p.when {
			columns = append(columns, i)
		}
	}
	slices.SortFunc(columns, func(a, b int) int { return cmp.Compare(p.zones[a], p.zones[b]) })
	t := &Table{name: p.name, kind: kind, start: p.start}
	for _, i := range columns {
		t.zones = append(t.zones, p.zones[i])
		t.hours = append(t.hours, p.values[i])
	}
	return t
}

// fault is an error at a field of the record last read.
func (p *tableParser) fault(column int, field, value string, cause error) error {
	const shown = 40
	if len(value) > shown {
		value = value[:shown] + "…"
	}
	line, _ := p.rows.FieldPos(column)
	return &ParseError{File: p.name, Line: line, Field: field, Value: value, Err: cause}
}

// syntax is an error of the CSV reader, or of what it reads from.
func (p *tableParser) syntax(err error) error {
	if bad, ok := errors.AsType[*csv.ParseError](err); ok {
		return &ParseError{File: p.name, Line: bad.Line, Err: fmt.Errorf("%w: %w", ErrSyntax, bad.Err)}
	}
	return &ParseError{File: p.name, Line: p.count + 2, Err: err}
}
