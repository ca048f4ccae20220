// Package azure reads the traces that Microsoft publishes in
// Azure/AzurePublicDataset (CC-BY 4.0), as they are published: the LLM
// inference traces (Patel et al., Splitwise, ISCA 2024) and the Functions
// invocation trace of 2021 (Zhang et al., SOSP 2021). It owns their formats and
// nothing of what is done with them: real runs and simulations read them here.
//
// All readers are strict: the first thing that is wrong is a *ParseError with
// file, line and field.
package azure

import (
	"cmp"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/strictcsv"
)

const (
	// maxBytes bounds a trace, unpacked: the largest published, of functions,
	// has 305 MB.
	maxBytes = 512 << 20
	// maxTokens is above any model's context; a value beyond it is in another
	// unit.
	maxTokens = 100_000_000
	// maxSeconds bounds the times of functions: a hundred years.
	maxSeconds = 100 * 365 * 24 * 3600
	// rounding is how far the start of an invocation can be off: durations have
	// three decimals, ends have more.
	rounding = time.Millisecond
)

// What can be wrong with a trace beside the errors of every table.
var (
	ErrHeader   = errors.New("not the header of the trace as published")
	ErrTime     = errors.New("not a time as 2023-11-16 18:15:46.6805900")
	ErrUnsorted = errors.New("time before that of the row above")
	ErrTokens   = errors.New("not a whole number of tokens, 0 or more")
	ErrTooEarly = errors.New("it began before the trace: the duration is longer than the end is late")
)

// ParseError says where a file is wrong.
type ParseError = strictcsv.Error

// Format tells the traces apart by their header.
type Format string

// The formats.
const (
	None      Format = ""
	LLM       Format = "Azure LLM inference trace"
	Functions Format = "Azure Functions invocation trace 2021"
)

// Recognise tells which format a header is of.
func Recognise(header []string) Format {
	switch {
	case slices.Equal(header, []string{"TIMESTAMP", "ContextTokens", "GeneratedTokens"}):
		return LLM
	case slices.Equal(header, []string{"app", "func", "end_timestamp", "duration"}):
		return Functions
	}
	return None
}

// Request is one row of an LLM inference trace.
type Request struct {
	Line  int           // in the file, from 1
	At    time.Duration // after the first row
	Input int           // tokens, 0 or more
	// Output is the tokens generated, 0 or more.
	Output int
}

// ReadLLM reads an LLM inference trace: CSV, gzipped or not, rows in order of
// time. A time without a zone is UTC. start is the time of the first row. name
// stands for the file in errors.
func ReadLLM(r io.Reader, name string) (requests []Request, start time.Time, err error) {
	t, err := Open(r, name)
	if err != nil {
		return nil, time.Time{}, err
	}
	if Recognise(t.Header()) != LLM {
		return nil, time.Time{}, badHeader(t, name)
	}
	return RequestsOf(t)
}

// Open reads the header of a trace.
func Open(r io.Reader, name string) (*strictcsv.Table, error) {
	return strictcsv.Open(r, name, "azure", maxBytes)
}

func badHeader(t *strictcsv.Table, name string) error {
	e := &ParseError{Reader: "azure", File: name, Line: 1, Err: ErrHeader}
	if len(t.Header()) > 0 {
		e.Field = t.Header()[0]
	}
	return e
}

// RequestsOf is ReadLLM for a table whose header was recognised as LLM.
func RequestsOf(t *strictcsv.Table) (requests []Request, start time.Time, err error) {
	for {
		more, err := t.Next()
		if err != nil {
			return nil, time.Time{}, err
		}
		if !more {
			return requests, start, nil
		}
		when, ok := parseTime(t.Field(0))
		if !ok {
			return nil, time.Time{}, t.Fault(0, ErrTime)
		}
		if len(requests) == 0 {
			start = when
		}
		q := Request{Line: t.Line(), At: when.Sub(start)}
		if n := len(requests); q.At < 0 || (n > 0 && q.At < requests[n-1].At) {
			return nil, time.Time{}, t.Fault(0, ErrUnsorted)
		}
		for i, to := range [...]*int{&q.Input, &q.Output} {
			n, cause := strictcsv.Whole(t.Field(i+1), maxTokens)
			if cause != nil {
				return nil, time.Time{}, t.Fault(i+1, ErrTokens)
			}
			*to = int(n)
		}
		requests = append(requests, q)
	}
}

// parseTime reads a time stamp with up to nine decimals: without a zone, as
// the trace of 2023 has it, or with one.
func parseTime(s string) (time.Time, bool) {
	when, err := time.Parse("2006-01-02 15:04:05.999999999", s)
	if err != nil {
		when, err = time.Parse("2006-01-02 15:04:05.999999999Z07:00", s)
	}
	return when.UTC(), err == nil && when.Year() >= 1970 && when.Year() <= 2261
}

// Invocation is one row of the trace of functions.
type Invocation struct {
	Line      int // in the file, from 1
	App, Func string
	At        time.Duration // of the start, after the trace's
	Duration  float64       // seconds
}

// ReadFunctions reads the trace of functions: CSV, gzipped or not. A row
// starts at its end_timestamp less its duration, and the invocations are
// returned in order of that; the file itself is in no order that could be
// relied on, as durations are rounded. name stands for the file in errors.
func ReadFunctions(r io.Reader, name string) ([]Invocation, error) {
	t, err := Open(r, name)
	if err != nil {
		return nil, err
	}
	if Recognise(t.Header()) != Functions {
		return nil, badHeader(t, name)
	}
	return InvocationsOf(t)
}

// InvocationsOf is ReadFunctions for a table whose header was recognised as
// Functions.
func InvocationsOf(t *strictcsv.Table) ([]Invocation, error) {
	var out []Invocation
	names := map[string]string{} // one copy of each: they repeat
	name := func(column int) (string, error) {
		s := t.Field(column)
		if s == "" {
			return "", t.Fault(column, strictcsv.ErrRequired)
		}
		if known, ok := names[s]; ok {
			return known, nil
		}
		s = string([]byte(s))
		names[s] = s
		return s, nil
	}
	for {
		more, err := t.Next()
		if err != nil {
			return nil, err
		}
		if !more {
			slices.SortStableFunc(out, func(a, b Invocation) int { return cmp.Compare(a.At, b.At) })
			return out, nil
		}
		v := Invocation{Line: t.Line()}
		if v.App, err = name(0); err != nil {
			return nil, err
		}
		if v.Func, err = name(1); err != nil {
			return nil, err
		}
		end, cause := strictcsv.Decimal(t.Field(2), maxSeconds)
		if cause != nil {
			return nil, t.Fault(2, cause)
		}
		if v.Duration, cause = strictcsv.Decimal(t.Field(3), maxSeconds); cause != nil {
			return nil, t.Fault(3, cause)
		}
		v.At = time.Duration((end - v.Duration) * 1e9)
		if v.At < -rounding {
			return nil, t.Fault(3, ErrTooEarly)
		}
		v.At = max(v.At, 0)
		out = append(out, v)
	}
}
