package simulate_test

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/simulate"
)

// chosen plays isobar by a choice, and checks the schedule.
func chosen(t testing.TB, in simulate.Input, opts simulate.Options) simulate.PolicyReport {
	t.Helper()
	opts.Policies = []simulate.Policy{simulate.Isobar}
	r, err := simulate.Run(in, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	return r.Policies[0]
}

// TestJointIsNeverWorseAlone: a task alone in the mesh, or without limits, has
// among its combinations the one that is found in sequence. So the joint choice
// never costs more, and is in time as well.
func TestJointIsNeverWorseAlone(t *testing.T) {
	t.Parallel()
	better := 0
	rapid.Check(t, func(rt *rapid.T) {
		limited := rapid.Bool().Draw(rt, "limited")
		tasks := 1
		if !limited {
			tasks = rapid.IntRange(1, 6).Draw(rt, "tasks")
		}
		d := draw(rt, limited, tasks)
		in := input(t, d.mesh, d.trace(), d.zones)
		joint := chosen(t, in, d.opts)
		d.opts.Choice = pick(rt, "choice", simulate.InSequence, simulate.BookedSequence)
		sequence := chosen(t, in, d.opts)
		atMost(rt, "joint against sequence", joint.ObjectiveValue, sequence.ObjectiveValue)
		if joint.DeadlineMisses != 0 || sequence.DeadlineMisses != 0 || joint.Unplaced != sequence.Unplaced {
			rt.Fatalf("joint: %d late, %d unplaced; sequence: %d and %d", joint.DeadlineMisses, joint.Unplaced, sequence.DeadlineMisses, sequence.Unplaced)
		}
		if joint.ObjectiveValue < sequence.ObjectiveValue*(1-1e-9) {
			better++
		}
	})
	if better == 0 {
		t.Error("the joint choice was never better: nothing was compared")
	}
}

// TestSequence has by hand what each step in sequence loses, and what it knows.
func TestSequence(t *testing.T) {
	t.Parallel()
	const functions = "functions: {f: {variants: {slow: {cpu: 1, duration_x: 2}, wide: {cpu: 2, duration_x: 1}}}}\n"
	for _, tt := range []struct {
		name, mesh, trace string
		a, b              []float64
		joint, sequence   float64 // grams
		booked            float64 // by a sequence that reads what is booked
	}{
		{
			name: "the cleaner region of now is not that of the window",
			mesh: twoRegions, trace: head + "max_delay_s\n0,3600,a,10800\n",
			a: []float64{300, 300, 300, 300, 300}, b: []float64{400, 400, 50, 400, 400},
			joint: 50, sequence: 300, booked: 300,
		},
		{
			name: "in its region it waits for the clean hour",
			mesh: twoRegions, trace: head + "max_delay_s\n0,3600,a,10800\n",
			a: []float64{300, 300, 100, 300, 300}, b: []float64{400, 400, 400, 400, 400},
			joint: 100, sequence: 100, booked: 100,
		},
		{
			// By the mean of both variants, 1.5 h at 3 kW, the start at 3 h is no
			// better; the wide one alone has 2 kWh in the clean hour.
			name:  "the hour that suits one variant",
			mesh:  "regions: {a: {zone: A, watts_per_cpu: 1000}}\n" + functions,
			trace: "arrival_s,duration_s,function,max_delay_s\n0,3600,f,10800\n",
			a:     []float64{200, 200, 400, 150, 900, 900}, b: []float64{1, 1, 1, 1, 1, 1},
			joint: 300, sequence: 400, booked: 400,
		},
		{
			// The first task fills b, so the second takes the region with room.
			name:  "a region without room is not chosen",
			mesh:  "regions:\n  a: {zone: A, watts_per_cpu: 1000, cpu: 1}\n  b: {zone: B, watts_per_cpu: 1000, cpu: 1}\nrtt_ms: {a: {b: 50}}\n",
			trace: head + "max_delay_s\n0,3600,a,0\n0,3600,a,0\n",
			a:     []float64{300, 300, 300}, b: []float64{100, 100, 100},
			joint: 400, sequence: 400, booked: 400,
		},
		{
			name:  "a region that has room in time is seen by who reads the bookings",
			mesh:  "regions:\n  a: {zone: A, watts_per_cpu: 1000, cpu: 1}\n  b: {zone: B, watts_per_cpu: 1000, cpu: 1}\nrtt_ms: {a: {b: 50}}\n",
			trace: head + "max_delay_s\n0,3600,a,3600\n0,3600,a,3600\n",
			a:     []float64{300, 300, 300}, b: []float64{100, 100, 100},
			joint: 200, sequence: 400, booked: 200,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := input(t, tt.mesh, tt.trace, map[string][]float64{"A": tt.a, "B": tt.b})
			for choice, want := range map[simulate.Choice]float64{
				simulate.Joint: tt.joint, simulate.InSequence: tt.sequence, simulate.BookedSequence: tt.booked,
			} {
				near(t, string(choice), chosen(t, in, simulate.Options{Objective: simulate.Carbon, Choice: choice}).GCO2eq, want)
			}
		})
	}
}

func TestSequenceRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	in := input(t, oneRegion, "arrival_s,duration_s\n0,3600\n", map[string][]float64{"A": {1, 2}})
	for _, opts := range []simulate.Options{
		{Choice: simulate.InSequence, Durations: simulate.Learned}, {Choice: simulate.InSequence, DigestAge: 1}, {Choice: "all"},
	} {
		if _, err := simulate.Run(in, opts); !errors.Is(err, simulate.ErrOption) {
			t.Errorf("%+v: %v", opts, err)
		}
	}
}
