package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/simulate"
)

const (
	staleCells = 1000
	staleCores = 2 // of a cell
	staleTasks = 1500
	staleGap   = 300 * time.Millisecond // between arrivals
	staleRun   = 300                    // seconds, the mean
	staleSlack = 60                     // seconds
)

// stale is the table of old digests: what homes lose against fresh knowledge
// when they see the free room of a thousand cells late.
func (s *sources) stale() (string, error) {
	load := staleRun / staleGap.Seconds() / (staleCells * staleCores)
	var b strings.Builder
	fmt.Fprintf(&b, `# Old digests and herds

%d tasks of 1 core and %d s on average (exponential), one every %v, from few homes or many, over %d cells of %d cores in the %d zones of the
table: %.0f %% of all cores are busy once it runs, so the cells of the cleanest zones are full and every home wants the next best. Each may start up to
%d s late. A core draws 3.5 W, PUE 1.11 (Caribou, SOSP 2024, constants.py). Objective carbon, from 2022-06-01.
A home sees another cell's free cores as they were one digest age ago. It adds what it has sent there
itself since ("in flight"), or, to see what that is worth, does not. A cell without room refuses and tells how it is; the task is decided again
at once, and after a second refusal waits one digest age. Loss: the objective above that with fresh digests, of what fresh digests save against home.
Carbon: Electricity Maps 2022 (ODbL). Remade by `+"`go run ./simulate/results -only stale`"+`.

| homes | digest age | in flight | gCO2eq | loss | refused | second tries | mean wait | p99 wait | late |
|---|---|---|---|---|---|---|---|---|---|
`, staleTasks, staleRun, staleGap, staleCells, staleCores, len(s.table.Zones()), 100*load, staleSlack)
	mesh := s.staleMesh()
	for _, homes := range [...]int{10, staleCells} {
		trace := staleTrace(homes)
		var home, fresh float64
		for _, age := range [...]time.Duration{0, time.Second, 5 * time.Second, 15 * time.Second, time.Minute} {
			for _, blind := range [...]bool{false, true} {
				if age == 0 && blind {
					continue // nothing is in flight that fresh digests do not show
				}
				policies := []simulate.Policy{simulate.Isobar}
				if age == 0 {
					policies = append(policies, simulate.Home)
				}
				got, err := s.play(mesh, trace, simulate.Options{
					Objective: simulate.Carbon, Start: time.Date(2022, 6, 1, 0, 0, 0, 0, time.UTC), Policies: policies, DigestAge: age, NoInFlight: blind, OneByOne: true,
				})
				if err != nil {
					return "", err
				}
				p := got[simulate.Isobar]
				if age == 0 {
					home, fresh = got[simulate.Home].ObjectiveValue, p.ObjectiveValue
				}
				counted := map[bool]string{false: "counted", true: "forgotten"}[blind]
				if age == 0 {
					counted = "–"
				}
				fmt.Fprintf(&b, "| %d | %v | %s | %.0f | %.1f %% | %.1f %% | %.1f %% | %.2f s | %.1f s | %d |\n", homes, age, counted, p.GCO2eq,
					100*(p.ObjectiveValue-fresh)/(home-fresh), 100*float64(p.Refusals)/float64(p.Tasks), 100*float64(p.SecondTries)/float64(p.Tasks),
					p.MeanWaitS, p.P99WaitS, p.DeadlineMisses)
				fmt.Fprintf(s.log, "results: %d homes, %v old, blind %t\n", homes, age, blind)
			}
		}
	}
	b.WriteString(staleShows)
	return b.String(), nil
}

const staleShows = `
What it shows. All homes rank cells alike, so a core that comes free is wanted by everyone until a digest shows that it is gone: from 5 s on nearly
every task is refused at its first and at its second choice, and waits a digest age. Grams hardly move, since the cells that refuse are as clean as
those that take; a loss below 0 means that tasks which had to wait met cleaner cores than those that took the first at once. The price is waiting:
the older the digests, the more tasks are late. To count what is in flight helps a home that sends much (ten homes), and does nothing for one that
sends a task now and then (a thousand homes). Each task is decided by itself, as on a mesh: what is planned is not moved for a newcomer.
`

func (s *sources) staleMesh() string {
	var b strings.Builder
	b.WriteString("regions:\n")
	zones := s.table.Zones()
	for i := range staleCells {
		fmt.Fprintf(&b, "  c%03d: {zone: %s, cpu: %d, watts_per_cpu: 3.5, pue: 1.11}\n", i, zones[i%len(zones)], staleCores)
	}
	return b.String()
}

func staleTrace(homes int) string {
	r := rand.New(rand.NewPCG(1, uint64(homes)))
	var b strings.Builder
	b.WriteString("arrival_s,duration_s,home,max_delay_s\n")
	for k := range staleTasks {
		fmt.Fprintf(&b, "%.3f,%.3f,c%03d,%d\n", float64(k)*staleGap.Seconds(), staleRun*r.ExpFloat64(), r.IntN(homes)*staleCells/homes, staleSlack)
	}
	return b.String()
}
