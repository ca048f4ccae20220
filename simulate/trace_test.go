package simulate_test

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/simulate"
)

// TestBadTraces: each error names file, line and field.
func TestBadTraces(t *testing.T) {
	t.Parallel()
	m, err := meshfile.Parse("mesh.yaml", []byte(twoRegions))
	if err != nil {
		t.Fatal(err)
	}
	const head = "arrival_s,duration_s,home"
	for _, tt := range []struct {
		name, in, want string
		cause          error
	}{
		{"empty", "", "trace.csv:1: arrival_s: missing column", simulate.ErrMissingColumn},
		{"no duration", "arrival_s,home\n1,a\n", "trace.csv:1: duration_s: missing column", simulate.ErrMissingColumn},
		{"no home", "arrival_s,duration_s\n1,1\n", "trace.csv:1: home: missing column", simulate.ErrMissingColumn},
		{"unknown column", head + ",max_delay\n0,1,a,1\n", "trace.csv:1: max_delay: unknown column", simulate.ErrUnknownColumn},
		{"twice", head + ",home\n0,1,a,a\n", "trace.csv:1: home: duplicate column", simulate.ErrDuplicateColumn},
		{"no rows", head + "\n", "trace.csv:1: no rows", simulate.ErrNoRows},
		{"short row", head + "\n0,1,a\n0,1\n", "trace.csv:3: not a row", simulate.ErrSyntax},
		{"quote", head + "\n0,\"1,a\n", "trace.csv:2: not a row", simulate.ErrSyntax},
		{"NaN", head + "\nNaN,1,a\n", `trace.csv:2: arrival_s: not a number: "NaN"`, simulate.ErrNotANumber},
		{"infinite", head + "\n0,Inf,a\n", `trace.csv:2: duration_s: not a number`, simulate.ErrNotANumber},
		{"hexadecimal", head + "\n0,0x10,a\n", `duration_s: not a number`, simulate.ErrNotANumber},
		{"empty arrival", head + "\n,1,a\n", "trace.csv:2: arrival_s: is required", simulate.ErrRequired},
		{"negative", head + "\n0,1,a\n0,-1,a\n", `trace.csv:3: duration_s: must be 0 or more: "-1"`, simulate.ErrNegative},
		{"too long", head + "\n0,1e20,a\n", "duration_s: out of range", simulate.ErrTooHigh},
		{"too high", head + ",kw\n0,1,a,1e999\n", "kw: out of range", simulate.ErrTooHigh},
		{"unsorted", head + "\n5,1,a\n4,1,a\n", `trace.csv:3: arrival_s: arrives before the row above`, simulate.ErrUnsorted},
		{"empty home", head + "\n0,1,\n", "trace.csv:2: home: is required", simulate.ErrNoHome},
		{"unknown home", head + "\n0,1,mars\n", `trace.csv:2: home: not a region of the mesh: "mars"`, simulate.ErrUnknownRegion},
		{"half an accelerator", head + ",gpu\n0,1,a,0.5\n", `gpu: not a whole number`, simulate.ErrNotWhole},
		{"bool", head + ",interruptible\n0,1,a,perhaps\n", `interruptible: neither true nor false: "perhaps"`, simulate.ErrNotABool},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := simulate.ReadTrace(strings.NewReader(tt.in), "trace.csv", m)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.cause) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// TestBadPairs: what only shows when mesh, trace and carbon meet.
func TestBadPairs(t *testing.T) {
	t.Parallel()
	zones := map[string][]float64{"A": {1, 2}, "B": {1, 2}}
	for _, tt := range []struct {
		name, mesh, trace, want string
		opts                    simulate.Options
	}{
		{
			"unknown zone", "regions: {a: {zone: Q}}\n", "arrival_s,duration_s\n0,1\n",
			"region a: carbon: read carbon.csv:1: Q: missing column", simulate.Options{},
		},
		{
			"no power", "regions: {a: {zone: A}}\n", "arrival_s,duration_s,kw\n0,1,2\n0,1,\n",
			`trace.csv:3: kw: neither kw nor watts: "region a has no watts_per_cpu"`, simulate.Options{},
		},
		{
			"no power of a model", "regions: {a: {zone: A, watts_per_cpu: 1, gpus: {H100: 1}}}\n", "arrival_s,duration_s,gpu\n0,1,1\n",
			`"region a has no watts_per_gpu.H100"`, simulate.Options{},
		},
		{
			"no round trip", "regions: {a: {zone: A, watts_per_cpu: 1}, b: {zone: B, watts_per_cpu: 1}}\n", "arrival_s,duration_s,home,max_rtt_ms\n0,1,a,\n0,1,a,10\n",
			`trace.csv:3: max_rtt_ms: the mesh has no round trip: "a to b"`, simulate.Options{},
		},
		{"policy", oneRegion, "arrival_s,duration_s\n0,1\n", `policy "best": option cannot be: use one of home, cheapest`, simulate.Options{Policies: []simulate.Policy{"best"}}},
		{"objective", oneRegion, "arrival_s,duration_s\n0,1\n", `objective "fun"`, simulate.Options{Objective: "fun"}},
		{"price", oneRegion, "arrival_s,duration_s\n0,1\n", "carbon price NaN", simulate.Options{CarbonPrice: math.NaN()}},
		{"digest age", oneRegion, "arrival_s,duration_s\n0,1\n", "digest age -1s", simulate.Options{DigestAge: -1e9}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := simulate.Run(input(t, tt.mesh, tt.trace, zones), tt.opts)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// golden compares with a file of testdata, or writes it with UPDATE_GOLDEN set.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	in := input(t, twoRegions+"functions: {f: {variants: {small: {duration_x: 0.5, quality: 0.7}, large: {}}}}\n",
		head+"max_delay_s,function,residency\n0,3600,a,3600,f,\n600,1800,a,0,,eu\n1200,60,b,0,,jp\n",
		map[string][]float64{"A": {300, 100, 100}, "B": {200, 50, 400}})
	r, err := simulate.Run(in, simulate.NewOptions())
	if err != nil {
		t.Fatal(err)
	}
	var json, text, svg bytes.Buffer
	for _, err := range []error{r.WriteJSON(&json), r.WriteText(&text), r.WriteSVG(&svg)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "report.json", json.Bytes())
	golden(t, "report.txt", text.Bytes())
	golden(t, "report.svg", svg.Bytes())
}

// TestRealYear plays a sample over a year of real carbon, when it is at hand.
func TestRealYear(t *testing.T) {
	t.Parallel()
	const path = "../../shared/data/electricitymaps-2022/carbon-intensity-hourly-2022.csv.gz"
	if _, err := os.Stat(path); err != nil {
		t.Skipf("skipped: simulate over real carbon: %v", err)
	}
	table, err := carbon.ReadFile(path, carbon.Average)
	if err != nil {
		t.Fatal(err)
	}
	m, err := meshfile.Default()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("arrival_s,duration_s,home,max_delay_s,interruptible\n")
	for k := range 2000 {
		b.WriteString(strings.Join([]string{
			strconv.Itoa(k * 15000), "3600", m.Regions[k%3].Name, strconv.Itoa(k % 4 * 21600), []string{"true", "false"}[k%2],
		}, ",") + "\n")
	}
	trace, err := simulate.ReadTrace(strings.NewReader(b.String()), "trace.csv", m)
	if err != nil {
		t.Fatal(err)
	}
	r, err := simulate.Run(simulate.Input{Mesh: m, Trace: trace, Carbon: table}, simulate.Options{Objective: simulate.Carbon})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	home, isobar, oracle := r.Policies[0].GCO2eq, r.Policies[3].GCO2eq, r.Policies[4].GCO2eq
	if !(oracle < home*0.2) || isobar > oracle*(1+1e-9) {
		t.Errorf("home %g, isobar %g, oracle %g", home, isobar, oracle)
	}
}
