package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func newMesh(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "mesh", Short: "Show the cells of the mesh as the asked server sees them",
		Long: "Shows the cells of the mesh as the asked server sees them. With -o json also servers and their process ids.",
		Args: args(0, 0),
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Cells(ctx)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			a.printCells(res)
			return nil
		})
	}
	return c
}

// forecastWords say what foretells the carbon of the hours ahead, where.
func forecastWords(cells []*isobarv1.CellInfo) string {
	at := map[string][]string{}
	for _, c := range cells {
		if f := c.GetForecast(); f != "" {
			at[f] = append(at[f], c.GetCell())
		}
	}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(at)) {
		words = append(words, name+" in "+strings.Join(at[name], ", "))
	}
	if len(words) == 0 {
		return ""
	}
	return "carbon of the hours ahead is foretold by " + strings.Join(words, "; by ")
}

func (a *app) printCells(res *isobarv1.CellsResponse) {
	rows := [][]string{{
		"CELL", "REGION", "LIES IN", "HEALTH", "WORKERS", "CPU FREE", "MEMORY FREE", "GPUS", "WAITING", "LEASED", "USD/CPU h",
		"gCO2eq/kWh", "ROUND TRIP", "SEEN", "API",
	}}
	emulated := false
	for _, c := range res.GetCells() {
		seen, trip := duration(c.GetDigestAge())+" ago", duration(c.GetRtt())
		if c.GetSelf() {
			seen, trip = "self", ""
		} else if c.GetRttEmulated() {
			trip += " *"
			emulated = true
		}
		var waiting int64
		for _, n := range c.GetBacklog() {
			waiting += n
		}
		var gpus []string
		for _, g := range c.GetTotal().GetAccelerators() {
			gpus = append(gpus, fmt.Sprintf("%d %s", g.GetCount(), g.GetModel()))
		}
		rows = append(rows, []string{
			c.GetCell(), c.GetRegion(), strings.Join(c.GetJurisdictions(), ","), c.GetHealth(), fmt.Sprint(c.GetWorkers()),
			number(c.GetFree().GetCpu()) + " of " + number(c.GetTotal().GetCpu()),
			fmt.Sprintf("%d of %d MiB", c.GetFree().GetMemoryMib(), c.GetTotal().GetMemoryMib()),
			strings.Join(gpus, ", "), fmt.Sprint(waiting), fmt.Sprint(c.GetLeased()), number(c.GetUsdPerCpuHour()),
			number(c.GetGco2EqPerKwh()) + " " + c.GetZone(), trip, seen, strings.Join(c.GetAddresses(), " "),
		})
	}
	table(a.stdout, rows)
	if words := forecastWords(res.GetCells()); words != "" {
		fmt.Fprintln(a.stdout, words)
	}
	if emulated {
		fmt.Fprintln(a.stdout, "* emulated on one machine")
	}
}
