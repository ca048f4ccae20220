package carbon

import "math"

const (
	// leads is how many hours ahead the model learns; beyond, it is Mean7.
	leads = 72
	// terms is how many features a lead's regression has.
	terms = 5
	// week is the oldest row a feature looks at, before the hour foretold.
	week = 7 * day
	// keepLead is how much of the past counts on from hour to hour: half of it
	// is forgotten in some two months.
	keepLead = 0.9995
	// keepError is the same for the errors by which the two forecasts are
	// weighed: half in about twelve days.
	keepError = 0.9976
	// trust is how much the first weights count, in rows.
	trust = 24
)

// Model is the project's own forecast of one zone over rows of one an hour. It starts from the mean of
// the last seven days at that hour and adds what regressions have learned, one
// for each hour ahead: how far yesterday, the week before, the present hour and
// six hours ago lay from that mean, each as a share of the zone's level. Every
// hour, each regression learns from the one row that has just come (recursive
// least squares with forgetting), so nothing but past rows is ever used. What it
// adds counts by how well it did of late against the plain mean. It is not safe
// for concurrent use.
type Model struct {
	rows  []float64
	hour  int       // the rows up to here are learned
	sum   float64   // of the rows up to hour
	drift []float64 // by hour: how far the row lay from the mean foretold for it
	lead  [leads + 1]*regression
}

// regression learns the weights of one lead.
type regression struct {
	weights [terms]float64
	spread  [terms][terms]float64
	// own and plain are the mean squared errors of late, with and without the
	// regression.
	own, plain float64
}

// NewModel returns the model of these rows, of which it has learned none. It
// reads no row beyond those that Advance was called for.
func NewModel(rows []float64) *Model {
	m := &Model{rows: rows, hour: -1}
	for k := range m.lead {
		r := &regression{own: 1, plain: 1}
		r.weights[3] = math.Pow(0.9, float64(k))
		for i := range r.spread {
			r.spread[i][i] = 1.0 / trust * 100
		}
		m.lead[k] = r
	}
	return m
}

// Advance learns the rows up to the present hour h.
func (m *Model) Advance(h int) {
	for m.hour < h {
		m.hour++
		at := m.hour
		m.sum += m.rows[at]
		drift := 0.0
		if at > 0 {
			drift = m.rows[at] - Mean7(m.rows, at-1, 1)
		}
		m.drift = append(m.drift, drift)
		for k := 1; k <= leads && at-k >= week; k++ {
			m.learn(at-k, k)
		}
	}
}

// level is the zone's mean so far.
func (m *Model) level() float64 { return max(m.sum/float64(m.hour+1), 1e-9) }

// features of the hour k ahead of h, and the mean they are differences to.
func (m *Model) features(h, k int) (x [terms]float64, base float64) {
	base = Mean7(m.rows, h, k)
	level := m.level()
	last := h + k - (k+day-1)/day*day
	return [terms]float64{
		0.1,
		(m.rows[last] - base) / level,
		(m.rows[h+k-week] - base) / level,
		m.drift[h] / level,
		m.drift[h-6] / level,
	}, base
}

func dot(a, b *[terms]float64) float64 {
	s := 0.0
	for i := range a {
		s += a[i] * b[i]
	}
	return s
}

// learn takes in what was foretold k hours ago, and what came.
func (m *Model) learn(h, k int) {
	x, base := m.features(h, k)
	r := m.lead[k]
	y := (m.rows[h+k] - base) / m.level()
	miss := y - dot(&x, &r.weights)
	r.own = keepError*r.own + (1-keepError)*miss*miss
	r.plain = keepError*r.plain + (1-keepError)*y*y

	var gain [terms]float64
	for i := range gain {
		gain[i] = dot(&r.spread[i], &x)
	}
	scale := 1 / (keepLead + dot(&gain, &x))
	for i := range gain {
		r.weights[i] += gain[i] * scale * miss
		for j := range gain {
			r.spread[i][j] = (r.spread[i][j] - gain[i]*gain[j]*scale) / keepLead
		}
	}
}

// Ahead foretells the hour k, 1 or more, after the present one.
func (m *Model) Ahead(k int) float64 {
	if k > leads || m.hour < week {
		return Mean7(m.rows, m.hour, k)
	}
	x, base := m.features(m.hour, k)
	r := m.lead[k]
	share := 0.5
	if total := r.own*r.own + r.plain*r.plain; total > 0 {
		share = r.plain * r.plain / total
	}
	return max(base+share*dot(&x, &r.weights)*m.level(), 0)
}

// SameHour foretells the hour k ahead of the present hour h, which is a place in
// rows, by the same hour of the latest day already seen; by the present value
// when there is none. It is the forecast of Persistence.
func SameHour(rows []float64, h, k int) float64 {
	if at := h + k - (k+day-1)/day*day; at >= 0 {
		return rows[at]
	}
	return rows[h]
}

// Mean7 foretells the hour k ahead of the present hour h, which is a place in
// rows, by the mean of the same hour of the day over the last seven days already
// seen; of fewer at the start of the rows, and by the present value when there
// is none.
func Mean7(rows []float64, h, k int) float64 {
	sum, n := 0.0, 0
	for at := h + k - (k+day-1)/day*day; at >= 0 && n < 7; at -= day {
		sum += rows[at]
		n++
	}
	if n == 0 {
		return rows[h]
	}
	return sum / float64(n)
}
