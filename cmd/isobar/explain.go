package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func newExplain(a *app) *cobra.Command {
	var f taskFlags
	var function string
	var ifs, without []string
	c := &cobra.Command{
		Use:   "explain TASK | --function F [PAYLOAD | @FILE | -]",
		Short: "Show why a task runs where it runs, or would",
		Long: `Shows the decisions that bound a task's attempts: every candidate with each part of
its price, what was ruled out by which constraint, what was chosen, and at which weight
the choice would change. With --function it decides about a task that is not submitted.
--if and --without-region ask the same under other terms.`,
		Example: `  isobar explain TASK
  isobar explain TASK --if carbon_price=1000
  isobar explain --function summarise --residency eu 'some text'
  isobar explain --function summarise --without-region us-east`,
		Args: args(0, 1),
	}
	f.place(c)
	f.schedule(c)
	flags := c.Flags()
	flags.StringVar(&function, "function", "", "decide about a task of this function that is not submitted")
	flags.StringArrayVar(&ifs, "if", nil, "another weight: carbon_price=USD_PER_TONNE, latency_price=USD_PER_S, delay_price=USD_PER_S or quality_price=USD")
	flags.StringSliceVar(&without, "without-region", nil, "leave a region out")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req := &isobarv1.ExplainRequest{WithoutRegions: without}
		if err := weights(req, ifs); err != nil {
			return err
		}
		if err := f.subject(a, cmd, req, function, args); err != nil {
			return err
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Explain(ctx, req)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			printExplanation(a.stdout, res)
			return nil
		})
	}
	return c
}

// subject says what is asked about: a task that exists, or one that does not.
func (f *taskFlags) subject(a *app, cmd *cobra.Command, req *isobarv1.ExplainRequest, function string, args []string) error {
	if function != "" {
		spec, err := f.spec(a, function, argument(args, 0))
		req.Task = spec
		return err
	}
	if len(args) == 0 {
		return usage("nothing to explain", "give a task's id, or --function NAME for a task that is not submitted")
	}
	for _, name := range []string{"residency", "not-in", "min-quality", "content-type", "json", "lane", "deadline", "not-before", "max-delay", "max-rtt", "input"} {
		if cmd.Flags().Changed(name) {
			return usage("--"+name+" is part of a task that is not submitted", "leave it out, or ask with --function")
		}
	}
	req.TaskId = args[0]
	return nil
}

func weights(req *isobarv1.ExplainRequest, ifs []string) error {
	for _, kv := range ifs {
		name, text, _ := strings.Cut(kv, "=")
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || !(v >= 0) || math.IsInf(v, 0) {
			return usage(fmt.Sprintf("--if %q is not NAME=NUMBER", kv), "for instance --if carbon_price=1000")
		}
		switch name {
		case "carbon_price":
			req.CarbonPrice = &v
		case "latency_price":
			req.LatencyPrice = &v
		case "delay_price":
			req.DelayPrice = &v
		case "quality_price":
			req.QualityPrice = &v
		default:
			return usage(fmt.Sprintf("--if %q names no weight", kv), "weights are carbon_price, latency_price, delay_price and quality_price")
		}
	}
	return nil
}

func printExplanation(w io.Writer, res *isobarv1.ExplainResponse) {
	for i, d := range res.GetDecisions() {
		if i > 0 {
			fmt.Fprintln(w)
		}
		printDecision(w, fmt.Sprintf("attempt %d", d.GetAttempt()), d)
	}
	if d := res.GetPlan(); d != nil {
		if len(res.GetDecisions()) > 0 {
			fmt.Fprintln(w)
		}
		printDecision(w, "the start was put off", d)
	}
	if d := res.GetNow(); d != nil {
		if len(res.GetDecisions()) > 0 || res.GetPlan() != nil {
			fmt.Fprintln(w)
		}
		printDecision(w, "if it were decided now", d)
	}
	if res.GetNow() == nil && res.GetPlan() == nil && len(res.GetDecisions()) == 0 {
		fmt.Fprintln(w, "no decision is kept")
	}
}

func printDecision(w io.Writer, title string, d *isobarv1.Decision) {
	fmt.Fprintf(w, "%s, %s, home %s\n", title, timestamp(d.GetAt()), d.GetHome())
	fmt.Fprintf(w, "weights: carbon_price %s USD/t, latency_price %s USD/s, quality_price %s USD",
		plain(d.GetCarbonPrice()), plain(d.GetLatencyPrice()), plain(d.GetQualityPrice()))
	if len(d.GetStarts()) > 0 {
		fmt.Fprintf(w, ", delay_price %s USD/s", plain(d.GetDelayPrice()))
	}
	fmt.Fprintln(w)
	for _, line := range []string{d.GetLater(), d.GetSummary()} {
		if line != "" {
			fmt.Fprintln(w, line)
		}
	}
	for _, h := range d.GetHeld() {
		fmt.Fprintf(w, "held up for %s: %s\n", duration(h.GetLasted()), h.GetWhy())
	}
	if len(d.GetCandidates()) == 0 {
		fmt.Fprintln(w, "nothing is possible")
	} else {
		printCandidates(w, d)
		printStarts(w, d)
	}
	printRuledOut(w, d)
	if len(d.GetFlips())+len(d.GetNotes()) > 0 || d.GetHint() != "" {
		fmt.Fprintln(w)
	}
	for _, f := range d.GetFlips() {
		way := "above"
		if f.GetAt() < f.GetNow() {
			way = "below"
		}
		fmt.Fprintf(w, "would change: %s %s %s (now %s): %s, variant %s\n", f.GetWeight(), way, plain(f.GetAt()), plain(f.GetNow()), f.GetCell(), f.GetVariant())
	}
	for _, n := range d.GetNotes() {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	if d.GetHint() != "" {
		fmt.Fprintf(w, "possible if: %s\n", d.GetHint())
	}
}

func printCandidates(w io.Writer, d *isobarv1.Decision) {
	// In millionths of a USD, so that the parts can be added by eye.
	fmt.Fprintln(w, "\ncandidates, best first; parts of the price in USD for a million tasks:")
	head := []string{"", "CELL", "VARIANT", "START", "PRICE", "COMPUTE", "EGRESS", "CARBON", "LATENCY", "COLD", "QUALITY", "WAIT", "COLD FOR", "RUN", "ROUND TRIP", "gCO2eq", "g/kWh", "FREE", "INPUTS", "FETCH", "SCARCITY"}
	const start, inputs, fetch, scarcity = 3, 18, 19, 20
	var fetched, scarce bool
	rows := [][]string{head}
	for i, c := range d.GetCandidates() {
		mark := ""
		if i == 0 {
			mark = "*"
		}
		row := []string{mark, c.GetCell(), c.GetVariant(), startWords(c)}
		for _, usd := range []float64{
			c.GetScore(), c.GetCompute(), c.GetEgress(), c.GetCarbon(), c.GetLatency(), c.GetColdStart(), c.GetQualityLost(),
		} {
			row = append(row, millionth(usd))
		}
		rows = append(rows, append(row, duration(c.GetWait()), duration(c.GetCold()), duration(c.GetRun()), duration(c.GetRtt()),
			number(c.GetGco2Eq()), number(c.GetIntensity()), strconv.FormatInt(c.GetFree(), 10),
			millionth(c.GetData()), duration(c.GetFetch()), millionth(c.GetScarcity())))
		fetched = fetched || c.GetData() > 0 || c.GetFetch().AsDuration() > 0
		scarce = scarce || c.GetScarcity() > 0
	}
	for i := range rows {
		rows[i] = kept(rows[i], map[int]bool{start: len(d.GetStarts()) > 0, inputs: fetched, fetch: fetched, scarcity: scarce})
	}
	table(w, rows)
	fmt.Fprintln(w, carbonWords(d.GetCandidates()[0]))
	if scarce {
		fmt.Fprintln(w, "scarcity: what the place is worth to other tasks that wait and want it too; nobody is paid for it")
	}
}

// kept leaves out the columns that would say nothing of any candidate.
func kept(row []string, says map[int]bool) []string {
	var out []string
	for i, text := range row {
		if keep, optional := says[i]; keep || !optional {
			out = append(out, text)
		}
	}
	return out
}

// startWords is when a candidate would start, where it is put off.
func startWords(c *isobarv1.Candidate) string {
	if c.GetPut().AsDuration() == 0 {
		return "at once"
	}
	return timestamp(c.GetStart())
}

// printStarts lists when the chosen could start, and what each start would cost.
func printStarts(w io.Writer, d *isobarv1.Decision) {
	if len(d.GetStarts()) < 2 {
		return
	}
	chosen := d.GetCandidates()[0]
	fmt.Fprintf(w, "\nstarts of %s/%s that were compared; USD for a million tasks:\n", chosen.GetCell(), chosen.GetVariant())
	rows := [][]string{{"", "START", "PUT OFF", "PRICE", "CARBON", "LATENCY", "gCO2eq", "g/kWh"}}
	for _, s := range d.GetStarts() {
		mark := ""
		if s.GetAt().AsTime().Equal(chosen.GetStart().AsTime()) {
			mark = "*"
		}
		rows = append(rows, []string{
			mark, timestamp(s.GetAt()), duration(s.GetPut()), millionth(s.GetScore()), millionth(s.GetCarbon()), millionth(s.GetLatency()),
			number(s.GetGco2Eq()), number(s.GetIntensity()),
		})
	}
	table(w, rows)
}

// carbonWords say what the chosen one's grams are from.
func carbonWords(c *isobarv1.Candidate) string {
	words := "carbon: watts and PUE of each cell, at the intensity its feed has for the time of the run"
	if f := c.GetForecast(); f != "" {
		words += "; the hours ahead of " + c.GetCell() + " are foretold by " + f
	}
	if g := c.GetNetworkGco2Eq(); g > 0 {
		words += fmt.Sprintf("; of the chosen %s g by the network, %s kWh at the mean of both ends", number(g), number(c.GetNetworkKwh()))
	}
	if g := c.GetEmbodiedGco2Eq(); g > 0 {
		words += fmt.Sprintf("; %s g embodied in its machine", number(g))
	}
	return words
}

func printRuledOut(w io.Writer, d *isobarv1.Decision) {
	if len(d.GetRuledOut()) > 0 {
		fmt.Fprintln(w, "\nruled out:")
		rows := [][]string{{"CELL", "VARIANT", "CONSTRAINT", "BECAUSE"}}
		for _, r := range d.GetRuledOut() {
			rows = append(rows, []string{r.GetCell(), r.GetVariant(), r.GetConstraint(), r.GetDetail()})
		}
		table(w, rows)
	}
	// A kept decision holds counts where it dropped the rows.
	total := uint32(0)
	var words []string
	for _, c := range d.GetCounts() {
		total += c.GetCount()
		words = append(words, fmt.Sprintf("%s %d", c.GetConstraint(), c.GetCount()))
	}
	if int(total) > len(d.GetRuledOut()) {
		fmt.Fprintf(w, "ruled out in all: %s\n", strings.Join(words, ", "))
	}
}

// millionth prints USD as USD for a million, exact to 1e-11 USD a task, so that
// the printed parts of a price add up to it within 1e-9.
func millionth(usd float64) string { return strconv.FormatFloat(usd*1e6, 'f', 5, 64) }

// plain prints a weight exactly, without an exponent.
func plain(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
