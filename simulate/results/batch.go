package main

import (
	"fmt"
	"math"
	"strings"
	"time"

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
	saving                float64 // the oracle's, of what starting at once emits
	perfect, mean7, model float64
}

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
more. Carbon: Electricity Maps 2022 (ODbL, via UMass decarbonization-potential). Remade by
`+"`go run ./simulate/results -only forecast`"+`.

| work | slack | pieces | zones | oracle saves (median) | perfect (lowest) | 7-day mean (median) | own (median) | own − mean, lowest | below by > 0.02 |
|---|---|---|---|---|---|---|---|---|---|
`, s.every)
	for _, at := range settings {
		s.row(&b, at, all[at])
	}
	b.WriteString("\n## By zone: an hour's work with a day of slack\n\n| zone | oracle saves | 7-day mean | own |\n|---|---|---|---|\n")
	for _, zone := range s.table.Zones() {
		k := all[setting{1, 24, false}][zone]
		fmt.Fprintf(&b, "| %s | %.1f %% | %.3f | %.3f |\n", zone, 100*k.saving, k.mean7, k.model)
	}
	return b.String(), nil
}

func (s *sources) row(b *strings.Builder, at setting, zones map[string]kept) {
	var savings, mean7, model []float64
	perfect, least, below := math.Inf(1), math.Inf(1), 0
	for _, zone := range s.table.Zones() {
		k := zones[zone]
		if k.saving < worth {
			continue
		}
		savings, mean7, model = append(savings, k.saving), append(mean7, k.mean7), append(model, k.model)
		perfect, least = min(perfect, k.perfect), min(least, k.model-k.mean7)
		if k.model < k.mean7-0.02 {
			below++
		}
	}
	if len(savings) == 0 {
		fmt.Fprintf(b, "| %d h | %d h | %t | 0 | | | | | | |\n", at.hours, at.slack, at.interruptible)
		return
	}
	fmt.Fprintf(b, "| %d h | %d h | %t | %d | %.1f %% | %.4f | %.3f | %.3f | %+.3f | %d |\n", at.hours, at.slack, at.interruptible, len(savings),
		100*median(savings), perfect, median(mean7), median(model), least, below)
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
	var shares [3]float64
	var out kept
	for i, f := range [...]simulate.Forecast{simulate.Perfect, simulate.Mean7, simulate.Model} {
		got, err := s.play(mesh, trace.String(), simulate.Options{
			Objective: simulate.Carbon, Forecast: f, Policies: []simulate.Policy{simulate.Home, simulate.Isobar, simulate.Oracle},
		})
		if err != nil {
			return out, fmt.Errorf("zone %s: %w", zone, err)
		}
		home, best := got[simulate.Home].GCO2eq, *got[simulate.Oracle].LowerBound
		out.saving = (home - best) / home
		shares[i] = (home - got[simulate.Isobar].GCO2eq) / (home - best)
	}
	out.perfect, out.mean7, out.model = shares[0], shares[1], shares[2]
	return out, nil
}
