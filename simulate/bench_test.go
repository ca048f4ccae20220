package simulate_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/simulate"
)

// year is 100,000 tasks over 30 regions and a year of carbon, all made up.
// limited regions have room for a little more than the mean load.
func year(b *testing.B, limited bool) simulate.Input {
	b.Helper()
	const regions, tasks, hours = 30, 100_000, 8760
	var mesh, table, trace strings.Builder
	mesh.WriteString("regions:\n")
	table.WriteString("datetime_utc")
	for r := range regions {
		cpu := ""
		if limited {
			cpu = fmt.Sprintf("cpu: %d, ", 8+r%7)
		}
		fmt.Fprintf(&mesh, "  r%02d: {zone: Z%02d, %swatts_per_cpu: 1000, usd_per_cpu_hour: 0.%02d}\n", r, r, cpu, 3+r%5)
		fmt.Fprintf(&table, ",Z%02d", r)
	}
	start := time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)
	for h := range hours {
		fmt.Fprintf(&table, "\n%s", start.Add(time.Duration(h)*time.Hour).Format(time.RFC3339))
		for r := range regions {
			fmt.Fprintf(&table, ",%d", 30+r*20+(h+r*3)%24*(5+r%9)+(h/24*7+r)%40)
		}
	}
	trace.WriteString("arrival_s,duration_s,home,cpu,max_delay_s\n")
	for i := range tasks {
		fmt.Fprintf(&trace, "%d,%d,r%02d,%d,%d\n", i*314, 1800+i*7919%12600, i*13%regions, 1+i%3, i%4*7200)
	}
	m, err := meshfile.Parse("mesh.yaml", []byte(mesh.String()))
	if err != nil {
		b.Fatal(err)
	}
	in := simulate.Input{Mesh: m}
	if in.Carbon, err = carbon.ReadTable(strings.NewReader(table.String()+"\n"), "carbon.csv", carbon.Average); err != nil {
		b.Fatal(err)
	}
	if in.Trace, err = simulate.ReadTrace(strings.NewReader(trace.String()), "trace.csv", m); err != nil {
		b.Fatal(err)
	}
	return in
}

// BenchmarkYear plays 100,000 tasks over 30 regions and a year: every policy
// without limits, and the oracle's bound with them.
func BenchmarkYear(b *testing.B) {
	for _, limited := range []bool{false, true} {
		name, policies := "all-policies", simulate.Policies()
		if limited {
			name, policies = "bound-with-limits", []simulate.Policy{simulate.Oracle}
		}
		b.Run(name, func(b *testing.B) {
			in := year(b, limited)
			for b.Loop() {
				r, err := simulate.Run(in, simulate.Options{Objective: simulate.Carbon, Policies: policies})
				if err != nil {
					b.Fatal(err)
				}
				if p := r.Policies[len(policies)-1]; limited {
					b.ReportMetric(100*(p.ObjectiveValue / *p.LowerBound - 1), "gap-%")
				}
			}
		})
	}
}
