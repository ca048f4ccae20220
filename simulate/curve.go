package simulate

import (
	"math"
	"time"
)

// same is how near, relatively, two figures may be to count as equal: nearer
// than that, rounding decides which is the lower.
const same = 1e-12

// below reports whether a is lower than b by more than rounding.
func below(a, b float64) bool { return a < b-same*max(math.Abs(a), math.Abs(b)) }

// curve is a value over time that changes at the steps only: carbon by the
// hour, or the price of a capacity. Past the end the last value holds.
type curve struct {
	// origin is where the first row begins: a multiple of an hour, as steps
	// divide the hour. Nothing is asked of the time before it.
	origin time.Duration
	step   time.Duration
	rows   []float64
	sums   []float64 // sums[i] is the sum of the rows before i
	low    float64   // the lowest row
}

func newCurve(step time.Duration, rows []float64) *curve {
	c := &curve{step: step, rows: rows, sums: make([]float64, len(rows)+1)}
	c.refresh()
	return c
}

// refresh follows a change of the rows.
func (c *curve) refresh() {
	c.low = math.Inf(1)
	for i, x := range c.rows {
		c.sums[i+1] = c.sums[i] + x
		c.low = min(c.low, x)
	}
}

// at is the value at the instant t, 0 or more.
func (c *curve) at(t time.Duration) float64 { return c.row(int((t - c.origin) / c.step)) }

func (c *curve) row(i int) float64 { return c.rows[min(i, len(c.rows)-1)] }

// sum is the sum of the rows before i.
func (c *curve) sum(i int) float64 {
	if n := len(c.rows); i > n {
		return c.sums[n] + float64(i-n)*c.rows[n-1]
	}
	return c.sums[i]
}

// integral is the sum over [from, to) of value × nanoseconds.
func (c *curve) integral(from, to time.Duration) float64 {
	from, to = from-c.origin, to-c.origin
	i, j := int(from/c.step), int(to/c.step)
	if i == j {
		return c.row(i) * float64(to-from)
	}
	head := c.row(i) * float64(time.Duration(i+1)*c.step-from)
	if rest := to - time.Duration(j)*c.step; rest > 0 {
		head += c.row(j) * float64(rest)
	}
	if j == i+1 {
		return head
	}
	return head + (c.sum(j)-c.sum(i+1))*float64(c.step)
}

// mean over [from, to), from the rows themselves, so that no digit is lost in
// a sum over the whole table; of an empty span, the value there.
func (c *curve) mean(from, to time.Duration) float64 {
	from, to = from-c.origin, to-c.origin
	i, j := int(from/c.step), int(to/c.step)
	if i == j || to <= from || i >= len(c.rows)-1 {
		return c.row(i)
	}
	total, at := 0.0, from
	for at < to {
		i = int(at / c.step)
		till := to
		if i < len(c.rows)-1 {
			till = min(time.Duration(i+1)*c.step, to)
		}
		total += c.row(i) * float64(till-at)
		at = till
	}
	return total / float64(to-from)
}
