package scheduler

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/placement"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// reading names inputs of a task.
func reading(inputs ...*isobarv1.Input) func(*isobarv1.TaskSpec) {
	return func(s *isobarv1.TaskSpec) { s.Inputs = inputs }
}

func model(places ...string) *isobarv1.Input {
	return &isobarv1.Input{Name: "model", Bytes: 1 << 30, Places: places}
}

// TestTaskRunsWhereItsInputsLie: a task goes to the region of its data, an equal
// one without stays, and what is explained names the price of the way.
func TestTaskRunsWhereItsInputsLie(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, far := w.cell("eu-1"), w.cell("us-1")
		here, there := home.worker("w1", offering(2, "wasm"), nil), far.worker("w2", offering(2, "wasm"), nil)
		w.meet()
		stays := home.submit("work")
		goes := home.submit("work", reading(model("us")))
		w.await(5*time.Second, "both assigned", func() bool { return here.count() == 1 && there.count() == 1 })
		if here.assigned(0).TaskId != stays || there.assigned(0).TaskId != goes {
			t.Fatalf("%s runs at home, %s far away; the one with inputs is %s", here.assigned(0).TaskId, there.assigned(0).TaskId, goes)
		}
		rec := home.record(goes)
		if m := TaskMessage(rec); len(m.Inputs) != 1 || m.Inputs[0].Name != "model" || m.Inputs[0].Bytes != 1<<30 || !slices.Equal(m.Inputs[0].Places, []string{"us"}) {
			t.Errorf("the task shows inputs %v", m.Inputs)
		}
		d, err := Decisions(rec)
		if err != nil || len(d) != 1 {
			t.Fatalf("decisions %v, %v", d, err)
		}
		for _, c := range d[0].Candidates {
			sum := c.Compute + c.Egress + c.Data + c.Carbon + c.Latency + c.ColdStart + c.QualityLost + c.Scarcity
			if diff := sum - c.Score; diff > 1e-12 || diff < -1e-12 {
				t.Errorf("%s: the terms sum to %g, score %g", c.Cell, sum, c.Score)
			}
			want := time.Duration(0)
			if c.Cell == "eu-1" {
				want = placement.TransferTime(1<<30, 20*time.Millisecond)
			}
			if c.Fetch.AsDuration() != want || (c.Data > 0) != (want > 0) {
				t.Errorf("%s: fetches for %s, %g USD", c.Cell, c.Fetch.AsDuration(), c.Data)
			}
		}
	})
}

func TestInputsAreChecked(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1", func(o *Options) {
			o.Links = func(region string) Link { return Link{Known: region == "lake"} }
		})
		w.cell("us-1")
		w.meet()
		var r *Refusal
		_, err := c.trySubmit("work", reading(model("eu"), &isobarv1.Input{Name: "b", Bytes: 1, Places: []string{"us", "mars"}}))
		if !errors.As(err, &r) || r.Reason != UnknownRegion || r.Field != "inputs[1].places[1]" || r.Message != "no region mars is known" {
			t.Errorf("a region that nobody knows: %v", err)
		}
		// One without a cell is a place if the configuration knows the way there.
		id := c.submit("work", reading(&isobarv1.Input{Name: "z", Bytes: 1, Places: []string{"us", "lake", "us"}}, model("lake")))
		got := c.record(id).Inputs
		if len(got) != 2 || got[0].Name != "model" || got[1].Name != "z" || !slices.Equal(got[1].Places, []string{"lake", "us"}) {
			t.Errorf("stored as %v", got)
		}
		// Inputs are part of what a key stands for; their order is not.
		keyed := func(s *isobarv1.TaskSpec) { s.IdempotencyKey = "k" }
		first := c.submit("work", keyed, reading(model("us", "eu"), &isobarv1.Input{Name: "a", Bytes: 1, Places: []string{"eu"}}))
		again, err := c.trySubmit("work", keyed, reading(&isobarv1.Input{Name: "a", Bytes: 1, Places: []string{"eu"}}, model("eu", "us")))
		if err != nil || again.TaskID != first {
			t.Errorf("in another order: %v, %v", again, err)
		}
		if _, err := c.trySubmit("work", keyed, reading(model("us"))); !errors.As(err, &r) || r.Reason != KeyConflict {
			t.Errorf("other inputs under the same key: %v", err)
		}
	})
}

// TestForecastsAreNamedAcrossCells: a digest says what foretold its hours.
func TestForecastsAreNamedAcrossCells(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		foretold := func(name string) func(*Options) {
			return func(o *Options) {
				read := o.Carbon
				o.Carbon = func() placement.Energy {
					e := read()
					e.Forecast = name
					return e
				}
			}
		}
		home, far := w.cell("eu-1", foretold("persistence")), w.cell("us-1", foretold("model"))
		home.worker("w1", offering(1, "wasm"), nil)
		far.worker("w2", offering(1, "wasm"), nil)
		w.meet()
		d, err := home.Decide(Question{Submission: &Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work"}}})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, c := range DecisionMessage(d).Candidates {
			got[c.Cell] = c.Forecast
		}
		if got["eu-1"] != "persistence" || got["us-1"] != "model" {
			t.Errorf("forecasts %v", got)
		}
	})
}
