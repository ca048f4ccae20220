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
	// Task is its id, empty when it was never accepted.
	Task     string
	Function string
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
	// Why is the commonest reason, in words, and WhyTasks how many had it.
	Why      string `json:"why,omitempty"`
	WhyTasks int    `json:"why_tasks,omitempty"`
	// P50 and P99 of the latency, in seconds, nearest rank.
	P50 float64 `json:"p50_s"`
	P99 float64 `json:"p99_s"`
	// USD (compute and egress) and gCO2eq of 1,000 such tasks, by the stored
	// decisions of the Decided tasks that have one.
	Decided int     `json:"decided"`
	USD     float64 `json:"usd_per_1000"`
	Grams   float64 `json:"gco2eq_per_1000"`
}

// Home is what the same tasks would have cost at their homes.
type Home struct {
	// Tasks whose decision has a candidate at home; Missing have none.
	Tasks   int `json:"tasks"`
	Missing int `json:"missing"`
	// USD and Grams of 1,000 tasks at home.
	USD   float64 `json:"usd_per_1000"`
	Grams float64 `json:"gco2eq_per_1000"`
	// PlacedUSD and PlacedGrams are those of the same tasks as they were placed.
	PlacedUSD   float64 `json:"placed_usd_per_1000"`
	PlacedGrams float64 `json:"placed_gco2eq_per_1000"`
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
	All     Row       `json:"all"`
	AtHome  Home      `json:"at_home"`
	Answers []Answers `json:"answers,omitempty"`
	Latency []Bucket  `json:"latency"`
}

const maxExamples = 5

// NewReport sums outcomes up. Rows are sorted by function, region and variant;
// tasks that did not complete are in no row.
func NewReport(outcomes []Outcome) Report {
	r := Report{Sent: len(outcomes), Problems: map[Problem]int{}}
	rows := map[[3]string]*tally{}
	answers := map[[2]string]*Answers{}
	all := newTally(Row{})
	var home homeTally
	for _, o := range outcomes {
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
	r.Latency = all.latency.Histogram()
	r.All, r.AtHome = all.row(), home.home()
	r.All.Why, r.All.WhyTasks = "", 0
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
	of         Row
	latency    Latencies
	reasons    map[string]int
	usd, grams float64
}

func newTally(of Row) *tally { return &tally{of: of, reasons: map[string]int{}} }

func (t *tally) add(o Outcome) {
	t.of.Tasks++
	t.latency.Add(o.Latency)
	if o.Moved {
		t.of.Moved++
	}
	if c := o.Decision.GetCandidates(); len(c) > 0 {
		t.of.Decided++
		t.usd += c[0].GetUsd()
		t.grams += c[0].GetGco2Eq()
		t.reasons[Why(o.Decision)]++
	}
}

func (t *tally) row() Row {
	row := t.of
	row.P50, row.P99 = t.latency.Quantile(0.50).Seconds(), t.latency.Quantile(0.99).Seconds()
	row.USD, row.Grams = perThousand(t.usd, row.Decided), perThousand(t.grams, row.Decided)
	for why, n := range t.reasons {
		// The alphabet breaks a tie, so that a map's order does not show.
		if n > row.WhyTasks || n == row.WhyTasks && why < row.Why {
			row.Why, row.WhyTasks = why, n
		}
	}
	return row
}

// homeTally grows into the costs at home.
type homeTally struct {
	tasks, missing         int
	usd, grams             float64
	placedUSD, placedGrams float64
}

func (t *homeTally) add(o Outcome) {
	home := AtHome(o.Decision)
	if home == nil {
		t.missing++
		return
	}
	t.tasks++
	t.usd += home.GetUsd()
	t.grams += home.GetGco2Eq()
	t.placedUSD += o.Decision.GetCandidates()[0].GetUsd()
	t.placedGrams += o.Decision.GetCandidates()[0].GetGco2Eq()
}

func (t *homeTally) home() Home {
	return Home{
		Tasks: t.tasks, Missing: t.missing,
		USD: perThousand(t.usd, t.tasks), Grams: perThousand(t.grams, t.tasks),
		PlacedUSD: perThousand(t.placedUSD, t.tasks), PlacedGrams: perThousand(t.placedGrams, t.tasks),
	}
}

func perThousand(sum float64, n int) float64 { return sum / float64(max(n, 1)) * 1000 }
