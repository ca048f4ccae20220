package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/internal/meshfile"
	"github.com/isobar-mesh/isobar/simulate"
)

// simulation holds the flags of `isobar simulate`.
type simulation struct {
	mesh, trace, start, plot       string
	carbon                         []string
	factors                        string
	homes, set                     []string
	requestTime                    string
	policies                       []string
	objective, forecast, durations string
	digestAge                      float64
	carbonPrice, latencyPrice      float64
	json                           bool
}

func newSimulate(a *app) *cobra.Command {
	var s simulation
	c := &cobra.Command{
		Use:   "simulate --mesh FILE --trace FILE --carbon FILE",
		Short: "Play a trace over a mesh in virtual time and report what each policy would have cost",
		Long: `Plays a trace of tasks over a mesh in virtual time: by simple policies, by the
real placement code, and by an oracle that knows everything, with a lower bound.
docs/placement.md describes the files and shows worked examples.`,
		Args: args(0, 0),
	}
	flags := c.Flags()
	flags.StringVar(&s.mesh, "mesh", "", "regions, round trips, prices and functions, YAML")
	flags.StringVar(&s.trace, "trace", "", "tasks, CSV or gzip: own columns, an Azure LLM inference trace or the Azure Functions trace of 2021")
	flags.StringArrayVar(&s.carbon, "carbon", nil, "carbon intensity by hour, gCO2eq/kWh, CSV or gzip: a column a zone, or an hourly export of Electricity Maps; may be repeated")
	flags.StringVar(&s.factors, "carbon-factors", string(carbon.LifeCycle), "lifecycle or direct: which figures of an Electricity Maps export")
	flags.StringArrayVar(&s.homes, "home", nil, "home region where the trace names none, taken in turn; may be repeated")
	flags.StringArrayVar(&s.set, "set", nil, "COLUMN=VALUE for a column that the trace lacks, such as max_delay_s=3600; may be repeated")
	flags.StringVar(&s.requestTime, "request-time", "", "BASE,INPUT,OUTPUT: seconds of an LLM request, and for each token in and out (default 0.01,0.00015,0.0374: Llama 2 70B on 2 H100)")
	flags.StringVar(&s.start, "start", "", "time of the trace's zero, such as 2022-06-01T00:00:00Z (default the first carbon row)")
	flags.StringArrayVar(&s.policies, "policy", nil, "home, cheapest, greenest, isobar or oracle; may be repeated (default all)")
	flags.StringVar(&s.objective, "objective", string(simulate.Balanced), "carbon, cost, latency or balanced")
	flags.StringVar(&s.forecast, "forecast", string(simulate.Perfect), "what isobar knows of the carbon to come: perfect, persistence, mean7 or model")
	flags.StringVar(&s.durations, "durations", string(simulate.Known), "what isobar knows of run times: known or learned")
	flags.Float64Var(&s.digestAge, "digest-age", 0, "how old isobar's knowledge of other regions' free capacity is, seconds")
	flags.Float64Var(&s.carbonPrice, "carbon-price", simulate.DefaultCarbonPrice, "USD for a tonne of CO2eq (EPA 2023, 2 % discount)")
	flags.Float64Var(&s.latencyPrice, "latency-price", simulate.DefaultLatencyPrice, "USD for a second of wait and round trip (a waiting core)")
	flags.BoolVar(&s.json, "json", false, "print JSON, and nothing else on standard output")
	flags.StringVar(&s.plot, "plot", "", "also draw the report into this SVG file")
	c.RunE = func(*cobra.Command, []string) error { return s.run(a) }
	return c
}

func (s *simulation) run(a *app) error {
	const see = "see `isobar simulate --help`"
	for _, f := range [...]struct{ name, value string }{{"mesh", s.mesh}, {"trace", s.trace}, {"carbon", strings.Join(s.carbon, "")}} {
		if f.value == "" {
			return usage("--"+f.name+" is required", see)
		}
	}
	opts, err := s.options()
	if err != nil {
		return err
	}
	const files = "docs/placement.md describes the files"
	reader, err := s.reader()
	if err != nil {
		return err
	}
	in, err := s.read(reader)
	if err != nil {
		return hinted(exitUsage, err, files+"; for flags "+see)
	}
	done := a.progress(&opts)
	report, err := simulate.Run(in, opts)
	done()
	if err != nil {
		return hinted(exitUsage, err, files+"; for flags "+see)
	}
	if s.plot != "" {
		if err := s.draw(report); err != nil {
			return failed("name a file that can be written with --plot", "%w", err)
		}
	}
	if s.json {
		return report.WriteJSON(a.stdout)
	}
	return report.WriteText(a.stdout)
}

func (s *simulation) options() (simulate.Options, error) {
	opts := simulate.NewOptions()
	opts.Policies = nil
	for _, p := range s.policies {
		opts.Policies = append(opts.Policies, simulate.Policy(p))
	}
	opts.Objective, opts.Forecast = simulate.Objective(s.objective), simulate.Forecast(s.forecast)
	opts.Durations = simulate.Durations(s.durations)
	opts.CarbonPrice, opts.LatencyPrice = s.carbonPrice, s.latencyPrice
	if !(s.digestAge >= 0 && s.digestAge <= 1e9) {
		return opts, usage(fmt.Sprintf("--digest-age %g cannot be", s.digestAge), "seconds, 0 or more")
	}
	opts.DigestAge = time.Duration(s.digestAge * float64(time.Second))
	if s.start != "" {
		start, err := time.Parse(time.RFC3339, s.start)
		if err != nil {
			return opts, usage(fmt.Sprintf("--start %q is not a time", s.start), "write 2022-06-01T00:00:00Z")
		}
		opts.Start = start
	}
	return opts, nil
}

// reader is what reads the trace, with all that was given for what it lacks.
func (s *simulation) reader() (*simulate.TraceReader, error) {
	r := &simulate.TraceReader{Homes: s.homes, Set: map[string]string{}}
	for _, pair := range s.set {
		name, value, ok := strings.Cut(pair, "=")
		if _, twice := r.Set[name]; !ok || name == "" || value == "" || twice {
			return nil, usage(fmt.Sprintf("--set %q is not COLUMN=VALUE, once a column", pair), "write --set max_delay_s=3600")
		}
		r.Set[name] = value
	}
	if s.requestTime == "" {
		return r, nil
	}
	parts := strings.Split(s.requestTime, ",")
	to := [...]*float64{&r.Request.Base, &r.Request.PerInput, &r.Request.PerOutput}
	for i, x := range to {
		var err error
		if len(parts) == len(to) {
			*x, err = strconv.ParseFloat(parts[i], 64)
		}
		if len(parts) != len(to) || err != nil || !(*x >= 0 && *x <= 1e6) {
			return nil, usage(fmt.Sprintf("--request-time %q is not BASE,INPUT,OUTPUT in seconds, 0 or more each", s.requestTime), "write --request-time 0.01,0.00015,0.0374")
		}
	}
	return r, nil
}

func (s *simulation) read(reader *simulate.TraceReader) (in simulate.Input, err error) {
	data, err := os.ReadFile(s.mesh)
	if err != nil {
		return in, fmt.Errorf("read mesh: %w", err)
	}
	if in.Mesh, err = meshfile.Parse(s.mesh, data); err != nil {
		return in, err
	}
	if in.Carbon, err = carbon.ReadFiles(carbon.Average, carbon.Factors(s.factors), s.carbon...); err != nil {
		return in, err
	}
	reader.Mesh = in.Mesh
	in.Trace, err = reader.ReadFile(s.trace)
	return in, err
}

func (s *simulation) draw(report *simulate.Report) error {
	f, err := os.Create(s.plot)
	if err != nil {
		return fmt.Errorf("write plot: %w", err)
	}
	if err := report.WriteSVG(f); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write plot: %w", err)
	}
	return nil
}

// progress draws a bar on standard error when that is a terminal. The function
// it returns takes the bar away.
func (a *app) progress(opts *simulate.Options) (done func()) {
	if !terminal(a.stderr) {
		return func() {}
	}
	bar := progressBar{w: a.stderr, policies: opts.Policies, begin: time.Now(), now: time.Now}
	if len(bar.policies) == 0 {
		bar.policies = simulate.Policies()
	}
	opts.Progress = bar.show
	return bar.clear
}

// progressBar is one line that changes: which policy is played, how much of it
// is done, and how long it has taken in all.
type progressBar struct {
	w        io.Writer
	policies []simulate.Policy
	begin    time.Time
	now      func() time.Time
	shown    string
}

func (b *progressBar) show(p simulate.Policy, done, of int) {
	const width = 30
	share := float64(done) / float64(max(of, 1))
	full := int(share * width)
	at := slices.Index(b.policies, p) + 1
	elapsed := b.now().Sub(b.begin).Round(time.Second)
	line := fmt.Sprintf("%d/%d %-8s [%s%s] %3.0f %%  %v", at, len(b.policies), p, strings.Repeat("#", full), strings.Repeat("·", width-full), 100*share, elapsed)
	if line == b.shown {
		return
	}
	// What was longer before is wiped out.
	pad := max(len([]rune(b.shown))-len([]rune(line)), 0)
	fmt.Fprintf(b.w, "\r%s%s", line, strings.Repeat(" ", pad))
	b.shown = line
}

func (b *progressBar) clear() {
	fmt.Fprintf(b.w, "\r%s\r", strings.Repeat(" ", len([]rune(b.shown))))
}

// terminal reports whether what is written is shown on a device: to a file or a
// pipe a bar would be noise.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
