package fairness

import (
	"cmp"
	"container/heap"
	"container/list"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

const (
	// Ageing is the wait that adds a lane its base weight once more: batch, not
	// served for 90 s, weighs as much as standard.
	Ageing = 30 * time.Second
	// Memory is the time constant of what counts as run of late. It is the order
	// of a minute so that a tenant that went quiet is as good as new after the
	// five minutes that SQS's fair queues take.
	Memory = time.Minute
	// refresh is how old the tenants' shares may be.
	refresh = 100 * time.Millisecond
)

// Order ranks the queues that have work. The zero value is not usable; see New.
// It is not safe for concurrent use.
type Order[K comparable] struct {
	lanes   [4]lane[K]
	queues  map[K]*queue[K]
	tenants map[string]*tenant[K]
	weight  func(tenant string) float64
	total   amounts
	models  map[string]int
	served  uint64
	at      time.Time
	next    *queue[K] // what Next returned last, until it was judged
	credit  [4]float64
	stuck   []*seat[K]
}

type lane[K comparable] struct {
	seats  seats[K]
	credit float64
}

// seat is one tenant's place in one lane.
type seat[K comparable] struct {
	tenant  *tenant[K]
	waiting list.List // of *queue, the next to be served first
	stuck   list.List
	place   int // in the lane's heap; -1 when it is not there
}

type queue[K comparable] struct {
	key   K
	lane  mesh.Lane
	seat  *seat[K]
	in    *list.Element
	aside bool      // in seat.stuck
	since time.Time // last served, or had no work
}

// New makes an order. weight tells a tenant's share relative to others; what is
// not positive counts as 1.
func New[K comparable](weight func(tenant string) float64) *Order[K] {
	return &Order[K]{queues: map[K]*queue[K]{}, tenants: map[string]*tenant[K]{}, weight: weight, models: map[string]int{}}
}

// Want puts a queue in that has work. A queue that is there keeps its place.
func (o *Order[K]) Want(key K, owner string, l mesh.Lane, now time.Time) {
	if o.queues[key] != nil {
		return
	}
	t := o.tenant(owner, now)
	s := t.seats[l]
	if s == nil {
		s = &seat[K]{tenant: t, place: -1}
		t.seats[l] = s
	}
	q := &queue[K]{key: key, lane: l, seat: s, since: now}
	o.queues[key] = q
	q.in = s.waiting.PushBack(q)
	o.seated(q)
}

// Drop takes out a queue that has no more work.
func (o *Order[K]) Drop(key K) {
	q := o.queues[key]
	if q == nil {
		return
	}
	delete(o.queues, key)
	if o.next == q {
		o.next = nil
	}
	if q.aside {
		q.seat.stuck.Remove(q.in)
	} else {
		q.seat.waiting.Remove(q.in)
		o.seated(q)
	}
	if q.seat.waiting.Len()+q.seat.stuck.Len() == 0 {
		q.seat.tenant.seats[q.lane] = nil
	}
}

// Len is how many queues have work.
func (o *Order[K]) Len() int { return len(o.queues) }

// Next names the queue to serve; false when each is stuck or none has work. It
// is charged for once Served says so: Stuck and Drop leave all shares as they
// were.
func (o *Order[K]) Next(now time.Time) (key K, ok bool) {
	if now.Sub(o.at) >= refresh || now.Before(o.at) {
		o.refresh(now)
	}
	best, sum := -1, 0.0
	for i, l := range mesh.Lanes() {
		o.credit[i] = o.lanes[i].credit
		if len(o.lanes[i].seats) == 0 {
			continue
		}
		w := aged(l, now.Sub(o.front(i).since))
		sum += w
		o.credit[i] += w
		if best < 0 || o.credit[i] > o.credit[best] {
			best = i
		}
	}
	if best < 0 {
		return key, false
	}
	o.credit[best] -= sum
	o.next = o.front(best)
	return o.next.key, true
}

// front is the lane's next queue.
func (o *Order[K]) front(l int) *queue[K] {
	q, _ := o.lanes[l].seats[0].waiting.Front().Value.(*queue[K])
	return q
}

// Served says that the queue Next named got what it was named for. It goes to
// the end of its tenant's line.
func (o *Order[K]) Served(now time.Time) {
	q := o.next
	if q == nil {
		return
	}
	o.next = nil
	for i := range o.lanes {
		o.lanes[i].credit = o.credit[i]
	}
	o.served++
	q.since, q.seat.tenant.served = now, o.served
	q.seat.waiting.MoveToBack(q.in)
	o.fix(q.seat.tenant)
}

// Stuck sets the queue Next named aside until Unstick: its head finds no room.
func (o *Order[K]) Stuck() {
	q := o.next
	if q == nil {
		return
	}
	o.next = nil
	q.seat.waiting.Remove(q.in)
	if q.seat.stuck.Len() == 0 {
		o.stuck = append(o.stuck, q.seat)
	}
	q.in, q.aside = q.seat.stuck.PushBack(q), true
	o.seated(q)
}

// Unstick lets every queue try again, behind those that were not tried.
func (o *Order[K]) Unstick() {
	for _, s := range o.stuck {
		for e := s.stuck.Front(); e != nil; e = s.stuck.Front() {
			q, _ := s.stuck.Remove(e).(*queue[K])
			q.in, q.aside = s.waiting.PushBack(q), false
			o.seated(q)
		}
	}
	o.stuck = o.stuck[:0]
}

// seated brings the queue's tenant into its lane's heap, or out of it.
func (o *Order[K]) seated(q *queue[K]) {
	h, s := &o.lanes[q.lane].seats, q.seat
	switch {
	case s.waiting.Len() > 0 && s.place < 0:
		heap.Push(h, s)
	case s.waiting.Len() == 0 && s.place >= 0:
		heap.Remove(h, s.place)
		s.place = -1
	}
}

// fix restores a tenant's place in each lane after its share changed.
func (o *Order[K]) fix(t *tenant[K]) {
	for l, s := range t.seats {
		if s != nil && s.place >= 0 {
			heap.Fix(&o.lanes[l].seats, s.place)
		}
	}
}

// aged is a lane's weight after a wait: linear, up to the base weight of the
// next more urgent lane.
func aged(l mesh.Lane, wait time.Duration) float64 {
	w := float64(l.Weight()) * (1 + max(wait, 0).Seconds()/Ageing.Seconds())
	return min(w, heaviest(l))
}

// heaviest is the most a lane may weigh.
func heaviest(l mesh.Lane) float64 {
	if l == mesh.Critical {
		return float64(l.Weight())
	}
	return float64((l - 1).Weight())
}

// Turns bounds how many queues are served before a lane's turn comes, whatever
// the other lanes hold: its own turn included. In smooth weighted round robin a
// lane of weight w waits for at most the sum of all weights over w, and one turn
// of each other lane that is owed.
func Turns(l mesh.Lane) int {
	sum, others := 0.0, 0
	for _, o := range mesh.Lanes() {
		if o != l {
			sum += heaviest(o)
			others++
		}
	}
	return int(sum/float64(l.Weight())) + 1 + others
}

// seats is a lane's heap of tenants, the least served first.
type seats[K comparable] []*seat[K]

func (h seats[K]) Len() int { return len(h) }

func (h seats[K]) Less(i, j int) bool {
	a, b := h[i].tenant, h[j].tenant
	return cmp.Or(cmp.Compare(a.share, b.share), cmp.Compare(a.served, b.served), cmp.Compare(a.name, b.name)) < 0
}

func (h seats[K]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push is for package heap.
func (h *seats[K]) Push(x any) {
	s, _ := x.(*seat[K])
	s.place = len(*h)
	*h = append(*h, s)
}

// Pop is for package heap.
func (h *seats[K]) Pop() any {
	old := *h
	s := old[len(old)-1]
	*h = old[:len(old)-1]
	return s
}
