package simulate

import (
	"math"
	"slices"
	"time"
)

// span is [from, to), from the carbon table's start.
type span struct{ from, to time.Duration }

// placing is how one job was run: by which option and when. A placing without
// an option is a job that nothing could run.
type placing struct {
	option *option
	start  time.Duration
	// pieces of work that was interrupted, in order; nil when it ran in one
	// from start.
	pieces []span
}

// spans calls f with each piece of a job that runs for so long.
func (p *placing) spans(run time.Duration, f func(span)) {
	if p.pieces == nil {
		f(span{p.start, p.start + run})
		return
	}
	for _, s := range p.pieces {
		f(s)
	}
}

func (p *placing) finish(run time.Duration) time.Duration {
	if n := len(p.pieces); n > 0 {
		return p.pieces[n-1].to
	}
	return p.start + run
}

// figures are what one placed job cost.
type figures struct {
	kwh, grams, usd, objective float64 // kwh and grams in all
	network, moved, embodied   float64 // kWh and grams of the network; grams
	wait, extrapolated         time.Duration
	late                       bool
}

// figures accounts for one job with true carbon and true durations.
func (w *world) figures(j *job, p *placing) figures {
	o := p.option
	run := j.run(o)
	f := figures{kwh: w.kwh(j, o), usd: w.usd(j, o), wait: p.finish(run) - j.arrival - run}
	intensity := w.regions[o.region].carbon
	if p.pieces == nil {
		f.grams = f.kwh * intensity.mean(p.start, p.start+run)
	} else {
		sum, total := 0.0, time.Duration(0)
		for _, s := range p.pieces {
			sum += intensity.mean(s.from, s.to) * float64(s.to-s.from)
			total += s.to - s.from
		}
		if total > 0 {
			f.grams = f.kwh * (sum / float64(total))
		}
	}
	p.spans(run, func(s span) { f.extrapolated += max(s.to-max(s.from, w.end), 0) })
	f.late = f.wait > j.MaxDelay
	f.network, f.moved = w.moving(j, o)
	f.embodied = w.embodied(j, o)
	f.kwh, f.grams = f.kwh+f.network, f.grams+(f.moved+f.embodied)
	f.objective = w.weights.gram*f.grams + w.weights.usd*f.usd + w.weights.second*(f.wait.Seconds()+o.rtt)
	return f
}

// account sums a schedule up, in the order of the trace.
func (w *world) account(name string, schedule []placing) PolicyReport {
	out := PolicyReport{Name: name, Tasks: len(w.jobs), Regions: map[string]RegionReport{}, Variants: map[string]map[string]int{}}
	for i := range w.regions {
		out.Regions[w.regions[i].Name] = RegionReport{}
	}
	for i := range w.mesh.Functions {
		f := &w.mesh.Functions[i]
		out.Variants[f.Name] = map[string]int{}
		for k := range f.Variants {
			out.Variants[f.Name][f.Variants[k].Name] = 0
		}
	}
	waits := make([]time.Duration, 0, len(w.jobs))
	for i := range w.jobs {
		j, p := &w.jobs[i], &schedule[i]
		if p.option == nil {
			out.Unplaced++
			continue
		}
		f := w.figures(j, p)
		waits = append(waits, f.wait)
		out.ObjectiveValue += f.objective
		out.EnergyKWh += f.kwh
		out.GCO2eq += f.grams
		out.NetworkKWh += f.network
		out.NetworkGCO2eq += f.moved
		out.EmbodiedGCO2eq += f.embodied
		out.USD += f.usd
		out.ExtrapolatedS += f.extrapolated.Seconds()
		if f.late {
			out.DeadlineMisses++
		}
		name := w.regions[p.option.region].Name
		r := out.Regions[name]
		r.Tasks++
		r.GCO2eq += f.grams
		r.USD += f.usd
		out.Regions[name] = r
		if p.option.variant >= 0 {
			out.Variants[j.Function][p.option.name]++
		}
	}
	out.MeanWaitS, out.P99WaitS = waitFigures(waits)
	return out
}

// waitFigures are the mean and the 99th percentile by nearest rank, seconds.
func waitFigures(waits []time.Duration) (mean, p99 float64) {
	if len(waits) == 0 {
		return 0, 0
	}
	for _, d := range waits {
		mean += d.Seconds()
	}
	slices.Sort(waits)
	return mean / float64(len(waits)), waits[int(math.Ceil(float64(len(waits))*99/100))-1].Seconds()
}

// value is what the objective counts for a schedule, and how many jobs are
// late in it.
func (w *world) value(schedule []placing) (objective float64, late int) {
	for i := range w.jobs {
		if schedule[i].option == nil {
			continue
		}
		f := w.figures(&w.jobs[i], &schedule[i])
		objective += f.objective
		if f.late {
			late++
		}
	}
	return objective, late
}
