package simulate

import (
	"fmt"
	"time"

	"github.com/isobar-mesh/isobar/loadtest/azure"
)

// RequestTime is how long an LLM request takes, in seconds: Base and so much
// for each token of input and of output.
type RequestTime struct{ Base, PerInput, PerOutput float64 }

// RequestGPUs is how many accelerators the requests of Llama70B take.
const RequestGPUs = 2

// Llama70B is the time of a request to Llama 2 70B on two H100 with one request
// at a time. It is fitted to the rows llama2-70b, h100-80gb, tensor_parallel 2,
// batch_size 1 of data/perf_model.csv in Mutinifni/splitwise-sim at 37808801,
// measured for Splitwise (Patel et al., ISCA 2024). By its medians, a whole
// request of 128 to 8,192 tokens in and 128 to 512 out lies within 2.5 % of it;
// a token of output within 1.4 %; the prompt alone within 4 % from 512 to 4,096
// tokens, 7.5 % below at 8,192, and 40 % below at 128, where 19 ms are missing.
// The table's times of whole requests of 1,024 tokens out and more stop short
// of that length and were not used.
func Llama70B() RequestTime { return RequestTime{Base: 0.010, PerInput: 0.000150, PerOutput: 0.0374} }

// Of is the time of a request, seconds.
func (r RequestTime) Of(input, output int) float64 {
	return r.Base + r.PerInput*float64(input) + r.PerOutput*float64(output)
}

// String is the formula.
func (r RequestTime) String() string {
	return fmt.Sprintf("%g + %g·input + %g·output s", r.Base, r.PerInput, r.PerOutput)
}

// requests reads a trace of LLM requests. It says nothing of cores: unless they
// are set, a request takes RequestGPUs accelerators and no core.
func (p *rowParser) requests() error {
	if err := p.needHomes(); err != nil {
		return err
	}
	base := p.task()
	if p.err != nil {
		return p.err
	}
	_, gpu := p.Set["gpu"]
	_, cpu := p.Set["cpu"]
	if !gpu && !cpu {
		base.GPU = RequestGPUs
	}
	if !cpu {
		base.CPU = 0
	}
	from, times := "given with the run", p.Request
	if times == (RequestTime{}) {
		from, times = "Llama 2 70B on 2 H100, fitted to Splitwise's measurements", Llama70B()
	}
	requests, start, err := azure.RequestsOf(p.table)
	if err != nil {
		return err
	}
	p.trace.Source = fmt.Sprintf("file %s, format of the %s, from %s; run time %v (%s)", p.trace.Name, azure.LLM, start.Format(time.DateOnly), times, from)
	for k, q := range requests {
		t := base
		t.Line, t.Home, t.Arrival = q.Line, p.turn(k), q.At
		t.DurationS = times.Of(q.Input, q.Output)
		t.Duration = fromSeconds(t.DurationS)
		p.trace.Tasks = append(p.trace.Tasks, t)
	}
	return nil
}

// invocations reads the trace of functions. An app is a tenant, and has one
// home.
func (p *rowParser) invocations() error {
	if err := p.needHomes(); err != nil {
		return err
	}
	for _, name := range [...]string{"tenant", "function"} {
		if _, ok := p.Set[name]; ok {
			return &ParseError{Reader: "simulate", File: "--set", Field: name, Err: ErrInTheFile}
		}
	}
	base := p.task()
	if p.err != nil {
		return p.err
	}
	all, err := azure.InvocationsOf(p.table)
	if err != nil {
		return err
	}
	p.trace.Source = fmt.Sprintf("file %s, format of the %s", p.trace.Name, azure.Functions)
	homes := map[string]string{}
	for _, v := range all {
		home, ok := homes[v.App]
		if !ok {
			home = p.turn(len(homes))
			homes[v.App] = home
		}
		t := base
		t.Line, t.Home, t.Arrival, t.Tenant, t.Function = v.Line, home, v.At, v.App, v.Func
		t.DurationS, t.Duration = v.Duration, fromSeconds(v.Duration)
		p.trace.Tasks = append(p.trace.Tasks, t)
	}
	return nil
}

// needHomes: a published trace names no regions.
func (p *rowParser) needHomes() error {
	if len(p.Homes) > 0 || len(p.Mesh.Regions) == 1 {
		return nil
	}
	return &ParseError{Reader: "simulate", File: p.trace.Name, Line: 1, Field: "home", Err: ErrNoHome}
}
