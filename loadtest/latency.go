package loadtest

import (
	"math"
	"slices"
	"time"
)

// Latencies collects durations and answers for their distribution. Every value
// is kept, so quantiles are exact. The zero value is empty. Not safe for
// concurrent use.
type Latencies struct {
	values []time.Duration
	sorted bool
}

// Add puts one duration in.
func (l *Latencies) Add(d time.Duration) {
	l.values = append(l.values, d)
	l.sorted = false
}

// Count is how many were put in.
func (l *Latencies) Count() int { return len(l.values) }

// Quantile is the nearest-rank quantile: the smallest value such that at least
// the share q of all values is not above it. It is one of the values put in; q
// of 0 or less is the least, of 1 or more the largest, and without values it is
// zero.
func (l *Latencies) Quantile(q float64) time.Duration {
	n := len(l.values)
	if n == 0 {
		return 0
	}
	if !l.sorted {
		slices.Sort(l.values)
		l.sorted = true
	}
	// The product's rounding must not lift an exact rank to the next.
	rank := int(math.Ceil(q*float64(n) - 1e-9))
	return l.values[min(max(rank, 1), n)-1]
}

// Bucket is one bar of a histogram.
type Bucket struct {
	// Below is the bucket's end, not included; its start is the end of the
	// bucket before.
	Below time.Duration `json:"below_ns"`
	Count int           `json:"count"`
}

// Histogram counts the values in buckets that double in width from 1 ms on:
// under 1 ms, 1 to 2 ms, 2 to 4 ms, and so on to the largest value. Empty ones
// at the begin are left out.
func (l *Latencies) Histogram() []Bucket {
	if len(l.values) == 0 {
		return nil
	}
	l.Quantile(1) // sorts
	var out []Bucket
	i := 0
	for below := time.Millisecond; i < len(l.values); below *= 2 {
		if below > math.MaxInt64/2 {
			below = math.MaxInt64 // two centuries: the last bucket takes the rest
			return append(out, Bucket{Below: below, Count: len(l.values) - i})
		}
		count := 0
		for ; i < len(l.values) && l.values[i] < below; i++ {
			count++
		}
		if count > 0 || len(out) > 0 {
			out = append(out, Bucket{Below: below, Count: count})
		}
	}
	return out
}
