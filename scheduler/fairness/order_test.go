package fairness

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// place names a queue of the tests.
type place struct {
	tenant string
	lane   mesh.Lane
	name   string
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func equal(string) float64 { return 1 }

// want puts queues in.
func want(o *Order[place], now time.Time, queues ...place) {
	for _, q := range queues {
		o.Want(q, q.tenant, q.lane, now)
	}
}

// TestTurns serves lanes of many queues and counts: lanes by weight, the queues
// of a lane alike, whatever else is busy.
func TestTurns(t *testing.T) {
	t.Parallel()
	cases := map[string]map[mesh.Lane]int{ // queues in each lane
		"one lane":               {mesh.Standard: 7},
		"served every fifth":     {mesh.Interactive: 1, mesh.Standard: 5},
		"served every 21st":      {mesh.Critical: 2, mesh.Interactive: 3, mesh.Standard: 3},
		"all four, of all sizes": {mesh.Critical: 1, mesh.Interactive: 4, mesh.Standard: 17, mesh.Batch: 5},
	}
	for name, lanes := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := New[place](equal)
			weights := 0
			for lane, n := range lanes {
				weights += lane.Weight()
				for i := range n {
					want(o, noon, place{"t", lane, fmt.Sprint(i)})
				}
			}
			const rounds = 340 // whole turns of 17 queues
			served := map[place]int{}
			for range rounds * weights {
				q, _ := o.Next(noon)
				o.Served(noon)
				served[q]++
			}
			for lane, n := range lanes {
				wants := float64(rounds*lane.Weight()) / float64(n)
				for i := range n {
					got := served[place{"t", lane, fmt.Sprint(i)}]
					if math.Abs(float64(got)-wants) > 1 {
						t.Errorf("%s queue %d was served %d times, want %.1f", lane, i, got, wants)
					}
				}
			}
		})
	}
}

func TestStuckQueuesArePassedOver(t *testing.T) {
	t.Parallel()
	o := New[place](equal)
	a, b, c := place{"t", mesh.Batch, "a"}, place{"t", mesh.Batch, "b"}, place{"t", mesh.Batch, "c"}
	want(o, noon, a, b, c)
	next := func(want place) {
		t.Helper()
		if q, ok := o.Next(noon); !ok || q != want {
			t.Fatalf("next is %v %v, want %v", q, ok, want)
		}
	}
	next(a)
	o.Stuck()
	next(b)
	o.Drop(b)
	for range 3 {
		next(c)
		o.Served(noon)
	}
	next(c)
	o.Stuck()
	if q, ok := o.Next(noon); ok {
		t.Errorf("next is %v, want none", q)
	}
	o.Unstick()
	next(a) // the one that waited longest goes first
	o.Drop(a)
	o.Drop(c)
	if _, ok := o.Next(noon); ok || o.Len() != 0 {
		t.Error("a queue is left")
	}
}

// TestAgeing: a lane that is not served gains weight with the wait of its next
// queue, up to that of the lane above it.
func TestAgeing(t *testing.T) {
	t.Parallel()
	cases := []struct {
		lane mesh.Lane
		wait time.Duration
		want float64
	}{
		{mesh.Batch, 0, 1},
		{mesh.Batch, Ageing, 2},
		{mesh.Batch, time.Hour, 4},
		{mesh.Standard, 3 * Ageing, 16},
		{mesh.Interactive, Ageing, 32},
		{mesh.Critical, time.Hour, 64},
		{mesh.Batch, -time.Hour, 1}, // a clock that went back
	}
	for _, c := range cases {
		if got := aged(c.lane, c.wait); got != c.want {
			t.Errorf("%s after %s weighs %v, want %v", c.lane, c.wait, got, c.want)
		}
	}
	// One place an hour: served by base weights batch would wait for 85 hours.
	o := New[place](equal)
	batch := place{"t", mesh.Batch, "q"}
	want(o, noon, batch)
	for l := range mesh.Batch {
		want(o, noon, place{"t", l, "q"})
	}
	first := -1
	for i := range 60 {
		now := noon.Add(time.Duration(i) * time.Hour)
		q, _ := o.Next(now)
		o.Served(now)
		if q == batch {
			first = i
			break
		}
	}
	if limit := Turns(mesh.Batch) / 4; first < 0 || first > limit {
		t.Errorf("batch was served after %d turns, want at most %d", first, limit)
	}
}

// TestNoLaneWaitsBeyondItsTurns plays any history and then lets one lane get
// work: it is served within Turns, whatever the others hold.
func TestNoLaneWaitsBeyondItsTurns(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		o := New[place](equal)
		now := noon
		lane := func() mesh.Lane { return mesh.Lane(rapid.IntRange(0, 3).Draw(t, "lane")) }
		since := map[mesh.Lane]int{} // turns since the lane had work or was served
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "s")) * time.Second)
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				l := lane()
				want(o, now, place{"t", l, "q"})
				if _, ok := since[l]; !ok {
					since[l] = 0
				}
			case 1:
				l := lane()
				o.Drop(place{"t", l, "q"})
				delete(since, l)
			default:
				q, ok := o.Next(now)
				if !ok {
					continue
				}
				o.Served(now)
				since[q.lane] = -1
				for l := range since {
					since[l]++
					if since[l] >= Turns(l) {
						t.Fatalf("%s was not served in %d turns", l, since[l])
					}
				}
			}
		}
	})
}

// TestDominantShares is the example of the paper, ten times over: 90 cores and 180
// GiB, one tenant's tasks take a core and 4 GiB, the other's three cores and 1 GiB.
// Equal dominant shares give 30 tasks to the one and 20 to the other; by turns each
// would have 22.
func TestDominantShares(t *testing.T) {
	t.Parallel()
	c := &site{room: mesh.Capacity{CPUMilli: 90_000, MemoryMiB: 180 << 10}, order: New[place](equal)}
	c.order.Capacity(c.room)
	a, b := place{"a", mesh.Standard, "f"}, place{"b", mesh.Standard, "f"}
	c.submit(a, 100, mesh.Demand{CPUMilli: 1000, MemoryMiB: 4 << 10}, time.Hour)
	c.submit(b, 100, mesh.Demand{CPUMilli: 3000, MemoryMiB: 1 << 10}, time.Hour)
	c.dispatch()
	if got := [2]int{c.running(a), c.running(b)}; got != [2]int{30, 20} {
		t.Errorf("%v run, want 30 and 20", got)
	}
}

// TestWeightedSharesOverTime: one place, tasks of unequal length; what counts is
// the time they ran, over the weight.
func TestWeightedSharesOverTime(t *testing.T) {
	t.Parallel()
	weights := map[string]float64{"gold": 3, "plain": 1, "long": 0} // 0 counts as 1
	c := &site{room: mesh.Capacity{CPUMilli: 1000}, order: New[place](func(t string) float64 { return weights[t] })}
	c.order.Capacity(c.room)
	one := mesh.Demand{CPUMilli: 1000}
	gold, plain, long := place{"gold", mesh.Standard, "f"}, place{"plain", mesh.Standard, "f"}, place{"long", mesh.Standard, "f"}
	c.submit(gold, 1e6, one, 100*time.Millisecond)
	c.submit(plain, 1e6, one, 100*time.Millisecond)
	c.submit(long, 1e6, one, 2*time.Second)
	c.until(20 * time.Minute)
	all := c.ran["gold"] + c.ran["plain"] + c.ran["long"]
	for name, part := range map[string]float64{"gold": 0.6, "plain": 0.2, "long": 0.2} {
		if got := c.ran[name].Seconds() / all.Seconds(); math.Abs(got-part) > 0.02 {
			t.Errorf("%s had %.3f of the time, want %.2f", name, got, part)
		}
	}
}

// TestAFloodDoesNotMoveTheOthers compares the waits of nine quiet tenants with
// and without a tenth that floods the same lane with 100,000 tasks, in one queue
// or in a hundred.
func TestAFloodDoesNotMoveTheOthers(t *testing.T) {
	t.Parallel()
	const taskTime = time.Second
	for _, flood := range []int{0, 1, 100} {
		c := &site{room: mesh.Capacity{CPUMilli: 10_000}, order: New[place](equal)}
		c.order.Capacity(c.room)
		one := mesh.Demand{CPUMilli: 1000}
		for i := range flood {
			c.submit(place{"flood", mesh.Standard, fmt.Sprint(i)}, 100_000/flood, one, taskTime)
		}
		c.until(30 * time.Second) // every place is the flood's, and has been
		for round := range 20 {
			for i := range 9 {
				c.submit(place{fmt.Sprint("quiet", i), mesh.Standard, "f"}, 1, one, taskTime)
			}
			c.until(c.at + taskTime + time.Duration(round)*50*time.Millisecond)
		}
		c.until(c.at + 2*taskTime)
		if n := c.leased["quiet0"]; n != 20 {
			t.Errorf("flood in %d queues: %d of 20 tasks of a quiet tenant were leased", flood, n)
		}
		// What runs is not interrupted: the next place to be free is theirs.
		if c.longest["quiet0"] > taskTime || (flood == 0 && c.longest["quiet0"] > 0) {
			t.Errorf("flood in %d queues: a quiet tenant's task waited %s, a task runs %s", flood, c.longest["quiet0"], taskTime)
		}
	}
}

// TestALaneKeepsItsBoundUnderABacklog holds both promises at once: with 100,000
// batch tasks waiting, a critical one is leased when the next place is free, and
// when critical work never ends, batch still gets its share.
func TestALaneKeepsItsBoundUnderABacklog(t *testing.T) {
	t.Parallel()
	const taskTime = time.Second
	one := mesh.Demand{CPUMilli: 1000}
	batch, critical := place{"t", mesh.Batch, "f"}, place{"u", mesh.Critical, "f"}
	c := &site{room: mesh.Capacity{CPUMilli: 4000}, order: New[place](equal)}
	c.order.Capacity(c.room)
	c.submit(batch, 100_000, one, taskTime)
	for range 50 {
		c.until(c.at + 1700*time.Millisecond)
		c.submit(critical, 1, one, taskTime)
	}
	c.until(c.at + 2*taskTime)
	if c.leased["u"] != 50 || c.longest["u"] > taskTime {
		t.Errorf("%d of 50 critical tasks leased, the slowest after %s; a place is free every %s", c.leased["u"], c.longest["u"], taskTime)
	}
	if left := len(c.lines[batch].tasks); left > 100_000-150 {
		t.Errorf("%d batch tasks left: it got no share", left)
	}
	before := c.leased["t"]
	c.submit(critical, 100_000, one, taskTime)
	start := c.at
	c.until(start + 1000*time.Second)
	got, all := c.leased["t"]-before, 4*1000
	if share := float64(got) / float64(all); share < 1.0/65-0.001 {
		t.Errorf("batch got %d of %d places, want at least one of 65", got, all)
	}
}

// site is a place with workers, in virtual time.
type site struct {
	room    mesh.Capacity
	order   *Order[place]
	lines   map[place]*line
	at      time.Duration
	busy    []attempt
	ran     map[string]time.Duration
	leased  map[string]int
	longest map[string]time.Duration
}

type line struct {
	tasks  []time.Duration // when each was submitted
	demand mesh.Demand
	length time.Duration
}

type attempt struct {
	of   place
	ends time.Duration
}

func (s *site) now() time.Time { return noon.Add(s.at) }

func (s *site) submit(q place, n int, d mesh.Demand, length time.Duration) {
	if s.lines == nil {
		s.lines, s.ran, s.leased, s.longest = map[place]*line{}, map[string]time.Duration{}, map[string]int{}, map[string]time.Duration{}
	}
	if s.lines[q] == nil {
		s.lines[q] = &line{demand: d, length: length}
	}
	for range n {
		s.lines[q].tasks = append(s.lines[q].tasks, s.at)
	}
	s.order.Want(q, q.tenant, q.lane, s.now())
}

func (s *site) dispatch() {
	s.order.Unstick()
	for {
		q, ok := s.order.Next(s.now())
		if !ok {
			return
		}
		l := s.lines[q]
		switch {
		case len(l.tasks) == 0:
			s.order.Drop(q)
		case !s.room.Fits(&l.demand):
			s.order.Stuck()
		default:
			s.room, _ = s.room.Take(l.demand)
			s.leased[q.tenant]++
			s.longest[q.tenant] = max(s.longest[q.tenant], s.at-l.tasks[0])
			l.tasks = l.tasks[1:]
			s.busy = append(s.busy, attempt{q, s.at + l.length})
			s.order.Served(s.now())
			s.order.Take(q.tenant, l.demand, s.now())
		}
	}
}

func (s *site) running(q place) (n int) {
	for _, a := range s.busy {
		if a.of == q {
			n++
		}
	}
	return n
}

// until lets time pass: attempts end in order, and what is free is given out.
func (s *site) until(end time.Duration) {
	s.dispatch()
	for {
		first := -1
		for i, a := range s.busy {
			if a.ends <= end && (first < 0 || a.ends < s.busy[first].ends) {
				first = i
			}
		}
		if first < 0 {
			s.at = end
			return
		}
		a := s.busy[first]
		s.busy = append(s.busy[:first], s.busy[first+1:]...)
		s.at = a.ends
		l := s.lines[a.of]
		s.room = s.room.Give(l.demand)
		s.ran[a.of.tenant] += l.length
		s.order.Give(a.of.tenant, l.demand, s.now())
		s.dispatch()
	}
}

// BenchmarkNext: a step costs the same with one queue and with ten thousand
// that have work, of a thousand tenants.
func BenchmarkNext(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("queues=%d", n), func(b *testing.B) {
			o := New[place](equal)
			o.Capacity(mesh.Capacity{CPUMilli: 64_000, MemoryMiB: 1 << 18})
			for i := range n {
				want(o, noon, place{fmt.Sprint("t", i%1000), mesh.Lane(i % 4), fmt.Sprint(i)})
			}
			d := mesh.Demand{CPUMilli: 1000, MemoryMiB: 256}
			now := noon
			for b.Loop() {
				now = now.Add(50 * time.Microsecond)
				q, _ := o.Next(now)
				o.Served(now)
				o.Take(q.tenant, d, now)
				o.Give(q.tenant, d, now)
			}
		})
	}
}
