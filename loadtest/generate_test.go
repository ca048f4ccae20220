package loadtest

import (
	"cmp"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// within reports a figure that is further from what was published than the
// share says.
func within(t *testing.T, name string, got, want, share float64) {
	t.Helper()
	if math.Abs(got-want) > share*want {
		t.Errorf("%s: got %.1f, published %.1f, want within %.0f %%", name, got, want, 100*share)
	}
}

func medianMean(values []float64) (median, mean float64) {
	slices.Sort(values)
	for _, v := range values {
		mean += v / float64(len(values))
	}
	return values[len(values)/2], mean
}

// perMinute counts arrivals by whole minute, the last, cut one left out.
func perMinute(arrivals []Arrival) []float64 {
	counts := make([]float64, int(arrivals[len(arrivals)-1].At/time.Minute)+1)
	for _, a := range arrivals {
		counts[int(a.At/time.Minute)]++
	}
	return counts[:len(counts)-1]
}

// TestPublishedSizes holds the generated sizes to the medians and means that
// were published.
func TestPublishedSizes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		shape                          Shape
		inMedian, inMean               float64
		outMedian, outMean, outMeanTol float64
	}{
		{Conv(), 1020, 1154.7, 129, 211.1, 0.03},
		{Code(), 1469, 2047.8, 13, 27.9, 0.05},
	} {
		t.Run(tt.shape.Service, func(t *testing.T) {
			t.Parallel()
			var in, out []float64
			for _, a := range Generate(1, tt.shape, 100_000) {
				in, out = append(in, float64(a.Input)), append(out, float64(a.Output))
			}
			median, mean := medianMean(in)
			within(t, "input median", median, tt.inMedian, 0.02)
			within(t, "input mean", mean, tt.inMean, 0.03)
			median, mean = medianMean(out)
			within(t, "output median", median, tt.outMedian, 0.05)
			within(t, "output mean", mean, tt.outMean, tt.outMeanTol)
		})
	}
}

// TestConvRate: conversations come 191 to 507 a minute, give or take the
// counting noise of a minute, and the rate moves slowly.
func TestConvRate(t *testing.T) {
	t.Parallel()
	var counts []float64
	for seed := range uint64(8) {
		counts = append(counts, perMinute(Generate(seed, Conv(), 200_000))...)
	}
	median, mean := medianMean(slices.Clone(counts))
	within(t, "mean a minute", mean, 19366/58.35, 0.03)
	within(t, "median a minute", median, 327.5, 0.05)
	noise := 4 * math.Sqrt(507)
	if least, most := slices.Min(counts), slices.Max(counts); least < 191-noise || most > 507+noise {
		t.Errorf("minutes of %v to %v, published 191 to 507", least, most)
	}
	if a := autocorrelation(counts, mean); a < 0.7 || a > 0.95 {
		t.Errorf("a minute's count keeps %.2f of itself in the next, in the trace 0.81", a)
	}
}

// TestCodeRate: completions come in bursts, 0 to 632 a minute, median 113.
func TestCodeRate(t *testing.T) {
	t.Parallel()
	counts := perMinute(Generate(3, Code(), 300_000))
	median, mean := medianMean(slices.Clone(counts))
	within(t, "mean a minute", mean, 8819/57.27, 0.05)
	within(t, "median a minute", median, 113, 0.15)
	if a := autocorrelation(counts, mean); a > 0.4 {
		t.Errorf("a minute's count keeps %.2f of itself in the next, in the trace 0.16", a)
	}
	empty := 0
	for _, c := range counts {
		if c == 0 {
			empty++
		}
	}
	if share := float64(empty) / float64(len(counts)); share < 0.08 || share > 0.25 {
		t.Errorf("%.0f %% of the minutes are empty, in the trace 19 %%", 100*share)
	}
	// The hour's largest minute, over many hours.
	var largest []float64
	for hour := range slices.Chunk(counts, 58) {
		largest = append(largest, slices.Max(hour))
	}
	typical, _ := medianMean(largest)
	within(t, "largest minute of an hour", typical, 632, 0.25)
}

func autocorrelation(counts []float64, mean float64) float64 {
	var both, one float64
	for i := range len(counts) - 1 {
		both += (counts[i] - mean) * (counts[i+1] - mean)
		one += (counts[i] - mean) * (counts[i] - mean)
	}
	return both / one
}

// TestGenerateIsDeterministic: equal arguments, equal arrivals; another seed,
// others; and the arrivals of a seed are what they always were.
func TestGenerateIsDeterministic(t *testing.T) {
	t.Parallel()
	for _, shape := range []Shape{Conv(), Code()} {
		one, two := Generate(7, shape, 500), Generate(7, shape, 500)
		if !reflect.DeepEqual(one, two) {
			t.Errorf("%s: two runs of one seed differ", shape.Service)
		}
		if reflect.DeepEqual(one, Generate(8, shape, 500)) {
			t.Errorf("%s: seeds 7 and 8 give the same", shape.Service)
		}
	}
	want := []Arrival{
		{At: 159528 * time.Microsecond, Service: "conv", Input: 1429, Output: 301},
		{At: 188957 * time.Microsecond, Service: "conv", Input: 2175, Output: 135},
		{At: 571595 * time.Microsecond, Service: "conv", Input: 1413, Output: 169},
	}
	if got := Generate(1, Conv(), 3); !reflect.DeepEqual(got, want) {
		t.Errorf("the first arrivals of seed 1 are %+v, want %+v", got, want)
	}
}

// TestGenerateInvariants: n arrivals, in order, from zero, of at least a token.
func TestGenerateInvariants(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		shape := rapid.SampledFrom([]Shape{Conv(), Code()}).Draw(t, "shape")
		n := rapid.IntRange(-1, 400).Draw(t, "n")
		got := Generate(rapid.Uint64().Draw(t, "seed"), shape, n)
		if len(got) != max(n, 0) {
			t.Fatalf("%d arrivals, want %d", len(got), n)
		}
		if !slices.IsSortedFunc(got, func(a, b Arrival) int { return cmp.Compare(a.At, b.At) }) {
			t.Fatal("not in order")
		}
		for _, a := range got {
			if a.At < 0 || a.Input < 1 || a.Output < 1 || a.Service != shape.Service {
				t.Fatalf("bad arrival %+v", a)
			}
		}
	})
}

// TestGenerateGrows: more arrivals of one seed begin with the fewer.
func TestGenerateGrows(t *testing.T) {
	t.Parallel()
	for _, shape := range []Shape{Conv(), Code()} {
		few, many := Generate(5, shape, 200), Generate(5, shape, 5000)
		if !reflect.DeepEqual(few, many[:200]) {
			t.Errorf("%s: the first 200 of 5,000 are not the 200", shape.Service)
		}
	}
}
