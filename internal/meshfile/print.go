package meshfile

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/goccy/go-yaml"
)

// YAML writes the mesh so that Parse reads the same again: regions, functions
// and variants in their order, the rest sorted.
func (m *Mesh) YAML() ([]byte, error) {
	regions := yaml.MapSlice{}
	for _, r := range m.Regions {
		regions = append(regions, yaml.MapItem{Key: r.Name, Value: r.items()})
	}
	var doc yaml.MapSlice
	if m.Source != "" {
		doc = append(doc, yaml.MapItem{Key: "source", Value: m.Source})
	}
	doc = append(doc, yaml.MapItem{Key: "regions", Value: regions})
	doc = appendTable(doc, "rtt_ms", m.rttMs)
	doc = appendTable(doc, "egress_usd_per_gib", m.egress)
	doc = appendAmount(doc, "network_kwh_per_gib", m.NetworkKWhPerGiB)
	if len(m.Functions) > 0 {
		functions := yaml.MapSlice{}
		for _, f := range m.Functions {
			functions = append(functions, yaml.MapItem{Key: f.Name, Value: f.items()})
		}
		doc = append(doc, yaml.MapItem{Key: "functions", Value: functions})
	}
	out, err := yaml.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("meshfile: write mesh: %w", err)
	}
	return out, nil
}

func (r Region) items() yaml.MapSlice {
	out := yaml.MapSlice{{Key: "zone", Value: r.Zone}}
	if len(r.Jurisdictions) > 0 {
		out = append(out, yaml.MapItem{Key: "jurisdictions", Value: r.Jurisdictions})
	}
	if !math.IsInf(r.CPU, 1) {
		out = append(out, yaml.MapItem{Key: "cpu", Value: r.CPU})
	}
	if !math.IsInf(r.MemoryGiB, 1) {
		out = append(out, yaml.MapItem{Key: "memory_gib", Value: r.MemoryGiB})
	}
	out = appendMap(out, "gpus", r.GPUs)
	out = append(out, yaml.MapItem{Key: "usd_per_cpu_hour", Value: r.USDPerCPUHour})
	out = appendMap(out, "usd_per_gpu_hour", r.USDPerGPUHour)
	if r.WattsPerCPU != nil {
		out = append(out, yaml.MapItem{Key: "watts_per_cpu", Value: *r.WattsPerCPU})
	}
	out = appendMap(out, "watts_per_gpu", r.WattsPerGPU)
	out = appendAmount(out, "idle_watts_per_cpu", r.IdleWattsPerCPU)
	out = appendMap(out, "idle_watts_per_gpu", r.IdleWattsPerGPU)
	out = appendAmount(out, "watts_per_gib", r.WattsPerGiB)
	out = appendAmount(out, "embodied_g_per_cpu_hour", r.EmbodiedGPerCPUHour)
	out = appendMap(out, "embodied_g_per_gpu_hour", r.EmbodiedGPerGPUHour)
	return append(out, yaml.MapItem{Key: "pue", Value: r.PUE})
}

func (f Function) items() yaml.MapSlice {
	variants := yaml.MapSlice{}
	for _, v := range f.Variants {
		items := yaml.MapSlice{
			{Key: "quality", Value: v.Quality}, {Key: "duration_x", Value: v.DurationX}, {Key: "kw_x", Value: v.KwX},
		}
		if v.CPU != nil {
			items = append(items, yaml.MapItem{Key: "cpu", Value: *v.CPU})
		}
		if v.GPU != nil {
			items = append(items, yaml.MapItem{Key: "gpu", Value: *v.GPU})
		}
		if v.GPUModel != "" {
			items = append(items, yaml.MapItem{Key: "gpu_model", Value: v.GPUModel})
		}
		for _, share := range [...]struct {
			key   string
			value *float64
		}{{"cpu_utilisation", v.CPUUtilisation}, {"gpu_utilisation", v.GPUUtilisation}} {
			if share.value != nil {
				items = append(items, yaml.MapItem{Key: share.key, Value: *share.value})
			}
		}
		variants = append(variants, yaml.MapItem{Key: v.Name, Value: items})
	}
	return yaml.MapSlice{{Key: "min_quality", Value: f.MinQuality}, {Key: "variants", Value: variants}}
}

// appendAmount leaves out a zero, which is what an absent field is read as.
func appendAmount(doc yaml.MapSlice, key string, x float64) yaml.MapSlice {
	if x == 0 {
		return doc
	}
	return append(doc, yaml.MapItem{Key: key, Value: x})
}

func appendMap[V any](doc yaml.MapSlice, key string, m map[string]V) yaml.MapSlice {
	if len(m) == 0 {
		return doc
	}
	items := yaml.MapSlice{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		items = append(items, yaml.MapItem{Key: k, Value: m[k]})
	}
	return append(doc, yaml.MapItem{Key: key, Value: items})
}

func appendTable(doc yaml.MapSlice, key string, table map[string]map[string]float64) yaml.MapSlice {
	rows := yaml.MapSlice{}
	for _, from := range slices.Sorted(maps.Keys(table)) {
		rows = appendMap(rows, from, table[from])
	}
	if len(rows) == 0 {
		return doc
	}
	return append(doc, yaml.MapItem{Key: key, Value: rows})
}
