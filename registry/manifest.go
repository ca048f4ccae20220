package registry

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/internal/strictyaml"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry/digest"
)

// MaxModule is the largest module, and the most that the modules of one
// manifest are together, in bytes.
const MaxModule = 64 << 20

// manifest is the YAML of a function. Pointers tell what was left out from
// what was given as nothing.
type manifest struct {
	Tenant   string            `yaml:"tenant"`
	Name     string            `yaml:"name"`
	Timeout  *time.Duration    `yaml:"timeout"`
	Retry    *manifestRetry    `yaml:"retry"`
	Env      map[string]string `yaml:"env"`
	Variants []manifestVariant `yaml:"variants"`

	Concurrency *manifestConcurrency `yaml:"concurrency"`
	Ordering    *manifestOrdering    `yaml:"ordering"`
	Pace        *manifestPace        `yaml:"pace"`
}

type manifestPace struct {
	Most   float64        `yaml:"most"`
	Start  float64        `yaml:"start"`
	Least  float64        `yaml:"least"`
	Errors float64        `yaml:"errors"`
	Window *time.Duration `yaml:"window"`
}

type manifestOrdering struct {
	Mode   string `yaml:"mode"`
	OnDead string `yaml:"on_dead"`
}

type manifestConcurrency struct {
	Attempts  int64   `yaml:"attempts"`
	CPU       float64 `yaml:"cpu"`
	MemoryMiB int64   `yaml:"memory_mib"`
	GPUs      int64   `yaml:"gpus"`

	Cost *manifestCost `yaml:"cost"`
}

// manifestCost bounds what tasks declare.
type manifestCost struct {
	Tokens         int64           `yaml:"tokens"`
	Bytes          strictyaml.Size `yaml:"bytes"`
	AcceleratorMiB int64           `yaml:"accelerator_mib"`
}

type manifestRetry struct {
	MaxAttempts *int64         `yaml:"max_attempts"`
	Backoff     *time.Duration `yaml:"backoff"`
	MaxBackoff  *time.Duration `yaml:"max_backoff"`
}

type manifestVariant struct {
	Name          string             `yaml:"name"`
	Runtime       string             `yaml:"runtime"`
	Module        string             `yaml:"module"`
	Command       []string           `yaml:"command"`
	URL           string             `yaml:"url"`
	Jurisdictions []string           `yaml:"jurisdictions"`
	Resources     *manifestResources `yaml:"resources"`
	Quality       *float64           `yaml:"quality"`
	Cost          struct {
		USD float64 `yaml:"usd"`
	} `yaml:"cost"`
	Latency struct {
		Run  *time.Duration `yaml:"run"`
		Cold *time.Duration `yaml:"cold"`
	} `yaml:"latency"`
}

type manifestResources struct {
	CPU       *float64 `yaml:"cpu"`
	MemoryMiB *int64   `yaml:"memory_mib"`
	GPUs      int64    `yaml:"gpus"`
	GPUModel  string   `yaml:"gpu_model"`

	CPUUtilisation *float64 `yaml:"cpu_utilisation"`
	GPUUtilisation *float64 `yaml:"gpu_utilisation"`
}

// ParseManifest reads a manifest and the modules it names, relative to dir. It
// returns the spec with its defaults, valid, each module named by digest, and
// the modules, each once. Fields that no manifest has are errors; so are
// fields that are given and would be taken for left out, such as a timeout of
// nothing. Errors: an InvalidError with lines; or that of YAML, with its line;
// or that of reading a module.
func ParseManifest(text []byte, dir string) (spec *isobarv1.FunctionSpec, modules [][]byte, err error) {
	m, doc, err := decodeManifest(text)
	if err != nil {
		return nil, nil, fmt.Errorf("registry: parse manifest: %w", err)
	}
	c := converter{doc: doc}
	spec = c.spec(m)
	modules, err = loadModules(spec, dir)
	if err != nil {
		return nil, nil, fmt.Errorf("registry: parse manifest: %w", err)
	}
	spec = WithDefaults(spec)
	if invalid, ok := errors.AsType[*InvalidError](Validate(spec)); ok {
		for _, f := range invalid.Fields {
			if !c.has(f.Field) {
				c.all = append(c.all, f)
			}
		}
	}
	for i := range c.all {
		c.all[i].Line = c.line(c.all[i].Field)
	}
	if err := c.err(); err != nil {
		return nil, nil, err
	}
	return spec, modules, nil
}

func decodeManifest(text []byte) (*manifest, *strictyaml.Document, error) {
	var m manifest
	doc, err := strictyaml.Decode("manifest", text, &m)
	if err != nil {
		return nil, nil, err
	}
	if len(doc.Keys("")) == 0 {
		return nil, nil, errors.New("it is empty")
	}
	return &m, doc, nil
}

// loadModules reads the files that wasm variants name, and names their digests
// instead.
func loadModules(spec *isobarv1.FunctionSpec, dir string) ([][]byte, error) {
	var modules [][]byte
	seen := map[string]bool{}
	total := 0
	for i, v := range spec.GetVariants() {
		if v.GetRuntime() != RuntimeWasm || v.GetModule() == "" || digest.Valid(v.GetModule()) {
			continue // wrong, or in the mesh already
		}
		path := v.GetModule()
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		b, err := readModule(path)
		if err != nil {
			return nil, fmt.Errorf("variants[%d].module: %w", i, err)
		}
		v.Module = digest.Of(b)
		if seen[v.Module] {
			continue
		}
		seen[v.Module] = true
		if total += len(b); total > MaxModule {
			return nil, fmt.Errorf("variants[%d].module: modules are above %d MiB together", i, MaxModule>>20)
		}
		modules = append(modules, b)
	}
	return modules, nil
}

func readModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, MaxModule+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxModule {
		return nil, fmt.Errorf("read %s: above %d MiB", path, MaxModule>>20)
	}
	return b, nil
}

// converter makes a spec of a manifest and notes what Validate could not see.
type converter struct {
	fieldErrors
	doc *strictyaml.Document
}

func (c *converter) spec(m *manifest) *isobarv1.FunctionSpec {
	s := &isobarv1.FunctionSpec{Tenant: m.Tenant, Name: m.Name, Env: m.Env, Timeout: duration(m.Timeout)}
	if m.Retry != nil {
		s.Retry = &isobarv1.RetryPolicy{
			Backoff:    duration(m.Retry.Backoff),
			MaxBackoff: duration(m.Retry.MaxBackoff),
		}
		if n := m.Retry.MaxAttempts; n != nil {
			s.Retry.MaxAttempts = uint32(min(max(*n, 0), math.MaxUint32))
			c.notZero("retry.max_attempts", *n <= 0)
		}
	}
	if b := m.Concurrency; b != nil {
		s.Concurrency = &isobarv1.Concurrency{
			Attempts: uint32(min(max(b.Attempts, 0), math.MaxUint32)), Cpu: b.CPU, MemoryMib: b.MemoryMiB, Gpus: b.GPUs,
		}
		if k := b.Cost; k != nil {
			s.Concurrency.Cost = &isobarv1.Cost{Tokens: k.Tokens, Bytes: int64(k.Bytes), AcceleratorMib: k.AcceleratorMiB}
		}
		if b.Attempts < 0 {
			c.add("concurrency.attempts", "must be 0 or more; 0 is no bound")
		}
	}
	if o := m.Ordering; o != nil {
		s.Ordering = &isobarv1.Ordering{Mode: o.Mode, OnDead: o.OnDead}
	}
	if p := m.Pace; p != nil {
		s.Pace = &isobarv1.Pace{Most: p.Most, Start: p.Start, Least: p.Least, Errors: p.Errors, Window: duration(p.Window)}
	}
	for i, v := range m.Variants {
		s.Variants = append(s.Variants, c.variant(fmt.Sprintf("variants[%d].", i), v))
	}
	return s
}

func (c *converter) variant(path string, m manifestVariant) *isobarv1.Variant {
	v := &isobarv1.Variant{
		Name: m.Name, Runtime: m.Runtime, Module: m.Module, Command: m.Command,
		Url: m.URL, Jurisdictions: m.Jurisdictions, Usd: m.Cost.USD,
		Run:  duration(m.Latency.Run),
		Cold: duration(m.Latency.Cold),
	}
	if m.Quality != nil {
		v.Quality = *m.Quality
		c.notZero(path+"quality", *m.Quality == 0)
	}
	if r := m.Resources; r != nil {
		v.Resources = &isobarv1.Resources{
			Gpus: r.GPUs, GpuModel: r.GPUModel, CpuUtilisation: r.CPUUtilisation, GpuUtilisation: r.GPUUtilisation,
		}
		if r.CPU != nil {
			v.Resources.Cpu = *r.CPU
			c.notZero(path+"resources.cpu", *r.CPU == 0)
		}
		if r.MemoryMiB != nil {
			v.Resources.MemoryMib = *r.MemoryMiB
			c.notZero(path+"resources.memory_mib", *r.MemoryMiB == 0)
		}
	}
	return v
}

func (c *converter) notZero(field string, zero bool) {
	if zero {
		c.add(field, "must be above 0; leave it out for the default")
	}
}

func duration(d *time.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(*d)
}

func (c *converter) has(field string) bool {
	for _, f := range c.all {
		if f.Field == field {
			return true
		}
	}
	return false
}

// line is where the field stands in the manifest, or the nearest field around
// it that is there.
func (c *converter) line(field string) int {
	// The manifest groups three fields that the spec does not.
	if at, ok := strings.CutSuffix(field, ".usd"); ok {
		field = at + ".cost.usd"
	}
	for _, f := range []string{"run", "cold"} {
		if at, ok := strings.CutSuffix(field, "]."+f); ok {
			field = at + "].latency." + f
		}
	}
	return max(c.doc.Line(field), 1)
}
