package sim

import (
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// startFaults breaks something now and then until the mesh is healed.
func (w *world) startFaults() {
	var next func()
	next = func() {
		if w.healed {
			return
		}
		w.fault(w.cells[w.rng.IntN(len(w.cells))])
		w.after(between(w.rng, w.cfg.FaultEveryMs/2, w.cfg.FaultEveryMs*3/2), next)
	}
	w.after(w.cfg.FaultEveryMs, next)
}

func (w *world) fault(c *cell) {
	switch p := w.rng.Float64(); {
	case p < 0.35:
		c.depose()
		w.after(between(w.rng, 200, 4_000), c.elect)
	case p < 0.55:
		v := c.workers[w.rng.IntN(len(c.workers))]
		if v.up {
			v.crash()
			w.after(between(w.rng, 200, 5_000), func() {
				if !v.up && c.up {
					v.restart()
				}
			})
		}
	case p < 0.75:
		w.isolate(c, between(w.rng, 1_000, 3*cellLease))
	case p < 0.87:
		to := w.cells[w.rng.IntN(len(w.cells))]
		c.cut[to.id] = w.now + between(w.rng, 1_000, 2*cellLease)
		w.note("%s no longer reaches %s", c.id, to.id)
	default:
		c.fall()
		w.after(between(w.rng, 1_000, 2*cellLease), c.rise)
	}
}

// isolate cuts a whole region off; inside, it goes on.
func (w *world) isolate(c *cell, d int64) {
	c.isolated = max(c.isolated, w.now+d)
	w.note("%s is isolated for %d ms", c.id, d)
	if d > cellLease {
		w.saw(SawIsolated)
	}
}

// fall is a whole region going dark: leader, workers, and what is under way.
func (c *cell) fall() {
	if !c.up {
		return
	}
	c.w.note("%s goes down", c.id)
	for rec := range fsm.Leases(c.reader()) {
		if rec.Lease.Holder.Cell != "" {
			c.w.saw(SawRegionDown)
			break
		}
	}
	c.depose()
	c.up = false
	for _, v := range c.workers {
		if v.up {
			v.crash()
		}
	}
}

// rise starts the region again, on its data.
func (c *cell) rise() {
	if c.up {
		return
	}
	c.w.note("%s comes up", c.id)
	c.up = true
	c.elect()
	for _, v := range c.workers {
		v.restart()
	}
}

// heal ends every fault.
func (w *world) heal() {
	w.note("all is healed")
	w.healed = true
	for _, c := range w.cells {
		c.isolated = 0
		clear(c.cut)
		c.rise()
		c.elect()
		for _, v := range c.workers {
			if !v.up {
				v.restart()
			}
		}
	}
}
