package sentiment

import (
	"bytes"
	_ "embed"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

//go:embed heldout.tsv
var heldoutTSV string

func examples(t testing.TB, tsv string) []Example {
	t.Helper()
	out, err := ParseExamples(tsv)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// accuracy is the share of the examples that get their label.
func accuracy(examples []Example, positive func(string) float64) float64 {
	right := 0
	for _, e := range examples {
		if (positive(e.Text) >= 0.5) == e.Positive {
			right++
		}
	}
	return float64(right) / float64(len(examples))
}

// TestQuality measures both variants on sentences that neither has seen, and
// holds the manifest to it.
func TestQuality(t *testing.T) {
	t.Parallel()
	heldout := examples(t, heldoutTSV)
	large, err := NewLearned()
	if err != nil {
		t.Fatal(err)
	}
	measured := map[string]float64{
		"small": accuracy(heldout, Lexicon),
		"large": accuracy(heldout, large.Positive),
	}
	t.Logf("measured on %d sentences: %v", len(heldout), measured)
	if measured["large"] < measured["small"]+0.1 {
		t.Errorf("large is right in %.3f and small in %.3f, want large clearly better", measured["large"], measured["small"])
	}

	text, err := os.ReadFile("sentiment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Variants []struct {
			Name    string
			Quality float64
		}
	}
	if err := yaml.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest.Variants) != len(measured) {
		t.Fatalf("the manifest has %d variants, want %d", len(manifest.Variants), len(measured))
	}
	for _, v := range manifest.Variants {
		if got := measured[v.Name]; math.Abs(got-v.Quality) > 0.005 {
			t.Errorf("%s: the manifest says quality %.3f, measured %.3f", v.Name, v.Quality, got)
		}
	}
}

// TestSets: both sets are balanced, and no sentence is in both or twice.
func TestSets(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for name, tsv := range map[string]string{"train": trainTSV, "heldout": heldoutTSV} {
		positive := 0
		set := examples(t, tsv)
		for _, e := range set {
			if e.Positive {
				positive++
			}
			key := strings.Join(words(e.Text), " ")
			if seen[key] {
				t.Errorf("%s: %q is there before", name, e.Text)
			}
			seen[key] = true
		}
		if 2*positive != len(set) {
			t.Errorf("%s: %d of %d are positive, want half", name, positive, len(set))
		}
	}
}

// TestTrainAlone: the model is no copy of its training set's labels. Learned
// without an eighth of the sentences, with the opposites of these left out too,
// it still does better than chance on them.
func TestTrainAlone(t *testing.T) {
	t.Parallel()
	const sentences, parts = 240, 8 // the phrases after them only help to learn
	all := examples(t, trainTSV)
	sum := 0.0
	for part := range parts {
		var learn, check []Example
		for i, e := range all {
			if i < sentences && i%(sentences/2)%parts == part {
				check = append(check, e)
			} else {
				learn = append(learn, e)
			}
		}
		sum += accuracy(check, Learn(learn).Positive) / parts
	}
	if sum < 0.7 {
		t.Errorf("right in %.3f of the sentences left out, want 0.7", sum)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ in, want, err string }{
		{in: "What a lovely day\n\nThe worst day\n", want: `{"label":"positive","positive":0.667}` + "\n" + `{"label":"negative","positive":0.333}` + "\n"},
		{in: "lovely", want: `{"label":"positive","positive":0.667}` + "\n"},
		{in: "", err: "there is none"},
		{in: " \n\n", err: "there is none"},
		{in: "fine\n\xff\n", err: "text 2: not UTF-8"},
	} {
		var out bytes.Buffer
		err := Serve(strings.NewReader(test.in), &out, Lexicon)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: got %v, want %q", test.in, err, test.err)
			}
			continue
		}
		if err != nil || out.String() != test.want {
			t.Errorf("%q: got %q, %v, want %q", test.in, out.String(), err, test.want)
		}
	}
}

func TestParseExamples(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"good\tx\n", "pos x\n", "pos\tx\n\n"} {
		if got, err := ParseExamples(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func BenchmarkSmall(b *testing.B) {
	for b.Loop() {
		Lexicon("The soup was cold and tasted of nothing.")
	}
}

func BenchmarkLarge(b *testing.B) {
	for b.Loop() {
		m, err := NewLearned()
		if err != nil {
			b.Fatal(err)
		}
		m.Positive("The soup was cold and tasted of nothing.")
	}
}
