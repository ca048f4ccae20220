package placement

import "cmp"

// The weights of a policy, as they are named in flips and in what-if questions.
const (
	weightCarbon  = "carbon_price"
	weightLatency = "latency_price"
	weightDelay   = "delay_price"
	weightQuality = "quality_price"
)

// dial is one weight: how an offer's score depends on it is a straight line,
// rest + slope × weight, as all else stays what it is.
type dial struct {
	name  string
	now   float64
	slope func(o *offer) float64
	clear func(o *offer, t *Terms) // takes the weight's terms away
}

// line returns the offer's score as a line over the dial.
func (w *dial) line(o *offer) (rest, slope float64) {
	t := o.terms
	w.clear(o, &t)
	return t.Sum(), w.slope(o)
}

// flips finds, for each weight, the nearest value below and above the present
// one at which another offer becomes the best.
func (d *Decider) flips(q *question, chosen int32) []Flip {
	dials := [...]dial{
		{
			name: weightCarbon, now: q.policy.CarbonUSDPerTonne,
			slope: func(o *offer) float64 { return o.grams / gramsPerTonne },
			clear: func(_ *offer, t *Terms) { t.Carbon = 0 },
		},
		{
			name: weightLatency, now: q.policy.LatencyUSDPerS,
			slope: func(o *offer) float64 { return o.total().Seconds() },
			clear: func(o *offer, t *Terms) { t.Latency, t.Cold, t.Data = 0, 0, o.paidData },
		},
		{
			name: weightQuality, now: q.policy.QualityUSD,
			slope: func(o *offer) float64 { return o.quality },
			clear: func(_ *offer, t *Terms) { t.Quality = 0 },
		},
	}
	var out []Flip
	for i := range dials {
		w := &dials[i]
		for _, up := range [...]bool{false, true} {
			at, to, ok := d.crossing(w, chosen, up)
			if !ok && !up {
				at, to, ok = 0, d.bestAtZero(w), w.now > 0
				ok = ok && to != chosen
			}
			if !ok {
				continue
			}
			o := &d.offers[to]
			out = append(out, Flip{
				Weight: w.name, Now: w.now, At: at, Above: up,
				Cell: q.view.Cells[o.cell].ID, Variant: d.variants[o.variant].Name,
			})
		}
	}
	return out
}

// crossing is where the line of the chosen offer first meets another that is
// the lower one beyond. Of several that meet there, the one that is lowest
// beyond is taken: going up the flattest, going down the steepest.
func (d *Decider) crossing(w *dial, chosen int32, up bool) (at float64, to int32, ok bool) {
	const same = 1e-9 // relative: crossings so near are one
	from := &d.offers[chosen]
	rest, slope := w.line(from)
	bestSlope := 0.0
	for i := range d.offers {
		o := &d.offers[i]
		if int32(i) == chosen || o.avoided != from.avoided {
			continue
		}
		r, s := w.line(o)
		gain := slope - s // what o gains on the chosen as the weight rises
		if !up {
			gain = -gain
		}
		if gain <= 1e-12*max(slope, s) {
			continue // parallel, or falling behind
		}
		x := (r - rest) / (slope - s)
		if up {
			x = max(x, w.now)
		} else {
			x = min(x, w.now)
		}
		if x > maxFigure || (!up && x <= 0) {
			continue
		}
		switch near := same * x; {
		case !ok || (up && x < at-near) || (!up && x > at+near):
			at, to, bestSlope, ok = x, int32(i), s, true
		case (up && x > at+near) || (!up && x < at-near):
		case (up && s < bestSlope) || (!up && s > bestSlope):
			to, bestSlope = int32(i), s
		case s == bestSlope && d.compare(int32(i), to) < 0:
			to = int32(i)
		}
	}
	return at, to, ok
}

// bestAtZero is what would be chosen were the weight zero. Lines that meet
// exactly there are told apart by the ties of a decision.
func (d *Decider) bestAtZero(w *dial) int32 {
	best := int32(0)
	bestRest, _ := w.line(&d.offers[0])
	for i := 1; i < len(d.offers); i++ {
		o, b := &d.offers[i], &d.offers[best]
		rest, _ := w.line(o)
		order := cmp.Or(cmp.Compare(rest, bestRest), cmp.Compare(o.usd, b.usd), cmp.Compare(o.total(), b.total()))
		if o.avoided != b.avoided {
			order = -1
			if o.avoided {
				order = 1
			}
		}
		if order < 0 {
			best, bestRest = int32(i), rest
		}
	}
	return best
}
