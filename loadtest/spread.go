package loadtest

import (
	"math"
	"time"
)

// Place is a region that requests come in at.
type Place struct {
	Region string
	// UTCOffset is the local time less UTC, in hours.
	UTCOffset float64
}

const (
	// busiest is the local hour of the day's peak.
	busiest = 14
	// swing is how far the day's peak and trough are from its mean.
	swing = 0.8
)

// SpreadRule says in words how Shares come about.
const SpreadRule = "share of a region = 1 + 0.8 cos(local time - 14 h), normalised"

// Shares is the part of the requests that comes in at each place at a time:
// people work by day, so a place's share follows its local time, with the peak
// at 14:00 at nine times the trough. They sum to 1.
func Shares(places []Place, at time.Time) []float64 {
	utc := at.UTC()
	hour := float64(utc.Hour()) + float64(utc.Minute())/60
	shares := make([]float64, len(places))
	sum := 0.0
	for i, p := range places {
		shares[i] = 1 + float64(swing*math.Cos(2*math.Pi*(hour+p.UTCOffset-busiest)/24))
		sum += shares[i]
	}
	for i := range shares {
		shares[i] /= sum
	}
	return shares
}

// Spread gives each arrival the region it comes in at, drawn by the Shares of
// its own time. It changes the trace's arrivals. Without places it does nothing.
func Spread(seed uint64, t Trace, places []Place) {
	if len(places) == 0 {
		return
	}
	r := stream(seed, "spread")
	for i := range t.Arrivals {
		a := &t.Arrivals[i]
		x := r.Float64()
		a.Origin = places[len(places)-1].Region
		for k, share := range Shares(places, t.Start.Add(a.At)) {
			if x -= share; x < 0 {
				a.Origin = places[k].Region
				break
			}
		}
	}
}
