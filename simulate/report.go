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
	Version      int            `json:"version"`
	Objective    Objective      `json:"objective"`
	CarbonPrice  float64        `json:"carbon_price"`  // USD a tonne
	LatencyPrice float64        `json:"latency_price"` // USD a second
	Forecast     Forecast       `json:"forecast"`
	Durations    Durations      `json:"durations"`
	Policies     []PolicyReport `json:"policies"`

	// For the table and the plot.
	world     *world
	schedules [][]placing
}

// PolicyReport is what one policy cost. Tasks counts the whole trace; all else
// is of the tasks that were placed.
type PolicyReport struct {
	Name string `json:"name"`
	// ObjectiveValue is the sum of the objective over the tasks.
	ObjectiveValue float64 `json:"objective_value"`
	// LowerBound is what no schedule that keeps the deadlines can cost less
	// than; of the oracle only.
	LowerBound     *float64                  `json:"lower_bound"`
	EnergyKWh      float64                   `json:"energy_kwh"`
	GCO2eq         float64                   `json:"gco2eq"`
	USD            float64                   `json:"usd"`
	MeanWaitS      float64                   `json:"mean_wait_s"`
	P99WaitS       float64                   `json:"p99_wait_s"`
	DeadlineMisses int                       `json:"deadline_misses"`
	Unplaced       int                       `json:"unplaced"`
	ExtrapolatedS  float64                   `json:"extrapolated_s"`
	Tasks          int                       `json:"tasks"`
	Regions        map[string]RegionReport   `json:"regions"`
	Variants       map[string]map[string]int `json:"variants"`
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
