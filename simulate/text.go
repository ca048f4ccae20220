package simulate

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d tasks over %d regions from %s; %s; prices %g USD/t of CO2eq and %g USD/s; forecast %s, durations %s\n\n",
		len(r.world.jobs), len(r.world.regions), r.world.table.Start().Add(r.world.start).Format(time.RFC3339),
		r.objectiveWords(), r.CarbonPrice, r.LatencyPrice, r.Forecast, r.Durations)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "policy\tobjective\tkgCO2eq\tUSD\tkWh\tmean wait\tp99 wait\tlate\tunplaced\t")
	for i := range r.Policies {
		p := &r.Policies[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t\n", p.Name, digits(p.ObjectiveValue), digits(p.GCO2eq/1000),
			digits(p.USD), digits(p.EnergyKWh), seconds(p.MeanWaitS), seconds(p.P99WaitS), p.DeadlineMisses, p.Unplaced)
	}
	_ = t.Flush()
	r.notes(&b)
	t = tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "\ntasks by region\t")
	for i := range r.Policies {
		fmt.Fprintf(t, "%s\t", r.Policies[i].Name)
	}
	fmt.Fprintln(t)
	for i := range r.world.regions {
		name := r.world.regions[i].Name
		fmt.Fprintf(t, "%s\t", name)
		for k := range r.Policies {
			fmt.Fprintf(t, "%d\t", r.Policies[k].Regions[name].Tasks)
		}
		fmt.Fprintln(t)
	}
	_ = t.Flush()
	fmt.Fprintf(&b, "\ntrace: %s\nmesh: %s\ncarbon: %s\nenergy: %s\n", r.Sources.Trace, r.Sources.Mesh, r.Sources.Carbon, r.Sources.Energy)
	if r.world.mesh.NetworkKWhPerGiB > 0 {
		fmt.Fprintf(&b, "network: %s\n", r.Sources.Network)
	}
	if r.Sources.Embodied != "not counted" {
		fmt.Fprintf(&b, "embodied: %s\n", r.Sources.Embodied)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("simulate: write report: %w", err)
	}
	return nil
}

func (r *Report) objectiveWords() string {
	switch r.Objective {
	case Carbon:
		return "objective carbon, g"
	case Cost:
		return "objective cost, USD"
	case Latency:
		return "objective latency, s"
	default:
		return "objective balanced, USD"
	}
}

// notes say what the table alone does not.
func (r *Report) notes(b *strings.Builder) {
	r.parts(b)
	base, bound := -1.0, -1.0
	for i := range r.Policies {
		p := &r.Policies[i]
		if p.Name == string(Home) {
			base = p.ObjectiveValue
		}
		if p.LowerBound != nil {
			bound = *p.LowerBound
			fmt.Fprintf(b, "\nno schedule costs less than %s (lower bound)", digits(bound))
			if p.ObjectiveValue > bound*(1+same) {
				fmt.Fprintf(b, "; the best found is %s %% above", digits(100*(p.ObjectiveValue-bound)/bound))
			}
			b.WriteByte('\n')
		}
	}
	for i := range r.Policies {
		p := &r.Policies[i]
		if p.Name == string(Isobar) && base > bound && bound >= 0 {
			fmt.Fprintf(b, "isobar keeps %s %% of what the bound saves against home\n", digits(100*(base-p.ObjectiveValue)/(base-bound)))
		}
		if p.ExtrapolatedS > 0 {
			fmt.Fprintf(b, "%s ran %s past the end of the carbon table, at its last row\n", p.Name, seconds(p.ExtrapolatedS))
		}
	}
}

// parts tells how much of the carbon is not from running.
func (r *Report) parts(b *strings.Builder) {
	for i := range r.Policies {
		p := &r.Policies[i]
		if p.NetworkGCO2eq+p.EmbodiedGCO2eq > 0 {
			fmt.Fprintf(b, "%s: of the carbon %s g are the network's and %s g embodied\n", p.Name, digits(p.NetworkGCO2eq), digits(p.EmbodiedGCO2eq))
		}
	}
}

// digits prints four significant digits without an exponent where that is short.
func digits(x float64) string {
	s := strconv.FormatFloat(x, 'g', 4, 64)
	if y, err := strconv.ParseFloat(s, 64); err == nil && (x == 0 || (y >= 1e-5 && y < 1e15)) {
		return strconv.FormatFloat(y, 'f', -1, 64)
	}
	return s
}

// seconds prints a time as people say it.
func seconds(x float64) string {
	switch {
	case x == 0:
		return "0 s"
	case x < 120:
		return digits(x) + " s"
	case x < 7200:
		return digits(x/60) + " min"
	default:
		return digits(x/3600) + " h"
	}
}
