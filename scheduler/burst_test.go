package scheduler

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// TestTasksThatWaitTogetherShareTheRoom: of tasks that are ready at once, those
// that can run in another region leave the home to those that cannot, though
// they came first.
func TestTasksThatWaitTogetherShareTheRoom(t *testing.T) {
	t.Parallel()
	const slots = 4
	inWorld(t, func(w *world) {
		home, far := w.cell("eu-1"), w.cell("us-1")
		here, there := home.worker("w1", offering(slots, "wasm"), nil), far.worker("w2", offering(slots, "wasm"), nil)
		w.meet()
		at := timestamppb.New(time.Now().Add(5 * time.Second))
		together := func(s *isobarv1.TaskSpec) { s.NotBefore = at }
		bound := map[string]bool{}
		for range slots {
			home.submit("work", together)
		}
		for range slots {
			bound[home.submit("work", together, func(s *isobarv1.TaskSpec) { s.MaxRtt = durationpb.New(time.Millisecond) })] = true
		}
		w.await(20*time.Second, "all run", func() bool { return here.count() == slots && there.count() == slots })
		scarce := false
		for i := range slots {
			if !bound[here.assigned(i).TaskId] || bound[there.assigned(i).TaskId] {
				t.Errorf("%s is at home, %s far away", here.assigned(i).TaskId, there.assigned(i).TaskId)
			}
			d, err := Decisions(home.record(there.assigned(i).TaskId))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range d[0].Candidates {
				scarce = scarce || (c.Cell == "eu-1" && c.Scarcity > 0)
			}
		}
		if !scarce {
			t.Error("no decision says that others want the home")
		}
		// Once nobody waits, room has no other price.
		time.Sleep(time.Second)
		home.submit("work")
		synctest.Wait()
		l := home.current()
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.view.scarcity) != 0 {
			t.Errorf("scarcity %v with nobody waiting", l.view.scarcity)
		}
	})
}

// TestUrgentLanesPayForNobody: who is waited for goes where it is best, whatever
// that room is worth to work that waits.
func TestUrgentLanesPayForNobody(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, far := w.cell("eu-1"), w.cell("us-1")
		home.worker("w1", offering(4, "wasm"), nil)
		far.worker("w2", offering(4, "wasm"), nil)
		w.meet()
		l := home.current()
		for lane, want := range map[string]mesh.CellID{"critical": "eu-1", "interactive": "eu-1", "standard": "us-1", "batch": "us-1"} {
			l.mu.Lock()
			l.view.weighed = time.Now().Add(time.Hour) // and stay
			l.view.scarcity = map[mesh.CellID]*placement.Prices{"eu-1": {CPUHour: 1e3}}
			l.mu.Unlock()
			d, err := home.Decide(Question{Submission: &Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "work", Lane: lane}}})
			if err != nil || d.Chosen == nil || d.Chosen.Cell != want {
				t.Errorf("%s: %+v, %v, want %s", lane, d.Chosen, err, want)
			}
		}
	})
}

// TestScarceRoomIsNotLeftIdle: who would rather wait for a full place takes room
// that is free, whatever it is worth to others.
func TestScarceRoomIsNotLeftIdle(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		home, far := w.cell("eu-1"), w.cell("us-1")
		here, there := home.worker("w1", offering(1, "wasm"), nil), far.worker("w2", offering(2, "wasm"), nil)
		w.meet()
		home.submit("work", func(s *isobarv1.TaskSpec) { s.MaxRtt = durationpb.New(time.Millisecond) })
		w.await(5*time.Second, "home full", func() bool { return here.count() == 1 })
		l := home.current()
		l.mu.Lock()
		dear := map[mesh.CellID]*placement.Prices{"us-1": {CPUHour: 1e6}}
		l.view.weighed = time.Now().Add(time.Hour) // and stay
		l.view.scarcity = dear
		l.mu.Unlock()
		home.submit("work")
		w.await(5*time.Second, "the free place taken", func() bool { return there.count() == 1 })
	})
}
