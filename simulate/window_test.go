package simulate

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestContiguousByOnePrice: what the running sums find is what every second
// finds, for work that is short beside the step and for work that is not.
func TestContiguousByOnePrice(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		rows := rapid.SliceOfN(rapid.SampledFrom([]float64{0, 0, 1, 3.5, 8}), 90, 90).Draw(rt, "prices")
		price := newCurve(2*time.Second, rows)
		price.origin = hour
		f := force{carbon: newCurve(hour, []float64{100, 300, 200}), gram: 0.1, prices: []priced{{price, 2}}}
		w := window{
			from: hour + time.Duration(rapid.IntRange(0, 40).Draw(rt, "from"))*time.Second,
			run:  time.Duration(rapid.IntRange(0, 50).Draw(rt, "run")) * time.Second,
			wait: time.Duration(rapid.IntRange(0, 60).Draw(rt, "wait")) * time.Second, second: rapid.SampledFrom([]float64{0, 0.001}).Draw(rt, "second"),
		}
		start, cost, ok := f.contiguous(&w)
		best, first := math.Inf(1), time.Duration(0)
		for s := w.from; s <= w.from+w.wait; s += time.Second {
			if c := f.over(s, s+w.run) + w.second*(s-w.from).Seconds(); c < best-1e-9 {
				best, first = c, s
			}
		}
		if !ok || math.Abs(cost-best) > 1e-9 || start != first {
			rt.Fatalf("%+v: %v for %.9g, best of all %v for %.9g", w, start, cost, first, best)
		}
	})
}
