package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/loadtest"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Functions and what they ask for.
const (
	sentimentName = "sentiment"
	thumbnailName = "thumbnail"
	// carefulQuality is the minimum quality of the sentiment tasks that want the
	// better variant.
	carefulQuality = 0.7
	// deadlineAfter is the time that a task with a deadline is given.
	deadlineAfter = 45 * time.Second
)

// Lanes by the tokens a request generates: who waits for a few words is a
// person at a screen, who waits for pages is not.
const (
	interactiveTokens = 50
	standardTokens    = 300
)

// rules of how requests become tasks, for the reader of the output.
func rules() []string {
	return []string{
		"conversations become sentiment: a text of as many tokens as the request's input (4 bytes each), made of labelled sentences",
		"code completions become thumbnail: a JPEG half as many pixels wide as the input has tokens (64 to 2,048), three quarters as high",
		"lane by generated tokens: up to 50 interactive, up to 300 standard, else batch; what is generated is not imitated otherwise",
		"drawn by seed: 1 task in 10 has residency [eu], 1 in 5 a deadline of 45 s, 1 sentiment task in 2 a minimum quality of 0.7",
	}
}

// plan is the workload and all that is said about it.
type plan struct {
	trace loadtest.Trace
	// of is how many requests the trace was picked from.
	of     int
	source string
	speed  float64
	jobs   []job
	// warmUp has each variant once.
	warmUp []job
	// carbonClock is the feed's time at the start; carbonSource its description.
	carbonClock  time.Time
	carbonSource string
}

// job is one request as a task.
type job struct {
	spec     *isobarv1.TaskSpec
	deadline bool
	check    func(result []byte) (answers, right int, err error)
}

// places are where requests come from: the regions of the default mesh, by the
// local time of the cities whose round trips it has (Stockholm, Virginia,
// Mumbai).
func places() []loadtest.Place {
	return []loadtest.Place{
		{Region: "eu-north", UTCOffset: 1}, {Region: "us-east", UTCOffset: -5}, {Region: "ap-south", UTCOffset: 5.5},
	}
}

// newPlan makes the workload. Its errors are of the files that were named.
func newPlan(o options) (*plan, error) {
	p := &plan{}
	full, err := p.read(o)
	if err != nil {
		return nil, &usageError{err}
	}
	window := full.Window(0, o.span)
	p.of = len(window.Arrivals)
	p.speed = max(window.Span().Seconds()/o.play.Seconds(), 1e-3)
	p.trace = window.Sample(o.requests)
	loadtest.Spread(o.seed, p.trace, places())
	if err := p.readCarbon(o.carbon); err != nil {
		return nil, &usageError{err}
	}
	s, err := readSentences(filepath.Join(o.examples, sentimentName, "heldout.tsv"))
	if err != nil {
		return nil, err
	}
	return p, p.makeJobs(o.seed, s)
}

func (p *plan) read(o options) (loadtest.Trace, error) {
	if len(o.traces) > 0 {
		p.source = "files " + strings.Join(o.traces, ", ") + " (" + loadtest.Source + ")"
		var traces []loadtest.Trace
		for _, path := range o.traces {
			t, err := loadtest.ReadAzureLLMFile(path)
			if err != nil {
				return loadtest.Trace{}, err
			}
			traces = append(traces, t)
		}
		return loadtest.Merge(traces...), nil
	}
	p.source = "generated in the shape of the " + loadtest.Source + ", seed " + fmt.Sprint(o.seed)
	// The trace's own date and time of day.
	start := time.Date(2023, 11, 16, 18, 15, 0, 0, time.UTC)
	var traces []loadtest.Trace
	for _, shape := range []loadtest.Shape{loadtest.Conv(), loadtest.Code()} {
		t := loadtest.Trace{Start: start}
		// More and more, until the span is full: the first are always the same.
		for n := 30_000; t.Span() < o.span; n *= 2 {
			t.Arrivals = loadtest.Generate(o.seed, shape, n)
		}
		traces = append(traces, t)
	}
	return loadtest.Merge(traces...), nil
}

// readCarbon checks a carbon file and finds the hour to start at: that of the
// workload, in the first year of the table that has it.
func (p *plan) readCarbon(path string) error {
	p.carbonClock = p.trace.Start
	if path == "" {
		p.carbonSource = carbon.NewGenerator().Source()
		return nil
	}
	table, err := carbon.ReadFile(path, carbon.Average)
	if err != nil {
		return err
	}
	p.carbonSource = table.Source()
	for year := table.Start().Year(); year <= table.End().Year(); year++ {
		t := p.trace.Start
		t = time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
		if !t.Before(table.Start()) && t.Add(p.trace.Span()).Before(table.End()) {
			p.carbonClock = t
			return nil
		}
	}
	p.carbonClock = table.Start()
	return nil
}

func (p *plan) makeJobs(seed uint64, s sentences) error {
	r := rand.New(rand.NewPCG(seed, 0x6a6f6273))
	pictures := map[int]*picture{}
	line := 0
	for i, a := range p.trace.Arrivals {
		j := job{spec: &isobarv1.TaskSpec{Lane: lane(a.Output), CorrelationId: fmt.Sprintf("demo-%d", i)}}
		resident, hurried, careful := r.IntN(10) == 0, r.IntN(5) == 0, r.IntN(2) == 0
		if resident {
			j.spec.Residency = &isobarv1.Residency{Allowed: []string{"eu"}}
		}
		j.deadline = hurried
		if a.Service == "code" {
			width := pictureWidth(a.Input)
			if pictures[width] == nil {
				painted, err := newPicture(width)
				if err != nil {
					return err
				}
				pictures[width] = painted
			}
			j.picture(pictures[width])
		} else {
			t := s.compose(a.Input, line)
			line += len(t.labels)
			j.text(t)
			if careful {
				j.spec.MinQuality = carefulQuality
			}
		}
		p.jobs = append(p.jobs, j)
	}
	return p.makeWarmUp(s)
}

// makeWarmUp has each variant chosen once: small before large, see warm.
func (p *plan) makeWarmUp(s sentences) error {
	small, err := newPicture(minWidth)
	if err != nil {
		return err
	}
	jobs := make([]job, 3)
	for i := range jobs {
		jobs[i].spec = &isobarv1.TaskSpec{CorrelationId: "warm-up"}
	}
	jobs[0].text(s.compose(1, 0))
	jobs[1].text(s.compose(1, 1))
	jobs[1].spec.MinQuality = carefulQuality
	jobs[2].picture(small)
	p.warmUp = jobs
	return nil
}

func (j *job) picture(p *picture) {
	j.spec.Function, j.spec.ContentType = thumbnailName, "image/jpeg"
	j.spec.Input = &isobarv1.TaskSpec_Payload{Payload: p.jpeg}
	j.check = func(result []byte) (int, int, error) { return 0, 0, p.check(result) }
}

func (j *job) text(t text) {
	j.spec.Function = sentimentName
	j.spec.Input = &isobarv1.TaskSpec_Text{Text: t.body}
	j.check = t.check
}

func lane(tokens int) string {
	switch {
	case tokens <= interactiveTokens:
		return "interactive"
	case tokens <= standardTokens:
		return "standard"
	default:
		return "batch"
	}
}

// shares says where the requests come in, largest first.
func (p *plan) shares() string {
	counts := map[string]int{}
	for _, a := range p.trace.Arrivals {
		counts[a.Origin]++
	}
	regions := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		if counts[a] != counts[b] {
			return counts[b] - counts[a]
		}
		return strings.Compare(a, b)
	})
	for i, r := range regions {
		regions[i] = fmt.Sprintf("%s %d", r, counts[r])
	}
	return strings.Join(regions, ", ")
}
