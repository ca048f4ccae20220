package simulate

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// player plays the policy isobar: it asks the placement code when a task
// arrives, and again when the hour brings a new forecast or when a start turns
// out not to have room.
//
// What is planned stands in the calendars; what really runs is in taken. With
// known durations and fresh digests the two agree, and a plan is always kept.
type player struct {
	w    *world
	opts *Options
	ask  asker
	know learner

	now    time.Duration
	events events
	seq    int
	states []playing
	books  calendars
	taken  usage
	stale  *staleness // nil when digests are fresh
	dear   *scarcity  // nil when nothing is limited
	out    []placing
	// review: the forecast changes by the hour, so plans are looked at again.
	review bool
}

// playing is the state of one job.
type playing struct {
	option *option
	plan   []span // what is to come, the first piece first
	length time.Duration
	// number tells a plan from those before it: events of older plans are void.
	number  int
	begun   bool // it has run before: the region stays
	running bool
	since   time.Duration // of the running piece
	ran     time.Duration
	pieces  []span // what has run
	refused int
	avoid   []int // regions that refused, of which the truth is known now
	blocked bool  // it starts later than it would by choice
}

// kind of an event; at one instant they come in this order.
type kind uint8

const (
	pieceEnds kind = iota
	pieceStarts
	hourPasses
	jobArrives
)

type event struct {
	at     time.Duration
	kind   kind
	job    int
	number int // of the plan
	seq    int
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	a, b := &e[i], &e[j]
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.kind, b.kind), cmp.Compare(a.job, b.job), cmp.Compare(a.seq, b.seq)) < 0
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }

// Push is for package heap.
func (e *events) Push(x any) { *e = append(*e, x.(event)) }

// Pop is for package heap.
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func newPlayer(w *world, opts *Options) *player {
	p := &player{
		w: w, opts: opts, ask: newAsker(w, opts), know: newLearner(opts.Durations == Known),
		states: make([]playing, len(w.jobs)), books: w.newCalendars(), taken: w.newUsage(),
		out: make([]placing, len(w.jobs)), review: opts.Forecast != Perfect,
	}
	if w.limits && !opts.OneByOne {
		p.dear = &scarcity{w: w, know: &p.know}
	}
	if opts.DigestAge > 0 && w.limits {
		p.stale = newStaleness(w, opts.DigestAge, opts.NoInFlight)
	}
	return p
}

func (p *player) play() []placing {
	progress := p.opts.progress(Isobar)
	for next := 0; next < len(p.w.jobs) || len(p.events) > 0; {
		// Arrivals are not put on the heap: the trace is in order already.
		if len(p.events) > 0 && (next == len(p.w.jobs) || p.events[0].at <= p.w.jobs[next].arrival) {
			e := heap.Pop(&p.events).(event)
			p.now = e.at
			p.handle(e)
			continue
		}
		if next%1024 == 0 {
			progress(next, len(p.w.jobs))
		}
		p.now = p.w.jobs[next].arrival
		p.arrive(next)
		next++
	}
	progress(len(p.w.jobs), len(p.w.jobs))
	return p.out
}

func (p *player) push(at time.Duration, k kind, i int) {
	p.seq++
	heap.Push(&p.events, event{at: at, kind: k, job: i, number: p.states[i].number, seq: p.seq})
}

func (p *player) handle(e event) {
	s := &p.states[e.job]
	if e.kind != pieceEnds && (e.number != s.number || s.running) {
		return // of a plan that was replaced
	}
	switch e.kind {
	case pieceEnds:
		p.end(e.job)
	case pieceStarts:
		p.begin(e.job)
	case hourPasses:
		p.replan(e.job)
	case jobArrives:
		p.arrive(e.job)
	}
}

// arrive decides for a job that has not begun.
func (p *player) arrive(i int) {
	if len(p.w.jobs[i].shape.options) == 0 {
		return
	}
	if p.dear != nil {
		p.dear.note(i)
	}
	p.decide(i)
	if !p.w.limits || p.opts.OneByOne {
		return
	}
	if s := &p.states[i]; s.plan[0].from > p.w.jobs[i].latest() {
		p.displace(i)
	}
	p.settle(i)
}

// decide asks for a plan, enters it and has it begin.
func (p *player) decide(i int) {
	p.plan(i)
	p.schedule(i)
}

// plan asks for a plan and enters it.
func (p *player) plan(i int) {
	j, s := &p.w.jobs[i], &p.states[i]
	q := question{job: j, now: p.now, run: p.know.expect(j), home: p.w.place[j.Home]}
	idle := p.now - j.arrival - s.ran
	q.slack = max(j.MaxDelay-idle, 0)
	if !p.know.sure() {
		q.slack = 0 // nothing is known of the run time: waiting for an hour is no plan
	}
	if s.begun {
		q.only, q.part = s.option, p.remaining(i)
	}
	if p.w.limits {
		q.books, q.dear = p.books, p.dear
	}
	if p.stale != nil && s.refused < 2 {
		p.stale.advance(p.now)
		q.stale, q.known = p.stale, s.avoid
	}
	a := p.ask.decide(&q)
	s.option, s.plan, s.blocked = a.option, a.plan, a.blocked
	s.length = 0
	for _, x := range s.plan {
		s.length += x.to - x.from
	}
	p.enter(i, 1)
}

// remaining is how much of the job's run is expected to be left.
func (p *player) remaining(i int) time.Duration {
	j, s := &p.w.jobs[i], &p.states[i]
	left := p.know.expect(j).of(s.option) - s.ran
	if left <= 0 {
		left = max(s.ran/4, time.Second) // longer than expected: no one knows
	}
	return left
}

// schedule makes the plan's next piece start, and the plan be looked at when
// the forecast is a new one.
func (p *player) schedule(i int) {
	s := &p.states[i]
	s.number++
	p.push(s.plan[0].from, pieceStarts, i)
	if next := (p.now/hour + 1) * hour; p.review && next < s.plan[0].from {
		p.push(next, hourPasses, i)
	}
}

// enter books what is planned, or with sign -1 takes it out.
func (p *player) enter(i int, sign int64) {
	s := &p.states[i]
	if s.option == nil || len(s.option.need) == 0 {
		return
	}
	for _, x := range s.plan {
		p.books[s.option.region].add(x, s.option.need, sign)
	}
}

// replan decides again for a job that waits.
func (p *player) replan(i int) {
	p.enter(i, -1)
	p.decide(i)
}

// begin starts the plan's next piece, if the target has room.
func (p *player) begin(i int) {
	s := &p.states[i]
	if !p.w.room(p.taken, s.option) {
		p.refuse(i)
		return
	}
	s.begun, s.running, s.since, s.refused, s.avoid = true, true, p.now, 0, nil
	p.take(i, 1)
	p.push(p.pieceEnd(i), pieceEnds, i)
}

// pieceEnd is when the running piece really ends.
func (p *player) pieceEnd(i int) time.Duration {
	j, s := &p.w.jobs[i], &p.states[i]
	return min(s.plan[0].to, s.since+j.run(s.option)-s.ran)
}

func (p *player) take(i int, sign int64) {
	s := &p.states[i]
	p.taken.add(s.option, sign)
	if p.stale != nil {
		p.stale.note(p.now, p.w.place[p.w.jobs[i].Home], s.option, sign)
	}
}

// refuse is what happens when the target has no room: the job is decided again
// with what the target says of itself; refused twice, it waits for newer
// digests of all.
func (p *player) refuse(i int) {
	s := &p.states[i]
	p.enter(i, -1)
	s.refused++
	p.w.refusals++
	if s.refused == 1 {
		p.w.secondTries++
	}
	if p.stale != nil {
		s.avoid = append(s.avoid, s.option.region)
	}
	// The calendars have what runs and overruns: what is decided now is later
	// than now, or elsewhere.
	if s.refused == 2 && p.stale != nil && !s.begun {
		s.option, s.plan = nil, nil
		s.number++
		p.push(p.now+p.stale.age, jobArrives, i)
		return
	}
	p.decide(i)
}

// end ends a piece: the job is done, or waits for its next piece, or runs on
// when it takes longer than was thought.
func (p *player) end(i int) {
	j, s := &p.w.jobs[i], &p.states[i]
	run := j.run(s.option)
	piece := span{s.since, p.now}
	if n := len(s.pieces); n > 0 && s.pieces[n-1].to == piece.from {
		s.pieces[n-1].to = piece.to
	} else {
		s.pieces = append(s.pieces, piece)
	}
	s.ran += piece.to - piece.from
	if s.ran < run && len(s.plan) == 1 {
		p.runOn(i)
		return
	}
	p.take(i, -1)
	s.running = false
	if s.ran < run {
		s.plan = s.plan[1:]
		s.number++
		if p.review {
			p.replan(i) // the region stays, the hours are chosen anew
			return
		}
		p.schedule(i)
		return
	}
	if p.now < s.plan[0].to || len(s.plan) > 1 {
		// It took less than was booked: give the rest back.
		s.plan[0].from = p.now
		p.enter(i, -1)
	}
	p.know.ended(j)
	p.out[i] = placing{option: s.option, start: s.pieces[0].from}
	if len(s.pieces) > 1 {
		p.out[i].pieces = s.pieces
	}
	s.plan = nil
	if !p.know.all {
		p.offer(s.option)
	}
}

// runOn lets a job that takes longer than was thought keep what it holds.
func (p *player) runOn(i int) {
	s := &p.states[i]
	s.plan = []span{{p.now, p.now + p.remaining(i)}}
	s.since = p.now
	p.enter(i, 1)
	p.push(p.pieceEnd(i), pieceEnds, i)
}

// waiting lists the jobs that have not begun and that keep is true of, the
// most urgent first, and at most so many.
func (p *player) waiting(most int, keep func(i int) bool) []int {
	var out []int
	for _, e := range p.events {
		if s := &p.states[e.job]; e.kind == pieceStarts && e.number == s.number && !s.running && !s.begun && keep(e.job) {
			out = append(out, e.job)
		}
	}
	slices.SortFunc(out, func(a, b int) int {
		return cmp.Or(cmp.Compare(p.w.jobs[a].latest(), p.w.jobs[b].latest()), cmp.Compare(a, b))
	})
	return out[:min(len(out), most)]
}

// offer lets jobs that wait for room be decided again when work ended sooner
// than was booked.
func (p *player) offer(o *option) {
	const most = 8
	if len(o.need) == 0 {
		return
	}
	for _, i := range p.waiting(most, func(i int) bool { return p.states[i].blocked }) {
		p.replan(i)
	}
}

// displace makes room for a job that would be late: those that can still wait
// give up their bookings and are decided again after it.
func (p *player) displace(i int) {
	const most = 64
	others := p.waiting(most, func(k int) bool {
		j := &p.w.jobs[k]
		lost := p.states[k].plan[0].from > j.latest()
		return k != i && (lost || j.latest() > p.w.jobs[i].latest()) && p.sharing(i, k)
	})
	if len(others) == 0 {
		return
	}
	p.enter(i, -1)
	for _, k := range others {
		p.enter(k, -1)
	}
	p.decide(i)
	for _, k := range others {
		p.decide(k)
	}
}

// sharing reports whether job k is booked where job i may run.
func (p *player) sharing(i, k int) bool {
	options := p.w.jobs[i].shape.options
	return slices.ContainsFunc(options, func(o option) bool { return o.region == p.states[k].option.region })
}
