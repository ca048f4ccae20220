package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/simulate"
)

// setting is one kind of batch work.
type setting struct {
	hours, slack  int
	interruptible bool
}

// kept is the share of the oracle's deferral saving that each forecast keeps in
// one zone.
type kept struct {
	saving                             float64 // the oracle's, of what starting at once emits
	perfect, persistence, mean7, model float64
}

// shown is the setting that is told by zone.
func shown() setting { return setting{1, 24, false} }

// worth is the least saving of the oracle for which a share means something.
const worth = 0.02

// batch is the table of deferral: batch work in every zone.
func (s *sources) batch() (string, error) {
	var settings []setting
	for _, hours := range [...]int{1, 6, 24} {
		for _, slack := range [...]int{6, 24, 48} {
			settings = append(settings, setting{hours, slack, false}, setting{hours, slack, true})
		}
	}
	all := map[setting]map[string]kept{}
	for _, at := range settings {
		all[at] = map[string]kept{}
		for _, zone := range s.table.Zones() {
			k, err := s.keeps(zone, at)
			if err != nil {
				return "", err
			}
			all[at][zone] = k
		}
		fmt.Fprintf(s.log, "results: %+v\n", at)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Deferral and its forecasts

Batch work of 1, 6 and 24 hours, an arrival every %d h over 2022 after the first week, in every zone by itself: how much of the
oracle's saving against starting at once is kept. "Own" is the forecast `+"`model`"+`. Zones count where the oracle saves 2 %% or
more. Work draws 1 kW at the meter; the shares do not depend on it. Carbon: Electricity Maps 2022 (ODbL, via UMass decarbonization-potential). Remade by
`+"`go run ./simulate/results -only forecast`"+`.

| work | slack | pieces | zones | oracle saves (median) | perfect (lowest) | persistence (median) | 7-day mean (median) | own (median) | own − mean, lowest | below by > 0.02 |
|---|---|---|---|---|---|---|---|---|---|---|
`, s.every)
	for _, at := range settings {
		s.row(&b, at, all[at])
	}
	b.WriteString(`
## By zone: an hour's work with a day of slack

The first four columns of figures are shares of the oracle's saving, as above. The last three say how far the forecasts of the next 24
hours lay from what came: the mean error as a share of the zone's mean, over all hours of the year after the first week.

| zone | oracle saves | persistence | 7-day mean | own | error: persistence | 7-day mean | own |
|---|---|---|---|---|---|---|---|
`)
	for _, zone := range s.table.Zones() {
		k := all[shown()][zone]
		if k.saving < 1e-6 { // the zone's carbon does not change
			fmt.Fprintf(&b, "| %s | 0 %% | | | | | | |\n", zone)
			continue
		}
		e, err := s.errors(zone)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "| %s | %.1f %% | %.3f | %.3f | %.3f | %.1f %% | %.1f %% | %.1f %% |\n", zone, 100*k.saving, k.persistence, k.mean7, k.model,
			100*e[0], 100*e[1], 100*e[2])
	}
	return b.String(), nil
}

func (s *sources) row(b *strings.Builder, at setting, zones map[string]kept) {
	var savings, persistence, mean7, model []float64
	perfect, least, below := math.Inf(1), math.Inf(1), 0
	for _, zone := range s.table.Zones() {
		k := zones[zone]
		if k.saving < worth {
			continue
		}
		savings, persistence = append(savings, k.saving), append(persistence, k.persistence)
		mean7, model = append(mean7, k.mean7), append(model, k.model)
		perfect, least = min(perfect, k.perfect), min(least, k.model-k.mean7)
		if k.model < k.mean7-0.02 {
			below++
		}
	}
	if len(savings) == 0 {
		fmt.Fprintf(b, "| %d h | %d h | %t | 0 | | | | | | | |\n", at.hours, at.slack, at.interruptible)
		return
	}
	fmt.Fprintf(b, "| %d h | %d h | %t | %d | %.1f %% | %.4f | %.3f | %.3f | %.3f | %+.3f | %d |\n", at.hours, at.slack, at.interruptible, len(savings),
		100*median(savings), perfect, median(persistence), median(mean7), median(model), least, below)
}

// keeps plays one zone in one setting.
func (s *sources) keeps(zone string, at setting) (kept, error) {
	mesh := "regions: {here: {zone: " + zone + ", watts_per_cpu: 1000}}\n"
	var trace strings.Builder
	trace.WriteString("arrival_s,duration_s,max_delay_s,interruptible\n")
	const week = 7 * 24
	last := int(s.table.End().Sub(s.table.Start())/time.Hour) - at.hours - at.slack
	for h := week; h <= last; h += s.every {
		fmt.Fprintf(&trace, "%d,%d,%d,%t\n", h*3600, at.hours*3600, at.slack*3600, at.interruptible)
	}
	var shares [4]float64
	var out kept
	var home, best float64
	for i, f := range [...]simulate.Forecast{simulate.Perfect, simulate.Yesterday, simulate.Mean7, simulate.Model} {
		policies := []simulate.Policy{simulate.Isobar}
		if i == 0 { // the others do not look at a forecast
			policies = append(policies, simulate.Home, simulate.Oracle)
		}
		got, err := s.play(mesh, trace.String(), simulate.Options{Objective: simulate.Carbon, Forecast: f, Policies: policies})
		if err != nil {
			return out, fmt.Errorf("zone %s: %w", zone, err)
		}
		if i == 0 {
			home, best = got[simulate.Home].GCO2eq, *got[simulate.Oracle].LowerBound
			out.saving = (home - best) / home
		}
		shares[i] = (home - got[simulate.Isobar].GCO2eq) / (home - best)
	}
	out.perfect, out.persistence, out.mean7, out.model = shares[0], shares[1], shares[2], shares[3]
	return out, nil
}

// errors are the mean errors of the three forecasts over the next 24 hours, as
// shares of the zone's mean: persistence, mean of seven days, own.
func (s *sources) errors(zone string) (out [3]float64, err error) {
	var rows []float64
	for at := s.table.Start(); at.Before(s.table.End()); at = at.Add(time.Hour) {
		r, err := s.table.At(zone, at)
		if err != nil {
			return out, err
		}
		rows = append(rows, r.Intensity)
	}
	const week, ahead = 7 * 24, 24
	model, sum := carbon.NewModel(rows), 0.0
	for h := week; h+ahead < len(rows); h++ {
		model.Advance(h)
		for k := 1; k <= ahead; k++ {
			came := rows[h+k]
			sum += came
			for i, x := range [...]float64{carbon.SameHour(rows, h, k), carbon.Mean7(rows, h, k), model.Ahead(k)} {
				out[i] += math.Abs(x - came)
			}
		}
	}
	for i := range out {
		out[i] /= sum
	}
	return out, nil
}
