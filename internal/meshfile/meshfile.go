// Package meshfile reads and writes the YAML that describes a mesh: its
// regions with capacity, prices and energy, the round trips and transfer
// prices between them, and functions with their variants. `isobar simulate`
// and `isobar dev` share it.
//
// Reading is strict: an unknown field, a wrong kind or a value out of its
// range is an error with file, line and field, and all are reported at once.
// A Mesh that Parse returned is complete and is not changed after; it may be
// shared. The package does no I/O.
package meshfile

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/strictyaml"
)

//go:embed default.yaml
var defaultYAML string

// DefaultYAML is the mesh of `isobar dev`, with the sources of its figures in
// comments.
func DefaultYAML() string { return defaultYAML }

// Default is DefaultYAML, parsed.
func Default() (*Mesh, error) { return Parse("default mesh", []byte(defaultYAML)) }

// Mesh is a described mesh.
type Mesh struct {
	// Regions in the order of the file, at least one.
	Regions []Region
	// Functions in the order of the file; none when the file has none.
	Functions []Function
	// NetworkKWhPerGiB is the energy of a GiB sent from one region to another;
	// 0 when the file names none.
	NetworkKWhPerGiB float64
	// Source says where the file's figures are from; empty when it does not.
	Source string

	rttMs  map[string]map[string]float64
	egress map[string]map[string]float64
}

// Region is one region.
type Region struct {
	Name string
	// Zone is the region's column in a carbon feed.
	Zone string
	// Jurisdictions the region lies in, sorted.
	Jurisdictions []string
	// CPU in cores and MemoryGiB; +Inf is unlimited.
	CPU       float64
	MemoryGiB float64
	// GPUs by model; a model that is absent is none.
	GPUs map[string]int64
	// USDPerCPUHour is 0 when the file names none.
	USDPerCPUHour float64
	USDPerGPUHour map[string]float64
	// WattsPerCPU is drawn by a busy core; nil when the file names none: then
	// only work with its own kw can be costed.
	WattsPerCPU *float64
	WattsPerGPU map[string]float64
	// IdleWatts are drawn by a core, or an accelerator by model, that is held
	// and does nothing; at most the watts of a busy one.
	IdleWattsPerCPU float64
	IdleWattsPerGPU map[string]float64
	WattsPerGiB     float64 // of memory that is held
	// Embodied carbon: the grams of making and disposing of a core or an
	// accelerator, for each hour it is held. None when the file names none.
	EmbodiedGPerCPUHour float64
	EmbodiedGPerGPUHour map[string]float64
	// PUE is 1 or more.
	PUE float64
}

// Function is a function of a trace, with variants to choose from.
type Function struct {
	Name       string
	MinQuality float64 // 0 to 1
	Variants   []Variant
}

// Variant changes what a trace says of a task.
type Variant struct {
	Name      string
	Quality   float64 // 0 to 1; 1 when the file names none
	DurationX float64 // multiplies the duration; above 0
	KwX       float64 // multiplies the power; 0 or more
	// CPU and GPU replace the trace's when not nil.
	CPU *float64
	GPU *int64
	// GPUModel replaces the trace's when not empty.
	GPUModel string
	// The utilisations, 0 to 1, replace the trace's when not nil.
	CPUUtilisation *float64
	GPUUtilisation *float64
}

// Region returns the region of the name.
func (m *Mesh) Region(name string) (Region, bool) {
	i := slices.IndexFunc(m.Regions, func(r Region) bool { return r.Name == name })
	if i < 0 {
		return Region{}, false
	}
	return m.Regions[i], true
}

// Function returns the function of the name.
func (m *Mesh) Function(name string) (Function, bool) {
	i := slices.IndexFunc(m.Functions, func(f Function) bool { return f.Name == name })
	if i < 0 {
		return Function{}, false
	}
	return m.Functions[i], true
}

// RTTMs is the round trip between two regions in milliseconds: 0 to itself,
// the same both ways unless the file gives both. ok is false when it gives
// neither.
func (m *Mesh) RTTMs(from, to string) (ms float64, ok bool) {
	if from == to {
		return 0, true
	}
	if ms, ok = m.rttMs[from][to]; ok {
		return ms, true
	}
	ms, ok = m.rttMs[to][from]
	return ms, ok
}

// EgressUSDPerGiB is the price of a GiB sent from one region to the other; 0
// when the file names none.
func (m *Mesh) EgressUSDPerGiB(from, to string) float64 { return m.egress[from][to] }

// Runnable reports whether `isobar dev` can start the mesh: the names can
// stand in certificates and ids, and every round trip to emulate is known.
func (m *Mesh) Runnable() error {
	var errs []error
	for _, r := range m.Regions {
		// "-1" is appended for the cell's name.
		if !mesh.ValidName(r.Name) || len(r.Name) > mesh.MaxName-2 {
			errs = append(errs, fmt.Errorf("meshfile: run region %q: its name must be 1 to %d lower-case letters, digits and dashes", r.Name, mesh.MaxName-2))
		}
		for _, j := range r.Jurisdictions {
			if !mesh.ValidName(j) {
				errs = append(errs, fmt.Errorf("meshfile: run region %s: jurisdiction %q must be lower-case letters, digits and dashes", r.Name, j))
			}
		}
		for _, to := range m.Regions {
			if _, ok := m.RTTMs(r.Name, to.Name); !ok && r.Name < to.Name {
				errs = append(errs, fmt.Errorf("meshfile: run region %s: rtt_ms has no round trip to %s", r.Name, to.Name))
			}
		}
	}
	return errors.Join(errs...)
}

// The file's own shape, before defaults and checks.
type (
	fileMesh struct {
		Regions   map[string]fileRegion         `yaml:"regions"`
		RTTMs     map[string]map[string]float64 `yaml:"rtt_ms"`
		Egress    map[string]map[string]float64 `yaml:"egress_usd_per_gib"`
		Functions map[string]fileFunction       `yaml:"functions"`
		Network   *float64                      `yaml:"network_kwh_per_gib"`
		Source    string                        `yaml:"source"`
	}
	fileRegion struct {
		Zone          string             `yaml:"zone"`
		Jurisdictions []string           `yaml:"jurisdictions"`
		CPU           *float64           `yaml:"cpu"`
		MemoryGiB     *float64           `yaml:"memory_gib"`
		GPUs          map[string]int64   `yaml:"gpus"`
		USDPerCPUHour *float64           `yaml:"usd_per_cpu_hour"`
		USDPerGPUHour map[string]float64 `yaml:"usd_per_gpu_hour"`
		WattsPerCPU   *float64           `yaml:"watts_per_cpu"`
		WattsPerGPU   map[string]float64 `yaml:"watts_per_gpu"`
		PUE           *float64           `yaml:"pue"`

		IdleWattsPerCPU     *float64           `yaml:"idle_watts_per_cpu"`
		IdleWattsPerGPU     map[string]float64 `yaml:"idle_watts_per_gpu"`
		WattsPerGiB         *float64           `yaml:"watts_per_gib"`
		EmbodiedGPerCPUHour *float64           `yaml:"embodied_g_per_cpu_hour"`
		EmbodiedGPerGPUHour map[string]float64 `yaml:"embodied_g_per_gpu_hour"`
	}
	fileFunction struct {
		MinQuality float64                `yaml:"min_quality"`
		Variants   map[string]fileVariant `yaml:"variants"`
	}
	fileVariant struct {
		Quality   *float64 `yaml:"quality"`
		DurationX *float64 `yaml:"duration_x"`
		KwX       *float64 `yaml:"kw_x"`
		CPU       *float64 `yaml:"cpu"`
		GPU       *int64   `yaml:"gpu"`
		GPUModel  string   `yaml:"gpu_model"`

		CPUUtilisation *float64 `yaml:"cpu_utilisation"`
		GPUUtilisation *float64 `yaml:"gpu_utilisation"`
	}
)

// Parse reads a mesh. The name stands in errors, which are *strictyaml.Error,
// joined.
func Parse(name string, data []byte) (*Mesh, error) {
	var raw fileMesh
	doc, err := strictyaml.Decode(name, data, &raw)
	if err != nil {
		return nil, err
	}
	p := &parser{doc: doc}
	m := &Mesh{rttMs: raw.RTTMs, egress: raw.Egress, Source: raw.Source}
	if strings.ContainsAny(raw.Source, "\r\n") {
		p.failf("source", "must be one line")
	}
	if len(raw.Regions) == 0 {
		p.failf("regions", "names no region")
	}
	for _, region := range doc.Keys("regions") {
		m.Regions = append(m.Regions, p.region(region, raw.Regions[region]))
	}
	p.pairs("rtt_ms", raw.RTTMs, raw.Regions)
	p.pairs("egress_usd_per_gib", raw.Egress, raw.Regions)
	for from, row := range raw.RTTMs {
		if ms, ok := row[from]; ok && ms != 0 {
			p.failf("rtt_ms."+from+"."+from, "a region's round trip to itself is 0")
		}
	}
	m.NetworkKWhPerGiB = p.atLeast("network_kwh_per_gib", raw.Network, 0, 0)
	for _, function := range doc.Keys("functions") {
		m.Functions = append(m.Functions, p.function(function, raw.Functions[function]))
	}
	if len(p.errs) > 0 {
		slices.SortStableFunc(p.errs, func(a, b *strictyaml.Error) int { return a.Line - b.Line })
		joined := make([]error, len(p.errs))
		for i, e := range p.errs {
			joined[i] = e
		}
		return nil, errors.Join(joined...)
	}
	return m, nil
}

type parser struct {
	doc  *strictyaml.Document
	errs []*strictyaml.Error
}

func (p *parser) failf(field, format string, args ...any) {
	p.errs = append(p.errs, p.doc.Errorf(field, format, args...))
}

func (p *parser) region(name string, raw fileRegion) Region {
	at := "regions." + name
	r := Region{
		Name: name, Zone: raw.Zone,
		Jurisdictions: slices.Compact(slices.Sorted(slices.Values(raw.Jurisdictions))),
		CPU:           p.limit(at+".cpu", raw.CPU),
		MemoryGiB:     p.limit(at+".memory_gib", raw.MemoryGiB),
		GPUs:          raw.GPUs, USDPerGPUHour: raw.USDPerGPUHour, WattsPerGPU: raw.WattsPerGPU,
		USDPerCPUHour: p.atLeast(at+".usd_per_cpu_hour", raw.USDPerCPUHour, 0, 0),
		WattsPerCPU:   raw.WattsPerCPU,
		PUE:           p.atLeast(at+".pue", raw.PUE, 1, 1),

		IdleWattsPerCPU: p.atLeast(at+".idle_watts_per_cpu", raw.IdleWattsPerCPU, 0, 0), IdleWattsPerGPU: raw.IdleWattsPerGPU,
		WattsPerGiB:         p.atLeast(at+".watts_per_gib", raw.WattsPerGiB, 0, 0),
		EmbodiedGPerCPUHour: p.atLeast(at+".embodied_g_per_cpu_hour", raw.EmbodiedGPerCPUHour, 0, 0),
		EmbodiedGPerGPUHour: raw.EmbodiedGPerGPUHour,
	}
	if r.Zone == "" {
		p.failf(at+".zone", "is required: it names the region's column in a carbon feed")
	}
	if slices.Contains(r.Jurisdictions, "") {
		p.failf(at+".jurisdictions", "has an empty name")
	}
	for _, model := range slices.Sorted(maps.Keys(raw.GPUs)) {
		if raw.GPUs[model] < 1 {
			p.failf(at+".gpus."+model, "must be 1 or more, got %d; leave the model out for none", raw.GPUs[model])
		}
	}
	p.atLeast(at+".watts_per_cpu", raw.WattsPerCPU, 0, 0)
	p.amounts(at+".usd_per_gpu_hour", raw.USDPerGPUHour)
	p.amounts(at+".watts_per_gpu", raw.WattsPerGPU)
	p.amounts(at+".embodied_g_per_gpu_hour", raw.EmbodiedGPerGPUHour)
	p.idle(at, &r)
	return r
}

// idle checks that nothing draws more while it does nothing.
func (p *parser) idle(at string, r *Region) {
	p.amounts(at+".idle_watts_per_gpu", r.IdleWattsPerGPU)
	if r.IdleWattsPerCPU > 0 && (r.WattsPerCPU == nil || r.IdleWattsPerCPU > *r.WattsPerCPU) {
		p.failf(at+".idle_watts_per_cpu", "must be at most watts_per_cpu, got %v", r.IdleWattsPerCPU)
	}
	for _, model := range slices.Sorted(maps.Keys(r.IdleWattsPerGPU)) {
		if w := r.IdleWattsPerGPU[model]; w > r.WattsPerGPU[model] {
			p.failf(at+".idle_watts_per_gpu."+model, "must be at most watts_per_gpu, got %v", w)
		}
	}
}

func (p *parser) function(name string, raw fileFunction) Function {
	at := "functions." + name
	f := Function{Name: name, MinQuality: raw.MinQuality}
	if raw.MinQuality < 0 || raw.MinQuality > 1 {
		p.failf(at+".min_quality", "must be from 0 to 1, got %v", raw.MinQuality)
	}
	if len(raw.Variants) == 0 {
		p.failf(at+".variants", "names no variant")
	}
	for _, variant := range p.doc.Keys(at + ".variants") {
		f.Variants = append(f.Variants, p.variant(at+".variants."+variant, variant, raw.Variants[variant]))
	}
	return f
}

func (p *parser) variant(at, name string, raw fileVariant) Variant {
	v := Variant{
		Name:      name,
		Quality:   1,
		DurationX: p.atLeast(at+".duration_x", raw.DurationX, 0, 1),
		KwX:       p.atLeast(at+".kw_x", raw.KwX, 0, 1),
		CPU:       raw.CPU, GPU: raw.GPU, GPUModel: raw.GPUModel, CPUUtilisation: raw.CPUUtilisation, GPUUtilisation: raw.GPUUtilisation,
	}
	if raw.Quality != nil {
		v.Quality = *raw.Quality
	}
	p.atLeast(at+".cpu", raw.CPU, 0, 0)
	for _, share := range [...]struct {
		field string
		value *float64
	}{{".quality", &v.Quality}, {".cpu_utilisation", raw.CPUUtilisation}, {".gpu_utilisation", raw.GPUUtilisation}} {
		switch {
		case share.value == nil:
		case *share.value > 1:
			p.failf(at+share.field, "must be from 0 to 1, got %v", *share.value)
		default:
			p.atLeast(at+share.field, share.value, 0, 0)
		}
	}
	if v.DurationX == 0 {
		p.failf(at+".duration_x", "must be above 0")
	}
	if raw.GPU != nil && *raw.GPU < 0 {
		p.failf(at+".gpu", "must be 0 or more, got %d", *raw.GPU)
	}
	return v
}

// pairs checks a table of one number for two regions.
func (p *parser) pairs(field string, table map[string]map[string]float64, regions map[string]fileRegion) {
	for _, from := range slices.Sorted(maps.Keys(table)) {
		at := field + "." + from
		if _, ok := regions[from]; !ok {
			p.failf(at, "is not a region of this file")
		}
		for _, to := range slices.Sorted(maps.Keys(table[from])) {
			if _, ok := regions[to]; !ok {
				p.failf(at+"."+to, "is not a region of this file")
			}
		}
		p.amounts(at, table[from])
	}
}

func (p *parser) amounts(field string, m map[string]float64) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] < 0 {
			p.failf(field+"."+k, "must be 0 or more, got %v", m[k])
		}
	}
}

// limit reads a capacity: absent is unlimited, zero is an error.
func (p *parser) limit(field string, v *float64) float64 {
	if v == nil {
		return math.Inf(1)
	}
	if *v <= 0 {
		p.failf(field, "must be above 0, got %v; leave it out for no limit", *v)
	}
	return *v
}

func (p *parser) atLeast(field string, v *float64, low, otherwise float64) float64 {
	if v == nil {
		return otherwise
	}
	if *v < low {
		p.failf(field, "must be %v or more, got %v", low, *v)
	}
	return *v
}
