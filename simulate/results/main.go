// Command results remakes the tables of docs/results from the public data that
// the project carries:
//
//	go run ./simulate/results -data ../shared/data -out docs/results
//
// It owns the choice of regions, traces and settings behind the tables, and no
// logic of placement or simulation. Equal data give equal tables.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/simulate"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "results:", err)
		os.Exit(1) //nolint:forbidigo // the one place where this program ends
	}
}

func run(args []string, log io.Writer) error {
	flags := flag.NewFlagSet("results", flag.ContinueOnError)
	data := flags.String("data", "../shared/data", "directory of the public data")
	out := flags.String("out", "docs/results", "directory of the tables")
	starts := flags.Int("starts", 24, "starts over the year, for the table of requests")
	every := flags.Int("every", 1, "hours between arrivals, for the table of batch work")
	only := flags.String("only", "", "remake one table: requests, forecast, stale or joint")
	cache := flags.String("cache", "", "file that keeps what was played for the table of requests; a later run goes on from there")
	budget := flags.Duration("for", 0, "stop the table of requests after so long, for a later run with -cache; 0 is never")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *starts < 1 || *every < 1 {
		return fmt.Errorf("-starts and -every must be 1 or more")
	}
	table, err := carbon.ReadFile(filepath.Join(*data, "electricitymaps-2022", "carbon-intensity-hourly-2022.csv.gz"), carbon.Average)
	if err != nil {
		return err
	}
	s := sources{data: *data, table: table, log: log, starts: *starts, every: *every, cache: *cache}
	if *budget > 0 {
		s.until = time.Now().Add(*budget)
	}
	for _, t := range [...]struct {
		name string
		make func() (string, error)
	}{{"requests", s.requests}, {"forecast", s.batch}, {"stale", s.stale}, {"joint", s.joint}} {
		if *only != "" && *only != t.name {
			continue
		}
		text, err := t.make()
		if err != nil {
			return fmt.Errorf("table of %s: %w", t.name, err)
		}
		if err := os.WriteFile(filepath.Join(*out, t.name+".md"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// sources is what the tables are made from.
type sources struct {
	data   string
	table  *carbon.Table
	log    io.Writer
	starts int
	every  int
	cache  string
	played []played
	until  time.Time // when the table of requests stops; zero is never
}

// play runs a simulation and checks every schedule of it anew.
func (s *sources) play(mesh, trace string, opts simulate.Options) (map[simulate.Policy]simulate.PolicyReport, error) {
	m, err := meshfile.Parse("mesh", []byte(mesh))
	if err != nil {
		return nil, err
	}
	t, err := simulate.ReadTrace(strings.NewReader(trace), "trace", m)
	if err != nil {
		return nil, err
	}
	r, err := simulate.Run(simulate.Input{Mesh: m, Trace: t, Carbon: s.table}, opts)
	if err != nil {
		return nil, err
	}
	if err := r.Check(); err != nil {
		return nil, err
	}
	out := map[simulate.Policy]simulate.PolicyReport{}
	for _, p := range r.Policies {
		out[simulate.Policy(p.Name)] = p
	}
	return out, nil
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	if len(x) == 0 {
		return 0
	}
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}
