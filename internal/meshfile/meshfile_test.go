package meshfile_test

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isobar-mesh/isobar/internal/meshfile"
)

// contract is the example of the simulator's contract.
const contract = `regions:
  eu-north: {zone: SE-SE1, jurisdictions: [eu, se], cpu: 4000, memory_gib: 16000, gpus: {H100: 16}, usd_per_cpu_hour: 0.04,
             usd_per_gpu_hour: {H100: 7.0}, watts_per_cpu: 3.5, watts_per_gpu: {H100: 700}, pue: 1.1}
  us-east: {zone: US-MIDA-PJM, jurisdictions: [us]}
  ap-south: {zone: IN-MH, jurisdictions: [in]}
rtt_ms: {eu-north: {us-east: 110, ap-south: 160}, us-east: {ap-south: 220}, ap-south: {eu-north: 170}}
egress_usd_per_gib: {eu-north: {us-east: 0.02}}
functions:
  summarise: {min_quality: 0.7, variants: {small: {quality: 0.72, duration_x: 0.2, cpu: 1}, large: {quality: 0.9, gpu: 1, kw_x: 1.0}}}
`

func parse(t *testing.T, text string) *meshfile.Mesh {
	t.Helper()
	m, err := meshfile.Parse("mesh.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestContractExample(t *testing.T) {
	t.Parallel()
	m := parse(t, contract)
	var names []string
	for _, r := range m.Regions {
		names = append(names, r.Name)
	}
	if diff := cmp.Diff([]string{"eu-north", "us-east", "ap-south"}, names); diff != "" {
		t.Error(diff)
	}
	watts := 3.5
	want := meshfile.Region{
		Name: "eu-north", Zone: "SE-SE1", Jurisdictions: []string{"eu", "se"}, CPU: 4000, MemoryGiB: 16000,
		GPUs: map[string]int64{"H100": 16}, USDPerCPUHour: 0.04, USDPerGPUHour: map[string]float64{"H100": 7},
		WattsPerCPU: &watts, WattsPerGPU: map[string]float64{"H100": 700}, PUE: 1.1,
	}
	if diff := cmp.Diff(want, m.Regions[0]); diff != "" {
		t.Error(diff)
	}
	us, ok := m.Region("us-east")
	if !ok || !math.IsInf(us.CPU, 1) || !math.IsInf(us.MemoryGiB, 1) || us.PUE != 1 || us.WattsPerCPU != nil || us.GPUs["H100"] != 0 {
		t.Errorf("absent values: %+v", us)
	}
	f, ok := m.Function("summarise")
	if !ok || f.MinQuality != 0.7 || len(f.Variants) != 2 {
		t.Fatalf("function %+v", f)
	}
	small, large := f.Variants[0], f.Variants[1]
	if small.Name != "small" || small.DurationX != 0.2 || small.KwX != 1 || *small.CPU != 1 || small.GPU != nil {
		t.Errorf("small %+v", small)
	}
	if large.Quality != 0.9 || large.DurationX != 1 || *large.GPU != 1 || large.CPU != nil {
		t.Errorf("large %+v", large)
	}
}

func TestRoundTripsAndEgress(t *testing.T) {
	t.Parallel()
	m := parse(t, contract)
	for _, c := range []struct {
		from, to string
		want     float64
		ok       bool
	}{
		{"eu-north", "eu-north", 0, true},
		{"eu-north", "us-east", 110, true},
		{"us-east", "eu-north", 110, true},  // symmetric when given once
		{"eu-north", "ap-south", 160, true}, // both given: each its own
		{"ap-south", "eu-north", 170, true},
		{"eu-north", "mars", 0, false},
	} {
		if got, ok := m.RTTMs(c.from, c.to); got != c.want || ok != c.ok {
			t.Errorf("RTTMs(%s, %s) = %v, %v", c.from, c.to, got, ok)
		}
	}
	if got := m.EgressUSDPerGiB("eu-north", "us-east"); got != 0.02 {
		t.Error(got)
	}
	if got := m.EgressUSDPerGiB("us-east", "eu-north"); got != 0 {
		t.Errorf("egress is directed, got %v", got)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	region := "regions:\n  a: {zone: Z%s}\n"
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", "regions: names no region"},
		{"unknown top field", region + "rtt: {}\n", "mesh.yaml:3: rtt: unknown field"},
		{"unknown region field", "regions:\n  a:\n    zone: Z\n    cpus: 1\n", "mesh.yaml:4: regions.a.cpus: unknown field; did you mean cpu?"},
		{"no zone", "regions:\n  a: {cpu: 1}\n", "mesh.yaml:2: regions.a.zone: is required"},
		{"zero cpu", "regions:\n  a:\n    zone: Z\n    cpu: 0\n", "mesh.yaml:4: regions.a.cpu: must be above 0"},
		{"zero memory", "regions:\n  a: {zone: Z, memory_gib: 0}\n", "regions.a.memory_gib: must be above 0"},
		{"zero gpus", "regions:\n  a: {zone: Z, gpus: {H100: 0}}\n", "regions.a.gpus.H100: must be 1 or more"},
		{"half a gpu", "regions:\n  a: {zone: Z, gpus: {H100: 0.5}}\n", "must be a whole number"},
		{"pue", "regions:\n  a: {zone: Z, pue: 0.9}\n", "regions.a.pue: must be 1 or more"},
		{"negative price", "regions:\n  a: {zone: Z, usd_per_cpu_hour: -1}\n", "must be 0 or more"},
		{"negative watts", "regions:\n  a: {zone: Z, watts_per_gpu: {H100: -7}}\n", "watts_per_gpu.H100: must be 0 or more"},
		{"not a number", "regions:\n  a: {zone: Z, cpu: .nan}\n", "must be a finite number"},
		{"twice", "regions:\n  a: {zone: Z}\n  a: {zone: Z}\n", "mesh.yaml:3"},
		{"unknown region in rtt", "regions:\n  a: {zone: Z}\nrtt_ms:\n  a: {b: 1}\n", "mesh.yaml:4: rtt_ms.a.b: is not a region"},
		{"unknown origin", "regions:\n  a: {zone: Z}\negress_usd_per_gib: {b: {a: 1}}\n", "egress_usd_per_gib.b: is not a region"},
		{"negative rtt", "regions:\n  a: {zone: Z}\n  b: {zone: Z}\nrtt_ms: {a: {b: -1}}\n", "rtt_ms.a.b: must be 0 or more"},
		{"rtt to itself", "regions:\n  a: {zone: Z}\nrtt_ms: {a: {a: 3}}\n", "to itself is 0"},
		{"no variant", "regions:\n  a: {zone: Z}\nfunctions: {f: {min_quality: 0.5}}\n", "functions.f.variants: names no variant"},
		{"quality", "regions:\n  a: {zone: Z}\nfunctions: {f: {variants: {v: {quality: 1.5}}}}\n", "variants.v.quality: must be from 0 to 1"},
		{"min quality", "regions:\n  a: {zone: Z}\nfunctions: {f: {min_quality: 2, variants: {v: {}}}}\n", "min_quality: must be from 0 to 1"},
		{"no duration", "regions:\n  a: {zone: Z}\nfunctions: {f: {variants: {v: {duration_x: 0}}}}\n", "duration_x: must be above 0"},
		{"idle above busy", "regions:\n  a: {zone: Z, watts_per_cpu: 3, idle_watts_per_cpu: 4}\n", "regions.a.idle_watts_per_cpu: must be at most watts_per_cpu"},
		{"idle without busy", "regions:\n  a: {zone: Z, idle_watts_per_cpu: 1}\n", "idle_watts_per_cpu: must be at most watts_per_cpu"},
		{"idle accelerator", "regions:\n  a: {zone: Z, watts_per_gpu: {H100: 7}, idle_watts_per_gpu: {H100: 8}}\n", "idle_watts_per_gpu.H100: must be at most watts_per_gpu"},
		{"negative idle", "regions:\n  a: {zone: Z, watts_per_cpu: 1, idle_watts_per_cpu: -1}\n", "idle_watts_per_cpu: must be 0 or more"},
		{"negative memory power", "regions:\n  a: {zone: Z, watts_per_gib: -1}\n", "watts_per_gib: must be 0 or more"},
		{"negative embodied", "regions:\n  a: {zone: Z, embodied_g_per_cpu_hour: -1}\n", "embodied_g_per_cpu_hour: must be 0 or more"},
		{"negative embodied gpu", "regions:\n  a: {zone: Z, embodied_g_per_gpu_hour: {H100: -1}}\n", "embodied_g_per_gpu_hour.H100: must be 0 or more"},
		{"negative network", "regions:\n  a: {zone: Z}\nnetwork_kwh_per_gib: -1\n", "mesh.yaml:3: network_kwh_per_gib: must be 0 or more"},
		{"utilisation", "regions:\n  a: {zone: Z}\nfunctions: {f: {variants: {v: {cpu_utilisation: 1.5}}}}\n", "variants.v.cpu_utilisation: must be from 0 to 1"},
		{"negative utilisation", "regions:\n  a: {zone: Z}\nfunctions: {f: {variants: {v: {gpu_utilisation: -1}}}}\n", "variants.v.gpu_utilisation: must be 0 or more"},
		{"two lines of source", "source: \"a\\nb\"\nregions:\n  a: {zone: Z}\n", "source: must be one line"},
		{"negative gpu", "regions:\n  a: {zone: Z}\nfunctions: {f: {variants: {v: {gpu: -1}}}}\n", "gpu: must be 0 or more"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := meshfile.Parse("mesh.yaml", []byte(strings.Replace(c.in, "%s", "", 1)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want it to hold %q", err, c.want)
			}
		})
	}
}

func TestDefaultIsRunnable(t *testing.T) {
	t.Parallel()
	m, err := meshfile.Default()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Runnable(); err != nil {
		t.Error(err)
	}
	if len(m.Regions) != 3 || m.Regions[0].Name != "eu-north" {
		t.Errorf("regions %+v", m.Regions)
	}
}

func TestRunnableRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"regions: {EU: {zone: Z}}\n":                                "its name must be",
		"regions: {eu: {zone: Z, jurisdictions: [EU]}}\n":           "jurisdiction",
		"regions: {a: {zone: Z}, b: {zone: Z}}\n":                   "region a: rtt_ms has no round trip to b",
		"regions: {" + strings.Repeat("a", 62) + ": {zone: Z}}\n":   "its name must be",
		"regions: {b: {zone: Z}, a: {zone: Z, jurisdictions: [x]}}": "region a: rtt_ms has no round trip to b",
	} {
		if err := parse(t, in).Runnable(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want it to hold %q", in, err, want)
		}
	}
}

func same(t *testing.T, text []byte) {
	t.Helper()
	m, err := meshfile.Parse("a", text)
	if err != nil {
		return
	}
	once, err := m.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := meshfile.Parse("b", once)
	if err != nil {
		t.Fatalf("%v\nprinted:\n%s", err, once)
	}
	twice, err := again.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(once), string(twice)); diff != "" {
		t.Errorf("printed mesh reads as another one:\n%s", diff)
	}
	if len(m.Regions) != len(again.Regions) {
		t.Errorf("%d regions became %d", len(m.Regions), len(again.Regions))
	}
	for i := range min(len(m.Regions), len(again.Regions)) {
		if m.Regions[i].Name != again.Regions[i].Name || m.Regions[i].CPU != again.Regions[i].CPU || m.Regions[i].PUE != again.Regions[i].PUE {
			t.Errorf("region %+v became %+v", m.Regions[i], again.Regions[i])
		}
	}
}

func TestPrintedMeshReadsTheSame(t *testing.T) {
	t.Parallel()
	same(t, []byte(contract))
	same(t, []byte(meshfile.DefaultYAML()))
	same(t, []byte(energetic))
	m := parse(t, energetic)
	if m.Source != "measured: by us" || m.Functions[0].Variants[0].GPUModel != "H100" || m.NetworkKWhPerGiB != 0.001 || m.Regions[0].IdleWattsPerGPU["H100"] != 70 || *m.Functions[0].Variants[0].CPUUtilisation != 0.5 {
		t.Errorf("%+v", m)
	}
	printed, err := m.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, parse(t, string(printed)), cmp.AllowUnexported(meshfile.Mesh{})); diff != "" {
		t.Errorf("printed and read again: %s", diff)
	}
}

// energetic has every field of the energy model.
const energetic = `source: "measured: by us"
regions:
  a: {zone: Z, watts_per_cpu: 3.5, idle_watts_per_cpu: 0.74, watts_per_gpu: {H100: 700}, idle_watts_per_gpu: {H100: 70}, watts_per_gib: 0.4,
      embodied_g_per_cpu_hour: 0.5, embodied_g_per_gpu_hour: {H100: 4.28}}
network_kwh_per_gib: 0.001
functions: {f: {variants: {v: {gpu: 2, gpu_model: H100, cpu_utilisation: 0.5, gpu_utilisation: 0}}}}
`

func FuzzParse(f *testing.F) {
	f.Add([]byte(contract))
	f.Add([]byte(meshfile.DefaultYAML()))
	f.Add([]byte("regions: {\"a: b\": {zone: \"#\", cpu: 1e300}, 7: {zone: x, pue: 1.0e+00}}"))
	f.Fuzz(same)
}
