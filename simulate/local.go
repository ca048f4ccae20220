package simulate

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// local is a search near a schedule: it takes a job that would be better off in
// a region, and a few that run there at that time, out of the schedule, and
// puts them back in another order, as long as that is no worse.
type local struct {
	w       *world
	s       []placing
	books   calendars
	relaxed []placed // each job's best where capacity is free
	cost    []float64
	late    []time.Duration
	members [][]int // jobs, by region
	rng     *rand.Rand
	out     []moved // scratch
}

// moved is a job that was taken out, and where it ran.
type moved struct {
	job int
	old placing
}

const (
	// tries bounds the rounds of the search: so many for each job, and in all.
	tries, allTries = 30, 50_000
	// together is how many jobs are taken out at once, at most.
	together = 12
)

// refine changes the schedule in place. Equal inputs give equal schedules.
func (w *world) refine(s []placing, relaxed []placed) {
	l := &local{
		w: w, s: s, books: w.newCalendars(), relaxed: relaxed, cost: make([]float64, len(s)),
		late: make([]time.Duration, len(s)), members: make([][]int, len(w.regions)),
		rng: rand.New(rand.NewPCG(uint64(len(s)), 1)),
	}
	for i := range s {
		if s[i].option != nil {
			l.put(i)
		}
	}
	for range min(tries*len(s), allTries) {
		l.try(l.rng.IntN(len(s)))
	}
}

func (l *local) put(i int) {
	j, p := &l.w.jobs[i], &l.s[i]
	l.books.book(p, j.run(p.option), 1)
	f := l.w.figures(j, p)
	l.cost[i], l.late[i] = f.objective, max(f.wait-j.MaxDelay, 0)
	l.members[p.option.region] = append(l.members[p.option.region], i)
}

func (l *local) take(i int) {
	p := &l.s[i]
	l.books.book(p, l.w.jobs[i].run(p.option), -1)
	m := l.members[p.option.region]
	k := slices.Index(m, i)
	m[k] = m[len(m)-1]
	l.members[p.option.region] = m[:len(m)-1]
}

// try looks for something better for job i.
func (l *local) try(i int) {
	if l.s[i].option == nil || (l.late[i] == 0 && !below(l.relaxed[i].cost, l.cost[i])) {
		return
	}
	options := l.w.jobs[i].shape.options
	region := options[l.rng.IntN(len(options))].region
	if region == l.s[i].option.region && l.late[i] == 0 {
		return
	}
	l.choose(i, region)
	cost, late := l.worth()
	for _, m := range l.out {
		l.take(m.job)
	}
	l.reorder()
	for _, m := range l.out {
		l.s[m.job] = l.w.insert(&l.w.jobs[m.job], l.books, nil).placing
		l.put(m.job)
	}
	if c, n := l.worth(); n < late || (n == late && c <= cost) {
		return
	}
	for _, m := range l.out {
		l.take(m.job)
	}
	for _, m := range l.out {
		l.s[m.job] = m.old
		l.put(m.job)
	}
}

// choose lists what is taken out: the job, and some that run in the region while
// it could.
func (l *local) choose(i, region int) {
	j := &l.w.jobs[i]
	from, to := j.arrival, j.latest()+j.run(l.s[i].option)
	l.out = append(l.out[:0], moved{i, l.s[i]})
	for _, k := range l.members[region] {
		p := &l.s[k]
		if k != i && p.start < to && p.finish(l.w.jobs[k].run(p.option)) > from {
			l.out = append(l.out, moved{k, l.s[k]})
		}
	}
	others := l.out[1:]
	l.rng.Shuffle(len(others), func(a, b int) { others[a], others[b] = others[b], others[a] })
	l.out = l.out[:min(len(l.out), 2+l.rng.IntN(together-1))]
}

// worth is what the jobs taken out count, and how many of them are late.
func (l *local) worth() (cost float64, late int) {
	for _, m := range l.out {
		cost += l.cost[m.job]
		if l.late[m.job] > 0 {
			late++
		}
	}
	return cost, late
}

// reorder chooses in which order they are put back.
func (l *local) reorder() {
	job := func(m moved) *job { return &l.w.jobs[m.job] }
	switch l.rng.IntN(4) {
	case 0:
		slices.SortStableFunc(l.out, func(a, b moved) int { return cmp.Compare(job(a).latest(), job(b).latest()) })
	case 1:
		slices.SortStableFunc(l.out, func(a, b moved) int { return -cmp.Compare(job(a).Duration, job(b).Duration) })
	case 2:
		slices.SortStableFunc(l.out, func(a, b moved) int { return cmp.Compare(job(a).arrival, job(b).arrival) })
	default: // the job first, the others as they come
	}
}
