package registry

import (
	"fmt"
	"maps"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry/digest"
)

// The runtimes of a variant.
const (
	RuntimeWasm = "wasm"
	RuntimeExec = "exec"
	RuntimeHTTP = "http"
)

// Bounds of a spec.
const (
	MaxVariants   = 16
	MaxTimeout    = 24 * time.Hour
	MaxAttempts   = 100
	MaxCPU        = 1024     // cores
	MaxMemoryMiB  = 16 << 20 // 16 TiB
	MaxGPUs       = 64
	MaxUSD        = 1e6
	MaxArguments  = 256
	MaxEnv        = 128       // variables
	MaxEnvValue   = 32 << 10  // bytes
	MaxSpec       = 128 << 10 // bytes, encoded
	MaxConcurrent = 1_000_000 // attempts, cores or accelerators at once
	MaxWeight     = 1000      // of a tenant
	maxName       = 63
	maxURL        = 2048
	maxNamedPlace = 32
)

// Defaults of a spec.
const (
	DefaultTimeout     = time.Minute
	DefaultMaxAttempts = 4
	DefaultBackoff     = time.Second
	DefaultMaxBackoff  = 5 * time.Minute
	DefaultCPU         = 1.0 // cores
	DefaultMemoryMiB   = 128
	DefaultQuality     = 1.0
	DefaultRun         = 100 * time.Millisecond
	DefaultErrors      = 0.1 // share of a pace
	DefaultWindow      = 10 * time.Second
)

// WithDefaults returns a copy of the spec in which every field that was left
// out has its default, and lists of jurisdictions are lower case, sorted and
// without repeats: so that specs which mean the same are the same version.
func WithDefaults(spec *isobarv1.FunctionSpec) *isobarv1.FunctionSpec {
	if spec == nil {
		spec = &isobarv1.FunctionSpec{}
	}
	spec = proto.CloneOf(spec)
	if spec.Tenant == "" {
		spec.Tenant = DefaultTenant
	}
	if spec.Timeout == nil {
		spec.Timeout = durationpb.New(DefaultTimeout)
	}
	spec.Retry = RetryWithDefaults(spec.GetRetry())
	if p := spec.GetPace(); p != nil {
		if p.Start == 0 {
			p.Start = p.Most
		}
		if p.Least == 0 {
			p.Least = p.Most / 100
		}
		if p.Errors == 0 {
			p.Errors = DefaultErrors
		}
		if p.Window == nil {
			p.Window = durationpb.New(DefaultWindow)
		}
	}
	for i, v := range spec.GetVariants() {
		if v == nil {
			v = &isobarv1.Variant{}
			spec.Variants[i] = v
		}
		v.Jurisdictions = jurisdictions(v.GetJurisdictions())
		if v.Resources == nil {
			v.Resources = &isobarv1.Resources{}
		}
		if v.Resources.Cpu == 0 {
			v.Resources.Cpu = DefaultCPU
		}
		if v.Resources.MemoryMib == 0 {
			v.Resources.MemoryMib = DefaultMemoryMiB
		}
		if v.Quality == 0 {
			v.Quality = DefaultQuality
		}
		if v.Run == nil {
			v.Run = durationpb.New(DefaultRun)
		}
		if v.Cold == nil {
			v.Cold = durationpb.New(0)
		}
	}
	return spec
}

// RetryWithDefaults returns a copy of the policy, which may be nil, with every
// field that was left out at its default.
func RetryWithDefaults(p *isobarv1.RetryPolicy) *isobarv1.RetryPolicy {
	if p == nil {
		p = &isobarv1.RetryPolicy{}
	}
	p = proto.CloneOf(p)
	if p.MaxAttempts == 0 {
		p.MaxAttempts = DefaultMaxAttempts
	}
	if p.Backoff == nil {
		p.Backoff = durationpb.New(DefaultBackoff)
	}
	if p.MaxBackoff == nil {
		p.MaxBackoff = durationpb.New(max(DefaultMaxBackoff, p.Backoff.AsDuration()))
	}
	return p
}

func jurisdictions(in []string) []string {
	if len(in) == 0 {
		return nil
	}
	out := make([]string, len(in))
	for i, j := range in {
		out[i] = strings.ToLower(j)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Validate checks a spec that has its defaults. The error is an InvalidError
// with everything that is wrong.
func Validate(spec *isobarv1.FunctionSpec) error {
	var e fieldErrors
	e.name("tenant", spec.GetTenant())
	e.name("name", spec.GetName())
	e.duration("timeout", spec.GetTimeout(), time.Millisecond, MaxTimeout)
	e.retry("retry", spec.GetRetry())
	e.concurrency("concurrency.", spec.GetConcurrency())
	e.ordering(spec.GetOrdering())
	e.pace(spec.GetPace())
	if n := len(spec.GetVariants()); n < 1 || n > MaxVariants {
		e.add("variants", "must be 1 to %d, not %d", MaxVariants, n)
	}
	seen := map[string]bool{}
	for i, v := range spec.GetVariants() {
		path := fmt.Sprintf("variants[%d].", i)
		e.name(path+"name", v.GetName())
		if seen[v.GetName()] {
			e.add(path+"name", "%q is used twice", v.GetName())
		}
		seen[v.GetName()] = true
		e.runtime(path, v)
		e.resources(path+"resources.", v.GetResources())
		e.number(path+"quality", v.GetQuality(), math.SmallestNonzeroFloat64, 1, "above 0 and at most 1")
		e.number(path+"usd", v.GetUsd(), 0, MaxUSD, "0 to 1,000,000")
		e.duration(path+"run", v.GetRun(), 1, MaxTimeout)
		e.duration(path+"cold", v.GetCold(), 0, MaxTimeout)
	}
	e.env("env", spec.GetEnv())
	if n := proto.Size(spec); n > MaxSpec {
		e.add("spec", "must be at most %d bytes in all, not %d", MaxSpec, n)
	}
	return e.err()
}

// ValidateRetry checks a policy that has its defaults; field is the path to it,
// for the error, which is an InvalidError.
func ValidateRetry(field string, p *isobarv1.RetryPolicy) error {
	var e fieldErrors
	e.retry(field, p)
	return e.err()
}

// fieldErrors gathers what is wrong. The rules are its methods.
type fieldErrors struct{ all []FieldError }

func (e *fieldErrors) add(field, format string, args ...any) {
	e.all = append(e.all, FieldError{Field: field, Message: fmt.Sprintf(format, args...)})
}

func (e *fieldErrors) err() error {
	if len(e.all) == 0 {
		return nil
	}
	return &InvalidError{Fields: e.all}
}

// ordering checks the words of an Ordering; what is left out is the first of each.
func (e *fieldErrors) ordering(o *isobarv1.Ordering) {
	const relaxed = "relaxed"
	switch o.GetMode() {
	case "", "strict", relaxed:
	default:
		e.add("ordering.mode", "must be strict or relaxed")
	}
	switch o.GetOnDead() {
	case "", "pass":
	case "block":
		if o.GetMode() == relaxed {
			e.add("ordering.on_dead", "can block under mode strict only: a relaxed key never waits for an end")
		}
	default:
		e.add("ordering.on_dead", "must be pass or block")
	}
}

func (e *fieldErrors) concurrency(path string, c *isobarv1.Concurrency) {
	if n := c.GetAttempts(); n > MaxConcurrent {
		e.add(path+"attempts", "must be at most %d, not %d", MaxConcurrent, n)
	}
	e.number(path+"cpu", c.GetCpu(), 0, MaxConcurrent, "0 to 1,000,000 cores; 0 is no bound")
	if n := c.GetMemoryMib(); n < 0 || n > MaxConcurrent*MaxMemoryMiB {
		e.add(path+"memory_mib", "must be 0 or more, not %d; 0 is no bound", n)
	}
	e.cost(path+"cost.", c.GetCost())
	if n := c.GetGpus(); n < 0 || n > MaxConcurrent {
		e.add(path+"gpus", "must be 0 to %d, not %d; 0 is no bound", MaxConcurrent, n)
	}
}

func (e *fieldErrors) pace(p *isobarv1.Pace) {
	if p == nil {
		return
	}
	const slowest = 0.001 // thousandths are kept
	e.number("pace.most", p.GetMost(), slowest, MaxConcurrent, "0.001 to 1,000,000 attempts a second")
	if !(p.GetMost() >= slowest && p.GetMost() <= MaxConcurrent) {
		return // the others are measured by it
	}
	e.number("pace.start", p.GetStart(), 0, p.GetMost(), "0 to most")
	e.number("pace.least", p.GetLeast(), 0, p.GetMost(), "0 to most")
	e.number("pace.errors", p.GetErrors(), math.SmallestNonzeroFloat64, 1, "above 0 and at most 1")
	e.duration("pace.window", p.GetWindow(), time.Second, time.Hour)
}

func (e *fieldErrors) cost(path string, c *isobarv1.Cost) {
	for _, a := range []struct {
		field string
		n     int64
	}{{"tokens", c.GetTokens()}, {"bytes", c.GetBytes()}, {"accelerator_mib", c.GetAcceleratorMib()}} {
		if a.n < 0 || a.n > mesh.MaxCost {
			e.add(path+a.field, "must be 0 to %d, not %d; 0 is no bound", int64(mesh.MaxCost), a.n)
		}
	}
}

func (e *fieldErrors) name(field, s string) {
	switch {
	case s == "":
		e.add(field, "is required")
	case !validName(s):
		e.add(field, "must be 1 to %d lower-case letters, digits and dashes, no dash first or last, not %.80q", maxName, s)
	}
}

func validName(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= maxName && s[0] != '-' && s[len(s)-1] != '-'
}

func (e *fieldErrors) duration(field string, d *durationpb.Duration, least, most time.Duration) {
	if d.CheckValid() != nil || d.AsDuration() < least || d.AsDuration() > most {
		e.add(field, "must be %s to %s, not %s", least, most, d.AsDuration())
	}
}

func (e *fieldErrors) number(field string, v, least, most float64, bounds string) {
	if !(v >= least && v <= most) { // also not a number
		e.add(field, "must be %s, not %v", bounds, v)
	}
}

func (e *fieldErrors) retry(field string, p *isobarv1.RetryPolicy) {
	if n := p.GetMaxAttempts(); n < 1 || n > MaxAttempts {
		e.add(field+".max_attempts", "must be 1 to %d, not %d", MaxAttempts, n)
	}
	e.duration(field+".backoff", p.GetBackoff(), 0, MaxTimeout)
	e.duration(field+".max_backoff", p.GetMaxBackoff(), 0, MaxTimeout)
	if p.GetMaxBackoff().AsDuration() < p.GetBackoff().AsDuration() {
		e.add(field+".max_backoff", "must not be below backoff, %s", p.GetBackoff().AsDuration())
	}
}

func (e *fieldErrors) runtime(path string, v *isobarv1.Variant) {
	switch v.GetRuntime() {
	case RuntimeWasm:
		if !digest.Valid(v.GetModule()) {
			e.add(path+"module", "must be the digest of a module, sha256:…, not %.80q", v.GetModule())
		}
	case RuntimeExec:
		e.command(path+"command", v.GetCommand())
	case RuntimeHTTP:
		e.url(path+"url", v.GetUrl())
		e.jurisdictions(path+"jurisdictions", v.GetJurisdictions())
	case "":
		e.add(path+"runtime", "is required: wasm, exec or http")
		return
	default:
		e.add(path+"runtime", "must be wasm, exec or http, not %.80q", v.GetRuntime())
		return
	}
	// A field of another runtime would be taken and ignored.
	for _, f := range []struct {
		name, runtime string
		set           bool
	}{
		{"module", RuntimeWasm, v.GetModule() != ""},
		{"command", RuntimeExec, len(v.GetCommand()) > 0},
		{"url", RuntimeHTTP, v.GetUrl() != ""},
		{"jurisdictions", RuntimeHTTP, len(v.GetJurisdictions()) > 0},
	} {
		if f.set && f.runtime != v.GetRuntime() {
			e.add(path+f.name, "is for runtime %s, not for %s", f.runtime, v.GetRuntime())
		}
	}
}

func (e *fieldErrors) command(field string, c []string) {
	switch {
	case len(c) == 0 || c[0] == "":
		e.add(field, "is required: the program and its arguments")
	case len(c) > MaxArguments:
		e.add(field, "must have at most %d parts, not %d", MaxArguments, len(c))
	case slices.ContainsFunc(c, func(s string) bool { return strings.ContainsRune(s, 0) }):
		e.add(field, "must not contain a NUL byte")
	}
}

func (e *fieldErrors) url(field, s string) {
	if s == "" {
		e.add(field, "is required")
		return
	}
	u, err := url.Parse(s)
	switch {
	case len(s) > maxURL:
		e.add(field, "must be at most %d bytes, not %d", maxURL, len(s))
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.Opaque != "":
		e.add(field, "must be an absolute http or https URL, not %.80q", s)
	case u.User != nil:
		e.add(field, "must not hold a user or password: specs are not secret")
	case u.Fragment != "":
		e.add(field, "must have no fragment: it is never sent")
	}
}

func (e *fieldErrors) jurisdictions(field string, list []string) {
	for _, j := range list {
		if !validName(j) || len(j) > maxNamedPlace {
			e.add(field, "must be lower-case names such as \"eu\", not %.80q", j)
		}
	}
}

func (e *fieldErrors) resources(path string, r *isobarv1.Resources) {
	e.number(path+"cpu", r.GetCpu(), 0.001, MaxCPU, fmt.Sprintf("0.001 to %d cores", MaxCPU))
	if m := r.GetMemoryMib(); m < 1 || m > MaxMemoryMiB {
		e.add(path+"memory_mib", "must be 1 to %d, not %d", MaxMemoryMiB, m)
	}
	if g := r.GetGpus(); g < 0 || g > MaxGPUs {
		e.add(path+"gpus", "must be 0 to %d, not %d", MaxGPUs, g)
	}
	e.number(path+"cpu_utilisation", r.GetCpuUtilisation(), 0, 1, "0 to 1")
	e.number(path+"gpu_utilisation", r.GetGpuUtilisation(), 0, 1, "0 to 1")
	model := r.GetGpuModel()
	visible := func(c rune) bool { return c > ' ' && c < 0x7f }
	switch {
	case model == "":
	case r.GetGpus() == 0:
		e.add(path+"gpu_model", "needs gpus")
	case len(model) > maxName || strings.ContainsFunc(model, func(c rune) bool { return !visible(c) }):
		e.add(path+"gpu_model", "must be at most %d visible ASCII characters, not %.80q", maxName, model)
	}
}

func (e *fieldErrors) env(field string, env map[string]string) {
	name := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	if len(env) > MaxEnv {
		e.add(field, "must have at most %d variables, not %d", MaxEnv, len(env))
	}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		at := field + "." + k
		switch {
		case !name.MatchString(k):
			e.add(field, "name %.80q must be letters, digits and underscores, no digit first", k)
		case strings.HasPrefix(k, "ISOBAR_") || k == "PATH" || k == "TRACEPARENT":
			e.add(at, "is reserved: PATH, TRACEPARENT and ISOBAR_… are set for every attempt")
		case strings.ContainsRune(env[k], 0):
			e.add(at, "must not contain a NUL byte")
		case len(env[k]) > MaxEnvValue:
			e.add(at, "must be at most %d bytes, not %d", MaxEnvValue, len(env[k]))
		}
	}
}
