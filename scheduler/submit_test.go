package scheduler

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

func TestWhatSubmitRefuses(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		c.worker("w1", offering(1, "wasm"), nil)
		var unknown atomic.Bool // whether another region may use the broker too
		w.cell("us-1", func(o *Options) {
			o.BrokerShared = func() ([]mesh.Cell, bool) {
				return []mesh.Cell{{Region: "ap", Jurisdictions: []string{"in"}}}, !unknown.Load()
			}
		}).worker("w2", offering(1, "wasm"), nil)
		w.meet()
		w.registry.tenant("bound", mesh.Residency{Allowed: []string{"us"}})
		w.registry.add("poor", variant("only", "wasm", func(v *isobarv1.Variant) { v.Quality = 0.5 }))
		ms := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(d)) }
		for _, tc := range []struct {
			name   string
			change func(*isobarv1.TaskSpec)
			reason Reason
			field  string
		}{
			{"lane", func(s *isobarv1.TaskSpec) { s.Lane = "express" }, UnknownLane, "lane"},
			{"tenant", func(s *isobarv1.TaskSpec) { s.Tenant = "nobody" }, UnknownTenant, "tenant"},
			{"deadline", func(s *isobarv1.TaskSpec) { s.Deadline = ms(-time.Second) }, DeadlinePast, "deadline"},
			{"not before deadline", func(s *isobarv1.TaskSpec) { s.Deadline, s.NotBefore = ms(time.Hour), ms(2*time.Hour) }, BadRequest, "notBefore"},
			{"not before for ever", func(s *isobarv1.TaskSpec) { s.NotBefore = ms(8 * 24 * time.Hour) }, BadRequest, "notBefore"},
			{"attempts", func(s *isobarv1.TaskSpec) { s.Retry = &isobarv1.RetryPolicy{MaxAttempts: 101} }, BadRequest, "retry.maxAttempts"},
			{"backoff", func(s *isobarv1.TaskSpec) { s.Retry = &isobarv1.RetryPolicy{Backoff: durationpb.New(-1)} }, BadRequest, "retry.backoff"},
			{"max backoff", func(s *isobarv1.TaskSpec) { s.Retry = &isobarv1.RetryPolicy{MaxBackoff: durationpb.New(-1)} }, BadRequest, "retry.maxBackoff"},
			{"residency", func(s *isobarv1.TaskSpec) { s.Residency = &isobarv1.Residency{Denied: []string{"eu"}} }, ResidencyForbids, "residency"},
			{"tenant's residency", func(s *isobarv1.TaskSpec) { s.Tenant = "bound" }, ResidencyForbids, "residency"},
			{"quality", func(s *isobarv1.TaskSpec) {
				s.MinQuality = 0.9
			}, Infeasible, ""},
		} {
			_, err := c.trySubmit("poor", tc.change)
			if r := wantRefusal(t, tc.name, err, tc.reason); r.Field != tc.field {
				t.Errorf("%s: field %q", tc.name, r.Field)
			}
		}
		// A broker that regions of two jurisdictions share is as both.
		us := w.all()["us-1"]
		for _, res := range []*isobarv1.Residency{{Allowed: []string{"us"}}, {Denied: []string{"in"}}} {
			_, err := us.trySubmit("poor", func(s *isobarv1.TaskSpec) { s.Residency = res })
			if r := wantRefusal(t, "shared broker", err, BrokerShared); r.Field != "residency" {
				t.Errorf("shared broker: field %q", r.Field)
			}
			wantRefusal(t, "stream on a shared broker", us.Admit(mesh.Residency{Allowed: res.Allowed, Denied: res.Denied}), BrokerShared)
		}
		if _, err := us.trySubmit("poor", func(s *isobarv1.TaskSpec) { s.Residency = &isobarv1.Residency{Allowed: []string{"us", "in"}} }); err != nil {
			t.Errorf("a residency that allows all who share: %v", err)
		}
		// Until all who share it are known, only what is not bound is taken.
		unknown.Store(true)
		allowed := mesh.Residency{Allowed: []string{"in", "us"}}
		_, err := us.trySubmit("poor", func(s *isobarv1.TaskSpec) { s.Residency = &isobarv1.Residency{Allowed: allowed.Allowed} })
		if r := wantRefusal(t, "who shares is unknown", err, Unavailable); r.Field != "residency" || r.RetryAfter <= 0 {
			t.Errorf("who shares is unknown: %+v", r)
		}
		wantRefusal(t, "stream, who shares is unknown", us.Admit(allowed), Unavailable)
		wantRefusal(t, "a sharer outside is known", us.Admit(mesh.Residency{Allowed: []string{"us"}}), BrokerShared)
		if _, err := us.trySubmit("poor"); err != nil {
			t.Errorf("not bound, while who shares is unknown: %v", err)
		}
		unknown.Store(false)
		if err := us.Admit(allowed); err != nil {
			t.Errorf("known again: %v", err)
		}
		if _, err := c.trySubmit("none"); !errors.Is(err, errNoFunction) {
			t.Errorf("unknown function: %v", err)
		}
		_, err = c.Submit(w.ctx, Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work"}, Payload: make([]byte, mesh.MaxPayload+1)})
		wantRefusal(t, "payload", err, PayloadTooLarge)
		_, err = c.Invocation(Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work"}, Payload: make([]byte, mesh.MaxPayload+1)})
		wantRefusal(t, "payload of an invoke", err, PayloadTooLarge)
		_, err = c.Invocation(Submission{Spec: &isobarv1.TaskSpec{Tenant: "nobody", Function: "work"}})
		wantRefusal(t, "tenant of an invoke", err, UnknownTenant)
		_, err = c.Invocation(Submission{Spec: &isobarv1.TaskSpec{Tenant: "bound", Function: "work"}})
		if r := wantRefusal(t, "residency of an invoke", err, ResidencyForbids); r.Cell != "us-1" {
			t.Errorf("where to go: %q", r.Cell)
		}
		if _, err := c.Invocation(Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "none"}}); !errors.Is(err, errNoFunction) {
			t.Errorf("unknown function of an invoke: %v", err)
		}
		c.full.Store(true)
		_, err = c.trySubmit("work")
		if r := wantRefusal(t, "full disk", err, DiskFull); r.RetryAfter == 0 {
			t.Error("no retry-after")
		}
	})
}

func TestRepeatsAndConflicts(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		first := c.submit("work", func(s *isobarv1.TaskSpec) { s.RequestId, s.IdempotencyKey = "r1", "k" })
		for name, change := range map[string]func(*isobarv1.TaskSpec){
			"request": func(s *isobarv1.TaskSpec) { s.RequestId = "r1" },
			"key":     func(s *isobarv1.TaskSpec) { s.RequestId, s.IdempotencyKey = "r2", "k" },
		} {
			r, err := c.trySubmit("work", change)
			if err != nil || !r.Duplicate || r.TaskID != first || r.State != ready {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
		}
		_, err := c.trySubmit("work", func(s *isobarv1.TaskSpec) { s.IdempotencyKey, s.MinQuality = "k", 0.5 })
		if r := wantRefusal(t, "conflict", err, KeyConflict); r.TaskID != first {
			t.Errorf("the first is %q", r.TaskID)
		}
	})
}

func TestAFullQueueRefuses(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1", func(o *Options) { o.QueueCap = &meshv1.QueueCap{Count: 2} })
		c.submit("work")
		c.submit("work")
		_, err := c.trySubmit("work")
		if r := wantRefusal(t, "third", err, QueueFull); r.RetryAfter == 0 {
			t.Error("no retry-after")
		}
		c.submit("work", func(s *isobarv1.TaskSpec) { s.Lane = "batch" }) // a queue of its own
	})
}

// TestAQueueFullByCost refuses by each amount, under the next leader too, and
// takes tasks again when there is room. Retries stay, redrives wait for room.
func TestAQueueFullByCost(t *testing.T) {
	t.Parallel()
	for by, most := range map[string]*isobarv1.Cost{
		"queue.cost.tokens": {Tokens: 500}, "queue.cost.bytes": {Bytes: 500 + 2*int64(len("payload of work"))}, "queue.cost.accelerator_mib": {AcceleratorMib: 500},
	} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			inWorld(t, func(w *world) {
				c := w.cell("eu-1", func(o *Options) { o.QueueCap = &meshv1.QueueCap{Cost: most} })
				costing := func(s *isobarv1.TaskSpec) {
					s.Cost, s.Retry = &isobarv1.Cost{Tokens: 250, Bytes: 250, AcceleratorMib: 250}, &isobarv1.RetryPolicy{MaxAttempts: 2}
				}
				full := func(what string) {
					t.Helper()
					_, err := c.trySubmit("work", costing)
					r := wantRefusal(t, what, err, QueueFull)
					if r.RetryAfter == 0 || r.Unknown || !strings.HasSuffix(r.Hint, "or raise "+by) || !strings.Contains(r.Message, "and this one costs 2") {
						t.Errorf("%s: %+v", what, r)
					}
				}
				first, second := c.submit("work", costing), c.submit("work", costing)
				full("third")
				c.submit("work", costing, in("batch")) // a queue of its own
				c.changeLeader()
				full("under the next leader")
				if q, _, err := c.Queues(w.ctx, "default", "work", "", 9); err != nil || len(q) != 2 || q[0].Cost.GetTokens() != 500 {
					t.Errorf("the queues are %v, %v", q, err)
				}
				wk := c.worker("w1", offering(1, "wasm"), nil)
				a := wk.assigned(0)
				wk.finish(a, "retry")
				full("beside a retry")
				for fsm.State(c.record(first)) != dead {
					for _, a := range wk.holds() {
						wk.finish(a, map[bool]string{true: "retry", false: "done"}[a.TaskId == first])
					}
					time.Sleep(100 * time.Millisecond)
				}
				c.awaitState(time.Minute, second, completed)
				wk.disconnect()
				for range 2 {
					c.submit("work", costing)
				}
				full("after two more")
				got, err := c.Redrive(w.ctx, []string{first})
				if err != nil {
					t.Fatal(err)
				}
				wantRefusal(t, "redrive", got[0].Err, QueueFull)
				c.wantState(first, dead) // not lost
			})
		})
	}
}

func TestWhatAFailedAcceptMeans(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		l := c.current()
		for _, tc := range []struct {
			err     error
			reason  Reason
			unknown bool
		}{
			{broker.ErrFull, DiskFull, false},
			{fsm.ErrDeadlinePast, DeadlinePast, false},
			{fsm.ErrTrimmed, Unavailable, false},
			{broker.ErrUnavailable, Unavailable, false},
			{fmt.Errorf("%w: %w", broker.ErrUnavailable, broker.ErrDenied), Unavailable, false},
			{fmt.Errorf("%w: %w", broker.ErrUnavailable, broker.ErrNoToken), Unavailable, false},
			{consensus.ErrClosed, Unavailable, false},
			{consensus.ErrOutcomeUnknown, OutcomeUnknown, true},
			{errors.New("anything"), OutcomeUnknown, true},
		} {
			_, err := l.notAccepted(&meshv1.TaskRecord{Id: "x"}, fmt.Errorf("wrapped: %w", tc.err))
			if r := wantRefusal(t, tc.err.Error(), err, tc.reason); r.Unknown != tc.unknown {
				t.Errorf("%v: unknown is %t", tc.err, r.Unknown)
			}
		}
		if _, err := l.notAccepted(&meshv1.TaskRecord{}, consensus.ErrNotLeader); !errors.Is(err, ErrNotLeader) {
			t.Errorf("not leader: %v", err)
		}
	})
}

func TestIdsThatAreNotHere(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		here := string(mesh.NewTaskID("01jd0000000000000000000000", "eu-1", c.Incarnation()))
		for id, reason := range map[string]Reason{
			"nonsense": BadRequest, string(mesh.NewTaskID("01jd0000000000000000000000", "us-1", "abcdef")): WrongCell,
			string(mesh.NewTaskID("01jd0000000000000000000000", "eu-1", "abcdef")): UnknownTask, here: UnknownTask,
		} {
			_, get := c.Get(w.ctx, id)
			wantRefusal(t, "get "+id, get, reason)
			_, _, wait := c.Wait(w.ctx, id)
			wantRefusal(t, "wait "+id, wait, reason)
			_, _, cancel := c.Cancel(w.ctx, id, "")
			wantRefusal(t, "cancel "+id, cancel, reason)
		}
		// One of before a restore is told apart from one that was dropped: it
		// will not come back.
		_, err := c.Get(w.ctx, string(mesh.NewTaskID("01jd0000000000000000000000", "eu-1", "abcdef")))
		if !strings.Contains(err.Error(), "incarnation abcdef of eu-1, which is gone") {
			t.Errorf("of another incarnation: %v", err)
		}
	})
}

func TestList(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		w.registry.add("other", variant("only", "exec"))
		c := w.cell("eu-1")
		c.worker("w1", offering(1, "wasm"), completes)
		for range 3 {
			c.awaitState(time.Second, c.submit("work"), completed)
		}
		c.submit("other")
		page, next := c.List(Filter{Limit: 2})
		if len(page) != 2 || next != page[1].Id {
			t.Fatalf("first page %v, %q", page, next)
		}
		page, next = c.List(Filter{Limit: 9, After: next})
		if len(page) != 2 || next != "" {
			t.Fatalf("second page %v, %q", page, next)
		}
		if list, _ := c.List(Filter{Limit: 9, State: completed}); len(list) != 3 {
			t.Fatalf("completed: %v", list)
		}
		if list, _ := c.List(Filter{Limit: 9, Function: "other", Tenant: "default"}); len(list) != 1 {
			t.Fatalf("of a function: %v", list)
		}
		if list, _ := c.List(Filter{Limit: 9, Tenant: "nobody"}); len(list) != 0 {
			t.Fatalf("of a tenant: %v", list)
		}
	})
}

func TestQuestions(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c, other := w.cell("eu-1"), w.cell("us-1", func(o *Options) { o.Prices.CPUHour = 0.01 })
		c.worker("w1", offering(1, "wasm"), nil)
		other.worker("w2", offering(1, "wasm"), nil)
		w.meet()
		time.Sleep(time.Second)
		sub := &Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work"}, Payload: []byte("x")}
		d, err := c.Decide(Question{Submission: sub})
		if err != nil || d.Chosen.Cell != "us-1" || len(d.Candidates) != 2 {
			t.Fatalf("%+v, %v", d, err)
		}
		weight := 0.01
		d, err = c.Decide(Question{Submission: sub, LatencyPrice: &weight, CarbonPrice: &weight, QualityPrice: &weight})
		if err != nil || d.Policy.LatencyUSDPerS != weight || d.Policy.CarbonUSDPerTonne != weight || d.Policy.QualityUSD != weight || d.Chosen.Cell != "eu-1" {
			t.Fatalf("with weights: %+v, %v", d, err)
		}
		d, err = c.Decide(Question{Submission: sub, WithoutRegions: []string{"us"}})
		if err != nil || d.Chosen.Cell != "eu-1" {
			t.Fatalf("without us: %+v, %v", d, err)
		}
		_, err = c.Decide(Question{Submission: sub, WithoutRegions: []string{"mars"}})
		wantRefusal(t, "unknown region", err, UnknownRegion)
		id := c.submit("work")
		if d, err = c.Decide(Question{Record: c.record(id)}); err != nil || len(d.Candidates) == 0 {
			t.Fatalf("of a task: %+v, %v", d, err)
		}
		if _, err = c.Decide(Question{Record: &meshv1.TaskRecord{Version: "sha-none"}}); !errors.Is(err, errNoFunction) {
			t.Fatalf("unknown version: %v", err)
		}
		if _, err = c.Decide(Question{Submission: &Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "none"}}}); !errors.Is(err, errNoFunction) {
			t.Fatalf("unknown function: %v", err)
		}
		m := DecisionMessage(d)
		if len(m.Candidates) != len(d.Candidates) || m.Home != "eu-1" || m.Summary == "" {
			t.Fatalf("message %v", m)
		}
		if CandidateMessage(nil) != nil {
			t.Fatal("a message of no candidate")
		}
	})
}

func TestDigestSaysWhatThereIs(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1", func(o *Options) {
			o.Prices.GPUHour = []placement.ModelPrice{{Model: "A100", USD: 3}}
			o.Carbon = func() placement.Energy {
				return placement.Energy{Zone: "Z", Known: true, Kind: "marginal", Intensity: []float64{10, 20}, WattsPerGPU: []placement.ModelWatts{{Model: "A100", Watts: 400}}}
			}
		})
		offer := offering(2, "wasm", "exec")
		offer.Accelerators = []*isobarv1.AcceleratorCount{{Model: "A100", Count: 2}, {Model: "B", Count: 1}}
		wk := c.worker("w1", offer, nil)
		wk.send(&isobarv1.WorkRequest{Message: &isobarv1.WorkRequest_Warm{Warm: &isobarv1.Warm{Variants: []string{"work/only"}}}})
		c.submit("work")
		wk.assigned(0)
		c.submit("work", func(s *isobarv1.TaskSpec) { s.Lane = "batch"; s.NotBefore = timestamppb.New(time.Now().Add(time.Hour)) })
		for range 3 {
			c.submit("work", func(s *isobarv1.TaskSpec) { s.Lane = "critical" })
		}
		synctest.Wait()
		c.full.Store(true)
		d := c.Digest()
		if d.Cell != "eu-1" || d.Leased != 2 || d.Workers != 1 || len(d.Warm) != 1 || d.CarbonKind != 2 || len(d.Carbon) != 2 || d.Health == "" ||
			d.Registry != 7 || len(d.Gpus) != 2 || d.Gpus[0].Hour != 3_000_000 || d.Gpus[0].Milliwatts != 400_000 || d.Gpus[1].Hour != 0 || d.Backlog[0] != 2 {
			t.Fatalf("digest %v", d)
		}
		if next := c.Digest(); next.Sequence <= d.Sequence {
			t.Fatalf("sequence %d after %d", next.Sequence, d.Sequence)
		}
		offered := OfferOf(CapacityOf(offer), offer.Runtimes)
		if offered.Cpu != 2 || len(offered.Accelerators) != 2 {
			t.Fatalf("offer %v", offered)
		}
	})
}

// TestEnergyTravels: what a home needs for the energy model comes by gossip, and
// counts as it does in the cell itself.
func TestEnergyTravels(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		energy := placement.Energy{
			Zone: "Z", Known: true, Kind: "average", Intensity: []float64{300}, PUE: 1.25, WattsPerCPU: 3.5, IdleWattsPerCPU: 0.74, WattsPerGiB: 0.4,
			EmbodiedPerCPUHour: 0.479, WattsPerGPU: []placement.ModelWatts{{Model: "A100", Watts: 400, Idle: 40, EmbodiedPerHour: 4.28}},
		}
		home := w.cell("eu-1", func(o *Options) {
			o.Links = func(string) Link { return Link{RTT: time.Millisecond, NetworkKWhPerGiB: 0.001} }
		})
		far := w.cell("us-1", func(o *Options) { o.Carbon = func() placement.Energy { return energy } })
		offer := offering(2, "wasm", "exec")
		offer.Accelerators = []*isobarv1.AcceleratorCount{{Model: "A100", Count: 2}}
		far.worker("w1", offer, nil)
		home.worker("w2", offering(2, "wasm", "exec"), nil)
		synctest.Wait()
		w.meet()
		payload := make([]byte, 1<<20)
		sub := &Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work"}, Payload: payload}
		at := func(c *testCell, cell mesh.CellID) placement.Candidate {
			d, err := c.Decide(Question{Submission: sub})
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range d.Candidates {
				if found.Cell == cell {
					return found
				}
			}
			t.Fatalf("no candidate at %s: %+v", cell, d)
			return placement.Candidate{}
		}
		from, own := at(home, "us-1"), at(far, "us-1")
		if math.Abs(from.KWh-own.KWh) > 1e-12*own.KWh || from.KWh == 0 || math.Abs(from.EmbodiedGCO2eq-own.EmbodiedGCO2eq) > 1e-12 || own.EmbodiedGCO2eq == 0 {
			t.Errorf("seen from home %+v, at the cell itself %+v", from, own)
		}
		// A MiB at the mean of 100 g/kWh at home and 300 there.
		if want := 0.001 / 1024 * 200; math.Abs(from.NetworkGCO2eq-want) > 1e-3*want || own.NetworkGCO2eq != 0 {
			t.Errorf("network %g g, want %g; at the cell itself %g", from.NetworkGCO2eq, want, own.NetworkGCO2eq)
		}
		d := far.Digest()
		if d.IdleMilliwattsPerCpu != 740 || d.MilliwattsPerGib != 400 || d.EmbodiedMgPerCpuHour != 479 || d.Gpus[0].IdleMilliwatts != 40_000 || d.Gpus[0].EmbodiedMgPerHour != 4280 {
			t.Errorf("digest %v", d)
		}
		if m := CandidateMessage(&from); m.NetworkGco2Eq != from.NetworkGCO2eq || m.EmbodiedGco2Eq != from.EmbodiedGCO2eq || m.NetworkKwh != from.NetworkKWh {
			t.Errorf("message %v", m)
		}
	})
}

func TestPayloadsAreTrimmedOnceTheirTasksEnd(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		wk := c.worker("w1", offering(4, "wasm"), nil)
		id := c.submit("work")
		a := wk.assigned(0)
		last := c.submit("work")
		b := wk.assigned(1)
		if a.TaskId != id {
			a, b = b, a
		}
		wk.finish(a, "done")
		live := func() uint64 {
			u, err := c.broker.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			return u.Messages
		}
		w.await(10*time.Second, "the first payload trimmed", func() bool { return live() == 1 })
		// With accepts always under way the trim goes on below them.
		under := c.current().inflight.begin(fsm.QueueOf(c.record(last)).String())
		wk.finish(b, "done")
		w.await(10*time.Second, "the second payload trimmed", func() bool { return live() == 0 })
		under.end()
		c.wantState(last, completed)
	})
}

func TestAPayloadThatStaysLongIsMoved(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		w.registry.add("native", variant("only", "exec"))
		id := c.submit("native")
		before := string(c.record(id).PayloadRef)
		time.Sleep(moveAfter + time.Minute)
		synctest.Wait()
		if after := string(c.record(id).PayloadRef); after == before {
			t.Fatal("not moved")
		}
		c.worker("w1", offering(1, "exec"), completes)
		c.awaitState(time.Minute, id, completed)
		if got := string(c.Result(id)); got != "result of payload of native" {
			t.Fatalf("result %q", got)
		}
	})
}

func TestALostPayloadEndsItsTask(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		lossy := &lossyBroker{}
		lossy.fails(broker.ErrUnavailable)
		c := w.cell("eu-1", func(o *Options) { lossy.Broker = o.Broker; o.Broker = lossy })
		c.worker("w1", offering(1, "wasm"), completes)
		id := c.submit("work")
		time.Sleep(time.Second)
		if rec := c.wantState(id, ready); rec.Attempt != 0 {
			t.Fatalf("a broker that does not answer used up %d attempts", rec.Attempt)
		}
		lossy.fails(nil)
		c.awaitState(2*time.Second, id, completed)
		lossy.fails(broker.ErrLost)
		id = c.submit("work")
		rec := c.awaitState(30*time.Second, id, dead)
		if last := rec.Attempts[len(rec.Attempts)-1]; last.Outcome != "payload_lost" {
			t.Fatalf("attempt %v", last)
		}
		c.wantIdle()
	})
}

// lossyBroker fails every fetch, as long as it is told to.
type lossyBroker struct {
	broker.Broker
	err atomic.Pointer[error]
}

func (b *lossyBroker) fails(err error) { b.err.Store(&err) }

func (b *lossyBroker) Fetch(ctx context.Context, t broker.Topic, r broker.Reference) (broker.Stored, error) {
	if err := *b.err.Load(); err != nil {
		return broker.Stored{}, err
	}
	return b.Broker.Fetch(ctx, t, r)
}

func TestInflightAcceptsBoundTheTrim(t *testing.T) {
	t.Parallel()
	f := newInflightRefs()
	if _, ok := f.lowest("q"); ok {
		t.Fatal("something is under way")
	}
	a := f.begin("q")
	if low, ok := f.lowest("q"); !ok || low != nil {
		t.Fatalf("the first of a term: %x, %t", low, ok)
	}
	a.prepared(broker.Reference{1, 5})
	b := f.begin("q") // will get one above 1,5
	if low, _ := f.lowest("q"); string(low) != "\x01\x05" {
		t.Fatalf("lowest %x", low)
	}
	a.end()
	if low, _ := f.lowest("q"); string(low) != "\x01\x05\x00" {
		t.Fatalf("lowest %x", low)
	}
	b.prepared(broker.Reference{1, 7})
	b.end()
	if _, ok := f.lowest("q"); ok {
		t.Fatal("something is under way")
	}
}

func TestStricterResidency(t *testing.T) {
	t.Parallel()
	r := func(allowed, denied []string) mesh.Residency { return mesh.Residency{Allowed: allowed, Denied: denied} }
	for _, tc := range []struct{ a, b, want mesh.Residency }{
		{r(nil, nil), r(nil, nil), r(nil, nil)},
		{r([]string{"eu"}, nil), r(nil, []string{"se"}), r([]string{"eu"}, []string{"se"})},
		{r(nil, []string{"x"}), r([]string{"us"}, []string{"x"}), r([]string{"us"}, []string{"x"})},
		{r([]string{"eu", "us"}, nil), r([]string{"us"}, nil), r([]string{"us"}, nil)},
		{r([]string{"eu"}, nil), r([]string{"us"}, nil), r([]string{"nowhere"}, nil)},
	} {
		if got := stricter(tc.a, tc.b); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%v and %v: %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
}

func TestRefusalSpeaks(t *testing.T) {
	t.Parallel()
	r := &Refusal{Reason: Unavailable, Message: "not now", Err: errNoFunction}
	if r.Error() != "scheduler: unavailable: not now: no such function" || !errors.Is(r, errNoFunction) {
		t.Fatal(r.Error())
	}
}

// A Submit with a wait answers with the task as it ended; what ends the wait
// before that leaves the accept as it is.
func TestSubmitWaits(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		c := w.cell("eu-1")
		submit := func(request string, wait time.Duration) (*Receipt, error) {
			return c.Submit(w.ctx, Submission{
				Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work", RequestId: request}, Payload: []byte("x"), Wait: wait,
			})
		}
		began := time.Now()
		r, err := submit("r1", 3*time.Second)
		if err != nil || r.TaskID == "" || r.Task != nil || time.Since(began) != 3*time.Second {
			t.Fatalf("without a worker: %+v, %v after %s", r, err, time.Since(began))
		}
		id := r.TaskID
		// The term ends before the task does: it is accepted all the same.
		w.go_(func() { r, err = submit("r2", time.Minute) })
		synctest.Wait()
		c.changeLeader()
		if err != nil || r.TaskID == id || r.Task != nil {
			t.Fatalf("deposed: %+v, %v", r, err)
		}
		c.worker("w1", offering(1, "wasm"), func(wk *testWorker, a *isobarv1.Assignment) { wk.finish(a, "done") })
		if r, err = submit("r3", time.Minute); err != nil || fsm.State(r.Task) != isobarv1.TaskState_TASK_STATE_COMPLETED || r.Task.Id != r.TaskID {
			t.Fatalf("with a worker: %+v, %v", r, err)
		}
		stored := c.record(r.TaskID)
		if !proto.Equal(stored, r.Task) {
			t.Errorf("told %v, stored is %v", r.Task, stored)
		}
		// A repeat, also of one that ended long ago, or under way.
		for _, request := range []string{"r1", "r3"} {
			if r, err = submit(request, time.Minute); err != nil || !r.Duplicate || fsm.State(r.Task) != isobarv1.TaskState_TASK_STATE_COMPLETED {
				t.Errorf("repeat of %s: %+v, %v", request, r, err)
			}
		}
		if r, err = submit("r3", 0); err != nil || r.Task != nil {
			t.Errorf("repeat that does not wait: %+v, %v", r, err)
		}
		c.wantIdle()
	})
}

// A residency holds whatever the case of its names, and what could name no
// jurisdiction is refused: it would bound nothing.
func TestResidencyHoldsInCapitals(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		key := func(res *isobarv1.Residency) func(*isobarv1.TaskSpec) {
			return func(s *isobarv1.TaskSpec) { s.Residency, s.IdempotencyKey = res, "one" }
		}
		first, err := c.trySubmit("work", key(&isobarv1.Residency{Allowed: []string{"EU", "us", "eu"}, Denied: []string{"US"}}))
		if err != nil {
			t.Fatal(err)
		}
		if rec := c.record(first.TaskID); fmt.Sprint(rec.Allowed, rec.Denied) != "[eu us] [us]" {
			t.Errorf("kept as %v, denied %v", rec.Allowed, rec.Denied)
		}
		again, err := c.trySubmit("work", key(&isobarv1.Residency{Allowed: []string{"us", "Eu"}, Denied: []string{"us"}}))
		if err != nil || !again.Duplicate {
			t.Errorf("the same residency in other words is another task: %+v, %v", again, err)
		}
		for denied, want := range map[string]Reason{"eu": ResidencyForbids, "EU": ResidencyForbids, "-eu": BadRequest, "eu us": BadRequest, "eu,us": BadRequest, "e\u00fc": BadRequest, "": BadRequest} {
			field := "residency.denied"
			if want == ResidencyForbids {
				field = "residency"
			}
			spec := &isobarv1.TaskSpec{Tenant: "default", Function: "work", Residency: &isobarv1.Residency{Denied: []string{denied}}}
			_, submit := c.Submit(w.ctx, Submission{Spec: spec})
			_, invoke := c.Invocation(Submission{Spec: spec})
			for what, err := range map[string]error{"submit": submit, "invoke": invoke} {
				if r := wantRefusal(t, fmt.Sprintf("%s denied in %q", what, denied), err, want); r.Field != field || r.Hint == "" {
					t.Errorf("%s denied in %q: field %q, hint %q", what, denied, r.Field, r.Hint)
				}
			}
		}
	})
}

// A task that sets a part of its retry policy has its function's in the rest.
func TestAPartOfARetryPolicy(t *testing.T) {
	t.Parallel()
	policy := func(n uint32, backoff, most time.Duration) *isobarv1.RetryPolicy {
		p := &isobarv1.RetryPolicy{MaxAttempts: n}
		if backoff > 0 {
			p.Backoff = durationpb.New(backoff)
		}
		if most > 0 {
			p.MaxBackoff = durationpb.New(most)
		}
		return p
	}
	function := policy(10, 10*time.Minute, time.Hour)
	for _, tc := range []struct{ function, own, want *isobarv1.RetryPolicy }{
		{function, nil, function},
		{function, &isobarv1.RetryPolicy{}, function},
		{function, policy(3, 0, 0), policy(3, 10*time.Minute, time.Hour)},
		{function, policy(0, time.Minute, 0), policy(10, time.Minute, time.Hour)},
		{function, policy(0, 2*time.Hour, 0), policy(10, 2*time.Hour, 2*time.Hour)},
		{function, policy(0, 0, time.Minute), policy(10, time.Minute, time.Minute)},
		{nil, policy(3, 0, 0), policy(3, 0, 0)}, // the defaults come behind it
	} {
		if got := mergeRetry(tc.function, tc.own); !proto.Equal(got, tc.want) {
			t.Errorf("of %v and %v: %v, want %v", tc.function, tc.own, got, tc.want)
		}
	}
	inWorld(t, func(w *world) {
		c := w.cell("eu-1")
		own, err := c.trySubmit("work", func(s *isobarv1.TaskSpec) { s.Retry = policy(2, 0, 0) })
		if err != nil {
			t.Fatal(err)
		}
		if rec := c.record(own.TaskID); rec.MaxAttempts != 2 || rec.BackoffMs != 100 {
			t.Errorf("%d attempts, a pause of %d ms; want 2, and the function's 100 ms", rec.MaxAttempts, rec.BackoffMs)
		}
	})
}
