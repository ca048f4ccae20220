package simulate

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/strictcsv"
)

// columns of a trace; the first two are required.
func columns() []string {
	return []string{
		"arrival_s", "duration_s", "id", "tenant", "function", "home", "cpu", "memory_gib", "gpu", "gpu_model", "kw",
		"max_delay_s", "max_rtt_ms", "interruptible", "residency", "input_gib", "cpu_utilisation", "gpu_utilisation",
	}
}

// rowParser reads the rows of one trace.
type rowParser struct {
	*TraceReader
	table *strictcsv.Table
	trace *Trace
	at    map[string]int    // column by name
	err   error             // the first of the present row
	texts map[string]string // one copy of each text that repeats
}

// given checks what was given beside the file.
func (p *rowParser) given() error {
	for _, home := range p.Homes {
		if _, ok := p.Mesh.Region(home); !ok {
			return &ParseError{Reader: "simulate", File: "--home", Value: home, Err: ErrUnknownRegion}
		}
	}
	for name := range p.Set {
		if !slices.Contains(columns(), name) || slices.Contains([]string{"arrival_s", "duration_s", "id", "home"}, name) {
			return &ParseError{Reader: "simulate", File: "--set", Field: name, Err: ErrNotToSet}
		}
	}
	return nil
}

// rows reads the project's own format.
func (p *rowParser) rows() error {
	p.trace.Source = "file " + p.trace.Name
	if err := p.header(); err != nil {
		return err
	}
	for {
		more, err := p.table.Next()
		if err != nil || !more {
			return err
		}
		t := p.task()
		t.Line, t.ID = p.table.Line(), p.text("id")
		t.Home = p.home()
		t.Arrival, _ = p.seconds("arrival_s", true)
		t.Duration, t.DurationS = p.seconds("duration_s", true)
		if p.err != nil {
			return p.err
		}
		if n := len(p.trace.Tasks); n > 0 && t.Arrival < p.trace.Tasks[n-1].Arrival {
			return p.table.Fault(p.at["arrival_s"], ErrUnsorted)
		}
		p.trace.Tasks = append(p.trace.Tasks, t)
	}
}

func (p *rowParser) header() error {
	header := p.table.Header()
	if len(header) == 0 {
		return p.table.Missing(columns()[0])
	}
	for i, name := range header {
		if !slices.Contains(columns(), name) {
			return p.table.Fault(i, ErrUnknownColumn)
		}
		if _, ok := p.at[name]; ok {
			return p.table.Fault(i, ErrDuplicateColumn)
		}
		if _, ok := p.Set[name]; ok {
			return &ParseError{Reader: "simulate", File: "--set", Field: name, Err: ErrInTheFile}
		}
		p.at[name] = i
	}
	required := columns()[:2]
	if len(p.Mesh.Regions) > 1 && len(p.Homes) == 0 {
		required = append(required, "home")
	}
	return p.table.Require(required...)
}

// task reads what any row may say but when it arrives, at home where, and how
// long it takes.
func (p *rowParser) task() Task {
	t := Task{
		Tenant: p.text("tenant"), Function: p.text("function"),
		CPU: p.number("cpu", 1, maxAmount), MemoryGiB: p.number("memory_gib", 0, maxAmount),
		GPU: p.whole("gpu"), GPUModel: p.text("gpu_model"), KW: p.optional("kw"),
		MaxRTTMs: p.optional("max_rtt_ms"), Interruptible: p.boolean("interruptible"),
		Residency: p.list("residency"), InputGiB: p.number("input_gib", 0, maxAmount),
		CPUUtilisation: p.number("cpu_utilisation", 1, 1), GPUUtilisation: p.number("gpu_utilisation", 1, 1),
	}
	t.MaxDelay, _ = p.seconds("max_delay_s", false)
	return t
}

// field returns the row's text in the column, or what was set for a column that
// the file lacks; ok is false when it is empty or there is neither.
func (p *rowParser) field(name string) (text string, ok bool) {
	if i, here := p.at[name]; here {
		text = p.table.Field(i)
	} else {
		text = p.Set[name]
	}
	return text, text != ""
}

func (p *rowParser) fail(name string, cause error) {
	if p.err != nil {
		return
	}
	if i, here := p.at[name]; here {
		p.err = p.table.Fault(i, cause)
		return
	}
	p.err = &ParseError{Reader: "simulate", File: "--set", Field: name, Value: p.Set[name], Err: cause}
}

func (p *rowParser) text(name string) string {
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

func (p *rowParser) home() string {
	name := p.text("home")
	if name == "" {
		if _, here := p.at["home"]; here && len(p.Mesh.Regions) > 1 {
			p.fail("home", ErrNoHome)
			return ""
		}
		return p.turn(len(p.trace.Tasks))
	}
	if _, ok := p.Mesh.Region(name); !ok {
		p.fail("home", ErrUnknownRegion)
	}
	return name
}

// turn is the home of the k-th row, or app, when the file names none.
func (p *rowParser) turn(k int) string {
	if len(p.Homes) == 0 {
		return p.Mesh.Regions[0].Name
	}
	return p.Homes[k%len(p.Homes)]
}

func (p *rowParser) number(name string, otherwise, most float64) float64 {
	s, ok := p.field(name)
	if !ok {
		return otherwise
	}
	x, err := strictcsv.Decimal(s, most)
	if err != nil {
		p.fail(name, err)
	}
	return x
}

func (p *rowParser) optional(name string) *float64 {
	if _, ok := p.field(name); !ok {
		return nil
	}
	x := p.number(name, 0, maxAmount)
	return &x
}

func (p *rowParser) whole(name string) int64 {
	s, ok := p.field(name)
	if !ok {
		return 0
	}
	n, err := strictcsv.Whole(s, 1<<31-1)
	if err != nil {
		p.fail(name, err)
	}
	return int64(n)
}

func (p *rowParser) boolean(name string) bool {
	s, ok := p.field(name)
	if !ok {
		return false
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		p.fail(name, ErrNotABool)
	}
	return b
}

// list reads names divided by semicolons, sorted.
func (p *rowParser) list(name string) []string {
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

func (p *rowParser) seconds(name string, required bool) (time.Duration, float64) {
	s, ok := p.field(name)
	if !ok {
		if required {
			p.fail(name, ErrRequired)
		}
		return 0, 0
	}
	x, err := strictcsv.Decimal(s, maxSeconds)
	if err != nil {
		p.fail(name, err)
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
