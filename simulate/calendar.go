package simulate

import (
	"slices"
	"time"
)

// calendar is what is taken of one region's resources over time: by running
// work and by bookings. Time is cut into buckets, so that a booking touches a
// few points and not the whole.
type calendar struct {
	width   time.Duration
	caps    []int64
	buckets map[int]*bucket
	last    int // the highest bucket in use
}

// bucket is the use within [k × width, (k+1) × width): a step function that
// begins at the bucket's own start.
type bucket struct {
	at  []time.Duration // [0] is the bucket's start
	use []int64         // len(at) × len(caps)
}

func newCalendar(width time.Duration, caps []int64) *calendar {
	return &calendar{width: width, caps: caps, buckets: map[int]*bucket{}, last: -1}
}

// add books [s.from, s.to) for the needs, or with sign -1 gives it back.
func (c *calendar) add(s span, need []amount, sign int64) {
	if s.from >= s.to {
		return
	}
	for k := int(s.from / c.width); time.Duration(k)*c.width < s.to; k++ {
		b := c.buckets[k]
		if b == nil {
			b = &bucket{at: []time.Duration{time.Duration(k) * c.width}, use: make([]int64, len(c.caps))}
			c.buckets[k] = b
			c.last = max(c.last, k)
		}
		from := b.cut(max(s.from, b.at[0]), len(c.caps))
		to := len(b.at)
		if end := b.at[0] + c.width; s.to < end {
			to = b.cut(s.to, len(c.caps))
		}
		for i := from; i < to; i++ {
			for _, a := range need {
				b.use[i*len(c.caps)+a.resource] += sign * a.n
			}
		}
		if sign < 0 {
			b.merge(len(c.caps))
		}
	}
}

// cut makes sure that a point stands at t, and returns its place.
func (b *bucket) cut(t time.Duration, n int) int {
	i, ok := slices.BinarySearch(b.at, t)
	if !ok {
		b.at = slices.Insert(b.at, i, t)
		b.use = slices.Insert(b.use, i*n, b.use[(i-1)*n:i*n]...)
	}
	return i
}

// merge drops the points at which nothing changes.
func (b *bucket) merge(n int) {
	kept := 1
	for i := 1; i < len(b.at); i++ {
		if slices.Equal(b.use[(kept-1)*n:kept*n], b.use[i*n:(i+1)*n]) {
			continue
		}
		b.at[kept] = b.at[i]
		copy(b.use[kept*n:(kept+1)*n], b.use[i*n:(i+1)*n])
		kept++
	}
	b.at, b.use = b.at[:kept], b.use[:kept*n]
}

// fits reports whether the needs have room beside what is taken at a point.
func (c *calendar) fits(use []int64, need []amount) bool {
	for _, a := range need {
		if use[a.resource]+a.n > c.caps[a.resource] {
			return false
		}
	}
	return true
}

// next finds when the needs first have room at from or later, and until when
// they then have. Past the last booking there is always room.
func (c *calendar) next(from time.Duration, need []amount) span {
	out := span{from, forever}
	open := false
	for k := int(from / c.width); k <= c.last; k++ {
		begin := max(from, time.Duration(k)*c.width)
		b := c.buckets[k]
		if b == nil {
			if !open {
				out.from, open = begin, true
			}
			continue
		}
		i, ok := slices.BinarySearch(b.at, begin)
		if !ok {
			i--
		}
		for ; i < len(b.at); i++ {
			fits := c.fits(b.use[i*len(c.caps):(i+1)*len(c.caps)], need)
			at := max(begin, b.at[i])
			switch {
			case fits && !open:
				out.from, open = at, true
			case !fits && open:
				out.to = at
				return out
			}
		}
	}
	if !open {
		out.from = max(from, time.Duration(c.last+1)*c.width)
	}
	return out
}

// free appends when the needs have room within [from, to).
func (c *calendar) free(out []span, from, to time.Duration, need []amount) []span {
	for from < to {
		s := c.next(from, need)
		if s.from >= to {
			break
		}
		out = append(out, span{s.from, min(s.to, to)})
		from = s.to
	}
	return out
}

// calendars are those of every region.
type calendars []*calendar

// newCalendars chooses a width by which a bucket holds some tens of points and
// a booking touches some tens of buckets at most.
func (w *world) newCalendars() calendars {
	var total, longest time.Duration
	for i := range w.jobs {
		total += w.jobs[i].Duration / time.Duration(len(w.jobs))
		longest = max(longest, w.jobs[i].latest())
	}
	spread := (longest - w.start) / time.Duration(len(w.jobs)) * 32
	width := max(spread, total/16, time.Second)
	out := make(calendars, len(w.regions))
	for i := range out {
		out[i] = newCalendar(width, w.regions[i].caps)
	}
	return out
}

// book enters a placing, or with sign -1 takes it out.
func (c calendars) book(p *placing, run time.Duration, sign int64) {
	if p.option == nil || len(p.option.need) == 0 {
		return
	}
	p.spans(run, func(s span) { c[p.option.region].add(s, p.option.need, sign) })
}

// open reports whether a placing has room.
func (c calendars) open(p *placing, run time.Duration) bool {
	if len(p.option.need) == 0 {
		return true
	}
	ok := true
	p.spans(run, func(s span) {
		if s.from >= s.to {
			return
		}
		n := c[p.option.region].next(s.from, p.option.need)
		ok = ok && n.from == s.from && n.to >= s.to
	})
	return ok
}
