package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func newFunction(a *app) *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List a tenant's functions", Args: args(0, 0)}
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.ListFunctions(ctx, &isobarv1.FunctionServiceListRequest{Tenant: a.tenant})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			rows := [][]string{{"FUNCTION", "VERSION", "VARIANTS", "DEPLOYED"}}
			for _, f := range res.GetFunctions() {
				var names []string
				for _, v := range f.GetSpec().GetVariants() {
					names = append(names, v.GetName()+" ("+v.GetRuntime()+")")
				}
				rows = append(rows, []string{f.GetSpec().GetName(), f.GetVersion(), strings.Join(names, ", "), timestamp(f.GetDeployed())})
			}
			table(a.stdout, rows)
			return nil
		})
	}
	get := &cobra.Command{Use: "get NAME", Short: "Show a function and where it can run", Args: args(1, 1)}
	get.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.GetFunction(ctx, &isobarv1.FunctionServiceGetRequest{Tenant: a.tenant, Name: args[0]})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			a.printFunction(res)
			return nil
		})
	}
	remove := &cobra.Command{
		Use: "delete NAME", Short: "Take a function's name away",
		Long: "Takes a function's name away. Tasks that were accepted still run; its versions live until the last has ended.",
		Args: args(1, 1),
	}
	remove.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.DeleteFunction(ctx, &isobarv1.FunctionServiceDeleteRequest{Tenant: a.tenant, Name: args[0]})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			fmt.Fprintf(a.stderr, "%s is deleted\n", args[0])
			return nil
		})
	}
	return group(&cobra.Command{Use: "function", Short: "List, show and delete functions, report their incidents"}, list, get, remove, newReport(a))
}

func newReport(a *app) *cobra.Command {
	req := &isobarv1.ReportRequest{}
	c := &cobra.Command{
		Use: "report NAME", Short: "Report errors, drift or safety incidents: a function with a pace slows down",
		Long: `Tells every cell of incidents of a function that has a pace. Drift and safety incidents
halve its rate, or let it fall to the least with --severity high; errors count among the
attempts of the present window. A cell that was not reached is named: repeat the report
with its --report-id, which counts once at each cell.`,
		Example: `  isobar function report classify --kind drift --message 'PSI 0.31 on input length'
  isobar function report answer --kind safety --severity high`,
		Args: args(1, 1),
	}
	flags := c.Flags()
	flags.StringVar(&req.Kind, "kind", "", "error, drift or safety")
	flags.StringVar(&req.Severity, "severity", "", "of drift and safety: low or high (default low)")
	flags.Int64Var(&req.Count, "count", 1, "how many")
	flags.StringVar(&req.Message, "message", "", "kept with the function's pace")
	flags.StringVar(&req.ReportId, "report-id", "", "repeats a report (default new)")
	flags.StringVar(&req.Cell, "cell", "", "one cell (default all)")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req.Tenant, req.Function = a.tenant, args[0]
		if req.Count < 1 {
			return usage(fmt.Sprintf("--count %d is below 1", req.Count), "leave it out for one")
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Report(ctx, req)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			rows := [][]string{{"CELL", "RATE", "MOST", "WHY"}}
			missed := 0
			for _, r := range res.GetResults() {
				if r.GetMessage() != "" {
					missed++
					rows = append(rows, []string{r.GetCell(), "", "", "not counted: " + r.GetMessage()})
					continue
				}
				p := r.GetPace()
				rows = append(rows, []string{r.GetCell(), number(p.GetRate()) + "/s", number(p.GetMost()) + "/s", p.GetReason()})
			}
			table(a.stdout, rows)
			if missed > 0 {
				return hinted(exitFailed, fmt.Errorf("%d of %d cells did not count it", missed, len(res.GetResults())), "repeat it with --report-id "+res.GetReportId())
			}
			return nil
		})
	}
	return c
}

// cmpPrint returns the error, or what show returns when there is none.
func cmpPrint(err error, show func() error) error {
	if err != nil {
		return err
	}
	return show()
}

func (a *app) printFunction(res *isobarv1.FunctionServiceGetResponse) {
	f := res.GetFunction()
	spec := f.GetSpec()
	fields(a.stdout,
		"function", spec.GetName(), "tenant", spec.GetTenant(), "version", f.GetVersion(),
		"deployed", timestamp(f.GetDeployed()), "timeout", duration(spec.GetTimeout()))
	if p := res.GetPace(); p != nil {
		fields(a.stdout, "pace", fmt.Sprintf("%s/s of %s/s at most in %s", number(p.GetRate()), number(p.GetMost()), p.GetCell()),
			"fell", strings.TrimSpace(timestamp(p.GetSince())+" "+p.GetReason()),
			"reported", fmt.Sprintf("%d errors, %d drift, %d safety", p.GetErrors(), p.GetDrift(), p.GetSafety()))
	}
	fmt.Fprintln(a.stdout)
	rows := [][]string{{"VARIANT", "RUNTIME", "RUNS", "CPU", "MEMORY", "GPUS", "QUALITY", "USD", "RUN", "COLD"}}
	for _, v := range spec.GetVariants() {
		what := v.GetModule() + strings.Join(v.GetCommand(), " ") + v.GetUrl()
		r := v.GetResources()
		gpus := ""
		if r.GetGpus() > 0 {
			gpus = strings.TrimSpace(fmt.Sprintf("%d %s", r.GetGpus(), r.GetGpuModel()))
		}
		rows = append(rows, []string{
			v.GetName(), v.GetRuntime(), what, number(r.GetCpu()), fmt.Sprintf("%d MiB", r.GetMemoryMib()), gpus,
			number(v.GetQuality()), number(v.GetUsd()), duration(v.GetRun()), duration(v.GetCold()),
		})
	}
	table(a.stdout, rows)
	fmt.Fprintln(a.stdout)
	a.printReadiness(res.GetCells())
}
