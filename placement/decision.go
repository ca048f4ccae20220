package placement

import (
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Constraint names a hard constraint. The names are part of the API.
type Constraint string

// The constraints, in the order they are checked.
const (
	Residency    Constraint = "residency"
	Excluded     Constraint = "excluded"    // the question left the region out
	Health       Constraint = "health"      // the cell takes no work, or its figures are unusable
	NoWorker     Constraint = "no_worker"   // the cell has no workers at all
	MinQuality   Constraint = "min_quality" // the variant is below the task's minimum
	Runtime      Constraint = "runtime"     // no worker offers the variant's runtime
	Accelerator  Constraint = "accelerator" // the cell has not that many of that model
	Resources    Constraint = "resources"   // the demand is above the cell's total
	Cost         Constraint = "cost"        // the task's cost is above what any one worker holds at once
	RoundTrip    Constraint = "round_trip"  // the cell is farther from home than the task allows
	DeadlineOver Constraint = "deadline"    // it could not end in time
)

// RuledOut is one (cell, variant) that a constraint forbids.
type RuledOut struct {
	Cell       mesh.CellID
	Region     string
	Variant    string
	Constraint Constraint
	Detail     string // "needs 2 H100, eu-north-1 has 0"
}

// ConstraintCount says how many (cell, variant) pairs one constraint ruled out.
type ConstraintCount struct {
	Constraint Constraint
	Count      int
}

// Terms are the parts of a candidate's price, each in USD and never negative.
// Their sum is the candidate's score.
type Terms struct {
	Compute float64 // demand × prices × run time, and the variant's own price
	Egress  float64 // payload GiB × price there + output GiB × price back
	// Data is what bringing the task's inputs costs: GiB × price from where they
	// lie + latency price × transfer time.
	Data    float64
	Carbon  float64 // (kWh × gCO2eq/kWh + network + embodied) × carbon price
	Latency float64 // latency price × (round trip + wait + run) + delay price × (put off + suspended)
	Cold    float64 // latency price × cold start
	// Quality is the quality price × what this variant lacks to the best of the
	// function's variants. The best is taken whether or not it can run here,
	// so the term of a candidate does not move when a constraint does.
	Quality float64
	// Scarcity is demand × the cell's shadow prices × run time.
	Scarcity float64
}

// Sum is the score, USD.
func (t *Terms) Sum() float64 {
	return t.Compute + t.Egress + t.Data + t.Carbon + t.Latency + t.Cold + t.Quality + t.Scarcity
}

// Candidate is one place, start and variant that is allowed, with its price.
type Candidate struct {
	Cell    mesh.CellID
	Region  string
	Variant string
	// Start is when the attempt is expected to begin: the decision's now plus
	// the way there, the wait, and what it is put off.
	Start time.Time
	// Pieces of interruptible work that is put off or suspended, in order; nil
	// when it runs in one from Start.
	Pieces []Piece
	Finish time.Time // expected; the answer is back at home
	Terms  Terms
	Score  float64 // Terms.Sum()
	// The figures behind the terms.
	KWh       float64 // of the run, at the meter
	GCO2eq    float64 // in all: KWh × Intensity and the two below
	Intensity float64 // gCO2eq/kWh, mean over the run
	// Forecast names what foretold the cell's hours of carbon; "" where that is
	// unknown, or the mean of other cells stands in.
	Forecast string
	// NetworkKWh moves payload, inputs and result, at the mean intensity of both ends.
	NetworkKWh     float64
	NetworkGCO2eq  float64
	EmbodiedGCO2eq float64
	USD            float64 // compute + egress + the price of moving inputs: what is paid
	Quality        float64
	Wait           time.Duration
	// Put is how long the start is put off by choice, and Pause how long
	// interruptible work is suspended after it.
	Put   time.Duration
	Pause time.Duration
	Cold  time.Duration
	Fetch time.Duration // of the inputs, before the run
	Run   time.Duration
	RTT   time.Duration
	Warm  bool
	// Free is how many more attempts of this variant fit now.
	Free          int64
	DigestVersion uint64
	DigestAge     time.Duration
}

// Flip says at which value of one weight the choice would change, and to what.
// Between Now and At the choice stays; just beyond At it is (Cell, Variant).
// With At zero it is so at zero itself, as no weight is below.
type Flip struct {
	Weight  string  // "carbon_price", "latency_price", "quality_price"
	Now     float64 // in the unit of the Policy field
	At      float64
	Above   bool // the change comes as the weight rises above At, else as it falls below
	Cell    mesh.CellID
	Variant string
}

// Decision is the record of a placement.
type Decision struct {
	At     time.Time
	Home   mesh.CellID
	Policy Policy
	// Chosen is nil when every candidate was ruled out.
	Chosen *Candidate
	// Candidates, best first, the chosen first of all: every one when the
	// decision was asked to explain, else the best eight. Cells of Task.Avoid
	// come after all others, whatever they cost.
	Candidates []Candidate
	// Counts of what each constraint ruled out, in the order they are checked.
	// A pair counts for the first constraint it breaks.
	Counts []ConstraintCount
	// RuledOut and Flips are built only when the decision was asked to explain.
	// There are no flips for work that may be put off: with the weight its start
	// would move too.
	RuledOut []RuledOut
	Flips    []Flip
	// Starts are the starts that were compared for the chosen cell and variant,
	// the earliest first: at once, on each full hour, the latest. Nil unless the
	// task may be put off and the question asked for them; and for work in pieces
	// or at a cell with a calendar.
	Starts []Start
	// Notes are facts a reader needs: "carbon of us-east unknown, mean used".
	Notes []string
	// Hint, when nothing is feasible, says what would make it possible.
	Hint string
}
