package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func newMesh(a *app) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "mesh", Short: "Show the cells of the mesh as the asked server sees them",
		Long: "Shows the cells of the mesh as the asked server sees them. With -o json also servers and their process ids.",
		Args: args(0, 0),
	}
	c.Flags().BoolVar(&watch, "watch", false, "show them again whenever something has changed, until stopped")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if watch {
			return a.watchCells(cmd)
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Cells(ctx)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			a.printCells(res.GetCells())
			return nil
		})
	}
	c.AddCommand(newMeshWorkers(a), newMeshCarbon(a))
	return c
}

// watchCells prints the cells, or their JSON, whenever they have changed.
func (a *app) watchCells(cmd *cobra.Command) error {
	return a.call(cmd, forever, func(ctx context.Context, c *client.Client) error {
		return c.Watch(ctx, func(cells []*isobarv1.CellInfo) error {
			if a.json() {
				return a.printJSON(&isobarv1.WatchResponse{Cells: cells})
			}
			fmt.Fprintln(a.stdout, time.Now().Format(time.TimeOnly))
			a.printCells(cells)
			fmt.Fprintln(a.stdout)
			return nil
		})
	})
}

func newMeshWorkers(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "workers", Short: "Show the workers of the asked cell, and what they have free",
		Long: "Shows the workers of the asked cell, what they offer and have free, and what is warm on them.",
		Args: args(0, 0),
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Workers(ctx)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			rows := [][]string{{"WORKER", "CPU FREE", "MEMORY FREE", "GPUS", "RUNNING", "RUNTIMES", "WARM", "SINCE", "PID"}}
			for _, w := range res.GetWorkers() {
				rows = append(rows, []string{
					w.GetWorker(), cpuFree(w), memoryFree(w), accelerators(w.GetTotal()), fmt.Sprint(w.GetRunning()),
					strings.Join(w.GetTotal().GetRuntimes(), ","), strings.Join(w.GetWarm(), " "), timestamp(w.GetSince()), fmt.Sprint(w.GetPid()),
				})
			}
			table(a.stdout, rows)
			return nil
		})
	}
	return c
}

// capacities is what a cell and a worker have in common.
type capacities interface {
	GetTotal() *isobarv1.Offer
	GetFree() *isobarv1.Offer
}

func cpuFree(c capacities) string {
	return number(c.GetFree().GetCpu()) + " of " + number(c.GetTotal().GetCpu())
}

func memoryFree(c capacities) string {
	return fmt.Sprintf("%d of %d MiB", c.GetFree().GetMemoryMib(), c.GetTotal().GetMemoryMib())
}

func accelerators(o *isobarv1.Offer) string {
	var words []string
	for _, g := range o.GetAccelerators() {
		words = append(words, fmt.Sprintf("%d %s", g.GetCount(), g.GetModel()))
	}
	return strings.Join(words, ", ")
}

// carbonHours are the hours ahead that the table shows.
const carbonHours = 6

func newMeshCarbon(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "carbon", Short: "Show the carbon intensity of every region, now and for the hours ahead",
		Long: fmt.Sprintf("Shows the carbon intensity of every region's electricity in gCO2eq/kWh as placement sees it, now and for the\n"+
			"next %d hours; with -o json for all hours that are known.", carbonHours),
		Args: args(0, 0),
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Carbon(ctx)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			head := []string{"REGION", "ZONE", "KIND", "FROM", "NOW"}
			for i := range carbonHours {
				head = append(head, fmt.Sprintf("+%d h", i+1))
			}
			rows := [][]string{append(head, "SOURCE")}
			for _, s := range res.GetSeries() {
				row := []string{s.GetRegion(), s.GetZone(), s.GetKind(), timestamp(s.GetFrom())}
				for i := range carbonHours + 1 {
					value := "-"
					if i < len(s.GetGco2EqPerKwh()) {
						value = number(s.GetGco2EqPerKwh()[i])
					}
					row = append(row, value)
				}
				rows = append(rows, append(row, s.GetSource()))
			}
			table(a.stdout, rows)
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

func (a *app) printCells(cells []*isobarv1.CellInfo) {
	rows := [][]string{{
		"CELL", "REGION", "LIES IN", "HEALTH", "WORKERS", "CPU FREE", "MEMORY FREE", "GPUS", "WAITING", "LEASED", "USD/CPU h",
		"gCO2eq/kWh", "ROUND TRIP", "SEEN", "API",
	}}
	emulated := false
	for _, c := range cells {
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
		rows = append(rows, []string{
			c.GetCell(), c.GetRegion(), strings.Join(c.GetJurisdictions(), ","), c.GetHealth(), fmt.Sprint(c.GetWorkers()),
			cpuFree(c), memoryFree(c), accelerators(c.GetTotal()), fmt.Sprint(waiting), fmt.Sprint(c.GetLeased()), number(c.GetUsdPerCpuHour()),
			number(c.GetGco2EqPerKwh()) + " " + c.GetZone(), trip, seen, strings.Join(c.GetAddresses(), " "),
		})
	}
	table(a.stdout, rows)
	if words := forecastWords(cells); words != "" {
		fmt.Fprintln(a.stdout, words)
	}
	if emulated {
		fmt.Fprintln(a.stdout, "* emulated on one machine")
	}
}
