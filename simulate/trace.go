package simulate

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/internal/strictcsv"
	"github.com/isobar-mesh/isobar/loadtest/azure"
)

const (
	// maxTraceBytes bounds a trace, unpacked.
	maxTraceBytes = 512 << 20
	// maxSeconds bounds every time of a trace: a hundred years.
	maxSeconds = 100 * 365 * 24 * 3600
	// maxAmount bounds every amount of a trace: cores, GiB, kW, milliseconds.
	maxAmount = 1e9
)

// What can be wrong with a trace, as the cause of a ParseError; some are those
// of every table.
var (
	ErrMissingColumn   = strictcsv.ErrMissingColumn
	ErrUnknownColumn   = strictcsv.ErrUnknownColumn
	ErrDuplicateColumn = strictcsv.ErrDuplicateColumn
	ErrNoRows          = strictcsv.ErrNoRows
	ErrSyntax          = strictcsv.ErrSyntax
	ErrRequired        = strictcsv.ErrRequired
	ErrNotANumber      = strictcsv.ErrNotANumber
	ErrNotWhole        = strictcsv.ErrNotWhole
	ErrNegative        = strictcsv.ErrNegative
	ErrTooHigh         = strictcsv.ErrTooHigh
	ErrNotABool        = errors.New("neither true nor false")
	ErrUnsorted        = errors.New("arrives before the row above; sort the file by arrival_s")
	ErrUnknownRegion   = errors.New("not a region of the mesh")
	ErrNoHome          = errors.New("is required, as the mesh has several regions")
	ErrNoPower         = errors.New("neither kw nor watts")
	ErrNoRoundTrip     = errors.New("the mesh has no round trip")
	ErrNotToSet        = errors.New("not a column that can be set")
	ErrInTheFile       = errors.New("the file has this column: it cannot be set")
)

// ParseError says where a trace is wrong.
type ParseError = strictcsv.Error

// Task is one row of a trace.
type Task struct {
	// Line is where the task stands in its file, from 1; 0 when it is from none.
	Line     int
	ID       string
	Tenant   string
	Function string
	// Home is the name of a region.
	Home string
	// Arrival is the time after the start of the run.
	Arrival time.Duration
	// Duration is the run time, DurationS the same in seconds, not rounded.
	Duration  time.Duration
	DurationS float64
	CPU       float64 // cores
	MemoryGiB float64
	GPU       int64
	// The utilisations of the cores and accelerators it holds, 0 to 1.
	CPUUtilisation float64
	GPUUtilisation float64
	// GPUModel empty takes any one model of the region.
	GPUModel string
	// KW is the power of the whole task at the IT equipment; nil when the
	// mesh's watts count.
	KW       *float64
	MaxDelay time.Duration
	// MaxRTTMs bounds the round trip from home; nil for no bound.
	MaxRTTMs      *float64
	Interruptible bool
	// Residency lists the jurisdictions allowed, sorted; empty for all.
	Residency []string
	InputGiB  float64
}

// Trace is tasks in order of arrival, and then of row.
type Trace struct {
	// Name stands for the file in errors.
	Name string
	// Source says what the trace is and how its run times came about.
	Source string
	Tasks  []Task
}

// ReadTrace reads a trace for the mesh, as a TraceReader does that is given
// nothing else.
func ReadTrace(r io.Reader, name string, m *meshfile.Mesh) (*Trace, error) {
	return (&TraceReader{Mesh: m}).Read(r, name)
}

// TraceReader reads traces. All but the mesh is for what a file lacks.
type TraceReader struct {
	Mesh *meshfile.Mesh
	// Homes are taken in turn where the file names no home: by row, or for the
	// trace of functions by app, in order of first appearance. A region may be
	// there more than once. None is the only region of the mesh.
	Homes []string
	// Set is a value for each column named that the file does not have, as it
	// would stand in a row; not of arrival_s, duration_s, id and home.
	Set map[string]string
	// Request is how long a request takes in a trace of LLM requests; the zero
	// value is Llama70B.
	Request RequestTime
}

// ReadFile reads a trace from a file, as Read does.
func (t *TraceReader) ReadFile(path string) (*Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("simulate: open trace: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	return t.Read(f, path)
}

// Read reads a trace: CSV, gzipped or not. The format is known by the header:
// the project's own, with the columns arrival_s and duration_s and any of the
// optional ones, an empty field being the column's default, rows in order of
// arrival; or one of those published by Azure, see package azure. It is strict:
// the first thing that is wrong is returned as a *ParseError with name as its
// file, or "--set" or "--home" for what was given beside it.
func (t *TraceReader) Read(r io.Reader, name string) (*Trace, error) {
	table, err := strictcsv.Open(r, name, "simulate", maxTraceBytes)
	if err != nil {
		return nil, err
	}
	p := rowParser{TraceReader: t, table: table, trace: &Trace{Name: name}, at: map[string]int{}, texts: map[string]string{}}
	if err := p.given(); err != nil {
		return nil, err
	}
	switch azure.Recognise(table.Header()) {
	case azure.LLM:
		err = p.requests()
	case azure.Functions:
		err = p.invocations()
	default:
		err = p.rows()
	}
	if err != nil {
		return nil, err
	}
	return p.trace, nil
}
