package simulate

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/meshfile"
)

const (
	// maxTraceBytes bounds a trace, unpacked.
	maxTraceBytes = 512 << 20
	// maxSeconds bounds every time of a trace: a hundred years.
	maxSeconds = 100 * 365 * 24 * 3600
	// maxAmount bounds every amount of a trace: cores, GiB, kW, milliseconds.
	maxAmount = 1e9
)

// What can be wrong with a trace, as the cause of a ParseError.
var (
	ErrMissingColumn   = errors.New("missing column")
	ErrUnknownColumn   = errors.New("unknown column")
	ErrDuplicateColumn = errors.New("duplicate column")
	ErrNoRows          = errors.New("no rows")
	ErrSyntax          = errors.New("not a row of the trace")
	ErrRequired        = errors.New("is required")
	ErrNotANumber      = errors.New("not a number")
	ErrNotWhole        = errors.New("not a whole number, 0 or more")
	ErrNegative        = errors.New("must be 0 or more")
	ErrTooHigh         = errors.New("out of range")
	ErrNotABool        = errors.New("neither true nor false")
	ErrUnsorted        = errors.New("arrives before the row above; sort the file by arrival_s")
	ErrUnknownRegion   = errors.New("not a region of the mesh")
	ErrNoHome          = errors.New("is required, as the mesh has several regions")
	ErrNoPower         = errors.New("neither kw nor watts")
	ErrNoRoundTrip     = errors.New("the mesh has no round trip")
	ErrTooLarge        = errors.New("trace too large")
)

// ParseError says where a trace is wrong.
type ParseError struct {
	File  string
	Line  int    // from 1; 0 for the file as a whole
	Field string // the column's name; empty for the whole row
	Value string // what stands there, shortened, or what is missing
	Err   error  // one of the errors above, or that of the reader
}

func (e *ParseError) Error() string {
	var b strings.Builder
	b.WriteString("simulate: read " + e.File)
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
func (e *ParseError) Unwrap() error { return e.Err }

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
	Name  string
	Tasks []Task
}

// columns of a trace; the first two are required.
func columns() []string {
	return []string{
		"arrival_s", "duration_s", "id", "tenant", "function", "home", "cpu", "memory_gib", "gpu", "gpu_model", "kw",
		"max_delay_s", "max_rtt_ms", "interruptible", "residency", "input_gib",
	}
}

// ReadTraceFile reads a trace from a CSV file, gzipped or not, as ReadTrace
// does.
func ReadTraceFile(path string, m *meshfile.Mesh) (*Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("simulate: open trace: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	return ReadTrace(f, path, m)
}

// ReadTrace reads a trace for the mesh: CSV, gzipped or not, with a header, the
// columns arrival_s and duration_s and any of the optional ones; an empty field
// is the column's default. Rows are in order of arrival. It is strict: the
// first thing that is wrong is returned as a *ParseError with name as its file.
func ReadTrace(r io.Reader, name string, m *meshfile.Mesh) (*Trace, error) {
	plain, err := unpack(r)
	if err != nil {
		return nil, &ParseError{File: name, Line: 1, Err: err}
	}
	p := traceParser{mesh: m, trace: &Trace{Name: name}, rows: csv.NewReader(&limited{r: plain, left: maxTraceBytes})}
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
	if len(p.trace.Tasks) == 0 {
		return nil, &ParseError{File: name, Line: 1, Err: ErrNoRows}
	}
	return p.trace, nil
}

type traceParser struct {
	mesh   *meshfile.Mesh
	trace  *Trace
	rows   *csv.Reader
	at     map[string]int // column by name
	record []string
	err    error             // the first of the present row
	texts  map[string]string // one copy of each text that repeats
}

func (p *traceParser) header() error {
	record, err := p.rows.Read()
	if errors.Is(err, io.EOF) {
		return &ParseError{File: p.trace.Name, Line: 1, Field: columns()[0], Err: ErrMissingColumn}
	}
	if err != nil {
		return p.syntax(err)
	}
	p.at, p.texts = map[string]int{}, map[string]string{}
	for i, name := range record {
		if !slices.Contains(columns(), name) {
			return p.fault(i, shorten(name), "", ErrUnknownColumn)
		}
		if _, ok := p.at[name]; ok {
			return p.fault(i, name, "", ErrDuplicateColumn)
		}
		p.at[name] = i
	}
	required := columns()[:2]
	if len(p.mesh.Regions) > 1 {
		required = append(required, "home")
	}
	for _, name := range required {
		if _, ok := p.at[name]; !ok {
			return p.fault(0, name, "", ErrMissingColumn)
		}
	}
	return nil
}

// row reads one row; more is false at the end.
func (p *traceParser) row() (more bool, err error) {
	p.record, err = p.rows.Read()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, p.syntax(err)
	}
	p.err = nil
	line, _ := p.rows.FieldPos(0)
	t := Task{
		Line: line, ID: p.text("id"), Tenant: p.text("tenant"), Function: p.text("function"), Home: p.home(),
		CPU: p.number("cpu", 1, maxAmount), MemoryGiB: p.number("memory_gib", 0, maxAmount),
		GPU: p.whole("gpu"), GPUModel: p.text("gpu_model"), KW: p.optional("kw"),
		MaxRTTMs: p.optional("max_rtt_ms"), Interruptible: p.boolean("interruptible"),
		Residency: p.list("residency"), InputGiB: p.number("input_gib", 0, maxAmount),
	}
	t.Arrival, _ = p.seconds("arrival_s", true)
	t.Duration, t.DurationS = p.seconds("duration_s", true)
	t.MaxDelay, _ = p.seconds("max_delay_s", false)
	if p.err != nil {
		return false, p.err
	}
	if n := len(p.trace.Tasks); n > 0 && t.Arrival < p.trace.Tasks[n-1].Arrival {
		return false, p.fault(p.at["arrival_s"], "arrival_s", p.record[p.at["arrival_s"]], ErrUnsorted)
	}
	p.trace.Tasks = append(p.trace.Tasks, t)
	return true, nil
}

// field returns the row's text in the column; ok is false when it is empty or
// the trace has no such column.
func (p *traceParser) field(name string) (text string, ok bool) {
	i, ok := p.at[name]
	if !ok || p.record[i] == "" {
		return "", false
	}
	return p.record[i], true
}

func (p *traceParser) fail(name, value string, cause error) {
	if p.err == nil {
		p.err = p.fault(p.at[name], name, value, cause)
	}
}

func (p *traceParser) text(name string) string {
	s, ok := p.field(name)
	if !ok {
		return ""
	}
	if known, ok := p.texts[s]; ok {
		return known
	}
	s = strings.Clone(s)
	if len(p.texts) < 1<<16 {
		p.texts[s] = s
	}
	return s
}

func (p *traceParser) home() string {
	name := p.text("home")
	if name == "" {
		if len(p.mesh.Regions) > 1 {
			p.fail("home", "", ErrNoHome)
			return ""
		}
		return p.mesh.Regions[0].Name
	}
	if _, ok := p.mesh.Region(name); !ok {
		p.fail("home", name, ErrUnknownRegion)
	}
	return name
}

func (p *traceParser) number(name string, otherwise, most float64) float64 {
	s, ok := p.field(name)
	if !ok {
		return otherwise
	}
	x, err := decimal(s, most)
	if err != nil {
		p.fail(name, s, err)
	}
	return x
}

func (p *traceParser) optional(name string) *float64 {
	if _, ok := p.field(name); !ok {
		return nil
	}
	x := p.number(name, 0, maxAmount)
	return &x
}

func (p *traceParser) whole(name string) int64 {
	s, ok := p.field(name)
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		p.fail(name, s, ErrNotWhole)
	}
	return int64(n)
}

func (p *traceParser) boolean(name string) bool {
	s, ok := p.field(name)
	if !ok {
		return false
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		p.fail(name, s, ErrNotABool)
	}
	return b
}

// list reads names divided by semicolons, sorted.
func (p *traceParser) list(name string) []string {
	s, ok := p.field(name)
	if !ok {
		return nil
	}
	var out []string
	for part := range strings.SplitSeq(s, ";") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *traceParser) seconds(name string, required bool) (time.Duration, float64) {
	s, ok := p.field(name)
	if !ok {
		if required {
			p.fail(name, "", ErrRequired)
		}
		return 0, 0
	}
	x, err := decimal(s, maxSeconds)
	if err != nil {
		p.fail(name, s, err)
		return 0, 0
	}
	return nanoseconds(s, x), x
}

// nanoseconds reads a decimal number of seconds, which x is near to, without
// the rounding of a floating-point product: 0.1 + 0.2 is 0.3.
func nanoseconds(s string, x float64) time.Duration {
	whole, frac, _ := strings.Cut(s, ".")
	if len(frac) <= 9 && !strings.ContainsAny(s, "eE+-") {
		n, err := strconv.ParseInt(whole+frac+strings.Repeat("0", 9-len(frac)), 10, 64)
		if err == nil {
			return time.Duration(n)
		}
	}
	return fromSeconds(x)
}

func fromSeconds(x float64) time.Duration { return time.Duration(math.Round(x * 1e9)) }

// decimal reads a plain decimal number from 0 to most. What strconv would also
// take, as "inf" or hexadecimal, has no place in a table.
func decimal(s string, most float64) (float64, error) {
	if strings.Trim(s, "0123456789.eE+-") != "" {
		return 0, ErrNotANumber
	}
	x, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange):
		return 0, ErrNotANumber
	case x < 0:
		return 0, ErrNegative
	case err != nil || x > most:
		return 0, ErrTooHigh
	}
	return x + 0, nil // not minus zero
}

// fault is an error at a field of the record last read.
func (p *traceParser) fault(column int, field, value string, cause error) error {
	line, _ := p.rows.FieldPos(column)
	return &ParseError{File: p.trace.Name, Line: line, Field: field, Value: shorten(value), Err: cause}
}

// syntax is what the reader itself refused.
func (p *traceParser) syntax(err error) error {
	if bad, ok := errors.AsType[*csv.ParseError](err); ok {
		return &ParseError{File: p.trace.Name, Line: bad.Line, Err: fmt.Errorf("%w: %w", ErrSyntax, bad.Err)}
	}
	return &ParseError{File: p.trace.Name, Line: len(p.trace.Tasks) + 2, Err: err}
}

func shorten(s string) string {
	const most = 40
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
