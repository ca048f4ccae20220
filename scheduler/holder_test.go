package scheduler

import (
	"crypto/sha256"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// A cell speaks for its own tasks alone: an offer of another's, or of ours,
// would let it write that one's result.
func TestACellOffersItsOwnTasksOnly(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		c, other := twoCells(w)
		wk := c.worker("w1", offering(2, "wasm"), nil)
		w.meet()
		id := c.submit("work")
		wk.assigned(0)
		third := string(mesh.NewTaskID(newULID(), "ap-1", "aaaaaa"))
		old := string(mesh.NewTaskID(newULID(), "us-1", "aaaaaa"))
		for what, task := range map[string]string{"ours": id, "a third cell's": third, "of another incarnation": old, "no task id": "x"} {
			sum := sha256.Sum256([]byte("theirs"))
			res, err := c.AcceptOffers(w.ctx, "us-1", &meshv1.OfferRequest{
				Home: "us-1", Incarnation: other.Incarnation(),
				Items: []*meshv1.OfferItem{{
					Payload: []byte("theirs"), Lease: durationpb.New(10 * time.Second),
					Guest: &meshv1.GuestRecord{
						TaskId: task, Attempt: 7, Home: "us-1", Incarnation: other.Incarnation(), Tenant: "default", Function: "work",
						Version: "sha-work", Variant: "only", PayloadSha256: sum[:], PayloadBytes: 6, StartWithinMs: 30_000, TimeoutMs: 60_000,
					},
				}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if r := res.Results[0]; r.Accepted || r.Reason != "bad_offer" {
				t.Errorf("%s: %v", what, r)
			}
		}
		_, err := c.GuestInvoke(w.ctx, &meshv1.CellInvokeRequest{Home: "us-1", Assignment: &isobarv1.Assignment{
			TaskId: id, Attempt: 1, Function: "work", Version: "sha-work", Variant: variant("only", "wasm"), Invoke: true,
		}})
		wantRefusal(t, "an invoke by a task's name", err, BadRequest)
	})
}

// Also when its lease has run out, an attempt is its holder's to report.
func TestOnlyTheHolderReports(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		t := w.t
		home, other := twoCells(w)
		wk := other.worker("w1", offering(1, "wasm"), nil)
		w.meet()
		id := home.submit("work")
		wk.assigned(0)
		w.faults(func(string, mesh.CellID, mesh.CellID) fault { return lostBefore })
		home.neighbours.lose("us-1")
		home.awaitState(30*time.Second, id, deferred)
		report := func(from mesh.CellID) string {
			res, err := home.GuestReport(w.ctx, from, &meshv1.ReportRequest{Items: []*meshv1.ReportItem{
				{TaskId: id, Attempt: 1, Ended: &meshv1.Ended{Status: "done", Result: []byte("of " + from), Started: true}},
			}})
			if err != nil {
				t.Fatal(err)
			}
			return res.Verdicts[0]
		}
		if v := report("ap-1"); v != "fenced" {
			t.Errorf("a cell that never had it: %s", v)
		}
		if v := report("us-1"); v != "accepted" {
			t.Errorf("its holder, late: %s", v)
		}
		if got := string(home.Result(id)); got != "of us-1" {
			t.Errorf("result %q", got)
		}
	})
}
