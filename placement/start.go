package placement

import (
	"math"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Calendar tells when a demand has room at a cell, by what runs there and what
// is booked. Next is asked while a decision is made: it must answer the same to
// the same question, and change nothing.
type Calendar interface {
	// Next returns the first instant, from or later, at which the demand has
	// room, and until when it then has. A zero until is for good; ok is false
	// when it never has.
	Next(d mesh.Demand, from time.Time) (start, until time.Time, ok bool)
}

// Piece is a time in which interruptible work runs: [From, To).
type Piece struct{ From, To time.Time }

// nearly is how near, relatively, two costs may be to count as equal: of such
// starts the earliest is taken.
const nearly = 1e-12

func lower(a, b float64) bool { return a < b-nearly*max(math.Abs(a), math.Abs(b)) }

// room is a time in which an attempt may run, counted from now.
type room struct{ from, to time.Duration }

// always is later than any time that a decision looks at.
const always = 20 * maxSpan

// piece is time at one intensity.
type piece struct {
	room
	rate float64
}

// planner is the scratch memory of the search for a start.
type planner struct {
	rooms  []room
	sums   []float64 // of the intensities before each hour
	summed []float64 // the hours that sums is of; nil for none
	used   []piece
	pieces []piece
}

// attempt is what the search for a start needs to know of a (cell, variant).
type attempt struct {
	begin time.Duration // when the run begins if nothing is put off, from now
	run   time.Duration
	slack time.Duration // how long it may be put off, in all
	hours []float64     // intensity, hour by hour
	step  time.Duration // how long each of them lasts: an hour, by most feeds
	into  time.Duration // how far the first of them is gone
	carry float64       // USD for each unit of mean intensity
	delay float64       // USD a second put off
}

// slack is how long the start may be put off beyond what the timing says: never
// past the latest safe start, which is the deadline less the way, the queue, the
// cold start, the inputs and a high quantile of the run, nor past Task.StartBy.
func (q *question) slack(t *timing, cell *Cell, v *variantFacts) time.Duration {
	if !q.puttable {
		return 0
	}
	slack := q.startBy - (q.way(t) + t.wait)
	if q.deadline {
		slack = min(slack, q.left-(t.rtt+t.wait+t.lead()+max(t.run, v.high)+span(cell.Ahead)))
	}
	return max(slack, 0)
}

// way is how long the task is under way before it can start.
func (q *question) way(t *timing) time.Duration {
	if q.noTravel {
		return 0
	}
	return t.rtt / 2
}

// choose sets when the attempt starts: at once, or later where that is cheaper.
// It returns false when there is too little room in time.
func (d *Decider) choose(q *question, o *offer, cell *Cell, v *variantFacts, known bool) bool {
	slack := q.slack(&o.timing, cell, v)
	if o.run == 0 || (slack == 0 && !q.inPieces(cell)) {
		return true
	}
	a := d.attempt(q, o, cell, known)
	a.slack = slack
	d.plan.rooms = d.roomsOf(q, cell, v, &a, o.lead(), d.plan.rooms[:0])
	if !q.task.Interruptible {
		start, ok := d.plan.contiguous(&a)
		if ok {
			o.put = start - a.begin
		}
		return ok
	}
	finish, ok := d.plan.interruptible(&a)
	if ok {
		o.finish = finish
		pieces := d.plan.spread(&a, finish)
		o.put = pieces[0].from - a.begin
		o.pause = pieces[len(pieces)-1].to - pieces[0].from - o.run
	}
	return ok
}

// inPieces reports whether the task may run in the gaps of a calendar.
func (q *question) inPieces(cell *Cell) bool {
	return cell.Booked != nil && q.task.Interruptible && q.puttable
}

func (d *Decider) attempt(q *question, o *offer, cell *Cell, known bool) attempt {
	a := attempt{
		begin: q.way(&o.timing) + o.wait + o.lead(), run: o.run, step: time.Hour,
		delay: q.policy.DelayUSDPerS,
	}
	if known {
		a.hours = cell.Energy.Intensity
		a.step, a.into = q.hoursOf(&cell.Energy)
		a.carry = float64(o.kwh / gramsPerTonne * q.policy.CarbonUSDPerTonne)
	}
	return a
}

// roomsOf lists when the attempt may run, from its first possible begin on.
func (d *Decider) roomsOf(q *question, cell *Cell, v *variantFacts, a *attempt, lead time.Duration, out []room) []room {
	end := a.begin + a.slack + a.run
	if cell.Booked == nil {
		return append(out, room{a.begin, end})
	}
	for at := a.begin - lead; at < end; {
		start, until, ok := cell.Booked.Next(v.demand, q.now.Add(at))
		if !ok {
			break
		}
		r := room{max(start.Sub(q.now), at) + lead, end}
		if !until.IsZero() {
			r.to = min(until.Sub(q.now), end)
			at = max(until.Sub(q.now), at+1)
		} else {
			at = end
		}
		if r.from < r.to {
			out = append(out, r)
		}
	}
	return out
}

// earliest is the wait until the demand has room for the whole run, by the
// cell's calendar.
func (q *question) earliest(cell *Cell, v *variantFacts, way, length time.Duration) (wait time.Duration, ok bool) {
	for at := way; at < always; {
		start, until, found := cell.Booked.Next(v.demand, q.now.Add(at))
		if !found {
			return 0, false
		}
		from := max(start.Sub(q.now), at)
		if until.IsZero() || until.Sub(q.now)-from >= length {
			return from - way, true
		}
		at = max(until.Sub(q.now), at+1)
	}
	return 0, false
}

// sum prepares the running sums of the intensities. Those of one cell serve
// all its variants.
func (p *planner) sum(hours []float64) {
	if len(p.summed) == len(hours) && &p.summed[0] == &hours[0] {
		return
	}
	p.summed, p.sums = hours, append(p.sums[:0], 0)
	total := 0.0
	for _, x := range hours {
		total += x
		p.sums = append(p.sums, total)
	}
}

// mean is meanIntensity by the running sums.
func (p *planner) mean(a *attempt, from time.Duration) float64 {
	last := len(a.hours) - 1
	begin := from + a.into
	end := begin + a.run
	i, j := int(begin/a.step), int(end/a.step)
	if i >= last || i == j {
		return a.hours[min(i, last)]
	}
	total := float64(a.hours[i] * float64(time.Duration(i+1)*a.step-begin))
	whole := min(j, last)
	total += float64((p.sums[whole] - p.sums[i+1]) * float64(a.step))
	total += float64(a.hours[whole] * float64(end-time.Duration(whole)*a.step))
	return total / float64(a.run)
}

// contiguous finds the cheapest start. Cost is a straight line between the
// instants at which the start or the end is a full hour or the edge of a room,
// so only these are tried. Where the run is no longer than an hour, ends need
// no trial: before such an instant the run lies within one hour, so that the
// cost does not fall towards it.
func (p *planner) contiguous(a *attempt) (start time.Duration, ok bool) {
	s := search{attempt: a, flat: len(a.hours) < 2 || a.carry == 0}
	if !s.flat {
		p.sum(a.hours)
	}
	for _, r := range p.rooms {
		first, last := r.from, min(r.to-a.run, a.begin+a.slack)
		if first > last {
			continue
		}
		s.try(first, p.costOf(&s, first))
		if s.flat {
			continue
		}
		known := min(last, time.Duration(len(a.hours))*a.step-a.into) // flat from there on
		p.fullHours(&s, first, known)
		if a.run > a.step {
			for h := ((first+a.run+a.into)/a.step+1)*a.step - a.into - a.run; h < known; h += a.step {
				s.try(h, p.costOf(&s, h))
			}
		}
		s.try(last, p.costOf(&s, last))
	}
	return s.start, s.ok
}

// search is the best start so far.
type search struct {
	*attempt
	flat  bool // the carbon is the same at all times
	start time.Duration
	cost  float64
	ok    bool
}

func (s *search) try(start time.Duration, cost float64) {
	if s.ok && cost > s.cost && start >= s.start {
		return
	}
	if !s.ok || lower(cost, s.cost) || (start < s.start && !lower(s.cost, cost)) {
		s.start, s.cost, s.ok = start, cost, true
	}
}

// costOf is what depends on the start.
func (p *planner) costOf(s *search, start time.Duration) float64 {
	cost := float64(s.delay * (start - s.begin).Seconds())
	if !s.flat {
		cost += float64(s.carry * p.mean(s.attempt, start))
	}
	return cost
}

// fullHours tries the full hours after first and before known. A run that
// begins with an hour and is shorter is all in it.
func (p *planner) fullHours(s *search, first, known time.Duration) {
	i := (first+s.into)/s.step + 1
	at := i*s.step - s.into
	if s.run >= s.step {
		for ; at < known; at += s.step {
			s.try(at, p.costOf(s, at))
		}
		return
	}
	for ; at < known; at += s.step {
		s.try(at, float64(s.delay*(at-s.begin).Seconds())+float64(s.carry*s.hours[i]))
		i++
	}
}

// each calls visit with the time in the rooms, in order, divided at the hours,
// until it returns false.
func (p *planner) each(a *attempt, visit func(piece) bool) {
	end := a.begin + a.slack + a.run
	for _, r := range p.rooms {
		for at := r.from; at < min(r.to, end); {
			till := min(r.to, end)
			rate := 0.0
			if n := len(a.hours); n > 0 {
				i := int((at + a.into) / a.step)
				rate = a.hours[min(i, n-1)]
				if i < n-1 {
					till = min(till, time.Duration(i+1)*a.step-a.into)
				}
			}
			if !visit(piece{room{at, till}, rate}) {
				return
			}
			at = till
		}
	}
}

// interruptible finds the finish at which the cheapest time before it costs
// least, delay included.
func (p *planner) interruptible(a *attempt) (finish time.Duration, ok bool) {
	used := p.used[:0]
	filled, weight, best := time.Duration(0), 0.0, 0.0
	consider := func(at time.Duration) {
		cost := float64(a.carry*(weight/float64(a.run))) + float64(a.delay*(at-a.begin-a.run).Seconds())
		if !ok || lower(cost, best) {
			finish, best, ok = at, cost, true
		}
	}
	p.each(a, func(c piece) bool {
		if filled < a.run {
			take := min(c.to-c.from, a.run-filled)
			used = heapPush(used, piece{room{c.from, c.from + take}, c.rate})
			weight += float64(c.rate * float64(take))
			filled += take
			c.from += take
			if filled < a.run {
				return true
			}
			consider(c.from)
		}
		for c.from < c.to && used[0].rate > c.rate {
			top := used[0]
			take := min(top.to-top.from, c.to-c.from)
			if take == top.to-top.from {
				used = heapPop(used)
			} else {
				used[0].to -= take
			}
			used = heapPush(used, piece{room{c.from, c.from + take}, c.rate})
			weight -= float64((top.rate - c.rate) * float64(take))
			c.from += take
			consider(c.from)
		}
		return true
	})
	p.used = used
	return finish, ok
}

// spread is the cheapest time that ends by finish, as pieces in order; of equal
// rates the earliest. The slice is scratch.
func (p *planner) spread(a *attempt, finish time.Duration) []piece {
	all := p.pieces[:0]
	p.each(a, func(c piece) bool {
		c.to = min(c.to, finish)
		if c.from < c.to {
			all = append(all, c)
		}
		return c.to < finish
	})
	// Drop the dearest, of equal ones the latest, until what is left is enough.
	over := -a.run
	for _, c := range all {
		over += c.to - c.from
	}
	for over > 0 {
		worst := 0
		for i := range all {
			if all[i].from < all[i].to && (all[worst].from == all[worst].to || all[i].rate >= all[worst].rate) {
				worst = i
			}
		}
		cut := min(over, all[worst].to-all[worst].from)
		all[worst].to -= cut
		over -= cut
	}
	out := all[:0]
	for _, c := range all {
		switch n := len(out); {
		case c.from == c.to:
		case n > 0 && out[n-1].to == c.from:
			out[n-1].to = c.to
		default:
			out = append(out, c)
		}
	}
	p.pieces = all[:0]
	return out
}

// heapPush and heapPop keep a heap with the dearest piece first.
func heapPush(h []piece, c piece) []piece {
	h = append(h, c)
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if h[parent].rate >= h[i].rate {
			break
		}
		h[parent], h[i] = h[i], h[parent]
		i = parent
	}
	return h
}

func heapPop(h []piece) []piece {
	n := len(h) - 1
	h[0] = h[n]
	h = h[:n]
	for i := 0; ; {
		top := i
		for _, k := range [...]int{2*i + 1, 2*i + 2} {
			if k < n && h[k].rate > h[top].rate {
				top = k
			}
		}
		if top == i {
			return h
		}
		h[top], h[i] = h[i], h[top]
		i = top
	}
}

// piecesOf rebuilds the pieces of an offer of interruptible work that is put
// off or suspended; nil for one that runs at once and in one.
func (d *Decider) piecesOf(q *question, o *offer, cell *Cell, v *variantFacts) []Piece {
	if o.finish == 0 {
		return nil
	}
	a := d.attempt(q, o, cell, o.known)
	a.slack = q.slack(&o.timing, cell, v)
	d.plan.rooms = d.roomsOf(q, cell, v, &a, o.lead(), d.plan.rooms[:0])
	var out []Piece
	for _, c := range d.plan.spread(&a, o.finish) {
		out = append(out, Piece{From: q.now.Add(c.from), To: q.now.Add(c.to)})
	}
	return out
}

// intensityOf is the mean intensity over the pieces of interruptible work.
func (d *Decider) intensityOf(q *question, o *offer, cell *Cell, v *variantFacts) float64 {
	a := d.attempt(q, o, cell, true)
	a.slack = q.slack(&o.timing, cell, v)
	d.plan.rooms = d.roomsOf(q, cell, v, &a, o.lead(), d.plan.rooms[:0])
	total := 0.0
	for _, c := range d.plan.spread(&a, o.finish) {
		length := c.to - c.from
		total += float64(meanIntensity(a.hours, a.step, c.from+a.into, length) * float64(length))
	}
	return total / float64(o.run)
}
