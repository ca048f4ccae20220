package simulate_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/simulate"
)

func TestSkillExperiment(t *testing.T) {
	if os.Getenv("SKILL") == "" {
		t.Skip()
	}
	table, err := carbon.ReadFile("../../shared/data/electricitymaps-2022/carbon-intensity-hourly-2022.csv.gz", carbon.Average)
	if err != nil {
		t.Fatal(err)
	}
	step, _ := strconv.Atoi(os.Getenv("SKILL"))
	for _, c := range [][3]string{{"3600", "86400", "false"}, {"21600", "86400", "true"}, {"3600", "21600", "false"}} {
		var shares [2][]float64
		worst := ""
		for _, zone := range table.Zones() {
			m, err := meshfile.Parse("m", []byte("regions: {a: {zone: "+zone+", watts_per_cpu: 1000}}\n"))
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			b.WriteString("arrival_s,duration_s,max_delay_s,interruptible\n")
			for k := 7*24; k < 8760-72; k += step {
				fmt.Fprintf(&b, "%d,%s,%s,%s\n", k*3600, c[0], c[1], c[2])
			}
			trace, err := simulate.ReadTrace(strings.NewReader(b.String()), "t", m)
			if err != nil {
				t.Fatal(err)
			}
			var got [2]float64
			var saving float64
			for i, f := range []simulate.Forecast{simulate.Mean7, simulate.Model} {
				p := play(t, simulate.Input{Mesh: m, Trace: trace, Carbon: table}, simulate.Options{Objective: simulate.Carbon, Forecast: f})
				saving = (p["home"].GCO2eq - p["oracle"].GCO2eq) / p["home"].GCO2eq
				got[i] = (p["home"].GCO2eq - p["isobar"].GCO2eq) / (p["home"].GCO2eq - p["oracle"].GCO2eq)
			}
			if saving >= 0.02 {
				shares[0] = append(shares[0], got[0])
				shares[1] = append(shares[1], got[1])
				if got[1] < got[0]-0.005 {
					worst += fmt.Sprintf(" %s %.3f->%.3f", zone, got[0], got[1])
				}
			}
		}
		slices.Sort(shares[0])
		slices.Sort(shares[1])
		n := len(shares[0])
		fmt.Printf("%v n=%d median mean7 %.3f model %.3f; worse:%s\n", c, n, shares[0][n/2], shares[1][n/2], worst)
	}
}
