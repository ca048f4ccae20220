// Package strictcsv reads tables as CSV, gzipped or not, so that the first
// thing that is wrong is an error with file, line and field. It owns the form
// of a table: header, rows of one length, numbers. What the columns mean is
// the reader's.
//
//	t, err := strictcsv.Open(r, "trace.csv", "simulate", 512<<20)
//	for {
//		more, err := t.Next()
//		...
//		x, cause := strictcsv.Decimal(t.Field(2), 1e9)
//		if cause != nil {
//			return t.Fault(2, cause)
//		}
//	}
package strictcsv

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// What can be wrong with any table, as the cause of an Error.
var (
	ErrMissingColumn   = errors.New("missing column")
	ErrUnknownColumn   = errors.New("unknown column")
	ErrDuplicateColumn = errors.New("duplicate column")
	ErrNoRows          = errors.New("no rows")
	ErrSyntax          = errors.New("not a row of the table")
	ErrRequired        = errors.New("is required")
	ErrNotANumber      = errors.New("not a number")
	ErrNotWhole        = errors.New("not a whole number, 0 or more")
	ErrNegative        = errors.New("must be 0 or more")
	ErrTooHigh         = errors.New("out of range")
	ErrTooLarge        = errors.New("file too large")
)

// Error says where a table is wrong.
type Error struct {
	Reader string // the package that reads the table
	File   string
	Line   int    // from 1; 0 for the file as a whole
	Field  string // the column's name; empty for the whole row
	Value  string // what stands there, or what is missing; may be empty
	Err    error  // one of the errors above, one of the reader's, or that of the input
}

// Error names reader, file, line, field, cause and value, in that order.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Reader + ": read " + e.File)
	if e.Line > 0 {
		b.WriteString(":" + strconv.Itoa(e.Line))
	}
	b.WriteString(":")
	if e.Field != "" {
		b.WriteString(" " + e.Field + ":")
	}
	b.WriteString(" " + e.Err.Error())
	if e.Value != "" {
		fmt.Fprintf(&b, ": %q", e.Value)
	}
	return b.String()
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// Table is a table being read, a row at a time.
type Table struct {
	reader, file string
	rows         *csv.Reader
	header       []string
	record       []string
	count        int
}

// Open reads the header. Every row must have as many fields; a byte order mark
// is skipped. file and reader stand in errors; more than most bytes, unpacked,
// are ErrTooLarge. Errors are of type *Error.
func Open(r io.Reader, file, reader string, most int64) (*Table, error) {
	t := &Table{reader: reader, file: file}
	plain, err := unpack(r)
	if err != nil {
		return nil, &Error{Reader: reader, File: file, Line: 1, Err: err}
	}
	t.rows = csv.NewReader(&limited{r: plain, left: most})
	t.rows.ReuseRecord = true
	record, err := t.rows.Read()
	if errors.Is(err, io.EOF) {
		return t, nil
	}
	if err != nil {
		return nil, t.syntax(err)
	}
	t.record = record
	t.header = make([]string, len(record))
	for i, s := range record {
		t.header[i] = strings.Clone(s)
	}
	return t, nil
}

// Header is the names of the columns; none of an empty file.
func (t *Table) Header() []string { return t.header }

// Column is the position of the column; -1 when the table has none of that
// name.
func (t *Table) Column(name string) int { return slices.Index(t.header, name) }

// Require reports the first column that is missing.
func (t *Table) Require(names ...string) error {
	for _, name := range names {
		if t.Column(name) < 0 {
			return t.Missing(name)
		}
	}
	return nil
}

// Missing is the error of a table without the column.
func (t *Table) Missing(name string) error {
	return &Error{Reader: t.reader, File: t.file, Line: 1, Field: shorten(name), Err: ErrMissingColumn}
}

// Unique reports the first column that is there twice.
func (t *Table) Unique() error {
	for i, name := range t.header {
		if t.Column(name) < i {
			return t.Fault(i, ErrDuplicateColumn)
		}
	}
	return nil
}

// Next reads a row; it is false after the last one. A table without rows is
// ErrNoRows.
func (t *Table) Next() (bool, error) {
	record, err := t.rows.Read()
	if errors.Is(err, io.EOF) {
		if t.count == 0 {
			return false, &Error{Reader: t.reader, File: t.file, Line: 1, Err: ErrNoRows}
		}
		return false, nil
	}
	if err != nil {
		return false, t.syntax(err)
	}
	t.record = record
	t.count++
	return true, nil
}

// Field is what stands in the column of the present row; valid until Next.
func (t *Table) Field(column int) string { return t.record[column] }

// Line is where the present row begins, from 1.
func (t *Table) Line() int {
	line, _ := t.rows.FieldPos(0)
	return line
}

// Fault is an error at a field of the present row, or of the header before
// Next.
func (t *Table) Fault(column int, cause error) error {
	value := ""
	if t.count > 0 {
		value = t.record[column]
	}
	return t.FaultOf(column, t.header[column], value, cause)
}

// FaultOf is Fault with another name and value.
func (t *Table) FaultOf(column int, field, value string, cause error) error {
	line, _ := t.rows.FieldPos(column)
	return &Error{Reader: t.reader, File: t.file, Line: line, Field: shorten(field), Value: shorten(value), Err: cause}
}

// syntax is what the CSV reader refused, or what it reads from.
func (t *Table) syntax(err error) error {
	if bad, ok := errors.AsType[*csv.ParseError](err); ok {
		return &Error{Reader: t.reader, File: t.file, Line: bad.Line, Err: fmt.Errorf("%w: %w", ErrSyntax, bad.Err)}
	}
	line := 1 // rows stand on one line each, below the header
	if t.header != nil {
		line = t.count + 2
	}
	return &Error{Reader: t.reader, File: t.file, Line: line, Err: err}
}

func shorten(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

// Decimal reads a plain decimal number from 0 to most. What strconv would also
// take, as "inf" or hexadecimal, has no place in a table. The error is one of
// ErrRequired, ErrNotANumber, ErrNegative and ErrTooHigh.
func Decimal(s string, most float64) (float64, error) {
	if s == "" {
		return 0, ErrRequired
	}
	if strings.Trim(s, "0123456789.eE+-") != "" {
		return 0, ErrNotANumber
	}
	x, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange):
		return 0, ErrNotANumber
	case x < 0:
		return 0, ErrNegative
	case err != nil || x > most || math.IsNaN(x):
		return 0, ErrTooHigh
	}
	return x + 0, nil // not minus zero
}

// Whole reads a whole number from 0 to most. The error is one of ErrRequired,
// ErrNotWhole and ErrTooHigh.
func Whole(s string, most uint64) (uint64, error) {
	if s == "" {
		return 0, ErrRequired
	}
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && n > most:
		return 0, ErrTooHigh
	case err != nil:
		return 0, ErrNotWhole
	}
	return n, nil
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
