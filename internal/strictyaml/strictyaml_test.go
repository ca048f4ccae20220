package strictyaml_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isobar-mesh/isobar/internal/strictyaml"
)

type inner struct {
	Every time.Duration `yaml:"every"`
	Count int           `yaml:"count"`
	Share *float64      `yaml:"share"`
	Clock time.Time     `yaml:"clock"`
}

type outer struct {
	Name  string             `yaml:"name"`
	On    bool               `yaml:"on"`
	Inner inner              `yaml:"inner"`
	Costs map[string]float64 `yaml:"costs"`
	Tags  []string           `yaml:"tags"`
	Kept  string
}

func TestDecodeKeepsDefaultsAndOrder(t *testing.T) {
	t.Parallel()
	got := outer{Name: "a", Inner: inner{Count: 7}, Costs: map[string]float64{"old": 1}, Tags: []string{"x"}}
	doc, err := strictyaml.Decode("f.yaml", []byte("# c\ninner: {every: 10s, share: 0, clock: 2022-01-01T00:00:00Z}\ncosts: {z: 2, a: 1.5}\non: true\nname: null\n"), &got)
	if err != nil {
		t.Fatal(err)
	}
	zero := 0.0
	want := outer{
		Name: "a", On: true, Costs: map[string]float64{"z": 2, "a": 1.5}, Tags: []string{"x"},
		Inner: inner{Every: 10 * time.Second, Count: 7, Share: &zero, Clock: time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"z", "a"}, doc.Keys("costs")); diff != "" {
		t.Error(diff)
	}
	if got := doc.Errorf("inner.every.deep", "no").Error(); got != "f.yaml:2: inner.every.deep: no" {
		t.Error(got)
	}
}

// TestExponent: what an encoder writes for a small number is a number.
func TestExponent(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]float64{"1e-06": 1e-6, "1E3": 1000, "-2e+1": -20, "1.5e-6": 1.5e-6} {
		var got struct {
			Price float64 `yaml:"price"`
		}
		if _, err := strictyaml.Decode("f.yaml", []byte("price: "+in+"\n"), &got); err != nil || got.Price != want {
			t.Errorf("%s: got %v, %v; want %v", in, got.Price, err, want)
		}
	}
	for _, in := range []string{`"1e-06"`, "e5", "1e", "1ex", "e"} {
		var got struct {
			Price float64 `yaml:"price"`
		}
		if _, err := strictyaml.Decode("f.yaml", []byte("price: "+in+"\n"), &got); err == nil {
			t.Errorf("%s was read as %v", in, got.Price)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, in, want string }{
		{"unknown field", "nam: x\n", "f.yaml:1: nam: unknown field; did you mean name?"},
		{"far unknown field", "zzzzzzzz: x\n", "f.yaml:1: zzzzzzzz: unknown field"},
		{"nested unknown field", "inner:\n  cnt: 1\n", "f.yaml:2: inner.cnt: unknown field"},
		{"twice", "inner:\n  count: 1\n  count: 2\n", "f.yaml:3"},
		{"rounded number", "inner:\n\n  count: 1.5\n", `f.yaml:3: inner.count: must be a whole number, got "1.5"`},
		{"quoted number", "inner: {count: \"1\"}\n", `f.yaml:1: inner.count: must be a whole number, got text "1"`},
		{"number as text", "name: 12\n", `must be text (quote it), got the number "12"`},
		{"duration without unit", "inner: {every: 10}\n", "inner.every: must be a duration with its unit"},
		{"bad duration", "inner: {every: soon}\n", `inner.every: must be a duration such as 10s or 24h, got "soon"`},
		{"bad time", "inner: {clock: noon}\n", "inner.clock: must be a time such as"},
		{"not a number", "costs: {a: .nan}\n", "costs.a: must be a finite number"},
		{"infinite", "costs: {a: .inf}\n", "costs.a: must be a finite number"},
		{"mapping for scalar", "name: {a: b}\n", "name: must be text (quote it), got a mapping"},
		{"scalar for mapping", "inner: 3\n", "inner: must be a mapping of names to values"},
		{"scalar for list", "tags: x\n", "tags: must be a list"},
		{"empty item", "tags: [a, null]\n", "tags[1]: is empty"},
		{"anchor", "inner: &a {count: 1}\n", "anchor, alias or tag"},
		{"two documents", "name: a\n---\nname: b\n", "second document"},
		{"not YAML", "a: b: c\n", "f.yaml:1"},
		{"unreachable field", "Kept: a\n", "unknown field"},
		{"too large", "name: " + strings.Repeat("x", strictyaml.MaxSize), "more than the"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var got outer
			_, err := strictyaml.Decode("f.yaml", []byte(c.in), &got)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want it to hold %q", err, c.want)
			}
		})
	}
}

func TestDecodeReportsEveryError(t *testing.T) {
	t.Parallel()
	var got outer
	_, err := strictyaml.Decode("f.yaml", []byte("nope: 1\non: maybe\n"), &got)
	if err == nil || !strings.Contains(err.Error(), "f.yaml:1: nope") || !strings.Contains(err.Error(), "f.yaml:2: on") {
		t.Errorf("error %v, want both lines", err)
	}
}

func TestWalkVisitsLeaves(t *testing.T) {
	t.Parallel()
	var paths []string
	err := strictyaml.Walk(&outer{}, func(path string, _ reflect.Value) error {
		paths = append(paths, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"name", "on", "inner.every", "inner.count", "inner.share", "inner.clock", "costs", "tags"}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Error(diff)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("name: a\ninner: {every: 10s}\ncosts: {a: 1}\ntags: [x]\n"))
	f.Add([]byte("? a\n: b\n"))
	f.Add([]byte("- \n-\t"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		var got outer
		_, _ = strictyaml.Decode("f.yaml", data, &got) // must not panic
	})
}
