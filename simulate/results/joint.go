package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/loadtest"
	"github.com/isobar-mesh/isobar/simulate"
)

const (
	// jobRequests is how many requests like the row of the trace a job serves, one
	// after the other.
	jobRequests = 1000
	// jobHours is over how many hours the trace is drawn out.
	jobHours = 72
	// accelerators of each model in a region.
	accelerators = 4
	// a100Watts is the "Max Thermal Design Power" of the A100 80GB SXM in NVIDIA's
	// product table, https://www.nvidia.com/en-us/data-center/a100/.
	a100Watts = 400
)

// slacks of the jobs, in turn, hours.
func slacks() []int { return []int{2, 6, 24} }

// implementation is one way to run a job.
type implementation struct {
	name, model string
	gpus        int
	seconds     float64 // of a request of 1,024 tokens in and 128 out
}

// implementations have the medians of e2e_time of the rows llama2-70b,
// prompt_size 1024, token_size 128, batch_size 1 in data/perf_model.csv of
// Mutinifni/splitwise-sim at 37808801. The medians of the trace are 1,020 tokens
// in and 129 out. Eight H100 are no faster than four there.
func implementations() []implementation {
	return []implementation{{"a100x2", "A100", 2, 7.336}, {"h100x2", "H100", 2, 4.910}, {"h100x4", "H100", 4, 3.848}}
}

func implementationNames(between string) string {
	var out []string
	for _, v := range implementations() {
		out = append(out, v.name)
	}
	return strings.Join(out, between)
}

// over is the implementation's run time by that of the trace, two H100.
func (v implementation) over() float64 { return v.seconds / implementations()[1].seconds }

// batchMesh has as many accelerators of both models everywhere.
func (g *geography) batchMesh() string {
	var b strings.Builder
	b.WriteString("regions:\n")
	for _, p := range places() {
		fmt.Fprintf(&b, "  %s: {zone: %s, gpus: {A100: %d, H100: %d}, watts_per_gpu: {A100: %d, H100: %d}, pue: 1.1}\n",
			p.Region, g.zones[p.Region], accelerators, accelerators, a100Watts, watts)
	}
	b.WriteString(g.distances())
	b.WriteString("functions:\n  llama:\n    variants:\n")
	for _, v := range implementations() {
		fmt.Fprintf(&b, "      %s: {gpu: %d, gpu_model: %s, duration_x: %.4f}\n", v.name, v.gpus, v.model, v.over())
	}
	return b.String()
}

func jobHoursOf(a loadtest.Arrival) float64 {
	return jobRequests * simulate.Llama70B().Of(a.Input, a.Output) / time.Hour.Seconds()
}

// jobs are so many rows of the trace, evenly picked and drawn out, that their
// work is the share of what the mesh can do with its accelerators in pairs.
func jobs(whole loadtest.Trace, at time.Time, load int) (trace string, n int) {
	rows, mean := whole.Arrivals, 0.0
	for _, a := range rows {
		mean += jobHoursOf(a) / float64(len(rows))
	}
	can := 0.0 // jobs in an hour
	for _, v := range implementations()[:2] {
		can += float64(len(places())*accelerators/v.gpus) / (mean * v.over())
	}
	n = max(int(can*jobHours*float64(load)/100), 1)
	t := loadtest.Trace{Start: at}
	last := max(rows[len(rows)-1].At, 1)
	for i := range n {
		a := rows[i*len(rows)/n]
		a.At = time.Duration(float64(a.At) / float64(last) * float64(jobHours*time.Hour))
		t.Arrivals = append(t.Arrivals, a)
	}
	loadtest.Spread(uint64(at.Unix()), t, places())
	var b strings.Builder
	b.WriteString("arrival_s,duration_s,home,function,cpu,max_delay_s\n")
	for i, a := range t.Arrivals {
		slack := slacks()[i%len(slacks())] * int(time.Hour.Seconds())
		fmt.Fprintf(&b, "%.3f,%.3f,%s,llama,0,%d\n", a.At.Seconds(), jobHoursOf(a)*time.Hour.Seconds(), a.Origin, slack)
	}
	return b.String(), n
}

// choices adds up the starts of one load: by policy, and isobar's by choice.
type choices struct {
	jobs, better int // starts in which the joint choice emits less than both others
	grams        map[string]float64
	late         map[string]int
	variants     map[string]map[string]int
}

const inSequence, booked, jointly = string(simulate.InSequence), string(simulate.BookedSequence), string(simulate.Joint)

// jointStarts bounds the starts of this table.
const jointStarts = 12

// joint is the table of the joint choice against one in sequence.
func (s *sources) joint() (string, error) {
	g, err := s.geography()
	if err != nil {
		return "", err
	}
	whole, err := loadtest.ReadAzureLLMFile(filepath.Join(s.data, "azure-llm-2023", "AzureLLMInferenceTrace_conv.csv.gz"))
	if err != nil {
		return "", err
	}
	starts := min(s.starts, jointStarts)
	var b strings.Builder
	fmt.Fprintf(&b, `# Region, start and variant at once

What it is worth to decide the three together, against choosing the region, then the start, then the variant, by how much of the mesh is in
use. Jobs: rows of the Azure LLM inference trace 2023, conversation (CC-BY 4.0, Patel et al., Splitwise, ISCA 2024), evenly picked and drawn out
over %d hours; a job serves %d requests like its row, one after the other, in %v each on 2 H100 (Llama 2 70B, measured for Splitwise:
Mutinifni/splitwise-sim, perf_model.csv), and may start 2, 6 or 24 h late, in turn. It runs as %s: run times by the same table's medians of whole
requests of 1,024 tokens in and 128 out. Power: the boards' limits, H100 %d W, A100 %d W (NVIDIA's product tables), PUE 1.1 (Google Cloud's by Cloud
Carbon Footprint); network and embodied carbon are not counted. Mesh: %d Google Cloud
regions with %d A100 and %d H100 each. Load: the jobs' work, of what these can do in pairs. %d starts over 2022. Homes: %s.
Objective carbon; no round trip is too long, nothing is sent. Carbon: Electricity Maps 2022 (ODbL). Remade by `+"`go run ./simulate/results -only joint`"+`.

"Sequence": of the regions with room now, the one with the lowest mean cost of its variants at the present intensity; there the best start by the
forecast at which any variant has room; then the cheapest variant that has room then. "Booked": the same, but of all regions that have room in
time, which takes a calendar of what is booked, everywhere. "Joint": the policy isobar. All three decide task by task, as the cells of a mesh do, and
book what they chose: nothing is moved for a newcomer, and there are no shadow prices. Where the forecast changes, what has not begun is decided again
every hour. Gain: what joint emits less.

| forecast | load | jobs | home kgCO2eq | greenest | sequence | booked | joint | gain on sequence | on booked | starts in which joint is best | late: greenest | sequence | booked | joint | %s, %%: sequence | booked | joint |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
`, jobHours, jobRequests, simulate.Llama70B(), implementationNames(", "), watts, a100Watts, len(places()), accelerators, accelerators,
		starts, loadtest.SpreadRule, implementationNames(" / "))
	for _, forecast := range [...]simulate.Forecast{simulate.Perfect, simulate.Model} {
		for _, load := range [...]int{20, 50, 80, 90} {
			c, err := s.choices(&g, whole, load, starts, forecast)
			if err != nil {
				return "", err
			}
			c.row(&b, forecast, load, starts)
			fmt.Fprintf(s.log, "results: forecast %s, %d %% load\n", forecast, load)
		}
	}
	b.WriteString(jointShows)
	return b.String(), nil
}

const jointShows = `
What it shows. Most of the gain is to know when there will be room. A chooser of regions that sees only what is free now leaves a clean region as
soon as it is full, and its task then waits for a better hour in a dirtier one: so it emits more than greenest, which starts everything at once,
until the mesh is nearly full. A sequence that reads the calendars of all regions has answered half of the joint question already. What it still
loses is between the steps: the region is chosen by the carbon of now and not of the hour in which the task will run, and the hour for a mean
variant and not for the one that runs; four H100 are taken only by a sequence, where nothing else has room at the start it chose.

Where it is not better. With an uncertain forecast the joint choice is not the best in every start, and at 90 % load it may have more late tasks than
the sequence that reads calendars: task by task, each takes its own best, and who comes later finds the rest. The full policy isobar moves plans for
newcomers; a mesh does not, so this table does not either.
`

func (c *choices) row(b *strings.Builder, forecast simulate.Forecast, load, starts int) {
	kg := func(name string) float64 { return c.grams[name] / 1000 }
	gain := func(name string) float64 { return 100 * (c.grams[name] - c.grams[jointly]) / c.grams[name] }
	fmt.Fprintf(b, "| %s | %d %% | %d | %.0f | %.0f | %.0f | %.0f | %.0f | %.1f %% | %.1f %% | %d of %d | %d | %d | %d | %d | %s | %s | %s |\n", forecast, load,
		c.jobs, kg("home"), kg("greenest"), kg(inSequence), kg(booked), kg(jointly), gain(inSequence), gain(booked), c.better, starts,
		c.late["greenest"], c.late[inSequence], c.late[booked], c.late[jointly], c.shares(inSequence), c.shares(booked), c.shares(jointly))
}

// shares of the implementations, in whole per cent.
func (c *choices) shares(choice string) string {
	var out []string
	for _, v := range implementations() {
		out = append(out, fmt.Sprintf("%.0f", 100*float64(c.variants[choice][v.name])/float64(c.jobs)))
	}
	return strings.Join(out, " / ")
}

func (s *sources) choices(g *geography, whole loadtest.Trace, load, starts int, forecast simulate.Forecast) (choices, error) {
	c := choices{grams: map[string]float64{}, late: map[string]int{}, variants: map[string]map[string]int{inSequence: {}, booked: {}, jointly: {}}}
	mesh := g.batchMesh()
	for k := range starts {
		at := s.at(k, starts)
		trace, n := jobs(whole, at, load)
		c.jobs += n
		emitted := map[string]float64{}
		for choice, policies := range map[string][]simulate.Policy{
			inSequence: {simulate.Isobar}, booked: {simulate.Isobar}, jointly: {simulate.Isobar, simulate.Home, simulate.Greenest},
		} {
			got, err := s.play(mesh, trace, simulate.Options{
				Objective: simulate.Carbon, Start: at, Forecast: forecast, Choice: simulate.Choice(choice), Policies: policies,
				OneByOne: true,
			})
			if err != nil {
				return c, err
			}
			for p, r := range got {
				name := string(p)
				if p == simulate.Isobar {
					name = choice
					for v, n := range r.Variants["llama"] {
						c.variants[choice][v] += n
					}
				}
				emitted[name] = r.GCO2eq
				c.late[name] += r.DeadlineMisses
			}
		}
		for name, grams := range emitted {
			c.grams[name] += grams
		}
		if emitted[jointly] < min(emitted[inSequence], emitted[booked]) {
			c.better++
		}
	}
	return c, nil
}
