package docs_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

// TestExplain runs the scripts of testdata/explain: what `isobar explain`
// prints about fixed figures, to the byte, and that the numbers hold, there and
// in the real mesh. UPDATE_SCRIPTS=1 writes the goldens anew.
func TestExplain(t *testing.T) {
	m := testMesh(t)
	fixed := httptest.NewServer(fixedCell())
	t.Cleanup(fixed.Close)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/explain",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", m.bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("FIXED", fixed.URL)
			env.Setenv("MESH", m.home())
			env.Setenv("TASK", fixedTask)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"sums": sums, "flips": flips},
	})
}

// explained runs `isobar explain ARGS -o json`.
func explained(ts *testscript.TestScript, args []string) *isobarv1.ExplainResponse {
	ts.Check(ts.Exec("isobar", append(append([]string{"explain"}, args...), "-o", "json")...))
	var res isobarv1.ExplainResponse
	ts.Check(protojson.Unmarshal([]byte(ts.ReadFile("stdout")), &res))
	return &res
}

// sums ARGS checks in what `isobar explain ARGS` answers that the terms of each
// candidate sum to its score, and that the candidates are in order.
func sums(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("unsupported: ! sums")
	}
	res := explained(ts, args)
	all := res.GetDecisions()
	if res.GetNow() != nil {
		all = append(all, res.GetNow())
	}
	n := 0
	for _, d := range all {
		for i, c := range d.GetCandidates() {
			n++
			sum := c.GetCompute() + c.GetEgress() + c.GetCarbon() + c.GetLatency() + c.GetColdStart() + c.GetQualityLost()
			if !(math.Abs(sum-c.GetScore()) <= 1e-9) || c.GetScore() <= 0 {
				ts.Fatalf("%s/%s: terms sum to %v, its score is %v", c.GetCell(), c.GetVariant(), sum, c.GetScore())
			}
			if i > 0 && c.GetScore() < d.GetCandidates()[i-1].GetScore() {
				ts.Fatalf("%s/%s is cheaper than the one before it", c.GetCell(), c.GetVariant())
			}
		}
	}
	if n == 0 {
		ts.Fatalf("no candidate in %v", res)
	}
}

// flips MARGIN COUNT ARGS asks again just below and just above each value at
// which `isobar explain ARGS` says that the choice flips, MARGIN being how near
// relative to the value. COUNT is how many it must name.
func flips(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: flips MARGIN COUNT ARGS")
	}
	margin, err := strconv.ParseFloat(args[0], 64)
	ts.Check(err)
	count, err := strconv.Atoi(args[1])
	ts.Check(err)
	// Round trips of a real mesh are measured all the time; a question that fell
	// between two measurements is asked again.
	for try := 1; ; try++ {
		err := flipsHold(ts, margin, count, args[2:])
		if err == nil {
			return
		}
		if try == 5 {
			ts.Fatalf("%v", err)
		}
	}
}

func flipsHold(ts *testscript.TestScript, margin float64, count int, args []string) error {
	d := explained(ts, args).GetNow()
	if n := len(d.GetFlips()); n != count {
		return fmt.Errorf("%d flips, want %d: %v", n, count, d.GetFlips())
	}
	ask := func(weight string, at float64) string {
		again := append(slices.Clone(args), "--if", weight+"="+strconv.FormatFloat(at, 'g', -1, 64))
		return best(explained(ts, again).GetNow())
	}
	var errs []error
	for _, f := range d.GetFlips() {
		to := f.GetCell() + "/" + f.GetVariant()
		near, beyond := f.GetAt()*(1-margin), f.GetAt()*(1+margin)
		if f.GetAt() < f.GetNow() {
			near, beyond = beyond, near
		}
		if f.GetAt() == 0 { // at zero itself, as nothing lies below
			near, beyond = math.SmallestNonzeroFloat64, 0
		}
		if got := ask(f.GetWeight(), near); got != best(d) {
			errs = append(errs, fmt.Errorf("%s just before %v gives %s, want still %s", f.GetWeight(), f.GetAt(), got, best(d)))
		}
		if got := ask(f.GetWeight(), beyond); got != to {
			errs = append(errs, fmt.Errorf("%s just beyond %v gives %s, want %s", f.GetWeight(), f.GetAt(), got, to))
		}
	}
	return errors.Join(errs...)
}

func best(d *isobarv1.Decision) string {
	if len(d.GetCandidates()) == 0 {
		return "nothing"
	}
	return d.GetCandidates()[0].GetCell() + "/" + d.GetCandidates()[0].GetVariant()
}

// fixedTask is a task that the fixed cell knows.
const fixedTask = "01jd9x6m2e8k6v8w1b4c5d6e7f-eu-north-1-k3f9ab"

// fixedCell is a cell whose view of the mesh never changes. It decides with the
// real placement.
func fixedCell() http.Handler {
	mux := http.NewServeMux()
	server := connect.NewServer()
	isobarv1.RegisterPlacementServiceHandler(server, fixedPlacement{})
	connecthttp.Mount(mux, server)
	return mux
}

type fixedPlacement struct {
	isobarv1.UnimplementedPlacementServiceHandler
}

func (fixedPlacement) Explain(_ context.Context, r *isobarv1.ExplainRequest) (*isobarv1.ExplainResponse, error) {
	policy := placement.Policy{CarbonUSDPerTonne: 190, LatencyUSDPerS: 1.33e-5, QualityUSD: 0.001}
	for _, w := range []struct {
		weight *float64
		asked  *float64
	}{{&policy.CarbonUSDPerTonne, r.CarbonPrice}, {&policy.LatencyUSDPerS, r.LatencyPrice}, {&policy.QualityUSD, r.QualityPrice}} {
		if w.asked != nil {
			*w.weight = *w.asked
		}
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	task := placement.Task{
		Function: "summarise", Lane: mesh.Standard, Home: "eu-north-1", Variants: variants(r.GetTask().GetFunction()), InputBytes: 40 << 10, OutputBytes: 2 << 10,
		MinQuality: r.GetTask().GetMinQuality(),
		Residency:  mesh.Residency{Allowed: r.GetTask().GetResidency().GetAllowed(), Denied: r.GetTask().GetResidency().GetDenied()},
	}
	if dl := r.GetTask().GetDeadline(); dl != nil {
		task.Deadline = now.Add(10 * time.Second)
	}
	d := placement.Decide(task, fixedView(), policy, now, placement.Options{ExcludeRegions: r.GetWithoutRegions(), Explain: true})
	out := &isobarv1.ExplainResponse{Now: scheduler.DecisionMessage(&d)}
	if r.GetTaskId() != "" {
		// As it is kept: without flips and rows of what was ruled out.
		bound := placement.Decide(task, fixedView(), policy, now.Add(-time.Second), placement.Options{})
		kept := scheduler.DecisionMessage(&bound)
		kept.Attempt = 1
		out.Decisions = []*isobarv1.Decision{kept}
	}
	return out, nil
}

// variants of a function: a cached small model and a large one on accelerators.
func variants(function string) []placement.Variant {
	small := placement.Variant{
		Name: "small", Runtime: "wasm", Quality: 0.7, Duration: 800 * time.Millisecond, Measured: true, ColdStart: 300 * time.Millisecond,
		Demand: mesh.Demand{CPUMilli: 1000, MemoryMiB: 256},
	}
	large := placement.Variant{
		Name: "large", Runtime: "exec", Quality: 0.95, Duration: 3 * time.Second, ColdStart: 8 * time.Second,
		Demand: mesh.Demand{CPUMilli: 2000, MemoryMiB: 4096, GPUs: 1, GPUModel: "H100"},
	}
	if function == "train" {
		large.Demand.GPUModel, large.Demand.GPUs = "H200", 8
		return []placement.Variant{large}
	}
	return []placement.Variant{small, large}
}

func fixedView() placement.View {
	cell := func(id mesh.CellID, region string, jurisdictions []string, rtt time.Duration, cpuHour, intensity float64, gpus int64) placement.Cell {
		total := mesh.Capacity{CPUMilli: 8000, MemoryMiB: 32 << 10}
		if gpus > 0 {
			total.GPUs = []mesh.Accelerators{{Model: "H100", Count: gpus}}
		}
		return placement.Cell{
			Cell: mesh.Cell{ID: id, Region: region, Jurisdictions: jurisdictions}, Verified: true, Version: 7, Age: 400 * time.Millisecond,
			Total: total, Free: total, Runtimes: []string{"exec", "wasm"}, RTT: rtt,
			Prices: placement.Prices{CPUHour: cpuHour, MemoryGiBHour: 0.004, GPUHour: []placement.ModelPrice{{Model: "H100", USD: 2.5}}},
			Energy: placement.Energy{
				Zone: region, WattsPerCPU: 3.5, WattsPerGPU: []placement.ModelWatts{{Model: "H100", Watts: 700}}, PUE: 1.11,
				Known: true, Intensity: []float64{intensity}, Kind: "average",
			},
			EgressUSDPerGiB: 0.02, ReturnUSDPerGiB: 0.02,
		}
	}
	home := cell("eu-north-1", "eu-north", []string{"eu", "se"}, 0, 0.051, 20, 0)
	home.EgressUSDPerGiB, home.ReturnUSDPerGiB, home.Age, home.Version = 0, 0, 0, 0
	home.Warm = []string{"summarise/small"}
	return placement.View{Cells: []placement.Cell{
		cell("ap-south-1", "ap-south", []string{"in"}, 131*time.Millisecond, 0.030, 700, 2),
		home,
		cell("us-east-1", "us-east", []string{"us"}, 112*time.Millisecond, 0.040, 400, 4),
	}}
}
