package sim

import (
	"fmt"
	"math/rand/v2"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// startOperator redrives a dead letter now and then while faults happen, and
// asks again when no answer came.
func (w *world) startOperator(seed uint64) {
	if w.cfg.Poison {
		return
	}
	rng := rand.New(rand.NewPCG(seed, 3))
	w.every(1_500, func() bool {
		w.pace(w.cells[rng.IntN(len(w.cells))], rng)
		return !w.healed
	})
	w.every(2_000, func() bool {
		c := w.cells[rng.IntN(len(w.cells))]
		var ids []string
		for q := range fsm.Queues(c.reader()) {
			for id := range fsm.DeadLetters(c.reader(), q, "") {
				ids = append(ids, id)
			}
		}
		if len(ids) > 0 {
			rec, _ := fsm.Task(c.reader(), ids[rng.IntN(len(ids))])
			w.redrive(c, rec.Id, rec.Attempt)
			if chance(rng, 0.3) { // the answer was lost
				w.after(between(rng, 0, 500), func() { w.redrive(c, rec.Id, rec.Attempt) })
			}
		}
		return !w.healed
	})
}

func (w *world) redrive(c *cell, id string, attempt uint64) {
	w.near(c, func() {
		if c.leader != nil {
			c.leader.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Redrive{
				Redrive: &meshv1.Redrive{TaskId: id, Attempt: attempt, Cap: queueCap()},
			}}, nil)
		}
	})
}

// pace lowers a function's pace, or forgets it as if the function were gone.
func (w *world) pace(c *cell, rng *rand.Rand) {
	function := fmt.Sprintf("f%d", rng.IntN(3))
	slow := &meshv1.Slow{Tenant: "default", Function: function, RateMilli: between(rng, 1, 9), Drift: 1}
	forget := &meshv1.ForgetPace{Tenant: "default", Function: function, Seen: fsm.Pace(c.reader(), "default", function)}
	forgets := chance(rng, 0.4)
	w.near(c, func() {
		switch {
		case c.leader == nil:
		case forgets:
			c.leader.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_ForgetPace{ForgetPace: forget}}, nil)
		default:
			c.leader.propose(&meshv1.SchedulerCommand{Command: &meshv1.SchedulerCommand_Slow{Slow: slow}}, nil)
		}
	})
}
