package sim

// reaches reports whether messages from one cell get to the other now.
func (w *world) reaches(from, to *cell) bool {
	return from.up && to.up && from.isolated <= w.now && to.isolated <= w.now && from.cut[to.id] <= w.now
}

// send carries a message between cells: late, perhaps lost, perhaps twice, in
// no order. What is under way when a partition begins is lost with it.
func (w *world) send(from, to *cell, deliver func()) {
	copies := 1
	if !w.healed {
		if chance(w.rng, w.cfg.Loss) {
			copies = 0
		} else if chance(w.rng, w.cfg.Repeat) {
			copies = 2
		}
	}
	for range copies {
		d := between(w.rng, 2, w.cfg.LatencyMs)
		if !w.healed && chance(w.rng, 0.02) {
			d += between(w.rng, 0, 3*cellLease) // a straggler from another time
		}
		w.after(d, func() {
			if w.reaches(from, to) {
				deliver()
			}
		})
	}
}

// near carries a message within a cell, or between it and a client. It tells
// whether it will arrive; a connection shows that, sometimes.
func (w *world) near(c *cell, deliver func()) bool {
	if !w.healed && chance(w.rng, w.cfg.LocalLoss) {
		return false
	}
	w.after(between(w.rng, 1, 4), func() {
		if c.up {
			deliver()
		}
	})
	return true
}
