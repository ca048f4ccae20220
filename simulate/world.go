package simulate

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/meshfile"
)

const (
	hour = time.Hour
	// micro is the unit that cores and GiB are counted in, so that sums of
	// demands are exact.
	micro = 1e6
	// Places of a region's resources; accelerator models follow.
	resourceCPU    = 0
	resourceMemory = 1
	resourceGPU    = 2
	// unlimited is a capacity that is never reached.
	unlimited = math.MaxInt64
)

// region is a region of the mesh, with what it has and what it costs.
type region struct {
	*meshfile.Region
	carbon *curve
	models []string // of accelerators, sorted
	caps   []int64  // by resource: micro cores, micro GiB, accelerators
}

// amount is so much of one resource of a region.
type amount struct {
	resource int
	n        int64
}

// option is one way to run a task: a region, a variant and a model of
// accelerator.
type option struct {
	region  int // in world.regions
	variant int // in function.Variants; -1 without variants
	name    string
	model   string
	durX    float64
	kwX     float64
	watts   float64 // of a task without its own kw
	made    float64 // embodied carbon, grams an hour
	usdHour float64
	egress  float64 // USD a GiB of input
	network float64 // kWh a GiB of input
	rtt     float64 // seconds
	rttMs   float64
	known   bool // the round trip is
	home    bool
	cpu     float64
	gpu     int64
	need    []amount // of the limited resources
	quality float64
}

// shape is what tasks have in common that may run in the same ways.
type shape struct {
	options []option // by region name, then variant, then model
	minimum float64  // quality
}

// shapeKey tells shapes apart.
type shapeKey struct {
	function, home, model, residency string
	cpu, memory, rtt                 float64
	busyCPU, busyGPU                 float64
	gpu                              int64
	bound, powered                   bool
}

// job is a task with its ways to run. Times are from the carbon table's start.
type job struct {
	*Task
	shape   *shape
	row     int
	arrival time.Duration
}

// latest is the last start in time, of work that is not interrupted.
func (j *job) latest() time.Duration { return j.arrival + j.MaxDelay }

// weights of the objective: what a gram, a dollar and a second count.
type weights struct{ gram, usd, second float64 }

// world is the input, checked and made ready.
type world struct {
	mesh    *meshfile.Mesh
	trace   *Trace
	table   *carbon.Table
	regions []region // by name
	place   map[string]int
	jobs    []job
	start   time.Duration // of the run, from the table's start
	end     time.Duration // of the table
	shapes  map[shapeKey]*shape
	weights weights
	limits  bool // any option needs a limited resource

	// Of the policy isobar: starts that a region without room refused, and tasks
	// that were decided again at once after that.
	refusals, secondTries int
}

func newWorld(in Input, opts Options) (*world, error) {
	w := &world{mesh: in.Mesh, trace: in.Trace, table: in.Carbon, place: map[string]int{}, shapes: map[shapeKey]*shape{}}
	if err := w.setStart(opts.Start); err != nil {
		return nil, err
	}
	if err := w.setRegions(); err != nil {
		return nil, err
	}
	for i := range in.Trace.Tasks {
		t := &in.Trace.Tasks[i]
		s, err := w.shapeOf(t)
		if err != nil {
			return nil, err
		}
		w.jobs = append(w.jobs, job{Task: t, shape: s, row: i, arrival: w.start + t.Arrival})
	}
	return w, nil
}

func (w *world) setStart(start time.Time) error {
	w.end = w.table.End().Sub(w.table.Start())
	if start.IsZero() {
		return nil
	}
	w.start = start.Sub(w.table.Start())
	if w.start < 0 || w.start >= w.end {
		return fmt.Errorf("simulate: start at %s: %w: %s runs from %s to %s", start.UTC().Format(time.RFC3339), ErrStart,
			w.table.Source(), w.table.Start().Format(time.RFC3339), w.table.End().Format(time.RFC3339))
	}
	return nil
}

func (w *world) setRegions() error {
	zones := map[string]*curve{}
	for i := range w.mesh.Regions {
		r := region{Region: &w.mesh.Regions[i]}
		if err := w.table.Require(r.Zone); err != nil {
			return fmt.Errorf("simulate: region %s: %w", r.Name, err)
		}
		if zones[r.Zone] == nil {
			rows := make([]float64, int(w.end/hour))
			for k := range rows {
				reading, err := w.table.At(r.Zone, w.table.Start().Add(time.Duration(k)*hour))
				if err != nil {
					return fmt.Errorf("simulate: region %s: %w", r.Name, err)
				}
				rows[k] = reading.Intensity
			}
			zones[r.Zone] = newCurve(hour, rows)
		}
		r.carbon = zones[r.Zone]
		r.caps = []int64{capacity(r.CPU), capacity(r.MemoryGiB)}
		for model := range r.GPUs {
			r.models = append(r.models, model)
		}
		slices.Sort(r.models)
		for _, model := range r.models {
			r.caps = append(r.caps, r.GPUs[model])
		}
		w.regions = append(w.regions, r)
	}
	slices.SortFunc(w.regions, func(a, b region) int { return cmp.Compare(a.Name, b.Name) })
	for i := range w.regions {
		w.place[w.regions[i].Name] = i
	}
	return nil
}

func capacity(x float64) int64 {
	if math.IsInf(x, 1) {
		return unlimited
	}
	return int64(math.Round(x * micro))
}

// shapeOf finds the ways in which the task may run: what residency, round
// trip, quality and the regions' whole capacity allow.
func (w *world) shapeOf(t *Task) (*shape, error) {
	key := shapeKey{
		function: t.Function, home: t.Home, residency: strings.Join(t.Residency, ";"), cpu: t.CPU, memory: t.MemoryGiB,
		gpu: t.GPU, model: t.GPUModel, powered: t.KW != nil, busyCPU: t.CPUUtilisation, busyGPU: t.GPUUtilisation,
	}
	if t.MaxRTTMs != nil {
		key.bound, key.rtt = true, *t.MaxRTTMs
	}
	if s, ok := w.shapes[key]; ok {
		return s, nil
	}
	s := &shape{}
	variants := []meshfile.Variant{{DurationX: 1, KwX: 1, Quality: 1}}
	function, known := w.mesh.Function(t.Function)
	if known {
		variants, s.minimum = slices.Clone(function.Variants), function.MinQuality
	}
	for i := range w.regions {
		ok, err := w.allows(&w.regions[i], t)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		first := len(s.options)
		for k := range variants {
			if variants[k].Quality < s.minimum {
				continue
			}
			variant := k
			if !known {
				variant = -1
			}
			if s.options, err = w.options(s.options, i, t, &variants[k], variant); err != nil {
				return nil, err
			}
		}
		slices.SortStableFunc(s.options[first:], func(a, b option) int {
			return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.model, b.model))
		})
	}
	w.shapes[key] = s
	return s, nil
}

// allows checks residency and round trip.
func (w *world) allows(r *region, t *Task) (bool, error) {
	cell := mesh.Cell{Jurisdictions: r.Jurisdictions}
	if !cell.Within(mesh.Residency{Allowed: t.Residency}) {
		return false, nil
	}
	if t.MaxRTTMs == nil {
		return true, nil
	}
	ms, ok := w.mesh.RTTMs(t.Home, r.Name)
	if !ok {
		return false, &ParseError{
			Reader: "simulate", File: w.trace.Name, Line: t.Line, Field: "max_rtt_ms", Value: t.Home + " to " + r.Name, Err: ErrNoRoundTrip,
		}
	}
	return ms <= *t.MaxRTTMs, nil
}

// options appends the ways to run the variant in one region: one for each
// model of accelerator it may take.
func (w *world) options(out []option, place int, t *Task, v *meshfile.Variant, variant int) ([]option, error) {
	r := &w.regions[place]
	o := option{
		region: place, variant: variant, name: v.Name, durX: v.DurationX, kwX: v.KwX, quality: v.Quality,
		home: r.Name == t.Home, egress: w.mesh.EgressUSDPerGiB(t.Home, r.Name), cpu: t.CPU, gpu: t.GPU,
	}
	if v.CPU != nil {
		o.cpu = *v.CPU
	}
	if v.GPU != nil {
		o.gpu = *v.GPU
	}
	if !o.home {
		o.network = w.mesh.NetworkKWhPerGiB
	}
	o.rttMs, o.known = w.mesh.RTTMs(t.Home, r.Name)
	o.rtt = o.rttMs / 1000
	models := []string{""}
	if o.gpu > 0 {
		models = r.models
		if model := cmp.Or(v.GPUModel, t.GPUModel); model != "" {
			models = []string{model}
		}
	}
	for _, model := range models {
		full := o
		full.model = model
		var fits bool
		if full.need, fits = r.needs(&full, t.MemoryGiB); !fits {
			continue
		}
		full.usdHour = full.cpu * r.USDPerCPUHour
		if full.gpu > 0 {
			full.usdHour += float64(full.gpu) * r.USDPerGPUHour[model]
		}
		full.made = full.cpu*r.EmbodiedGPerCPUHour + float64(full.gpu)*r.EmbodiedGPerGPUHour[model]
		if t.KW == nil {
			busyCPU, busyGPU := utilisations(t, v)
			watts, missing := r.watts(&full, t.MemoryGiB, busyCPU, busyGPU)
			if missing != "" {
				return nil, &ParseError{
					Reader: "simulate", File: w.trace.Name, Line: t.Line, Field: "kw", Value: "region " + r.Name + " has no " + missing, Err: ErrNoPower,
				}
			}
			full.watts = watts
		}
		w.limits = w.limits || len(full.need) > 0
		out = append(out, full)
	}
	return out, nil
}

// needs lists what the option takes of the region's limited resources; fits is
// false when the region has not so much in all.
func (r *region) needs(o *option, memoryGiB float64) (need []amount, fits bool) {
	want := []amount{
		{resourceCPU, int64(math.Round(o.cpu * micro))},
		{resourceMemory, int64(math.Round(memoryGiB * micro))},
	}
	if o.gpu > 0 {
		i := slices.Index(r.models, o.model)
		if i < 0 {
			return nil, false
		}
		want = append(want, amount{resourceGPU + i, o.gpu})
	}
	for _, a := range want {
		switch c := r.caps[a.resource]; {
		case a.n > c:
			return nil, false
		case a.n > 0 && c != unlimited:
			need = append(need, a)
		}
	}
	return need, true
}

// utilisations are the task's, or those of the variant that says its own.
func utilisations(t *Task, v *meshfile.Variant) (cpu, gpu float64) {
	cpu, gpu = t.CPUUtilisation, t.GPUUtilisation
	if v.CPUUtilisation != nil {
		cpu = *v.CPUUtilisation
	}
	if v.GPUUtilisation != nil {
		gpu = *v.GPUUtilisation
	}
	return cpu, gpu
}

// between is the power at a utilisation.
func between(idle, busy, utilisation float64) float64 {
	if utilisation == 1 {
		return busy
	}
	return idle + utilisation*(busy-idle)
}

// watts is the power of the option by the region's figures; missing names the
// one that the mesh lacks.
func (r *region) watts(o *option, memoryGiB, busyCPU, busyGPU float64) (watts float64, missing string) {
	if o.cpu > 0 || o.gpu == 0 {
		if r.WattsPerCPU == nil {
			return 0, "watts_per_cpu"
		}
		watts = o.cpu * between(r.IdleWattsPerCPU, *r.WattsPerCPU, busyCPU)
	}
	watts += memoryGiB * r.WattsPerGiB
	if o.gpu > 0 {
		per, ok := r.WattsPerGPU[o.model]
		if !ok {
			return 0, "watts_per_gpu." + o.model
		}
		watts += float64(o.gpu) * between(r.IdleWattsPerGPU[o.model], per, busyGPU)
	}
	return watts, ""
}

// run is the time the job takes by the option.
func (j *job) run(o *option) time.Duration {
	if o.durX == 1 {
		return j.Duration
	}
	return fromSeconds(j.DurationS * o.durX)
}

func (j *job) hours(o *option) float64 { return j.DurationS * o.durX / 3600 }

// kw is the power at the meter.
func (w *world) kw(j *job, o *option) float64 {
	kw := o.watts / 1000
	if j.KW != nil {
		kw = *j.KW * o.kwX
	}
	return kw * w.regions[o.region].PUE
}

// kwh is the energy of the run, at the meter.
func (w *world) kwh(j *job, o *option) float64 { return w.kw(j, o) * j.hours(o) }

// moving is the energy of bringing the input there, and its carbon at the mean
// of both ends' intensities when the job arrives.
func (w *world) moving(j *job, o *option) (kwh, grams float64) {
	if o.network == 0 || j.InputGiB == 0 {
		return 0, 0
	}
	kwh = j.InputGiB * o.network
	home := &w.regions[w.place[j.Home]]
	return kwh, kwh * (home.carbon.at(j.arrival) + w.regions[o.region].carbon.at(j.arrival)) / 2
}

// embodied is the job's share of making what it runs on, grams.
func (w *world) embodied(j *job, o *option) float64 { return o.made * j.hours(o) }

// beside is the carbon that does not depend on when the job runs.
func (w *world) beside(j *job, o *option) float64 {
	_, grams := w.moving(j, o)
	return grams + w.embodied(j, o)
}

// usd is what is paid: compute and egress.
func (w *world) usd(j *job, o *option) float64 {
	return o.usdHour*j.hours(o) + j.InputGiB*o.egress
}
