package simulate

import (
	"encoding/json"
	"fmt"
	"io"
)

// reportVersion is the version of the report's form.
const reportVersion = 1

// Report is what each policy would have cost.
type Report struct {
	Version      int       `json:"version"`
	Objective    Objective `json:"objective"`
	CarbonPrice  float64   `json:"carbon_price"`  // USD a tonne
	LatencyPrice float64   `json:"latency_price"` // USD a second
	Forecast     Forecast  `json:"forecast"`
	Durations    Durations `json:"durations"`
	// Sources say which model and data the figures are from.
	Sources  Sources        `json:"sources"`
	Policies []PolicyReport `json:"policies"`

	// For the table and the plot.
	world     *world
	schedules [][]placing
}

// Sources name what the figures of a report are from, for a person.
type Sources struct {
	Trace    string `json:"trace"`
	Mesh     string `json:"mesh"`
	Carbon   string `json:"carbon"`
	Energy   string `json:"energy"`
	Network  string `json:"network"`
	Embodied string `json:"embodied"`
}

// sources of the world's figures.
func (w *world) sources() Sources {
	s := Sources{
		Trace: w.trace.Source, Carbon: w.table.Source() + ", " + string(w.table.Kind()),
		Energy: "kw of the trace, else watts of the mesh", Network: "not counted", Embodied: "not counted",
	}
	if s.Mesh = w.mesh.Source; s.Mesh == "" {
		s.Mesh = "its file names no source of its figures"
	}
	idle, memory, made := false, false, false
	for i := range w.regions {
		r := &w.regions[i]
		idle = idle || r.IdleWattsPerCPU > 0 || len(r.IdleWattsPerGPU) > 0
		memory = memory || r.WattsPerGiB > 0
		made = made || r.EmbodiedGPerCPUHour > 0 || len(r.EmbodiedGPerGPUHour) > 0
	}
	if idle {
		s.Energy += " from idle to busy by utilisation"
	}
	if memory {
		s.Energy += ", memory included"
	}
	s.Energy += ", times pue"
	if n := w.mesh.NetworkKWhPerGiB; n > 0 {
		s.Network = fmt.Sprintf("%g kWh/GiB of input, at the mean intensity of both ends when the task arrives", n)
	}
	if made {
		s.Embodied = "grams of the mesh for each hour that cores and accelerators are held"
	}
	return s
}

// PolicyReport is what one policy cost. Tasks counts the whole trace; all else
// is of the tasks that were placed.
type PolicyReport struct {
	Name string `json:"name"`
	// ObjectiveValue is the sum of the objective over the tasks.
	ObjectiveValue float64 `json:"objective_value"`
	// LowerBound is what no schedule that keeps the deadlines can cost less
	// than; of the oracle only.
	LowerBound *float64 `json:"lower_bound"`
	EnergyKWh  float64  `json:"energy_kwh"`
	GCO2eq     float64  `json:"gco2eq"`
	// NetworkKWh, NetworkGCO2eq and EmbodiedGCO2eq are parts of the two above;
	// 0 where the mesh has no figures for them.
	NetworkKWh     float64 `json:"network_kwh"`
	NetworkGCO2eq  float64 `json:"network_gco2eq"`
	EmbodiedGCO2eq float64 `json:"embodied_gco2eq"`
	USD            float64 `json:"usd"`
	MeanWaitS      float64 `json:"mean_wait_s"`
	P99WaitS       float64 `json:"p99_wait_s"`
	DeadlineMisses int     `json:"deadline_misses"`
	Unplaced       int     `json:"unplaced"`
	// Refusals are starts at a region that turned out to have no room, and
	// SecondTries the tasks decided again at once for that; of isobar, with old
	// digests or learned durations.
	Refusals    int `json:"refusals"`
	SecondTries int `json:"second_tries"`

	ExtrapolatedS float64                   `json:"extrapolated_s"`
	Tasks         int                       `json:"tasks"`
	Regions       map[string]RegionReport   `json:"regions"`
	Variants      map[string]map[string]int `json:"variants"`
}

// RegionReport is one region's part.
type RegionReport struct {
	Tasks  int     `json:"tasks"`
	GCO2eq float64 `json:"gco2eq"`
	USD    float64 `json:"usd"`
}

// WriteJSON writes the report for programs: one object, nothing rounded.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("simulate: write report: %w", err)
	}
	return nil
}
