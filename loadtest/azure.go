package loadtest

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxTraceBytes bounds a trace, unpacked: the published ones have less than
	// one MiB.
	maxTraceBytes = 256 << 20
	// maxTraceTokens is above any model's context; a value beyond it is in
	// another unit.
	maxTraceTokens = 100_000_000
	// azureTime is the trace's time stamp: seven decimals, no zone.
	azureTime = "2006-01-02 15:04:05.9999999"
)

// What can be wrong with a trace, as the cause of a ParseError.
var (
	ErrHeader    = errors.New("not the header TIMESTAMP,ContextTokens,GeneratedTokens")
	ErrNoRows    = errors.New("no rows")
	ErrRow       = errors.New("not a row of three fields")
	ErrTime      = errors.New("not a time as 2023-11-16 18:15:46.6805900")
	ErrUnsorted  = errors.New("time before that of the row above")
	ErrTokens    = errors.New("not a whole number of tokens, 0 or more")
	ErrTooLarge  = errors.New("trace too large")
	ErrNoService = errors.New("the service is read from the file's name, which must end in _conv or _code before .csv or .csv.gz")
)

// ParseError says where a file is wrong.
type ParseError struct {
	File  string
	Line  int    // from 1; 0 for the file as a whole
	Field string // the column's name; empty for the whole row
	Value string // what stands there, shortened
	Err   error  // one of the errors above, or that of the reader
}

func (e *ParseError) Error() string {
	var b strings.Builder
	b.WriteString("loadtest: read " + e.File)
	if e.Line > 0 {
		b.WriteString(":" + strconv.Itoa(e.Line))
	}
	if e.Field != "" {
		b.WriteString(": " + e.Field)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Value != "" {
		fmt.Fprintf(&b, ": %q", e.Value)
	}
	return b.String()
}

// Unwrap is the cause.
func (e *ParseError) Unwrap() error { return e.Err }

// columns of the Azure LLM inference trace, in their order.
func azureColumns() [3]string { return [...]string{"TIMESTAMP", "ContextTokens", "GeneratedTokens"} }

// ReadAzureLLMFile reads one file of the Azure LLM inference trace as
// published, gzipped or not. The service, conv or code, is the end of the
// file's name.
func ReadAzureLLMFile(path string) (Trace, error) {
	service, err := azureService(path)
	if err != nil {
		return Trace{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return Trace{}, &ParseError{File: path, Err: cause(err)}
	}
	defer f.Close()
	return ReadAzureLLM(f, path, service)
}

// cause drops what the ParseError says already.
func cause(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

func azureService(path string) (string, error) {
	base := strings.TrimSuffix(filepath.Base(path), ".gz")
	for _, service := range [...]string{"conv", "code"} {
		if strings.HasSuffix(base, "_"+service+".csv") {
			return service, nil
		}
	}
	return "", &ParseError{File: path, Err: ErrNoService}
}

// ReadAzureLLM reads the format of the Azure LLM inference trace: CSV, gzipped
// or not, with the header TIMESTAMP,ContextTokens,GeneratedTokens and rows in
// order of time, which has no zone and is taken as UTC. It is strict: the first
// thing that is wrong is returned as a *ParseError. name stands for the file in
// errors. A request of no tokens counts as one of one token.
func ReadAzureLLM(r io.Reader, name, service string) (Trace, error) {
	plain, err := unpack(r)
	if err != nil {
		return Trace{}, &ParseError{File: name, Line: 1, Err: err}
	}
	p := azureParser{name: name, service: service, rows: csv.NewReader(&limited{r: plain, left: maxTraceBytes})}
	p.rows.ReuseRecord = true
	p.rows.FieldsPerRecord = -1
	if err := p.header(); err != nil {
		return Trace{}, err
	}
	for {
		more, err := p.row()
		if err != nil {
			return Trace{}, err
		}
		if !more {
			break
		}
	}
	if len(p.trace.Arrivals) == 0 {
		return Trace{}, &ParseError{File: name, Line: 1, Err: ErrNoRows}
	}
	return p.trace, nil
}

type azureParser struct {
	name, service string
	rows          *csv.Reader
	trace         Trace
}

func (p *azureParser) header() error {
	record, err := p.rows.Read()
	if errors.Is(err, io.EOF) {
		return &ParseError{File: p.name, Line: 1, Err: ErrHeader}
	}
	if err != nil {
		return p.syntax(err)
	}
	want := azureColumns()
	if !slices.Equal(record, want[:]) {
		return &ParseError{File: p.name, Line: 1, Value: shorten(strings.Join(record, ",")), Err: ErrHeader}
	}
	return nil
}

// row reads one row; more is false at the end.
func (p *azureParser) row() (more bool, err error) {
	record, err := p.rows.Read()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, p.syntax(err)
	}
	columns := azureColumns()
	if len(record) != len(columns) {
		return false, p.wrong(0, "", strings.Join(record, ","), ErrRow)
	}
	when, err := time.Parse(azureTime, record[0])
	if err != nil || when.Year() < 1970 || when.Year() > 2262 {
		return false, p.wrong(0, columns[0], record[0], ErrTime)
	}
	if len(p.trace.Arrivals) == 0 {
		p.trace.Start = when
	}
	at := when.Sub(p.trace.Start)
	if at < p.trace.Span() {
		return false, p.wrong(0, columns[0], record[0], ErrUnsorted)
	}
	a := Arrival{At: at, Service: p.service}
	for i, to := range [...]*int{&a.Input, &a.Output} {
		n, err := strconv.ParseUint(record[i+1], 10, 64)
		if err != nil || n > maxTraceTokens {
			return false, p.wrong(i+1, columns[i+1], record[i+1], ErrTokens)
		}
		*to = max(int(n), 1)
	}
	p.trace.Arrivals = append(p.trace.Arrivals, a)
	return true, nil
}

func (p *azureParser) wrong(field int, column, value string, err error) error {
	line, _ := p.rows.FieldPos(field)
	return &ParseError{File: p.name, Line: line, Field: column, Value: shorten(value), Err: err}
}

// syntax is what the reader itself refused.
func (p *azureParser) syntax(err error) error {
	if broken, ok := errors.AsType[*csv.ParseError](err); ok {
		return &ParseError{File: p.name, Line: broken.Line, Err: fmt.Errorf("%w: %w", ErrRow, broken.Err)}
	}
	// Rows stand on one line each, below the header.
	return &ParseError{File: p.name, Line: len(p.trace.Arrivals) + 2, Err: err}
}

func shorten(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

// limited fails, unlike io.LimitedReader, when there is more: a trace cut
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
