package simulate

import (
	"time"

	"github.com/isobar-mesh/isobar/carbon"
)

// forecaster tells the carbon of the hours to come: the present hour as it is,
// and the rest as the forecast has it.
type forecaster struct {
	w    *world
	kind Forecast
	// cache holds the last forecast of each zone's curve.
	cache map[*curve]*foretold
}

// foretold is a forecast made in one hour.
type foretold struct {
	hour  int
	ahead []float64
	model *carbon.Model
}

func newForecaster(w *world, kind Forecast) forecaster {
	return forecaster{w: w, kind: kind, cache: map[*curve]*foretold{}}
}

// ahead is the intensity of the region from the present hour on: hours values,
// or fewer when the last then holds. It is valid until the next call.
func (f *forecaster) ahead(place int, now time.Duration, hours int) []float64 {
	c := f.w.regions[place].carbon
	h := min(int(now/hour), len(c.rows)-1)
	if f.kind == Perfect {
		return c.rows[h:min(h+hours, len(c.rows))]
	}
	e := f.cache[c]
	if e == nil {
		e = &foretold{hour: -1}
		if f.kind == Model {
			e.model = carbon.NewModel(c.rows)
		}
		f.cache[c] = e
	}
	if e.hour != h {
		e.hour, e.ahead = h, append(e.ahead[:0], c.rows[h])
		if e.model != nil {
			e.model.Advance(h)
		}
	}
	for k := len(e.ahead); k < hours; k++ {
		switch f.kind {
		case Yesterday:
			e.ahead = append(e.ahead, carbon.SameHour(c.rows, h, k))
		case Model:
			e.ahead = append(e.ahead, e.model.Ahead(k))
		default:
			e.ahead = append(e.ahead, carbon.Mean7(c.rows, h, k))
		}
	}
	return e.ahead[:hours]
}
