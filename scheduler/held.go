package scheduler

import (
	"fmt"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// held is what runs now, by whom it is owned: the shares of tenants and the
// bounds on concurrency are read from it. The leases in the state are its
// origin, so a new leader's bounds are exact from its first dispatch.
type held struct {
	refs   map[ref]holding
	totals map[owner]*sum
}

// owner is a function, or with no name all of a tenant.
type owner struct{ tenant, function string }

// holding is one attempt, of a task, a guest or an invoke.
type holding struct {
	owner
	demand mesh.Demand
	own    bool // a task of this cell: bounds hold for it
}

type sum struct {
	attempts int64
	demand   mesh.Demand
}

func newHeld() held { return held{refs: map[ref]holding{}, totals: map[owner]*sum{}} }

// hold counts an attempt; a second time it changes nothing. The caller holds the
// leader's lock.
func (l *leader) hold(r ref, tenant, function string, d mesh.Demand, own bool) {
	if _, ok := l.held.refs[r]; ok {
		return
	}
	h := holding{owner{tenant, function}, d, own}
	l.held.refs[r] = h
	l.waiting.order.Take(tenant, d, time.Now())
	l.held.add(h, 1)
}

// letGoOf undoes hold.
func (l *leader) letGoOf(r ref) {
	h, ok := l.held.refs[r]
	if !ok {
		return
	}
	delete(l.held.refs, r)
	l.waiting.order.Give(h.tenant, h.demand, time.Now())
	l.held.add(h, -1)
}

func (a held) add(h holding, sign int64) {
	if !h.own {
		return
	}
	for _, o := range []owner{h.owner, {tenant: h.tenant}} {
		s := a.totals[o]
		if s == nil {
			s = &sum{}
			a.totals[o] = s
		}
		s.attempts += sign
		s.demand.CPUMilli += sign * h.demand.CPUMilli
		s.demand.MemoryMiB += sign * h.demand.MemoryMiB
		s.demand.GPUs += sign * h.demand.GPUs
		s.demand.Cost = s.demand.Cost.Plus(h.demand.Cost.Times(sign))
		if s.attempts == 0 {
			delete(a.totals, o)
		}
	}
}

// weight is a tenant's part of a lane.
func (s *Scheduler) weight(tenant string) float64 {
	t, err := s.Registry.Tenant(tenant)
	if err != nil {
		return 1
	}
	return t.GetWeight()
}

// capped names the bound on concurrency that one attempt more of the queue's
// function would pass whichever variant runs it; "" for none. It is asked before
// the decision, which is dear, and cappedBy with its variant after it.
func (l *leader) capped(q fsm.Queue) string {
	fn, err := l.Registry.Function(q.Tenant, q.Function)
	if err != nil {
		fn = nil // deleted: only the tenant's bound is left
	}
	return l.cappedBy(q, fn, least(fn))
}

// cappedBy is capped for an attempt that takes d.
func (l *leader) cappedBy(q fsm.Queue, fn *isobarv1.Function, d mesh.Demand) string {
	if why := l.held.over(owner{q.Tenant, q.Function}, fn.GetSpec().GetConcurrency(), d); why != "" {
		return "concurrency: function " + q.Function + " is at its bound of " + why
	}
	t, err := l.Registry.Tenant(q.Tenant)
	if err != nil {
		return ""
	}
	if why := l.held.over(owner{tenant: q.Tenant}, t.GetConcurrency(), d); why != "" {
		return "concurrency: tenant " + q.Tenant + " is at its bound of " + why
	}
	return ""
}

// over names the bound that d more would pass. One attempt may always run: a
// bound below what it takes would hold it for ever.
func (a held) over(o owner, c *isobarv1.Concurrency, d mesh.Demand) string {
	s := a.totals[o]
	if c == nil || s == nil {
		return ""
	}
	cpu := int64(c.Cpu*1000 + 0.5)
	switch {
	case c.Attempts > 0 && s.attempts >= int64(c.Attempts):
		return fmt.Sprintf("%d attempts", c.Attempts)
	case cpu > 0 && s.demand.CPUMilli+d.CPUMilli > cpu:
		return fmt.Sprintf("%g cores", c.Cpu)
	case c.MemoryMib > 0 && s.demand.MemoryMiB+d.MemoryMiB > c.MemoryMib:
		return fmt.Sprintf("%d MiB", c.MemoryMib)
	case c.Gpus > 0 && s.demand.GPUs+d.GPUs > c.Gpus:
		return fmt.Sprintf("%d accelerators", c.Gpus)
	}
	most := CostOf(c.Cost)
	if over := d.Cost.Over(s.demand.Cost, most); over != (mesh.Cost{}) {
		return most.Where(over).String()
	}
	return ""
}

// least is the smallest amount of each resource that a variant takes.
func least(fn *isobarv1.Function) mesh.Demand {
	var out mesh.Demand
	for i, v := range fn.GetSpec().GetVariants() {
		d := demand(v)
		if i == 0 {
			out = d
			continue
		}
		out.CPUMilli, out.MemoryMiB, out.GPUs = min(out.CPUMilli, d.CPUMilli), min(out.MemoryMiB, d.MemoryMiB), min(out.GPUs, d.GPUs)
	}
	return out
}
