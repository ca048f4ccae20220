package loadtest

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Source names the trace that the shapes of this package follow.
const Source = "Azure LLM inference trace 2023 (Patel et al., Splitwise, ISCA 2024; " +
	"Azure/AzurePublicDataset, CC-BY 4.0)"

// maxTokens bounds a generated size. It is far above the trace's largest
// (14,050), so that the means stay those of the fit.
const maxTokens = 1 << 17

// Sizes is a log-normal distribution, given by what is usually published. The
// mean is at least the median, and both are positive.
type Sizes struct {
	Median float64
	Mean   float64
}

// sigma is the deviation of the logarithm: mean = median × exp(σ²/2).
func (s Sizes) sigma() float64 { return math.Sqrt(2 * math.Log(s.Mean/s.Median)) }

func (s Sizes) draw(r *rand.Rand) float64 { return s.Median * math.Exp(s.sigma()*r.NormFloat64()) }

// tokens draws a whole number of at least one.
func (s Sizes) tokens(r *rand.Rand) int {
	return int(min(max(math.Round(s.draw(r)), 1), maxTokens))
}

// Process says when requests come. Smooth and Bursts are the two.
type Process interface {
	// times draws the next n arrivals, in order.
	times(r *rand.Rand, n int) []time.Duration
}

// Shape is a service's workload: how requests come and how large they are.
type Shape struct {
	Service  string
	Arrivals Process
	Input    Sizes // tokens
	Output   Sizes // tokens
}

// Conv is the shape of the trace's conversation service: median 1,020 tokens in
// and 129 out (mean 1,154.7 and 211.1), 191 to 507 requests a minute that rise
// and fall slowly. The mean rate and the memory were fitted to the counts of the
// trace's minutes (19,366 requests in 58; their logarithm deviates by 0.21 and
// keeps about 0.9 of itself from minute to minute).
func Conv() Shape {
	return Shape{
		Service:  "conv",
		Arrivals: Smooth{PerMinute: 332, Least: 191, Most: 507, Deviation: 0.21, Memory: 10 * time.Minute},
		Input:    Sizes{Median: 1020, Mean: 1154.7},
		Output:   Sizes{Median: 129, Mean: 211.1},
	}
}

// Code is the shape of the trace's code service: median 1,469 tokens in and 13
// out (mean 2,047.8 and 27.9), in bursts: 0 to 632 requests a minute, median
// 113. The bursts were fitted to the counts of the trace's minutes and seconds
// (8,819 requests in 58 minutes; one minute in five is empty; a second's count
// keeps 0.76 of itself in the next).
func Code() Shape {
	return Shape{
		Service:  "code",
		Arrivals: Bursts{PerMinute: 1.65, Size: Sizes{Median: 70, Mean: 92}, Spread: 5 * time.Second},
		Input:    Sizes{Median: 1469, Mean: 2047.8},
		Output:   Sizes{Median: 13, Mean: 27.9},
	}
}

// Generate draws the first n arrivals of a shape. Equal arguments give equal
// arrivals; two services with one seed are independent of each other.
func Generate(seed uint64, shape Shape, n int) []Arrival {
	if n <= 0 {
		return nil
	}
	when := stream(seed, shape.Service, "arrivals")
	size := stream(seed, shape.Service, "sizes")
	out := make([]Arrival, n)
	for i, at := range shape.Arrivals.times(when, n) {
		// Whole microseconds: the last bits of math.Exp differ between processors.
		out[i] = Arrival{
			At: at.Round(time.Microsecond), Service: shape.Service,
			Input: shape.Input.tokens(size), Output: shape.Output.tokens(size),
		}
	}
	return out
}

// stream derives an independent source of randomness for one use, so that a
// draw more in one does not shift the others.
func stream(seed uint64, names ...string) *rand.Rand {
	h := uint64(14695981039346656037) // FNV-1a
	for _, name := range names {
		for i := range len(name) {
			h = (h ^ uint64(name[i])) * 1099511628211
		}
		h = (h ^ '/') * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, h))
}

// Smooth is a doubly stochastic Poisson process: requests come independently of
// each other, at a rate that itself wanders about its mean and stays within
// bounds.
type Smooth struct {
	// PerMinute is the mean rate, Least and Most its bounds.
	PerMinute, Least, Most float64
	// Deviation is that of the rate's logarithm.
	Deviation float64
	// Memory is the time in which the rate forgets all but 1/e of itself.
	Memory time.Duration
}

func (p Smooth) times(r *rand.Rand, n int) []time.Duration {
	keep := math.Exp(-1 / p.Memory.Seconds()) // a second's step
	fresh := math.Sqrt(1 - float64(keep*keep))
	level := r.NormFloat64()

	out := make([]time.Duration, 0, n)
	need := r.ExpFloat64() // expected arrivals until the next
	for second := 0; len(out) < n; second++ {
		rate := p.PerMinute / 60 * math.Exp(float64(p.Deviation*level)-float64(p.Deviation*p.Deviation)/2)
		rate = min(max(rate, p.Least/60), p.Most/60)
		at := 0.0
		for len(out) < n {
			step := need / rate
			if at+step >= 1 {
				need -= float64((1 - at) * rate)
				break
			}
			at += step
			out = append(out, seconds(float64(second)+at))
			need = r.ExpFloat64()
		}
		level = float64(keep*level) + float64(fresh*r.NormFloat64())
	}
	return out
}

// Bursts is a Poisson cluster process: bursts begin independently of each
// other, and each brings a number of requests that trail off after its begin.
type Bursts struct {
	// PerMinute is how many bursts begin in a minute, on average.
	PerMinute float64
	// Size is how many requests a burst brings.
	Size Sizes
	// Spread is the mean delay of a request after its burst's begin.
	Spread time.Duration
}

func (p Bursts) times(r *rand.Rand, n int) []time.Duration {
	var out []time.Duration
	// Begin before zero, so that the first minute has its share of tails, and
	// go on until bursts to come cannot bring one of the first n.
	at := -20 * p.Spread.Seconds()
	for {
		at += r.ExpFloat64() * 60 / p.PerMinute
		if len(out) >= n {
			slices.Sort(out)
			if at >= out[n-1].Seconds() {
				return out[:n]
			}
		}
		for range int(max(math.Round(p.Size.draw(r)), 1)) {
			if when := at + float64(r.ExpFloat64()*p.Spread.Seconds()); when >= 0 {
				out = append(out, seconds(when))
			}
		}
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
