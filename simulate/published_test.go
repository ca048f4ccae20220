package simulate_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/internal/strictcsv"
	"github.com/isobar-mesh/isobar/loadtest/azure"
	"github.com/isobar-mesh/isobar/simulate"
)

const (
	llm       = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,1000,100\n2023-11-16 18:15:47.6805900,0,0\n2023-11-16 18:15:47.6805900,2000,10\n"
	functions = "app,func,end_timestamp,duration\nshop,pay,10,9\nmail,send,11,9\nshop,list,21.5,0.5\n"
)

func meshOf(t testing.TB, text string) *meshfile.Mesh {
	t.Helper()
	m, err := meshfile.Parse("mesh.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPublishedTraces(t *testing.T) {
	t.Parallel()
	reader := &simulate.TraceReader{
		Mesh: meshOf(t, twoRegions), Homes: []string{"a", "b", "b"},
		Set: map[string]string{"max_delay_s": "0.25", "max_rtt_ms": "60", "residency": "us;eu"},
	}
	trace, err := reader.Read(strings.NewReader(llm), "llm.csv")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		home    string
		arrival time.Duration
		seconds float64
	}{{"a", 0, 0.01 + 0.15 + 3.74}, {"b", time.Second, 0.01}, {"b", time.Second, 0.01 + 0.3 + 0.374}} {
		got := trace.Tasks[i]
		near(t, "seconds", got.DurationS, want.seconds)
		if got.Home != want.home || got.Arrival != want.arrival || got.Line != i+2 || got.GPU != 2 || got.CPU != 0 ||
			got.MaxDelay != 250*time.Millisecond || *got.MaxRTTMs != 60 || len(got.Residency) != 2 {
			t.Errorf("request %d: %+v", i, got)
		}
	}
	if !strings.Contains(trace.Source, "llm.csv") || !strings.Contains(trace.Source, "Splitwise") {
		t.Errorf("source %q", trace.Source)
	}
	reader.Request = simulate.RequestTime{Base: 1, PerInput: 0.001, PerOutput: 0.1}
	reader.Set["cpu"], reader.Set["function"] = "4", "chat"
	if trace, err = reader.Read(strings.NewReader(llm), "llm.csv"); err != nil {
		t.Fatal(err)
	}
	near(t, "seconds", trace.Tasks[0].DurationS, 12)
	if first := trace.Tasks[0]; first.CPU != 4 || first.GPU != 0 || first.Function != "chat" || !strings.Contains(trace.Source, "given with the run") {
		t.Errorf("%+v of %s", first, trace.Source)
	}

	delete(reader.Set, "function")
	if trace, err = reader.Read(strings.NewReader(functions), "f.csv"); err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ tenant, function, home string }{{"shop", "pay", "a"}, {"mail", "send", "b"}, {"shop", "list", "a"}} {
		if got := trace.Tasks[i]; got.Tenant != want.tenant || got.Function != want.function || got.Home != want.home || got.CPU != 4 {
			t.Errorf("invocation %d: %+v", i, got)
		}
	}
	if got := trace.Tasks[2]; got.Arrival != 21*time.Second || got.Duration != 500*time.Millisecond {
		t.Errorf("%+v", got)
	}
	// The project's own format takes them too, for the columns it lacks.
	if _, err = reader.Read(strings.NewReader("arrival_s,duration_s,cpu\n0,1,\n0,1,3\n"), "own.csv"); err == nil {
		t.Error("cpu was set over the file's column")
	}
	delete(reader.Set, "cpu")
	if trace, err = reader.Read(strings.NewReader("arrival_s,duration_s,cpu\n0,1,\n0,1,3\n"), "own.csv"); err != nil {
		t.Fatal(err)
	}
	if a, b := trace.Tasks[0], trace.Tasks[1]; a.Home != "a" || b.Home != "b" || a.CPU != 1 || b.CPU != 3 || b.MaxDelay != 250*time.Millisecond {
		t.Errorf("own: %+v, %+v", a, b)
	}
}

// TestSampleRuns plays the sample as published, when it is at hand.
func TestSampleRuns(t *testing.T) {
	t.Parallel()
	const path = "../../shared/data/azure-functions-2021-sample/Azure2021_200.csv"
	if _, err := os.Stat(path); err != nil {
		t.Skipf("skipped: simulate a trace of functions as published: %v", err)
	}
	in := simulate.Input{Mesh: meshOf(t, twoRegions), Carbon: table(t, map[string][]float64{"A": {100, 200}, "B": {300, 50}})}
	var err error
	if in.Trace, err = (&simulate.TraceReader{Mesh: in.Mesh, Homes: []string{"a", "b"}, Set: map[string]string{"max_delay_s": "600"}}).ReadFile(path); err != nil {
		t.Fatal(err)
	}
	report, err := simulate.Run(in, simulate.NewOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := report.Check(); err != nil || len(in.Trace.Tasks) != 199 {
		t.Errorf("%d tasks: %v", len(in.Trace.Tasks), err)
	}
}

// TestDefects has a row for every defect of every kind of file that a user
// hands in: each is an error with file, line and field.
func TestDefects(t *testing.T) {
	t.Parallel()
	const (
		own  = "arrival_s,duration_s,home\n"
		wide = "datetime_utc,A,B\n2022-01-01T00:00:00Z,1,2\n"
		em   = "Datetime (UTC),Zone id,Carbon intensity gCO₂eq/kWh (Life cycle)\n2022-01-01 00:00:00,A,1\n"
	)
	trace := func(given simulate.TraceReader) func(*testing.T, string) error {
		return func(t *testing.T, text string) error {
			r := given
			r.Mesh = meshOf(t, twoRegions)
			if r.Homes == nil && !strings.HasPrefix(text, "arrival_s") {
				r.Homes = []string{"a"}
			}
			_, err := r.Read(strings.NewReader(text), "in.csv")
			return err
		}
	}
	grid := func(_ *testing.T, text string) error {
		_, err := carbon.ReadTable(strings.NewReader(text), "in.csv", carbon.Average)
		return err
	}
	mesh := func(_ *testing.T, text string) error {
		_, err := meshfile.Parse("in.yaml", []byte(text))
		return err
	}
	zone := func(t *testing.T, text string) error {
		in := input(t, text, "arrival_s,duration_s\n0,1\n", map[string][]float64{"A": {1}})
		_, err := simulate.Run(in, simulate.Options{})
		return err
	}
	plain := trace(simulate.TraceReader{})
	for _, tt := range []struct {
		name  string
		read  func(*testing.T, string) error
		in    string
		want  string
		cause error // nil where the reader has no sentinel
	}{
		{"trace: missing column", plain, "arrival_s,home\n0,a\n", "in.csv:1: duration_s: missing column", simulate.ErrMissingColumn},
		{"trace: unsorted", plain, own + "2,1,a\n1,1,a\n", `in.csv:3: arrival_s: arrives before the row above`, simulate.ErrUnsorted},
		{"trace: NaN", plain, own + "0,NaN,a\n", `in.csv:2: duration_s: not a number: "NaN"`, simulate.ErrNotANumber},
		{"trace: negative duration", plain, own + "0,-1,a\n", `in.csv:2: duration_s: must be 0 or more: "-1"`, simulate.ErrNegative},
		{"trace: a value that is left out", plain, own + "0,,a\n", "in.csv:2: duration_s: is required", simulate.ErrRequired},
		{"trace: unknown region", plain, own + "0,1,mars\n", `in.csv:2: home: not a region of the mesh: "mars"`, simulate.ErrUnknownRegion},
		{"trace: duplicate column", plain, "arrival_s,duration_s,home,home\n", "in.csv:1: home: duplicate column", simulate.ErrDuplicateColumn},
		{"trace: a header of nothing known", plain, "when,what\n1,2\n", "in.csv:1: when: unknown column", simulate.ErrUnknownColumn},

		{"LLM: missing column", plain, "TIMESTAMP,ContextTokens\n", "in.csv:1: TIMESTAMP: unknown column", simulate.ErrUnknownColumn},
		{"LLM: unsorted", plain, llm + "2023-11-16 18:15:46.6805900,1,1\n", "in.csv:5: TIMESTAMP: time before that of the row above", azure.ErrUnsorted},
		{"LLM: NaN", plain, llm + "2023-11-16 18:15:48,NaN,1\n", `in.csv:5: ContextTokens: not a whole number of tokens, 0 or more: "NaN"`, azure.ErrTokens},
		{"LLM: negative", plain, llm + "2023-11-16 18:15:48,1,-1\n", `in.csv:5: GeneratedTokens: not a whole number of tokens, 0 or more: "-1"`, azure.ErrTokens},
		{"LLM: bad time", plain, llm + "noon,1,1\n", `in.csv:5: TIMESTAMP: not a time as`, azure.ErrTime},
		{"LLM: no home", trace(simulate.TraceReader{Homes: []string{}}), llm, "in.csv:1: home: is required, as the mesh has several regions", simulate.ErrNoHome},
		{"functions: no home", trace(simulate.TraceReader{Homes: []string{}}), functions, "in.csv:1: home: is required", simulate.ErrNoHome},
		{"functions: NaN", plain, functions + "a,f,NaN,1\n", `in.csv:5: end_timestamp: not a number: "NaN"`, simulate.ErrNotANumber},
		{"functions: negative duration", plain, functions + "a,f,1,-1\n", `in.csv:5: duration: must be 0 or more: "-1"`, simulate.ErrNegative},
		{"functions: before the trace", plain, functions + "a,f,1,2\n", "in.csv:5: duration: it began before the trace", azure.ErrTooEarly},
		{"functions: no rows", plain, "app,func,end_timestamp,duration\n", "in.csv:1: no rows", simulate.ErrNoRows},

		{"set: not a column", trace(simulate.TraceReader{Set: map[string]string{"delay": "1"}}), own + "0,1,a\n", "--set: delay: not a column that can be set", simulate.ErrNotToSet},
		{"set: a column of each row", trace(simulate.TraceReader{Set: map[string]string{"duration_s": "1"}}), llm, "--set: duration_s: not a column that can be set", simulate.ErrNotToSet},
		{"set: in the file", trace(simulate.TraceReader{Set: map[string]string{"kw": "1"}}), "arrival_s,duration_s,home,kw\n0,1,a,1\n", "--set: kw: the file has this column", simulate.ErrInTheFile},
		{"set: in the file as published", trace(simulate.TraceReader{Set: map[string]string{"function": "f"}}), functions, "--set: function: the file has this column", simulate.ErrInTheFile},
		{"set: NaN", trace(simulate.TraceReader{Set: map[string]string{"kw": "NaN"}}), own + "0,1,a\n", `--set: kw: not a number: "NaN"`, simulate.ErrNotANumber},
		{"set: negative", trace(simulate.TraceReader{Set: map[string]string{"max_delay_s": "-1"}}), functions, `--set: max_delay_s: must be 0 or more: "-1"`, simulate.ErrNegative},
		{"home: unknown region", trace(simulate.TraceReader{Homes: []string{"a", "mars"}}), llm, `--home: not a region of the mesh: "mars"`, simulate.ErrUnknownRegion},

		{"carbon: missing column", grid, "time,A\n", "in.csv:1: datetime_utc: missing column", carbon.ErrMissingColumn},
		{"carbon: gap", grid, wide + "2022-01-01T02:00:00Z,1,2\n", "in.csv:3: datetime_utc: gap before this hour", carbon.ErrGap},
		{"carbon: duplicate time", grid, wide + "2022-01-01T00:00:00Z,1,2\n", "in.csv:3: datetime_utc: hour given twice", carbon.ErrDuplicateHour},
		{"carbon: unsorted", grid, wide + "2021-01-01T00:00:00Z,1,2\n", "in.csv:3: datetime_utc: hours not in order", carbon.ErrUnsorted},
		{"carbon: NaN", grid, wide + "2022-01-01T01:00:00Z,NaN,2\n", `in.csv:3: A: not a number: "NaN"`, carbon.ErrNotANumber},
		{"carbon: negative", grid, wide + "2022-01-01T01:00:00Z,1,-2\n", `in.csv:3: B: must be 0 or more: "-2"`, carbon.ErrNegative},
		{"carbon: unknown zone", zone, "regions: {a: {zone: Q, watts_per_cpu: 1}}\n", "carbon.csv:1: Q: missing column", carbon.ErrMissingColumn},
		{"export: missing column", grid, "Datetime (UTC),Zone id\n", "in.csv:1: Carbon intensity gCO₂eq/kWh (Life cycle): missing column", carbon.ErrMissingColumn},
		{"export: gap", grid, em + "2022-01-01 02:00:00,A,1\n", "in.csv:3: Datetime (UTC): gap before this hour", carbon.ErrGap},
		{"export: duplicate time", grid, em + "2022-01-01 00:00:00,A,1\n", "in.csv:3: Datetime (UTC): hour given twice", carbon.ErrDuplicateHour},
		{"export: unsorted", grid, em + "2021-01-01 00:00:00,A,1\n", "in.csv:3: Datetime (UTC): hours not in order", carbon.ErrUnsorted},
		{"export: NaN", grid, em + "2022-01-01 01:00:00,A,NaN\n", `in.csv:3: Carbon intensity gCO₂eq/kWh (Life cycle): not a number: "NaN"`, carbon.ErrNotANumber},
		{"export: no zone", grid, em + "2022-01-01 01:00:00,,1\n", "in.csv:3: Zone id: no name of a zone", carbon.ErrNoZone},

		{"mesh: zero capacity", mesh, "regions:\n  a:\n    zone: A\n    cpu: 0\n", "in.yaml:4: regions.a.cpu: must be above 0", nil},
		{"mesh: zero memory", mesh, "regions:\n  a:\n    zone: A\n    memory_gib: 0\n", "in.yaml:4: regions.a.memory_gib: must be above 0", nil},
		{"mesh: zero accelerators", mesh, "regions:\n  a:\n    zone: A\n    gpus: {H100: 0}\n", "in.yaml:4: regions.a.gpus.H100: must be 1 or more", nil},
		{"mesh: NaN", mesh, "regions:\n  a:\n    zone: A\n    pue: .nan\n", "in.yaml:4: regions.a.pue: must be a finite number", nil},
		{"mesh: missing field", mesh, "regions:\n  a: {cpu: 1}\n", "in.yaml:2: regions.a.zone: is required", nil},
		{"mesh: unknown field", mesh, "regions:\n  a: {zone: A, cpus: 1}\n", "in.yaml:2: regions.a.cpus: unknown field", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := tt.read(t, tt.in)
			if err == nil || !strings.Contains(err.Error(), tt.want) || (tt.cause != nil && !errors.Is(err, tt.cause)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzReadTrace: any bytes give tasks in order at regions of the mesh, or an
// error that says where; in whatever format they pass for.
func FuzzReadTrace(f *testing.F) {
	f.Add([]byte("arrival_s,duration_s,home,cpu,kw,residency\n0,1.5,a,2,,eu;us\n3e1,0,b,,0.5,\n"))
	f.Add([]byte("\ufeffarrival_s,duration_s,id\n-0,1,\"x\ny\"\n"))
	f.Add([]byte(llm))
	f.Add([]byte(functions))
	m := meshOf(f, twoRegions)
	f.Fuzz(func(t *testing.T, data []byte) {
		trace, err := (&simulate.TraceReader{Mesh: m, Homes: []string{"b", "a"}}).Read(bytes.NewReader(data), "in.csv")
		if err != nil {
			bad, ok := errors.AsType[*strictcsv.Error](err)
			if !ok || bad.File != "in.csv" || bad.Line < 1 || bad.Err == nil {
				t.Fatalf("error %#v does not say where", err)
			}
			return
		}
		before := time.Duration(0)
		for _, task := range trace.Tasks {
			if _, ok := m.Region(task.Home); !ok || task.Arrival < before || task.Duration < 0 || !(task.DurationS >= 0) ||
				!(task.CPU >= 0) || task.GPU < 0 || task.MaxDelay < 0 || task.Line < 2 {
				t.Fatalf("bad task %+v after %v", task, before)
			}
			before = task.Arrival
		}
		if len(trace.Tasks) == 0 || trace.Source == "" {
			t.Fatal("a trace of nothing")
		}
	})
}

// TestFilesByName reads the files as the command does.
func TestFilesByName(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "llm.csv")
	if err := os.WriteFile(path, []byte(llm), 0o600); err != nil {
		t.Fatal(err)
	}
	reader := &simulate.TraceReader{Mesh: meshOf(t, oneRegion)}
	if trace, err := reader.ReadFile(path); err != nil || trace.Tasks[0].Home != "a" {
		t.Errorf("%+v, %v", trace, err)
	}
	if _, err := reader.ReadFile(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
