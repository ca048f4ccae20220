package carbon

import (
	"fmt"
	"time"
)

const day = 24 // hours

// Persistence is the feed of a running cell over a Series: the present hour as
// it is, and each hour ahead as the same hour was on the latest day already
// seen. It keeps most of what shifting work can save where carbon follows the
// sun, and little where it follows the wind; it needs no training and cannot
// look ahead.
type Persistence struct {
	series   Series
	clock    Clock
	foretold string
}

// NewPersistence returns the feed of the series as its clock runs. The feed
// time at wall, which is when the feed is taken into use, must lie inside the
// series: ErrOutside otherwise. Later the series may run out, and its last
// value holds.
func NewPersistence(series Series, clock Clock, wall time.Time) (*Persistence, error) {
	if err := series.Kind().validate(); err != nil {
		return nil, err
	}
	if err := clock.Validate(); err != nil {
		return nil, err
	}
	now, start, end := clock.At(wall), series.Start(), series.End()
	if (!start.IsZero() && now.Before(start)) || (!end.IsZero() && !now.Before(end)) {
		return nil, fmt.Errorf("carbon: start %s at %s: %w, which runs from %s to %s",
			series.Source(), now.Format(time.RFC3339), ErrOutside, start.Format(time.RFC3339), end.Format(time.RFC3339))
	}
	return &Persistence{
		series: series, clock: clock,
		foretold: series.Source() + ", same hour of the day before",
	}, nil
}

// Kind is the series' kind.
func (p *Persistence) Kind() Kind { return p.series.Kind() }

// Zones lists the series' zones, sorted.
func (p *Persistence) Zones() []string { return p.series.Zones() }

// At is the intensity of the present hour of the feed's clock.
func (p *Persistence) At(zone string, wall time.Time) (Reading, error) {
	return p.series.At(zone, p.clock.At(wall))
}

// Hour is the clock's.
func (p *Persistence) Hour(wall time.Time) (from time.Time, lasts time.Duration) {
	return p.clock.Hour(wall)
}

// Ahead implements Feed. In the first day of a series, an hour whose yesterday
// it does not hold is foretold by the present value, marked extrapolated.
func (p *Persistence) Ahead(zone string, wall time.Time, hours int) ([]Reading, error) {
	if hours <= 0 {
		return nil, nil
	}
	now, err := p.At(zone, wall)
	if err != nil {
		return nil, err
	}
	out := make([]Reading, 1, hours)
	out[0] = now
	present := p.clock.At(wall).Truncate(time.Hour)
	for k := 1; k < hours; k++ {
		hour := present.Add(time.Duration(k) * time.Hour)
		// The latest hour of the same time of day that is not in the future.
		days := (k + day - 1) / day
		seen := hour.Add(-time.Duration(days*day) * time.Hour)
		r := now
		if start := p.series.Start(); start.IsZero() || !seen.Before(start) {
			if r, err = p.series.At(zone, seen); err != nil {
				return nil, err
			}
		} else {
			r.Extrapolated = true
		}
		r.Hour, r.Source, r.Forecast = hour, p.foretold, ByPersistence
		out = append(out, r)
	}
	return out, nil
}
