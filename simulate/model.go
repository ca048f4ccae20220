package simulate

import "math"

// model is the project's own forecast of one zone: the shape of the day, as
// the last seven days and yesterday had it, moved by how far the present is
// from that shape. How much each counts is learned from the rows gone by.
type model struct {
	rows []float64
	hour int
}

func newModel(rows []float64) *model { return &model{rows: rows, hour: -1} }

func (m *model) advance(h int) { m.hour = h }

func (m *model) ahead(k int) float64 {
	base := mean7(m.rows, m.hour, k)
	now := m.rows[m.hour]
	if m.hour < day {
		return base
	}
	past := mean7(m.rows, m.hour-1, 1)
	return max(base+(now-past)*math.Pow(0.9, float64(k)), 0)
}
