package simulate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/meshfile"
)

// Policy names a way to place tasks.
type Policy string

// The policies.
const (
	Home     Policy = "home"
	Cheapest Policy = "cheapest"
	Greenest Policy = "greenest"
	Isobar   Policy = "isobar"
	Oracle   Policy = "oracle"
)

// Policies lists every policy, in the order of a report.
func Policies() []Policy { return []Policy{Home, Cheapest, Greenest, Isobar, Oracle} }

// Objective names what isobar and the oracle minimise.
type Objective string

// The objectives.
const (
	Carbon   Objective = "carbon"   // grams of CO2eq
	Cost     Objective = "cost"     // USD
	Latency  Objective = "latency"  // wait and round trip, seconds
	Balanced Objective = "balanced" // USD, with carbon and latency priced
)

// Objectives lists every objective.
func Objectives() []Objective { return []Objective{Carbon, Cost, Latency, Balanced} }

// Forecast names what isobar knows of the carbon to come.
type Forecast string

// The forecasts.
const (
	Perfect Forecast = "perfect"
	// Yesterday is persistence: the same hour of the day before.
	Yesterday Forecast = "persistence"
	// Mean7 is the mean of the same hour over the last seven days.
	Mean7 Forecast = "mean7"
	// Model is the project's own, from past rows only.
	Model Forecast = "model"
)

// Forecasts lists every forecast.
func Forecasts() []Forecast { return []Forecast{Perfect, Yesterday, Mean7, Model} }

// Durations says what isobar knows of run times.
type Durations string

// The two.
const (
	Known   Durations = "known"
	Learned Durations = "learned"
)

// Choice says how isobar decides over region, start and variant.
type Choice string

// The choices.
const (
	// Joint weighs every combination at once.
	Joint Choice = "joint"
	// InSequence decides the region, of those with room now, then the start, then
	// the variant: to see what the joint choice is worth. BookedSequence does the
	// same, but takes any region with room in time, as what is booked there tells.
	// Both take known durations and fresh digests.
	InSequence     Choice = "sequence"
	BookedSequence Choice = "sequence-booked"
)

const (
	// DefaultCarbonPrice is USD a tonne: the social cost of carbon for emissions
	// of 2020 at 2 % discount, in the report of the US EPA of November 2023.
	DefaultCarbonPrice = 190
	// DefaultLatencyPrice is USD a second: what one waiting machine core costs,
	// 0.048 USD an hour, a quarter of Azure's D4s_v5 in eastus, pay as you go,
	// 2026-06-18. It is a server's default too.
	DefaultLatencyPrice = 0.0000133
)

// Errors of Run, wrapped with what they concern.
var (
	ErrStart  = errors.New("outside the carbon table")
	ErrOption = errors.New("option cannot be")
	ErrInput  = errors.New("input is missing")
)

// Input is what is played. Nothing of it is changed.
type Input struct {
	Mesh   *meshfile.Mesh
	Trace  *Trace
	Carbon *carbon.Table
}

// Options of a run. The zero value is every policy by the balanced objective
// without prices; NewOptions fills in the defaults of the command.
type Options struct {
	// Start is the time of the trace's zero; the zero time is the first row of
	// the carbon table.
	Start time.Time
	// Policies in the order of the report; none is all.
	Policies  []Policy
	Objective Objective // empty: Balanced
	Forecast  Forecast  // empty: Perfect
	Durations Durations // empty: Known
	Choice    Choice    // empty: Joint
	// OneByOne lets isobar decide each task by itself, as the cells of a mesh do:
	// without shadow prices, and what is planned is not moved for a newcomer.
	OneByOne bool
	// DigestAge is how old isobar's knowledge of other regions' free capacity
	// is; 0 or more.
	DigestAge time.Duration
	// NoInFlight lets homes forget what they have sent to other regions and no
	// digest shows yet: to see what it is worth to remember.
	NoInFlight bool
	// CarbonPrice is USD a tonne of CO2eq, LatencyPrice USD a second.
	CarbonPrice  float64
	LatencyPrice float64
	// Progress, when not nil, is told now and then how much of a policy is done.
	Progress func(policy Policy, done, of int)
}

// NewOptions returns the defaults.
func NewOptions() Options {
	return Options{
		Policies: Policies(), Objective: Balanced, Forecast: Perfect, Durations: Known,
		CarbonPrice: DefaultCarbonPrice, LatencyPrice: DefaultLatencyPrice,
	}
}

// complete checks the options and fills in what is empty.
func (o *Options) complete() error {
	if len(o.Policies) == 0 {
		o.Policies = Policies()
	}
	for _, p := range o.Policies {
		if err := oneOf("policy", p, Policies()); err != nil {
			return err
		}
	}
	if o.Objective == "" {
		o.Objective = Balanced
	}
	if o.Forecast == "" {
		o.Forecast = Perfect
	}
	if o.Durations == "" {
		o.Durations = Known
	}
	if o.Choice == "" {
		o.Choice = Joint
	}
	if err := errors.Join(oneOf("objective", o.Objective, Objectives()), oneOf("forecast", o.Forecast, Forecasts()),
		oneOf("durations", o.Durations, []Durations{Known, Learned}), oneOf("choice", o.Choice, []Choice{Joint, InSequence, BookedSequence})); err != nil {
		return err
	}
	if o.Choice != Joint && (o.Durations != Known || o.DigestAge != 0) {
		return fmt.Errorf("simulate: choice %s: %w: takes known durations and fresh digests", o.Choice, ErrOption)
	}
	if o.DigestAge < 0 {
		return fmt.Errorf("simulate: digest age %v: %w: must be 0 or more", o.DigestAge, ErrOption)
	}
	if !(o.CarbonPrice >= 0 && o.CarbonPrice <= maxAmount) {
		return fmt.Errorf("simulate: carbon price %g: %w: must be from 0 to %g", o.CarbonPrice, ErrOption, float64(maxAmount))
	}
	if !(o.LatencyPrice >= 0 && o.LatencyPrice <= maxAmount) {
		return fmt.Errorf("simulate: latency price %g: %w: must be from 0 to %g", o.LatencyPrice, ErrOption, float64(maxAmount))
	}
	return nil
}

func oneOf[T ~string](what string, x T, all []T) error {
	if slices.Contains(all, x) {
		return nil
	}
	names := make([]string, len(all))
	for i := range all {
		names[i] = string(all[i])
	}
	return fmt.Errorf("simulate: %s %q: %w: use one of %s", what, string(x), ErrOption, strings.Join(names, ", "))
}

// weights of the objective.
func (o *Options) weights() weights {
	switch o.Objective {
	case Carbon:
		return weights{gram: 1}
	case Cost:
		return weights{usd: 1}
	case Latency:
		return weights{second: 1}
	default:
		return weights{gram: o.CarbonPrice / 1e6, usd: 1, second: o.LatencyPrice}
	}
}

// Run plays the trace by every policy asked for. Errors are those of the
// input: a *ParseError of the trace, a *carbon.ParseError for a zone that the
// table lacks, ErrStart, ErrOption or ErrInput.
func Run(in Input, opts Options) (*Report, error) {
	if in.Mesh == nil || in.Trace == nil || in.Carbon == nil {
		return nil, fmt.Errorf("simulate: run: %w: mesh, trace and carbon are all required", ErrInput)
	}
	if err := opts.complete(); err != nil {
		return nil, err
	}
	w, err := newWorld(in, opts)
	if err != nil {
		return nil, err
	}
	w.weights = opts.weights()
	report := &Report{
		Version: reportVersion, Objective: opts.Objective, CarbonPrice: opts.CarbonPrice, LatencyPrice: opts.LatencyPrice,
		Forecast: opts.Forecast, Durations: opts.Durations, Sources: w.sources(), world: w,
	}
	schedules := map[Policy][]placing{}
	for _, p := range opts.Policies {
		if p != Oracle && schedules[p] == nil {
			schedules[p] = w.play(p, &opts)
		}
	}
	for _, p := range opts.Policies {
		var bound *float64
		if p == Oracle {
			var known [][]placing
			for _, q := range Policies() {
				if s := schedules[q]; s != nil {
					known = append(known, s)
				}
			}
			s, low := w.oracle(known, opts.progress(p))
			schedules[p], bound = s, &low
		}
		out := w.account(string(p), schedules[p])
		if p == Isobar {
			out.Refusals, out.SecondTries = w.refusals, w.secondTries
		}
		if bound != nil {
			low := min(*bound, out.ObjectiveValue)
			out.LowerBound = &low
		}
		report.Policies = append(report.Policies, out)
		report.schedules = append(report.schedules, schedules[p])
	}
	return report, nil
}

// progress returns what tells how much of the policy is done, or does nothing.
func (o *Options) progress(p Policy) func(done, of int) {
	if o.Progress == nil {
		return func(int, int) {}
	}
	return func(done, of int) { o.Progress(p, done, of) }
}

// play runs one policy other than the oracle.
func (w *world) play(p Policy, opts *Options) []placing {
	if p == Isobar {
		return newPlayer(w, opts).play()
	}
	return w.queue(p, opts.progress(p))
}
