package placement

import (
	"fmt"
	"slices"
	"time"
)

// Start is one start of the chosen cell and variant, with its price.
type Start struct {
	At        time.Time     // as Candidate.Start
	Put       time.Duration // how long it is put off
	Terms     Terms
	Score     float64 // Terms.Sum()
	GCO2eq    float64
	Intensity float64 // gCO2eq/kWh, mean over the run
}

// explainStart lists the starts that were compared for an offer, and at which
// weights it would start at once or not.
func (d *Decider) explainStart(q *question, o *offer, out *Decision) {
	cell, v := &q.view.Cells[o.cell], &d.variants[o.variant]
	if cell.Booked != nil || q.task.Interruptible {
		return
	}
	d.at(q, cell, o.known)
	var at offer
	for _, put := range d.putsOf(q, o, cell, v) {
		at = *o
		at.put = put
		d.priceStart(q, &at, cell, v)
		out.Starts = append(out.Starts, Start{
			At: q.now.Add(q.way(&at.timing) + at.wait + put), Put: put, Terms: at.terms, Score: at.score, GCO2eq: at.grams, Intensity: at.intensity,
		})
	}
	if note := atOnce(q, out); note != "" {
		out.Notes = append(out.Notes, note)
	}
}

// putsOf are the delays that contiguous tries, in order.
func (d *Decider) putsOf(q *question, o *offer, cell *Cell, v *variantFacts) []time.Duration {
	a := d.attempt(q, o, cell, o.known)
	slack := q.slack(&o.timing, cell, v)
	puts := []time.Duration{0, o.put, slack}
	for i := range a.hours {
		start := time.Duration(i)*a.step - a.into - a.begin
		for _, put := range [...]time.Duration{start, start - a.run} {
			if put > 0 && put < slack && (put == start || a.run > a.step) {
				puts = append(puts, put)
			}
		}
	}
	slices.Sort(puts)
	return slices.Compact(puts)
}

// turnOf is the carbon price from which on a later start is cheaper than one at
// once: there what the start saves is worth the delay.
func turnOf(q *question, starts []Start) (price float64, ok bool) {
	for i := range starts {
		s := &starts[i]
		saves := (starts[0].GCO2eq - s.GCO2eq) / gramsPerTonne
		if saves <= 0 {
			continue
		}
		if at := float64(q.policy.DelayUSDPerS * (s.Put.Seconds() / saves)); !ok || at < price {
			price, ok = at, true
		}
	}
	return price, ok && price <= maxFigure
}

// atOnce says at which carbon price the choice between a start at once and a
// later one changes, for the chosen cell and variant.
func atOnce(q *question, out *Decision) string {
	price, ok := turnOf(q, out.Starts)
	if !ok {
		return ""
	}
	when, side := "at once", "below"
	if out.Chosen.Put == 0 {
		when, side = "later", "above"
	}
	return fmt.Sprintf("%s/%s would start %s with a %s %s %.4g (now %.4g)", out.Chosen.Cell, out.Chosen.Variant, when, weightCarbon, side, price,
		q.policy.CarbonUSDPerTonne)
}

// Later says when and where work that is put off starts, and why then:
//
//	starts about 03:00 UTC in eu-north, because carbon is 120 g/kWh lower then
//
// It is "" when the chosen starts as soon as it can.
func (d *Decision) Later() string {
	if d.Chosen == nil || d.Chosen.Put == 0 {
		return ""
	}
	return fmt.Sprintf("starts about %s in %s, because %s", clock(d.At, d.Chosen.Start), d.Chosen.Region, d.whyThen())
}

func (d *Decision) whyThen() string {
	if len(d.Starts) > 0 && d.Starts[0].Put == 0 {
		if less := d.Starts[0].Intensity - d.Chosen.Intensity; less > 0 {
			return fmt.Sprintf("carbon is %s g/kWh lower then", digits(less))
		}
	}
	return "it is cheaper then"
}

// clock writes a start as seen from now: seconds where they matter, the day
// where it is another.
func clock(now, at time.Time) string {
	now, at = now.UTC(), at.UTC()
	layout := "15:04"
	if at.Sub(now) < time.Hour {
		layout = "15:04:05"
	}
	if now.YearDay() != at.YearDay() || now.Year() != at.Year() {
		layout = "2006-01-02 " + layout
	}
	return at.Round(time.Second).Format(layout) + " UTC"
}

// digits writes grams without false precision.
func digits(g float64) string {
	if g >= 10 {
		return fmt.Sprintf("%.0f", g)
	}
	return fmt.Sprintf("%.2g", g)
}
