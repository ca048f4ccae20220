package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// kindCount counts the cells whose carbon figures are of one kind.
type kindCount struct {
	kind  string
	cells int
}

// prepareCarbon finds which cells have a carbon figure that can be compared.
// Average and marginal figures never meet in one decision: the kind of the
// home cell is taken, else the kind that most cells have. For all other cells
// the mean of the present hour over the known ones stands in.
func (d *Decider) prepareCarbon(q *question) {
	d.kinds, d.known = d.kinds[:0], d.known[:0]
	q.kind, q.unknown, q.atHome, q.anyKnown = "", 0, 0, false
	q.homeRegion = ""
	home := false
	for _, i := range d.cells {
		c := &q.view.Cells[i]
		if c.ID == q.home {
			q.homeRegion = c.Region
		}
		known := c.Energy.Known && usableHours(c.Energy.Intensity)
		d.known = append(d.known, known)
		if !known {
			continue
		}
		if c.ID == q.home {
			q.kind, home = c.Energy.Kind, true
		}
		d.countKind(c.Energy.Kind)
	}
	if len(d.kinds) == 0 {
		return
	}
	q.anyKnown = true
	if !home {
		q.kind = slices.MinFunc(d.kinds, func(a, b kindCount) int {
			return cmp.Or(-cmp.Compare(a.cells, b.cells), cmp.Compare(a.kind, b.kind))
		}).kind
	}
	sum, n := 0.0, 0
	for pos, i := range d.cells {
		e := &q.view.Cells[i].Energy
		if d.known[pos] = d.known[pos] && e.Kind == q.kind; d.known[pos] {
			sum += q.present(e)
			n++
		}
	}
	q.unknown = sum / float64(n)
	d.homeCarbon(q)
}

// homeCarbon finds the intensity at home in the present hour, for what moves
// between home and a cell.
func (d *Decider) homeCarbon(q *question) {
	q.atHome = q.unknown
	for pos, i := range d.cells {
		if c := &q.view.Cells[i]; c.ID == q.home && d.known[pos] {
			q.atHome = q.present(&c.Energy)
		}
	}
}

// present is the intensity of the present hour.
func (q *question) present(e *Energy) float64 {
	step, into := q.hoursOf(e)
	return e.Intensity[min(int(into/step), len(e.Intensity)-1)]
}

// network is what moving input and result takes, at the mean intensity of both
// ends, as in Caribou's model (SOSP 2024, carbon_calculator.py).
func (q *question) network(cell *Cell, known bool) (kwh, grams float64) {
	if cell.NetworkKWhPerGiB == 0 {
		return 0, 0
	}
	there := q.unknown
	if known {
		there = q.present(&cell.Energy)
	}
	kwh = float64((q.inGiB + q.outGiB) * cell.NetworkKWhPerGiB)
	return kwh, float64(kwh * ((q.atHome + there) / 2))
}

// embodied is the share of what making the hardware has emitted. gpu is as for
// kwh.
func embodied(cell *Cell, v *variantFacts, gpu *ModelWatts) float64 {
	hourly := float64(v.cores * cell.Energy.EmbodiedPerCPUHour)
	if gpu != nil {
		hourly += float64(float64(v.demand.GPUs) * gpu.EmbodiedPerHour)
	}
	return float64(hourly * v.hours)
}

func (d *Decider) countKind(kind string) {
	for i := range d.kinds {
		if d.kinds[i].kind == kind {
			d.kinds[i].cells++
			return
		}
	}
	d.kinds = append(d.kinds, kindCount{kind: kind, cells: 1})
}

func usableHours(hours []float64) bool {
	for _, x := range hours {
		if !usable(x) {
			return false
		}
	}
	return len(hours) > 0
}

// notes tells what a reader of the decision would otherwise miss.
func (d *Decider) notes(q *question, asked Policy) []string {
	var notes []string
	for _, w := range [...]struct {
		name  string
		value float64
	}{
		{weightCarbon, asked.CarbonUSDPerTonne},
		{weightLatency, asked.LatencyUSDPerS},
		{weightDelay, asked.DelayUSDPerS},
		{weightQuality, asked.QualityUSD},
	} {
		if !usable(w.value) {
			notes = append(notes, fmt.Sprintf("%s of %g cannot be a price: 0 used", w.name, w.value))
		}
	}
	if note := q.astrayNote(); note != "" {
		notes = append(notes, note)
	}
	if len(d.cells) == 0 {
		return notes
	}
	if !q.anyKnown {
		return append(notes, "the carbon of no cell is known: carbon is not priced")
	}
	if !slices.Contains(d.known, false) {
		return notes
	}
	if cells := d.unknownCells(q, false); cells != "" {
		notes = append(notes, fmt.Sprintf("carbon of %s unknown: the mean of the known cells used, %.4g gCO2eq/kWh", cells, q.unknown))
	}
	if cells := d.unknownCells(q, true); cells != "" {
		notes = append(notes, fmt.Sprintf("carbon of %s is not of kind %s and not compared: the mean of the known cells used, %.4g gCO2eq/kWh",
			cells, orNone(q.kind), q.unknown))
	}
	return notes
}

// unknownCells lists the cells without a comparable figure, a few by name:
// those of another kind, or those without any.
func (d *Decider) unknownCells(q *question, otherKind bool) string {
	const named = 3
	var names []string
	more := 0
	for pos, i := range d.cells {
		c := &q.view.Cells[i]
		if d.known[pos] || otherKind != (c.Energy.Known && usableHours(c.Energy.Intensity)) {
			continue
		}
		if len(names) < named {
			names = append(names, string(c.ID))
		} else {
			more++
		}
	}
	if more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

// hoursOf tells how long each hour of a cell's intensities lasts, and how long
// ago the first began.
func (q *question) hoursOf(e *Energy) (step, into time.Duration) {
	if e.Step <= 0 && e.From.IsZero() {
		return time.Hour, q.intoHour
	}
	if step = e.Step; step <= 0 {
		step = time.Hour
	}
	if e.From.IsZero() {
		return step, q.now.Sub(q.now.Truncate(step))
	}
	return step, span(q.now.Sub(e.From))
}
