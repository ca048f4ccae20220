package carbon

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

const (
	// memory is how much of an hour's weather stays in the next: it is halved
	// in about a day.
	memory = 0.97
	// window is how many hours of the past the weather is made from; what is
	// older weighs less than a thousandth.
	window = 240
	// least is the lowest value, as a share of the mean.
	least = 0.1
)

// Generator is a Series made up for a mesh without a feed: some twenty real
// zones, each with its published yearly mean, and about it the day's curve, the
// week, the season and a weather that comes and goes over days. It has no
// bounds. Every value follows from (zone, hour) alone, so all servers and all
// runs see the same.
type Generator struct {
	zones   []zone
	names   []string
	days    [][24]float64 // by zone: the day's curve by UTC hour, of mean zero
	weights [window]float64
}

// NewGenerator returns the generator of all zones it knows.
func NewGenerator() *Generator {
	g := &Generator{zones: zones()}
	for _, z := range g.zones {
		g.names = append(g.names, z.name)
		g.days = append(g.days, z.dayCurve())
	}
	// An autoregressive process of order one, written as the sum of its past
	// shocks: so any hour can be had without those before it.
	w := math.Sqrt(1 - memory*memory)
	for k := range g.weights {
		g.weights[k] = w
		w *= memory
	}
	return g
}

// Kind is Average: the means are.
func (g *Generator) Kind() Kind { return Average }

// Source says that the values are made up, and about which means.
func (g *Generator) Source() string {
	return "generated about the yearly means of Google region-carbon-info 2024"
}

// Zones lists the zones, sorted.
func (g *Generator) Zones() []string { return slices.Clone(g.names) }

// Start is zero: the series has no bounds.
func (g *Generator) Start() time.Time { return time.Time{} }

// End is zero: the series has no bounds.
func (g *Generator) End() time.Time { return time.Time{} }

// At implements Series. It takes some microseconds.
func (g *Generator) At(name string, at time.Time) (Reading, error) {
	i, ok := slices.BinarySearch(g.names, name)
	if !ok {
		return Reading{}, fmt.Errorf("carbon: generate zone %q, known are %s: %w", name, strings.Join(g.names, " "), ErrUnknownZone)
	}
	hour := at.UTC().Truncate(time.Hour)
	z := &g.zones[i]
	local := hour.Add(time.Duration(z.utcOffset * float64(time.Hour)))

	level := 1 + g.days[i][hour.Hour()]
	// Two days in seven are the weekend: together the week's parts are zero.
	if d := local.Weekday(); d == time.Saturday || d == time.Sunday {
		level -= z.shape.weekend * 5 / 7
	} else {
		level += z.shape.weekend * 2 / 7
	}
	const midwinter, year = 15, 365.25 // the 15th of January
	level += float64(z.shape.winter * math.Cos(2*math.Pi*(float64(local.YearDay())-midwinter)/year))
	level += float64(z.shape.wind * g.weather(name, hour.Unix()/3600))

	x := z.mean * max(level, least)
	// Rounded: the last bits of math.Cos differ between processors.
	return Reading{
		Zone: name, Hour: hour, Kind: Average, Source: g.Source(),
		Intensity: math.Round(x*100) / 100,
	}, nil
}

// weather is a process of mean 0 and standard deviation 1 that keeps most of
// itself from hour to hour.
func (g *Generator) weather(name string, hour int64) float64 {
	seed := uint64(14695981039346656037) // FNV-1a
	for i := range len(name) {
		seed = (seed ^ uint64(name[i])) * 1099511628211
	}
	sum := 0.0
	for k, w := range g.weights {
		sum += float64(w * shock(seed, hour-int64(k)))
	}
	return sum
}

// shock is a draw for one hour of mean 0 and standard deviation 1, near to
// normal: four even draws in a sum.
func shock(seed uint64, hour int64) float64 {
	x := mix(seed + uint64(hour)*0x9e3779b97f4a7c15)
	sum := 0.0
	for range 4 {
		sum += float64(x&0xffff) / 0xffff
		x >>= 16
	}
	return (sum - 2) * math.Sqrt(3)
}

// mix is the output function of SplitMix64.
func mix(x uint64) uint64 {
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb
	return x ^ (x >> 31)
}

// dayCurve is the day's shape by UTC hour: down while the sun shines, up in
// the evening.
func (z *zone) dayCurve() [24]float64 {
	var curve [24]float64
	mean := 0.0
	for h := range curve {
		// The middle of the hour, in local solar time.
		local := math.Mod(float64(h)+0.5+z.utcOffset+24, 24)
		if noon := math.Abs(local - 12.5); noon < 6 {
			curve[h] -= z.shape.sun * math.Cos(noon/6*math.Pi/2)
		}
		if dusk := math.Abs(local - 19.5); dusk < 3 {
			curve[h] += z.shape.evening * math.Cos(dusk/3*math.Pi/2)
		}
		mean += curve[h] / 24
	}
	for h := range curve {
		curve[h] -= mean
	}
	return curve
}
