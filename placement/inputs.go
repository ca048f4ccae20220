package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

const (
	// flowCap is the most that one connection carries, bytes a second: 5 Gbit/s
	// between instances that are not placed together (AWS, "Amazon EC2 instance
	// network bandwidth", single-flow traffic).
	flowCap = 5e9 / 8
	// flowWindow is how many bytes of one connection may be under way: the
	// largest receive buffer that Linux gives by itself, 6 MB (kernel
	// documentation, ip-sysctl, tcp_rmem, up to 6.15; 32 MB since).
	flowWindow = 6 << 20
)

// Input is data that a task reads where it runs, beside its payload.
type Input struct {
	Name  string
	Bytes int64
	// Places are the regions in which it lies; it is read from the nearest by
	// round trip, and for nothing where the task runs in one of them.
	Places []string
}

// Route is what lies between two regions.
type Route struct {
	RTT       time.Duration
	USDPerGiB float64 // paid for what is sent that way
}

// Routes tells what lies between regions of which neither is the home's. It is
// asked while a decision is made: it must answer the same to the same question.
type Routes interface {
	// Between returns the route of data from one region to another; ok is false
	// when it is not known.
	Between(from, to string) (r Route, ok bool)
}

// TransferTime is how long one connection takes for so many bytes over such a
// round trip, once it is at full speed: a round trip to ask, and then the
// window once each round trip, at most 5 Gbit/s.
func TransferTime(bytes int64, rtt time.Duration) time.Duration {
	rate := flowCap
	if s := span(rtt).Seconds(); s > 0 {
		rate = min(rate, flowWindow/s)
	}
	seconds := min(float64(max(bytes, 0))/rate, maxSpan.Seconds())
	return span(span(rtt) + time.Duration(seconds*float64(time.Second)))
}

// haul is what bringing a task's inputs to a cell takes.
type haul struct {
	time       time.Duration
	usd        float64
	kwh, grams float64
}

// haulTo is what all inputs take, one after the other.
func (d *Decider) haulTo(q *question, cell *Cell, known bool) haul {
	var all haul
	for i := range q.task.Inputs {
		in := &q.task.Inputs[i]
		if slices.Contains(in.Places, cell.Region) {
			continue
		}
		l, from, ok := d.nearest(q, in, cell)
		if !ok {
			q.astray = i + 1
			l, from = d.farthest(q, cell)
		}
		h := d.haulOver(q, in, from, cell, l, known)
		all.time = span(all.time + h.time)
		all.usd, all.kwh, all.grams = all.usd+h.usd, all.kwh+h.kwh, all.grams+h.grams
	}
	return all
}

// nearest is the way from the place of shortest round trip; of equal ones from
// the cheapest, then the first by name. It does not depend on the policy, so the
// score stays a straight line over each weight. ok is false where no way to the
// cell is known.
func (d *Decider) nearest(q *question, in *Input, cell *Cell) (best leg, from string, ok bool) {
	for _, place := range in.Places {
		l, found := d.route(q, place, cell)
		if found && (!ok || cmp.Or(cmp.Compare(l.RTT, best.RTT), cmp.Compare(l.USDPerGiB, best.USDPerGiB), cmp.Compare(place, from)) < 0) {
			best, from, ok = l, place, true
		}
	}
	return best, from, ok
}

// farthest stands in where nothing is known of the places: the longest of the
// ways that are, of equal ones the dearest.
func (d *Decider) farthest(q *question, cell *Cell) (worst leg, from string) {
	for _, i := range d.cells {
		place := q.view.Cells[i].Region
		if place == cell.Region {
			continue
		}
		l, ok := d.route(q, place, cell)
		if ok && cmp.Or(cmp.Compare(l.RTT, worst.RTT), cmp.Compare(l.USDPerGiB, worst.USDPerGiB)) > 0 {
			worst, from = l, place
		}
	}
	return worst, from
}

// leg is a route with the energy of a GiB on it.
type leg struct {
	Route
	kwhPerGiB float64
}

// route is the way from a region to a cell. To and from the home's region it is
// what the view says; else what Routes says; else over the home, which is as
// long as it can be, at the price of what leaves that region for home.
func (d *Decider) route(q *question, from string, cell *Cell) (l leg, ok bool) {
	l.kwhPerGiB = cell.NetworkKWhPerGiB
	if from == q.homeRegion {
		l.RTT, l.USDPerGiB = cell.RTT, cell.EgressUSDPerGiB
		return l, from != ""
	}
	for _, i := range d.cells {
		if c := &q.view.Cells[i]; c.Region == from && usableLink(c) {
			l.kwhPerGiB = max(l.kwhPerGiB, c.NetworkKWhPerGiB)
			l.RTT, l.USDPerGiB = span(c.RTT)+span(cell.RTT), c.ReturnUSDPerGiB
			ok = true
			break
		}
	}
	if q.view.Routes == nil || cell.Region == q.homeRegion && ok {
		return l, ok
	}
	if r, told := q.view.Routes.Between(from, cell.Region); told && usable(r.USDPerGiB) && r.RTT >= 0 {
		l.Route, ok = r, true
	}
	return l, ok
}

func usableLink(c *Cell) bool {
	return c.RTT >= 0 && usable(c.ReturnUSDPerGiB) && usable(c.NetworkKWhPerGiB)
}

// haulOver is what the input takes over one way. As a task's own bytes it
// counts at the mean of both ends' intensities of the present hour.
func (d *Decider) haulOver(q *question, in *Input, from string, cell *Cell, l leg, known bool) haul {
	gib := float64(max(in.Bytes, 0)) / bytesPerGiB
	h := haul{time: TransferTime(in.Bytes, l.RTT), usd: float64(gib * l.USDPerGiB), kwh: float64(gib * l.kwhPerGiB)}
	if h.kwh == 0 {
		return h
	}
	there, here := q.unknown, q.unknown
	if known {
		here = q.present(&cell.Energy)
	}
	for pos, i := range d.cells {
		if c := &q.view.Cells[i]; c.Region == from && d.known[pos] {
			there = q.present(&c.Energy)
			break
		}
	}
	h.grams = float64(h.kwh * ((there + here) / 2))
	return h
}

// astrayNote says that nothing is known of where an input lies; "" when of all
// something is.
func (q *question) astrayNote() string {
	if q.astray == 0 {
		return ""
	}
	in := &q.task.Inputs[q.astray-1]
	return fmt.Sprintf("no way is known from where input %s lies, %s: the longest known one used", in.Name, list(in.Places))
}
