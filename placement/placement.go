// Package placement decides where, when and by which variant a task runs, and
// says why. It is pure: (task, view of the mesh, policy, now) goes in, a
// Decision comes out; no clock, no I/O, no goroutine, no map order, so equal
// inputs give equal decisions on any machine.
//
// Hard constraints come first, each named in the decision. Every (cell, start,
// variant) left is priced in US dollars by one objective:
//
//	compute + egress + inputs + energy × intensity × carbon price
//	+ latency price × (network + wait + cold start + run) + quality price × quality lost
//
// and the cheapest is chosen; equal prices are broken by expected finish, then
// by cell and variant name.
package placement

import (
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Task is what placement knows of a task and its function.
type Task struct {
	ID       mesh.TaskID
	Function string
	Lane     mesh.Lane
	// Variants of the pinned function version, in manifest order.
	Variants []Variant
	// InputBytes and OutputBytes cross the network when the task leaves its
	// home; OutputBytes is an expectation.
	InputBytes  int64
	OutputBytes int64
	// Inputs are what it reads besides, each from where it lies. They bear on the
	// price and the finish alone: where a task may run is Residency's to say.
	Inputs     []Input
	Residency  mesh.Residency
	MinQuality float64   // 0..1
	Deadline   time.Time // zero: none
	// StartBy lets the start be put off, up to this instant, where that is
	// cheaper; but never past the latest safe start, which is Deadline less the
	// way, Cell.Ahead, the cold start and Variant.DurationHigh. Zero: the task starts as
	// soon as it can.
	StartBy time.Time
	// Interruptible work may be suspended between StartBy's bounds: all that it
	// is put off and suspended is at most the time from now to StartBy.
	Interruptible bool
	// Cost is what an attempt takes of a worker beside the variant's demand.
	Cost mesh.Cost
	// MaxRTT is the longest round trip from home that is allowed, inclusive; 0
	// is any.
	MaxRTT time.Duration
	// Home is the cell that owns the task; View's distances are from it.
	Home mesh.CellID
	// Avoid are cells that refused or lost this task just now: they are taken
	// only when nothing else is left.
	Avoid []mesh.CellID
}

// Variant is one implementation of a function, with its envelope.
type Variant struct {
	Name    string
	Runtime string // "wasm", "exec", "http"
	Demand  mesh.Demand
	Quality float64 // 0..1, of the manifest
	// Duration is the expected run time of one attempt: measured where
	// measured is true, declared in the manifest otherwise.
	Duration time.Duration
	Measured bool
	// DurationHigh is a high quantile of the run time, that the latest safe
	// start leaves room for; less than Duration counts as Duration.
	DurationHigh time.Duration
	// Watts is the power of one whole attempt where that is known; nil is by
	// demand and the cell's figures.
	Watts *float64
	// IdleCPU and IdleGPU are the shares of the run, 0..1, in which the cores
	// and the accelerators it holds do nothing: 1 less their utilisation.
	IdleCPU float64
	IdleGPU float64
	// ColdStart is the extra time when no warm instance exists.
	ColdStart time.Duration
	// USD is the variant's own price for one run (an API's fee), 0 for none.
	USD float64
	// Code is the digest of the variant's module; "" needs none.
	Code string
	// EndpointJurisdictions bound an http variant, whose bytes leave the cell.
	EndpointJurisdictions []string
}

// View is the mesh as the home sees it at one moment. Cells are sorted by ID.
type View struct {
	Cells []Cell
	// Routes between regions, for inputs that lie elsewhere; nil is none.
	Routes Routes
}

// Cell is one candidate place, with distances seen from the task's home.
type Cell struct {
	mesh.Cell
	// Unhealthy says why the cell takes no work; "" when it does.
	Unhealthy string
	// Verified: the jurisdictions were read from the cell's certificate.
	// A task with a residency goes to verified cells only.
	Verified bool
	// Version and Age tell which digest of the cell this is and how old.
	Version uint64
	Age     time.Duration

	// Total's bounds on costs are those of the one worker that may hold most.
	Total mesh.Capacity
	Free  mesh.Capacity // less what home placed there and the digest does not show yet
	// Booked, when not nil, tells exactly when a demand has room: then neither
	// Free nor Backlog say when an attempt can start.
	Booked Calendar
	// Backlog is the expected wait, by lane, before a new task starts when
	// nothing is free.
	Backlog [4]time.Duration
	// Ahead is the queue that work which is put off may find at its start: what is
	// put off to this cell already. It narrows the latest safe start.
	Ahead time.Duration
	// Runtimes the cell's workers offer, sorted.
	Runtimes []string
	// Warm lists function variants with a warm instance, "function/variant", sorted.
	Warm []string

	Prices Prices
	// Scarcity is the shadow price of the cell's capacity, where there is too
	// little for all who want it: what work that comes here keeps others from
	// saving. Nobody is paid for it; it decides who goes where. Without a calendar
	// it is asked of work that finds room now alone: what queues takes none. Nil
	// is none.
	Scarcity *Prices
	// EgressUSDPerGiB from the home to this cell, and ReturnUSDPerGiB back.
	EgressUSDPerGiB float64
	ReturnUSDPerGiB float64
	// NetworkKWhPerGiB is the energy of a GiB on the way between home and this
	// cell, either way; 0 at home. It counts at the mean of both ends'
	// intensities of the present hour.
	NetworkKWhPerGiB float64
	RTT              time.Duration // round trip from the home
	Energy           Energy
}

// Prices of a cell's resources, USD an hour of use.
type Prices struct {
	CPUHour       float64 // one core
	MemoryGiBHour float64
	GPUHour       []ModelPrice // sorted by model
}

// ModelPrice is the price of one accelerator of a model, USD an hour.
type ModelPrice struct {
	Model string
	USD   float64
}

// Energy says what a cell's power costs in carbon.
type Energy struct {
	Zone string
	// WattsPerCPU is drawn by one busy core, IdleWattsPerCPU by one that is held
	// and does nothing, WattsPerGiB by memory that is held, WattsPerGPU by
	// accelerators.
	WattsPerCPU     float64
	IdleWattsPerCPU float64
	WattsPerGiB     float64
	WattsPerGPU     []ModelWatts // sorted by model
	// EmbodiedPerCPUHour is gCO2eq of making and disposing of a core, for each
	// hour it is held.
	EmbodiedPerCPUHour float64
	PUE                float64 // power usage effectiveness, 1 or more
	// Known is false when no feed answers for the zone: Intensity is then the
	// mean of the cells that are known, and the decision says so.
	Known bool
	// Intensity is gCO2eq/kWh, hour by hour, from From on.
	Intensity []float64
	// From is when the first hour of Intensity began; zero is the present hour's
	// start, UTC. A figure read a while ago keeps its hours by it.
	From time.Time
	// Step is how long an hour of Intensity lasts: less than an hour where a
	// feed's clock runs faster than the wall's. Zero is an hour.
	Step time.Duration
	// Kind is "average" or "marginal"; kinds are never compared.
	Kind string
	// Forecast names what foretold the hours after the present one; "" is unknown.
	Forecast string
}

// ModelWatts is the power of one accelerator of a model, busy and idle, and its
// embodied carbon.
type ModelWatts struct {
	Model string
	Watts float64
	Idle  float64
	// EmbodiedPerHour is gCO2eq for each hour it is held.
	EmbodiedPerHour float64
}

// Policy prices what is not money. The zero value prices nothing.
type Policy struct {
	CarbonUSDPerTonne float64 // per tonne of CO2eq
	LatencyUSDPerS    float64 // per second from now to the expected finish
	// DelayUSDPerS prices instead each second that a start is put off, or work
	// suspended, by choice: a task that allows it has nobody who waits for it.
	DelayUSDPerS float64
	QualityUSD   float64 // per task and 1.0 of quality below the best variant's
	// UnpaidUSD leaves compute and egress out of the score: they break ties only.
	UnpaidUSD bool
	// UnpricedRun leaves the run itself out of what LatencyUSDPerS prices.
	UnpricedRun bool
}
