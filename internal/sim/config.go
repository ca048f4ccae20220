package sim

import (
	"math/rand/v2"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Terms of the leases, in milliseconds. They are short, so that a run of
// two minutes holds many of them; their order is the product's: a worker renews
// several times a lease, and its lease ends before the cell's.
const (
	loopEvery   = 100
	renewEvery  = 1_000
	workerLease = 3_000
	cellLease   = 5_000
	startWithin = 8_000
	guestMargin = 300
	runTimeout  = 6_000
	retention   = 3_600_000
	lifetime    = 3_600_000
)

// Config is what a seed draws. Probabilities are of one event, 0 to 1.
type Config struct {
	Cells   int
	Workers int // a cell, of which the last one polls
	Slots   int // attempts a worker runs at once
	Tasks   int

	// FaultsMs is how long tasks come and faults happen; SettleMs is how long
	// the healed mesh then has to end every task.
	FaultsMs, SettleMs int64

	Loss, Repeat float64 // of a message between cells
	LocalLoss    float64 // of one between a worker or client and its cell
	LatencyMs    int64   // longest way between cells
	FaultEveryMs int64   // mean pause between faults
	Fall         float64 // of a leader in the moments after it proposed
	SkewMs       int64   // of a server's wall clock, either way
	Abroad       float64 // share of placements at another cell
	Stubborn     float64 // workers that run on when their lease is over

	// Poison: every tenth task never ends an attempt, or takes its worker with
	// it; the others end well whenever their worker lives. No seed draws it.
	Poison bool

	Break Break // no seed draws one
}

// Draw picks a configuration for the seed.
func Draw(seed uint64) Config {
	r := rand.New(rand.NewPCG(seed, 1))
	return Config{
		Cells: int(between(r, 2, 4)), Workers: int(between(r, 2, 3)), Slots: int(between(r, 1, 3)), Tasks: int(between(r, 40, 80)),
		FaultsMs: 60_000, SettleMs: 90_000,
		Loss: r.Float64() * 0.1, Repeat: r.Float64() * 0.1, LocalLoss: r.Float64() * 0.05,
		LatencyMs: between(r, 20, 200), FaultEveryMs: between(r, 1_500, 6_000), SkewMs: between(r, 0, 500),
		Abroad: 0.3 + r.Float64()*0.6, Stubborn: r.Float64() * 0.6, Fall: [...]float64{0, 0.002, 0.006, 0.03}[r.IntN(4)],
	}
}

// Break is a safety rule that a run's leaders do not keep, to show that the
// oracles see it.
type Break string

// The rules that can be broken.
const (
	// BreakNothing is the zero value: leaders keep the rules.
	BreakNothing Break = ""
	// BreakStart: a guest gives an attempt to its worker before the start is
	// committed (rule 2).
	BreakStart Break = "start before commit"
	// BreakAccept: Submit answers before the commit (section 2, Accept).
	BreakAccept Break = "answer before commit"
	// BreakRebuild: a new leader does not read from the state what must happen
	// outside (rule 7).
	BreakRebuild Break = "no rebuild"
	// BreakReport: an outcome is reported once, not until it is acknowledged.
	BreakReport Break = "report once"
	// BreakNumber: a number is granted to a worker without the log (rule 2).
	BreakNumber Break = "grant before commit"
)

// Report is what became of a run.
type Report struct {
	Seed   uint64
	Config Config
	// Hash is over the whole trace: equal seeds have equal hashes.
	Hash uint64
	// Steps and Lines are events played and lines of the trace.
	Steps, Lines int
	// Seen counts what must happen now and then for the runs to mean anything.
	Seen map[string]int
	// Dead and Completed are tasks by how they ended.
	Dead, Completed int
	// Tail is the end of the trace.
	Tail []string
	// Err is the first oracle that did not hold.
	Err error
}

// What a set of runs must have seen, each at least once.
const (
	SawLeaderLost  = "leader lost with leases in flight"
	SawFenced      = "fenced completion"
	SawRetry       = "attempt >= 2"
	SawRefused     = "guest refused"
	SawIsolated    = "region isolated longer than a lease"
	SawRegionDown  = "region down with guests abroad"
	SawUnknown     = "submit with unknown outcome was a duplicate"
	SawRepeatOffer = "offer repeated"
	SawRepeatLease = "lease call repeated"
	SawUndelivered = "lease undelivered"
	SawLateDone    = "completion after its lease was given up"
	SawAdopted     = "guest ended under a later leader than it started under"
	SawCancelled   = "cancelled while leased"
	SawRedriven    = "dead letter redriven"
	SawRevived     = "dead letter redriven and completed"
	SawRedrivenTwo = "redrive repeated"
	SawHeld        = "task held behind another of its ordering key"
	SawFull        = "submit refused as its queue was full by cost"
)

// Sights lists them all.
func Sights() []string {
	return []string{
		SawLeaderLost, SawFenced, SawRetry, SawRefused, SawIsolated, SawRegionDown, SawUnknown, SawRepeatOffer,
		SawRepeatLease, SawUndelivered, SawLateDone, SawAdopted, SawCancelled,
		SawRedriven, SawRevived, SawRedrivenTwo, SawHeld, SawFull,
	}
}

// Run plays the seed.
func Run(seed uint64, cfg Config) Report {
	w := newWorld(seed, cfg)
	for i := range cfg.Cells {
		w.cells = append(w.cells, newCell(w, i, seed))
	}
	for _, c := range w.cells {
		c.elect()
		c.startWorkers()
	}
	w.startClients(seed)
	w.startFaults()
	w.startOperator(seed)
	w.every(renewEvery, w.inspect)
	w.run(cfg.FaultsMs)
	w.heal()
	w.run(cfg.FaultsMs + cfg.SettleMs)
	w.conclude()
	dead, completed := 0, 0
	for _, s := range w.truth.ended { // any order
		switch s {
		case isobarv1.TaskState_TASK_STATE_DEAD:
			dead++
		case isobarv1.TaskState_TASK_STATE_COMPLETED:
			completed++
		default:
		}
	}
	return Report{
		Dead: dead, Completed: completed,
		Seed: seed, Config: cfg, Hash: w.digest.Sum64(), Steps: w.steps, Lines: w.lines, Seen: w.seen, Tail: w.tail, Err: w.err,
	}
}
