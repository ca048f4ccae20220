package fsm

import (
	"fmt"
	"slices"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/state"
)

// due is what a leader must see to, as it learns it from effects: what waits
// for a place, which leases are out, which guests wait or are to be reported.
type due map[string]bool

func (d due) follow(res *Result) {
	for _, e := range res.Effects {
		task, guest := "ready "+e.TaskID, fmt.Sprintf("%s/%d", e.TaskID, e.Attempt)
		switch e.Kind {
		case TaskReady:
			d[task] = true
		case TaskUnready, TaskEnded:
			delete(d, task)
		case LeaseGone:
			delete(d, "lease "+guest)
		case GuestReady:
			d["guest "+guest] = true
		case GuestEnded:
			delete(d, "guest "+guest)
			d["report "+guest] = true
		case GuestGone:
			delete(d, "guest "+guest)
			delete(d, "report "+guest)
		}
	}
	// A grant and a start are the leader's own commands: it learns of them by
	// their results.
	if rec := res.Task; rec != nil && State(rec) == leased {
		delete(d, "ready "+rec.Id)
		d[fmt.Sprintf("lease %s/%d", rec.Id, rec.Attempt)] = true
	}
	if g := res.Guest; g != nil && g.Started {
		delete(d, fmt.Sprintf("guest %s/%d", g.TaskId, g.Attempt))
	}
}

func (d due) list() []string {
	var all []string
	for k := range d {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// derive reads the same from the state, as a new leader does after its barrier.
func derive(r state.Reader) []string {
	d := due{}
	for q := range Queues(r) {
		for id := range Ready(r, q, "") {
			d["ready "+id] = true
		}
	}
	for rec := range Leases(r) {
		d[fmt.Sprintf("lease %s/%d", rec.Id, rec.Attempt)] = true
	}
	for g := range Guests(r) {
		d.guest(g)
	}
	return d.list()
}

func (d due) guest(g *meshv1.GuestRecord) {
	switch {
	case g.Ended != nil:
		d[fmt.Sprintf("report %s/%d", g.TaskId, g.Attempt)] = true
	case !g.Started:
		d[fmt.Sprintf("guest %s/%d", g.TaskId, g.Attempt)] = true
	}
}
