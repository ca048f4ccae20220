package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/loadtest"
	"github.com/isobar-mesh/isobar/simulate"
)

const (
	// watts of an H100 SXM at its limit: "Max Thermal Design Power (TDP): up to
	// 700W (configurable)" of NVIDIA's product table,
	// https://www.nvidia.com/en-us/data-center/h100/. The source of the times has
	// no power of the H100, so each is taken to draw its limit.
	watts = 700
	// window is how much of the hour-long trace is played, and patience how
	// long a request may wait.
	window   = 6 * time.Minute
	patience = 10
)

// places are the regions of the table, with local solar time.
func places() []loadtest.Place {
	return []loadtest.Place{
		{Region: "asia-northeast1", UTCOffset: 9}, {Region: "asia-south1", UTCOffset: 5.5}, {Region: "asia-southeast1", UTCOffset: 7},
		{Region: "australia-southeast1", UTCOffset: 10}, {Region: "europe-north1", UTCOffset: 2}, {Region: "europe-west1", UTCOffset: 0},
		{Region: "europe-west2", UTCOffset: 0}, {Region: "europe-west3", UTCOffset: 1}, {Region: "europe-west9", UTCOffset: 0},
		{Region: "northamerica-northeast1", UTCOffset: -5}, {Region: "southamerica-east1", UTCOffset: -3}, {Region: "us-central1", UTCOffset: -6},
		{Region: "us-east4", UTCOffset: -5}, {Region: "us-west1", UTCOffset: -8}, {Region: "us-west2", UTCOffset: -8},
	}
}

// geography is what the table reads of the regions.
type geography struct {
	zones map[string]string
	rtt   map[[2]string]string
}

func (s *sources) geography() (geography, error) {
	g := geography{rtt: map[[2]string]string{}}
	data, err := os.ReadFile(filepath.Join(s.data, "latency-gcp", "gcp-region-to-zone.json"))
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(data, &g.zones); err != nil {
		return g, err
	}
	for region, zone := range g.zones {
		g.zones[region] = strings.Replace(zone, "AUS-", "AU-", 1)
	}
	f, err := os.Open(filepath.Join(s.data, "latency-gcp", "gcp-latency-pairs.csv"))
	if err != nil {
		return g, err
	}
	defer func() { _ = f.Close() }() // only read
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return g, err
	}
	for _, r := range rows[1:] {
		g.rtt[[2]string{r[0], r[1]}] = r[2]
	}
	return g, nil
}

// mesh of the places, each with so many request slots.
func (g *geography) mesh(slots map[string]int) string {
	var b strings.Builder
	b.WriteString("regions:\n")
	for _, p := range places() {
		fmt.Fprintf(&b, "  %s: {zone: %s, gpus: {H100: %d}, usd_per_gpu_hour: {H100: 6.98}, watts_per_cpu: 0, watts_per_gpu: {H100: %d}, pue: 1.1}\n",
			p.Region, g.zones[p.Region], simulate.RequestGPUs*slots[p.Region], watts)
	}
	return b.String() + g.distances()
}

// distances are the round trips of the mesh.
func (g *geography) distances() string {
	var b strings.Builder
	b.WriteString("rtt_ms:\n")
	for _, from := range places() {
		var row []string
		for _, to := range places() {
			if from != to {
				row = append(row, to.Region+": "+g.rtt[[2]string{from.Region, to.Region}])
			}
		}
		fmt.Fprintf(&b, "  %s: {%s}\n", from.Region, strings.Join(row, ", "))
	}
	return b.String()
}

// limits of the round trip, ms, and shares of idle capacity, per cent.
func limits() []int     { return []int{20, 50, 100, 150, 200} }
func idleShares() []int { return []int{20, 50, 90} }

// sums over the starts.
type sums struct {
	grams   map[simulate.Policy]float64
	misses  map[simulate.Policy]int
	bound   float64
	minimum float64
}

// requests is the table of the LLM request trace.
func (s *sources) requests() (string, error) {
	g, err := s.geography()
	if err != nil {
		return "", err
	}
	whole, err := loadtest.ReadAzureLLMFile(filepath.Join(s.data, "azure-llm-2023", "AzureLLMInferenceTrace_conv.csv.gz"))
	if err != nil {
		return "", err
	}
	cut := whole.Window(0, window)
	if err := s.recall(); err != nil {
		return "", err
	}
	// A start is played in all settings before the next one is.
	for k := range s.starts {
		for _, limit := range limits() {
			for _, idle := range idleShares() {
				if _, err := s.start(&g, cut, limit, idle, k); err != nil {
					return "", err
				}
			}
		}
		fmt.Fprintf(s.log, "results: start %d of %d\n", k+1, s.starts)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Requests over regions

The first %v of the Azure LLM inference trace 2023, conversation (CC-BY 4.0, Patel et al., Splitwise, ISCA 2024): %d requests, %d starts over
2022, %d Google Cloud regions. A request takes %v on %d H100 at %d W each (Llama 2 70B, measured for Splitwise:
Mutinifni/splitwise-sim, perf_model.csv, batch 1, tensor parallel 2; whole requests within 2.5 %% of it; the board's limit by NVIDIA's product table), PUE 1.1 (Google Cloud's by
Cloud Carbon Footprint; network and embodied carbon are not counted), and may wait %d s. %s.
Idle capacity: what the mean load of a region's own requests leaves of its accelerators. Objective carbon. Carbon: Electricity Maps 2022 (ODbL);
round trips: decarbonization-potential (Apache-2.0). "Kept" is the saving against home, of what the oracle's lower bound saves: by isobar, by isobar
in the worst start, and by the best schedule that was found knowing all. The bound is that of schedules with no more misses than that one.
Remade by `+"`go run ./simulate/results -only requests -starts %d`"+`.

| limit | idle | home gCO2eq | cheapest | greenest | isobar | oracle | bound | kept | lowest start | kept by the oracle | misses: home | isobar | oracle |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
`, window, len(cut.Arrivals), s.starts, len(places()), simulate.Llama70B(), simulate.RequestGPUs, watts, patience, loadtest.SpreadRule, s.starts)
	for _, limit := range limits() {
		for _, idle := range idleShares() {
			t, err := s.sums(&g, cut, limit, idle)
			if err != nil {
				return "", err
			}
			home, isobar, oracle := t.grams[simulate.Home], t.grams[simulate.Isobar], t.grams[simulate.Oracle]
			fmt.Fprintf(&b, "| %d ms | %d %% | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %.1f %% | %.1f %% | %.1f %% | %d | %d | %d |\n", limit, idle, home,
				t.grams[simulate.Cheapest], t.grams[simulate.Greenest], isobar, oracle, t.bound,
				100*(home-isobar)/(home-t.bound), 100*t.minimum, 100*(home-oracle)/(home-t.bound),
				t.misses[simulate.Home], t.misses[simulate.Isobar], t.misses[simulate.Oracle])
		}
	}
	b.WriteString(requestsShow)
	return b.String(), nil
}

const requestsShow = `
Where less than 95 % is kept. With much idle capacity the bound is all but reached. At 20 % idle the clean regions are booked out, and have a few
places each; the bound may divide a request over places and moments, and lets as many be late as the oracle's schedule has, by as much as its
latest. The best schedule that was found knowing all, by 50,000 rounds of a local search, does not reach 95 % of it there either; isobar keeps 1 to 4
points less, as it does not know which requests will come. So it is with the deadlines: those it misses and the oracle meets are lost to bursts that
came after the bookings. Requests are put off by ten seconds at most, so what is kept is where they run. isobar moves what has not begun for a
newcomer here, which a mesh does not do.
`

// played is what the table needs of one start, in one limit and idle share.
type played struct {
	Limit, Idle int
	Start       time.Time
	Grams       map[simulate.Policy]float64
	Misses      map[simulate.Policy]int
	Bound       float64
}

// sums adds up every start for one limit and idle share.
func (s *sources) sums(g *geography, cut loadtest.Trace, limit, idle int) (sums, error) {
	t := sums{grams: map[simulate.Policy]float64{}, misses: map[simulate.Policy]int{}, minimum: math.Inf(1)}
	for k := range s.starts {
		one, err := s.start(g, cut, limit, idle, k)
		if err != nil {
			return t, err
		}
		for p, grams := range one.Grams {
			t.grams[p] += grams
			t.misses[p] += one.Misses[p]
		}
		home := one.Grams[simulate.Home]
		t.bound += one.Bound
		if home > one.Bound {
			t.minimum = min(t.minimum, (home-one.Grams[simulate.Isobar])/(home-one.Bound))
		}
	}
	return t, nil
}

// at is the start of that number, of so many: over the year, and, of 24, at four hours
// of the day. Half as many starts are every second one.
func (s *sources) at(k, of int) time.Time {
	return s.table.Start().Add(time.Duration(k*8760/of)*time.Hour + time.Duration(k*24/of)*time.Hour)
}

var errUnfinished = errors.New("time is over: run again with the same -cache")

// start plays one start, or finds it in the cache.
func (s *sources) start(g *geography, cut loadtest.Trace, limit, idle, k int) (played, error) {
	at := s.at(k, s.starts)
	out := played{Limit: limit, Idle: idle, Start: at, Grams: map[simulate.Policy]float64{}, Misses: map[simulate.Policy]int{}}
	if known := s.cached(out); known != nil {
		return *known, nil
	}
	if !s.until.IsZero() && time.Now().After(s.until) {
		return out, errUnfinished
	}
	trace, slots := spread(cut, at, limit, idle)
	got, err := s.play(g.mesh(slots), trace, simulate.Options{Objective: simulate.Carbon, Start: at})
	if err != nil {
		return out, err
	}
	for p, r := range got {
		out.Grams[p], out.Misses[p] = r.GCO2eq, r.DeadlineMisses
	}
	out.Bound = *got[simulate.Oracle].LowerBound
	return out, s.keep(out)
}

// cached finds what was played before, or nil.
func (s *sources) cached(want played) *played {
	for i := range s.played {
		if p := &s.played[i]; p.Limit == want.Limit && p.Idle == want.Idle && p.Start.Equal(want.Start) {
			return p
		}
	}
	return nil
}

// recall reads what an earlier run has kept.
func (s *sources) recall() error {
	if s.cache == "" {
		return nil
	}
	data, err := os.ReadFile(s.cache)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for line := range bytes.Lines(data) {
		var p played
		if err := json.Unmarshal(line, &p); err != nil {
			return fmt.Errorf("cache %s: %w", s.cache, err)
		}
		s.played = append(s.played, p)
	}
	return nil
}

func (s *sources) keep(p played) error {
	s.played = append(s.played, p)
	if s.cache == "" {
		return nil
	}
	line, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.cache, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// spread gives the requests homes by the time of day, and the regions the
// slots that leave so much idle.
func spread(cut loadtest.Trace, start time.Time, limit, idle int) (trace string, slots map[string]int) {
	t := loadtest.Trace{Start: start, Arrivals: append([]loadtest.Arrival(nil), cut.Arrivals...)}
	loadtest.Spread(uint64(start.Unix()), t, places())
	busy := map[string]float64{}
	var b strings.Builder
	b.WriteString("arrival_s,duration_s,home,cpu,gpu,max_rtt_ms,max_delay_s\n")
	for _, a := range t.Arrivals {
		run := simulate.Llama70B().Of(a.Input, a.Output)
		busy[a.Origin] += run
		fmt.Fprintf(&b, "%.7f,%.7f,%s,0,%d,%d,%d\n", a.At.Seconds(), run, a.Origin, simulate.RequestGPUs, limit, patience)
	}
	slots = map[string]int{}
	for _, p := range places() {
		slots[p.Region] = max(int(math.Ceil(busy[p.Region]/window.Seconds()/(1-float64(idle)/100))), 1)
	}
	return b.String(), slots
}
