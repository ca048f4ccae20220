package placement

import (
	"math"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

const (
	bytesPerGiB   = 1 << 30
	mibPerGiB     = 1024
	wattsPerKW    = 1000
	gramsPerTonne = 1e6

	// maxFigure bounds every price, power and intensity that is believed. With
	// it no sum of terms can overflow, so scores are always finite.
	maxFigure = 1e12
	// maxSpan bounds every duration, so that sums of them cannot overflow.
	maxSpan = 10 * 365 * 24 * time.Hour
	// minWait is the least wait expected where nothing is free.
	minWait = time.Millisecond
)

// usable reports whether x can be a price, a power or an intensity. It is
// false for NaN.
func usable(x float64) bool { return x >= 0 && x <= maxFigure }

// span brings a duration into the range that is computed with.
func span(d time.Duration) time.Duration { return min(max(d, 0), maxSpan) }

// timing is what is expected of one attempt of a variant at a cell.
type timing struct {
	rtt, wait, cold, run time.Duration
	fetch                time.Duration // of the inputs, before the run
	put, pause           time.Duration // by choice: before the start, and after it
	warm, free           bool
}

// total is the time from the decision until the answer is back at home.
func (t *timing) total() time.Duration { return t.rtt + t.wait + t.put + t.lead() + t.run + t.pause }

// lead is the time between the start of an attempt and its run.
func (t *timing) lead() time.Duration { return t.cold + t.fetch }

// offer is one allowed (cell, variant) with its price. Offers are made in the
// order of cell and variant names, so their own order breaks the last tie.
type offer struct {
	cell    int32 // index in View.Cells
	variant int32 // index in Decider.variants
	seq     int32 // how many were made before
	avoided bool
	timing
	known     bool          // the cell's carbon is
	finish    time.Duration // from now, of interruptible work that was planned
	terms     Terms
	usd       float64 // compute, egress and inputs, whether or not they are in the score
	paidData  float64 // what Terms.Data holds of money
	score     float64
	kwh       float64
	grams     float64
	beside    float64 // grams of network and embodied carbon, whenever it starts
	intensity float64
	quality   float64 // of 1.0, below the best variant's
}

// timing foretells one attempt. The wait is nothing where the demand fits into
// what is free; else the cell's backlog, and never less than the time until one
// of the slots now taken should come free.
func (q *question) timing(t *timing, cell *Cell, v *variantFacts, warm bool) {
	*t = timing{rtt: q.here.rtt, run: v.run, warm: warm, fetch: q.here.haul.time}
	if !warm {
		t.cold = v.cold
	}
	if cell.Booked != nil {
		q.booked(t, cell, v)
		return
	}
	if t.free = cell.Free.Fits(&v.demand); t.free {
		return
	}
	t.wait = q.full(cell, v)
}

// full is the wait at a cell where nothing is free.
func (q *question) full(cell *Cell, v *variantFacts) time.Duration {
	slots := max(cell.Total.Count(&v.demand, freeLimit), 1)
	return max(span(cell.Backlog[q.lane]), v.run/time.Duration(slots), minWait)
}

// booked is the timing by the cell's calendar. Interruptible work may begin as
// soon as there is any room.
func (q *question) booked(t *timing, cell *Cell, v *variantFacts) {
	length := t.lead() + t.run
	if q.inPieces(cell) {
		length = 0
	}
	var ok bool
	if t.wait, ok = q.earliest(cell, v, q.way(t), length); !ok {
		t.wait = maxSpan
	}
	t.free = t.wait == 0
}

// warmOf is the part of the sorted list that begins with the prefix, and where
// it begins. It looks at a guess first: cells of one mesh keep much the same warm.
func warmOf(sorted []string, prefix []byte, guess int) (names []string, lo int) {
	begins := func(i int) bool {
		return i < len(sorted) && len(sorted[i]) >= len(prefix) && sorted[i][:len(prefix)] == string(prefix)
	}
	if lo = guess; !begins(lo) || lo > 0 && begins(lo-1) {
		lo = 0
		for n := len(sorted); lo < n; {
			if mid := int(uint(lo+n) >> 1); sorted[mid] < string(prefix) {
				lo = mid + 1
			} else {
				n = mid
			}
		}
	}
	hi := lo
	for begins(hi) {
		hi++
	}
	return sorted[lo:hi], lo
}

// nextWarm reports whether the variant is in such a list, and returns the list
// from there on. skip is the length of the prefix.
// Variants are asked for in the order of their names.
func nextWarm(names []string, skip int, variant string) (bool, []string) {
	for len(names) > 0 {
		switch name := names[0][skip:]; {
		case name == variant:
			return true, names
		case name > variant:
			return false, names
		}
		names = names[1:]
	}
	return false, nil
}

// verdict is what became of an offer when it was priced.
type verdict uint8

const (
	priced verdict = iota
	noTime         // there is too little room in time for work in pieces
	dearer         // than the bar
)

// price fills in what the offer would cost. Each product is rounded by an
// explicit conversion, which forbids fused multiply-add: so the figures are
// the same on every processor.
//
// It gives up where the score is above the bar whatever the carbon is: no term is
// negative, and rounding keeps the order, so a sum with zero in the place of one
// term is never above the sum with it, to the bit. With a start that may be put
// off the bar is infinite, since only the search tells whether there is time.
func (d *Decider) price(q *question, o *offer, cell *Cell, v *variantFacts, known bool, bar float64) verdict {
	gpu := q.priceRun(o, cell, v)
	q.priceTime(o)
	o.terms.Carbon = 0
	if !math.IsInf(bar, 1) && o.terms.Sum() > bar {
		return dearer
	}
	o.kwh, o.known, o.finish = d.kwh(cell, v, gpu), known, 0
	o.beside = q.here.network
	o.beside += embodied(cell, v, gpu) + q.here.haul.grams
	if !d.choose(q, o, cell, v, known) {
		return noTime
	}
	d.priceStart(q, o, cell, v)
	return priced
}

// priceRun fills in what depends neither on time nor on carbon. It returns the
// row of the accelerator the run takes, if any.
func (q *question) priceRun(o *offer, cell *Cell, v *variantFacts) (gpu *ModelWatts) {
	model := ""
	hourly := float64(v.cores*cell.Prices.CPUHour) + float64(v.gib*cell.Prices.MemoryGiBHour)
	if v.demand.GPUs > 0 {
		model = gpuModel(cell, &v.demand)
		gpu = gpuWatts(cell.Energy.WattsPerGPU, model)
		hourly += float64(float64(v.demand.GPUs) * gpuPrice(cell.Prices.GPUHour, model))
	}
	o.terms.Compute = float64(hourly*v.hours) + v.usd
	o.terms.Egress = q.here.egress
	o.paidData = q.here.haul.usd
	o.usd = o.terms.Compute + o.terms.Egress + o.paidData
	if q.policy.UnpaidUSD {
		o.terms.Compute, o.terms.Egress, o.paidData = 0, 0, 0
	}
	o.terms.Data = o.paidData + float64(seconds(o.fetch)*q.policy.LatencyUSDPerS)
	o.quality = v.lost
	o.terms.Quality = v.lostUSD
	o.terms.Scarcity = 0
	if cell.Scarcity != nil && (o.free || cell.Booked != nil) {
		o.terms.Scarcity = scarcity(cell.Scarcity, v, model)
	}
	return gpu
}

// priceTime fills in what the way, the wait, the run and the delay cost.
func (q *question) priceTime(o *offer) {
	counts := o.rtt + o.wait
	if !q.policy.UnpricedRun {
		counts += o.run
	}
	o.terms.Latency = float64(seconds(counts)*q.policy.LatencyUSDPerS) + float64(seconds(o.put+o.pause)*q.policy.DelayUSDPerS)
	o.terms.Cold = float64(seconds(o.cold) * q.policy.LatencyUSDPerS)
}

// seconds is d.Seconds(), without its two divisions where there is nothing to
// divide: most delays are none.
func seconds(d time.Duration) float64 {
	if d == 0 {
		return 0
	}
	return d.Seconds()
}

// priceStart fills in what depends on when the offer starts. The question is at
// the offer's cell.
func (d *Decider) priceStart(q *question, o *offer, cell *Cell, v *variantFacts) {
	o.intensity = q.unknown
	switch {
	case o.known && o.finish > 0:
		o.intensity = d.intensityOf(q, o, cell, v)
	case o.known:
		begin := q.here.into + q.way(&o.timing) + o.wait + o.put + o.lead()
		o.intensity = meanIntensity(cell.Energy.Intensity, q.here.step, begin, o.run)
	}
	o.grams = float64(o.kwh*o.intensity) + o.beside
	o.terms.Carbon = float64(o.grams / gramsPerTonne * q.policy.CarbonUSDPerTonne)
	if o.put+o.pause != 0 {
		q.priceTime(o)
	}
	o.score = o.terms.Sum()
}

// scarcity is what one run costs at the shadow prices.
func scarcity(p *Prices, v *variantFacts, model string) float64 {
	hourly := float64(v.cores*p.CPUHour) + float64(v.gib*p.MemoryGiBHour)
	if v.demand.GPUs > 0 {
		hourly += float64(float64(v.demand.GPUs) * gpuPrice(p.GPUHour, model))
	}
	return float64(hourly * v.hours)
}

// kwh is the energy of one run at the meter. A core or an accelerator draws
// from its idle to its busy power as it is used, memory by how much is held.
// gpu is the row of the model it takes, if any.
func (d *Decider) kwh(cell *Cell, v *variantFacts, gpu *ModelWatts) float64 {
	e := &cell.Energy
	var watts float64
	if v.Watts != nil {
		watts = weight(*v.Watts)
	} else {
		watts = float64(v.cores*between(e.IdleWattsPerCPU, e.WattsPerCPU, v.busyCPU)) + float64(v.gib*e.WattsPerGiB)
		if gpu != nil {
			watts += float64(float64(v.demand.GPUs) * between(gpu.Idle, gpu.Watts, v.busyGPU))
		}
	}
	return float64(float64(watts*v.hours)*max(e.PUE, 1)) / wattsPerKW
}

// between is the power at a utilisation. Without a figure for idle it is in
// proportion.
func between(idle, busy, utilisation float64) float64 {
	if utilisation == 1 {
		return busy
	}
	return idle + float64(utilisation*(busy-idle))
}

// meanIntensity is the mean over [begin, begin+run), each hour weighted by the
// part of the run that falls in it. An hour lasts a step; begin counts from the
// start of hours[0]; past the end the last hour holds. hours is not empty.
func meanIntensity(hours []float64, step, begin, run time.Duration) float64 {
	last := len(hours) - 1
	if begin >= time.Duration(last)*step {
		return hours[last]
	}
	first := 0
	if begin >= step {
		first = int(begin / step)
	}
	end := begin + run
	if end <= time.Duration(first+1)*step {
		return hours[first]
	}
	sum, at := 0.0, begin
	for h := first; h < last && at < end; h++ {
		till := min(time.Duration(h+1)*step, end)
		sum += float64(hours[h] * float64(till-at))
		at = till
	}
	sum += float64(hours[last] * float64(end-at))
	return sum / float64(run)
}

// gpuModel is the accelerator model an attempt would take: the one asked for,
// else the first with enough free, else the first with enough at all. That is
// the order in which mesh.Capacity hands them out.
func gpuModel(cell *Cell, d *mesh.Demand) string {
	if d.GPUs == 0 || d.GPUModel != "" {
		return d.GPUModel
	}
	for i := range cell.Free.GPUs {
		if g := &cell.Free.GPUs[i]; g.Count >= d.GPUs {
			return g.Model
		}
	}
	for i := range cell.Total.GPUs {
		if g := &cell.Total.GPUs[i]; g.Count >= d.GPUs {
			return g.Model
		}
	}
	return ""
}

func gpuPrice(prices []ModelPrice, model string) float64 {
	for i := range prices {
		if prices[i].Model == model {
			return prices[i].USD
		}
	}
	return 0
}

// gpuOf is the row of the model that an attempt would take; nil when it takes
// none.
func gpuOf(cell *Cell, v *variantFacts) *ModelWatts {
	if v.demand.GPUs == 0 {
		return nil
	}
	return gpuWatts(cell.Energy.WattsPerGPU, gpuModel(cell, &v.demand))
}

// gpuWatts is the row of the model; nil when the cell has none.
func gpuWatts(watts []ModelWatts, model string) *ModelWatts {
	for i := range watts {
		if watts[i].Model == model {
			return &watts[i]
		}
	}
	return nil
}

// unusableFigure names the first figure of a cell that cannot be true. Such a
// cell is ruled out: read as zero, a broken digest would draw all the work.
func unusableFigure(c *Cell) (name string, value float64) {
	switch {
	case !usable(c.Prices.CPUHour):
		return "price of a core hour", c.Prices.CPUHour
	case !usable(c.Prices.MemoryGiBHour):
		return "price of a GiB hour", c.Prices.MemoryGiBHour
	case !usable(c.EgressUSDPerGiB):
		return "egress price", c.EgressUSDPerGiB
	case !usable(c.ReturnUSDPerGiB):
		return "return price", c.ReturnUSDPerGiB
	case !usable(c.Energy.WattsPerCPU):
		return "power of a core", c.Energy.WattsPerCPU
	case !(c.Energy.IdleWattsPerCPU >= 0 && c.Energy.IdleWattsPerCPU <= c.Energy.WattsPerCPU):
		return "power of an idle core", c.Energy.IdleWattsPerCPU
	case !usable(c.Energy.WattsPerGiB):
		return "power of memory", c.Energy.WattsPerGiB
	case !usable(c.Energy.EmbodiedPerCPUHour):
		return "embodied carbon of a core", c.Energy.EmbodiedPerCPUHour
	case !usable(c.NetworkKWhPerGiB):
		return "energy of the network", c.NetworkKWhPerGiB
	case !usable(c.Energy.PUE):
		return "PUE", c.Energy.PUE
	case c.RTT < 0:
		return "round trip", c.RTT.Seconds()
	}
	for i := range c.Prices.GPUHour {
		if p := c.Prices.GPUHour[i].USD; !usable(p) {
			return "price of an accelerator hour", p
		}
	}
	if c.Scarcity != nil {
		if p := unusablePrice(c.Scarcity); p != 0 {
			return "shadow price of its capacity", p
		}
	}
	for i := range c.Energy.WattsPerGPU {
		switch w := c.Energy.WattsPerGPU[i]; {
		case !usable(w.Watts):
			return "power of an accelerator", w.Watts
		case !(w.Idle >= 0 && w.Idle <= w.Watts):
			return "power of an idle accelerator", w.Idle
		case !usable(w.EmbodiedPerHour):
			return "embodied carbon of an accelerator", w.EmbodiedPerHour
		}
	}
	return "", 0
}

// unusablePrice is the first price that cannot be true, or 0.
func unusablePrice(p *Prices) float64 {
	for _, x := range [...]float64{p.CPUHour, p.MemoryGiBHour} {
		if !usable(x) {
			return x
		}
	}
	for i := range p.GPUHour {
		if x := p.GPUHour[i].USD; !usable(x) {
			return x
		}
	}
	return 0
}

// fraction brings a quality into 0..1; NaN becomes 0.
func fraction(x float64) float64 {
	if math.IsNaN(x) {
		return 0
	}
	return min(max(x, 0), 1)
}
