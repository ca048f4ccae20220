package loadtest

import (
	"cmp"
	"slices"
	"time"
)

// Arrival is one request of a workload.
type Arrival struct {
	// At is when it comes, from the workload's start; 0 or more.
	At time.Duration
	// Service tells the streams of a workload apart: "conv" or "code" in the
	// Azure LLM inference trace.
	Service string
	// Input and Output are the request's sizes in tokens, 1 or more.
	Input  int
	Output int
	// Origin is the region it comes in at; empty until Spread.
	Origin string
}

// Trace is a stream of arrivals and the calendar time it begins at.
type Trace struct {
	// Start is the time of Arrivals' zero.
	Start time.Time
	// Arrivals in order of At.
	Arrivals []Arrival
}

// Span is the time from the trace's start to its last arrival.
func (t Trace) Span() time.Duration {
	if len(t.Arrivals) == 0 {
		return 0
	}
	return t.Arrivals[len(t.Arrivals)-1].At
}

// Merge lays traces over each other by calendar time. The result starts with
// the earliest of them. Arrivals at one instant keep the order of the traces.
func Merge(traces ...Trace) Trace {
	var out Trace
	for _, t := range traces {
		if out.Start.IsZero() || t.Start.Before(out.Start) {
			out.Start = t.Start
		}
	}
	for _, t := range traces {
		shift := t.Start.Sub(out.Start)
		for _, a := range t.Arrivals {
			a.At += shift
			out.Arrivals = append(out.Arrivals, a)
		}
	}
	slices.SortStableFunc(out.Arrivals, func(a, b Arrival) int { return cmp.Compare(a.At, b.At) })
	return out
}

// Window cuts out what arrives in [from, to) after the trace's start, and
// starts there.
func (t Trace) Window(from, to time.Duration) Trace {
	out := Trace{Start: t.Start.Add(from)}
	for _, a := range t.Arrivals {
		if a.At >= from && a.At < to {
			a.At -= from
			out.Arrivals = append(out.Arrivals, a)
		}
	}
	return out
}

// Sample keeps n arrivals, evenly spread over the list, so that bursts stay
// bursts and services keep their shares. With n at least the length, or n not
// positive, all are kept.
func (t Trace) Sample(n int) Trace {
	all := len(t.Arrivals)
	if n <= 0 || n >= all {
		return Trace{Start: t.Start, Arrivals: slices.Clone(t.Arrivals)}
	}
	out := Trace{Start: t.Start, Arrivals: make([]Arrival, n)}
	for i := range n {
		// The middle of the i-th of n equal parts.
		out.Arrivals[i] = t.Arrivals[(2*i+1)*all/(2*n)]
	}
	return out
}

// Services counts the arrivals of each service.
func (t Trace) Services() map[string]int {
	counts := map[string]int{}
	for _, a := range t.Arrivals {
		counts[a.Service]++
	}
	return counts
}
