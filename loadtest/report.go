package loadtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Outcome is what came of one request.
type Outcome struct {
	// Request names it across runs of the same workload; may be empty.
	Request string
	// Task is its id, empty when it was never accepted.
	Task     string
	Function string
	// SHA256 of its result, in hexadecimal; empty when it did not complete.
	SHA256 string
	// Origin is the region it came in at.
	Origin string
	// Region and Variant are those of the attempt that ended it.
	Region, Variant string
	// Latency is from when it was due until its result was at hand.
	Latency time.Duration
	// Decision is the newest that was stored, nil when none was.
	Decision *isobarv1.Decision
	// Moved: Region is not the home's.
	Moved bool
	// Answers were compared with what is known, Right of them agree.
	Answers, Right int
	// Problem says what is wrong; empty when all is well. Kind says of which
	// kind it is.
	Problem string
	Kind    Problem
}

// Problem is a kind of bad end.
type Problem string

// The kinds. The empty one is none.
const (
	// Refused: Submit said no, or nobody answered.
	Refused Problem = "refused"
	// Failed: the task ended, but not completed.
	Failed Problem = "failed"
	// Lost: it was accepted, and no end was seen in time.
	Lost Problem = "lost"
	// Wrong: it completed, and its result does not stand the check.
	Wrong Problem = "wrong"
)

// Row is what became of the tasks of one function that ran as one variant in
// one region.
type Row struct {
	Function string `json:"function,omitempty"`
	Variant  string `json:"variant,omitempty"`
	Region   string `json:"region,omitempty"`
	Tasks    int    `json:"tasks"`
	// Moved of them have their home in another region.
	Moved int `json:"moved"`
	// WhyPlace and WhyVariant are the commonest reasons.
	WhyPlace   Reason `json:"why_place,omitzero"`
	WhyVariant Reason `json:"why_variant,omitzero"`
	// P50 and P99 of the latency, in seconds, nearest rank.
	P50 float64 `json:"p50_s"`
	P99 float64 `json:"p99_s"`
	// USD (compute and egress) and gCO2eq of 1,000 such tasks, by the stored
	// decisions of the Decided tasks that have one.
	Decided int     `json:"decided"`
	USD     float64 `json:"usd_per_1000"`
	Grams   float64 `json:"gco2eq_per_1000"`
}

// Reason is why some tasks were placed as they were.
type Reason struct {
	Words string `json:"words"`
	Tasks int    `json:"tasks"`
}

// Home is what the same tasks would have cost at their homes.
type Home struct {
	// Tasks whose decision has a candidate at home; Missing have none.
	Tasks   int `json:"tasks"`
	Missing int `json:"missing"`
	// AtHome is what they would have cost, Placed what the same tasks cost as
	// they were placed.
	AtHome Cost `json:"at_home"`
	Placed Cost `json:"placed"`
}

// Cost is what the decisions expected of some tasks.
type Cost struct {
	// USD and Grams (gCO2eq) of 1,000 tasks.
	USD   float64 `json:"usd_per_1000"`
	Grams float64 `json:"gco2eq_per_1000"`
	// Seconds from decision to answer, of one task on average.
	Seconds float64 `json:"expected_s"`
}

// Answers says how often a variant was right.
type Answers struct {
	Function string `json:"function"`
	Variant  string `json:"variant"`
	Tasks    int    `json:"tasks"`
	Answers  int    `json:"answers"`
	Right    int    `json:"right"`
}

// Share of the answers that are right, 0 to 1.
func (a Answers) Share() float64 { return float64(a.Right) / float64(max(a.Answers, 1)) }

// Report is what came of a whole run.
type Report struct {
	Sent int `json:"sent"`
	// Problems counts the bad ends by kind; empty when all went well. Examples
	// are some of them in words, at most five.
	Problems map[Problem]int `json:"problems,omitempty"`
	Examples []string        `json:"examples,omitempty"`
	Rows     []Row           `json:"rows"`
	// All is the sum of the rows.
	All Row `json:"all"`
	// Moved are the reasons of the tasks that left their home's region, the
	// commonest first.
	Moved   []Reason  `json:"moved,omitempty"`
	Home    Home      `json:"home"`
	Answers []Answers `json:"answers,omitempty"`
	Latency []Bucket  `json:"latency"`
	// Outputs are what came of the requests that have a name, in their order.
	Outputs []Output `json:"outputs,omitempty"`
}

// Output is what came of one request: the same function and variant make the
// same of the same request, wherever and whenever it runs.
type Output struct {
	Request  string `json:"request"`
	Function string `json:"function"`
	Variant  string `json:"variant,omitempty"`
	// SHA256 of the result, in hexadecimal; empty when it did not complete.
	SHA256 string `json:"sha256,omitempty"`
}

const maxExamples = 5

// NewReport sums outcomes up. Rows are sorted by function, region and variant;
// tasks that did not complete are in no row.
func NewReport(outcomes []Outcome) Report {
	r := Report{Sent: len(outcomes), Problems: map[Problem]int{}}
	rows := map[[3]string]*tally{}
	answers := map[[2]string]*Answers{}
	all := newTally(Row{})
	moved := map[string]int{}
	var home homeTally
	for _, o := range outcomes {
		if o.Request != "" {
			r.Outputs = append(r.Outputs, Output{Request: o.Request, Function: o.Function, Variant: o.Variant, SHA256: o.SHA256})
		}
		if o.Problem != "" {
			r.Problems[o.Kind]++
			if len(r.Examples) < maxExamples {
				r.Examples = append(r.Examples, fmt.Sprintf("%s: %s: %s: %s", o.Kind, o.Function, cmp.Or(o.Task, "no task"), o.Problem))
			}
			if o.Kind != Wrong {
				continue
			}
		}
		key := [3]string{o.Function, o.Region, o.Variant}
		if rows[key] == nil {
			rows[key] = newTally(Row{Function: o.Function, Region: o.Region, Variant: o.Variant})
		}
		rows[key].add(o)
		all.add(o)
		home.add(o)
		if o.Moved && o.Decision != nil {
			place, _ := Why(o.Decision)
			moved[place]++
		}
		if o.Answers > 0 {
			k := [2]string{o.Function, o.Variant}
			if answers[k] == nil {
				answers[k] = &Answers{Function: o.Function, Variant: o.Variant}
			}
			answers[k].Tasks++
			answers[k].Answers += o.Answers
			answers[k].Right += o.Right
		}
	}
	for _, t := range rows {
		r.Rows = append(r.Rows, t.row())
	}
	slices.SortFunc(r.Rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Region, b.Region), cmp.Compare(a.Variant, b.Variant))
	})
	for _, a := range answers {
		r.Answers = append(r.Answers, *a)
	}
	slices.SortFunc(r.Answers, func(a, b Answers) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Variant, b.Variant))
	})
	for words, n := range moved {
		r.Moved = append(r.Moved, Reason{Words: words, Tasks: n})
	}
	slices.SortFunc(r.Moved, func(a, b Reason) int { return cmp.Or(cmp.Compare(b.Tasks, a.Tasks), cmp.Compare(a.Words, b.Words)) })
	r.Latency = all.latency.Histogram()
	r.All, r.Home = all.row(), home.home()
	r.All.WhyPlace, r.All.WhyVariant = Reason{}, Reason{} // reasons of unlike tasks
	return r
}

// Bad is how many tasks had a bad end.
func (r Report) Bad() int {
	n := 0
	for _, k := range r.Problems {
		n += k
	}
	return n
}

// JSON writes the report as one indented object. Nothing is rounded.
func (r Report) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("loadtest: write report: %w", err)
	}
	return nil
}

// tally grows into a row.
type tally struct {
	of      Row
	latency Latencies
	// How often each reason was given, by its words.
	places, variants map[string]int
	cost             costTally
}

func newTally(of Row) *tally {
	return &tally{of: of, places: map[string]int{}, variants: map[string]int{}}
}

func (t *tally) add(o Outcome) {
	t.of.Tasks++
	t.latency.Add(o.Latency)
	if o.Moved {
		t.of.Moved++
	}
	c := o.Decision.GetCandidates()
	if len(c) == 0 {
		return
	}
	t.cost.add(c[0])
	place, variant := Why(o.Decision)
	t.places[place]++
	if variant != "" {
		t.variants[variant]++
	}
}

func (t *tally) row() Row {
	row := t.of
	row.P50, row.P99 = t.latency.Quantile(0.50).Seconds(), t.latency.Quantile(0.99).Seconds()
	cost := t.cost.mean()
	row.Decided, row.USD, row.Grams = t.cost.tasks, cost.USD, cost.Grams
	row.WhyPlace, row.WhyVariant = commonest(t.places), commonest(t.variants)
	return row
}

// commonest breaks a tie by the alphabet, so that a map's order does not show.
func commonest(reasons map[string]int) Reason {
	var most Reason
	for words, n := range reasons {
		if n > most.Tasks || n == most.Tasks && words < most.Words {
			most = Reason{Words: words, Tasks: n}
		}
	}
	return most
}

// costTally grows into a cost.
type costTally struct {
	tasks               int
	usd, grams, seconds float64
}

func (t *costTally) add(c *isobarv1.Candidate) {
	t.tasks++
	t.usd += c.GetUsd()
	t.grams += c.GetGco2Eq()
	t.seconds += Expected(c).Seconds()
}

func (t *costTally) mean() Cost {
	n := float64(max(t.tasks, 1))
	return Cost{USD: t.usd / n * 1000, Grams: t.grams / n * 1000, Seconds: t.seconds / n}
}

// homeTally grows into the costs at home.
type homeTally struct {
	missing        int
	atHome, placed costTally
}

func (t *homeTally) add(o Outcome) {
	home := AtHome(o.Decision)
	if home == nil {
		t.missing++
		return
	}
	t.atHome.add(home)
	t.placed.add(o.Decision.GetCandidates()[0])
}

func (t *homeTally) home() Home {
	return Home{Tasks: t.atHome.tasks, Missing: t.missing, AtHome: t.atHome.mean(), Placed: t.placed.mean()}
}
