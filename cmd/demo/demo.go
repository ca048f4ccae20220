package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/loadtest"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const (
	// progressEvery is how often a line is printed where none can be updated.
	progressEvery = 5 * time.Second
	redrawEvery   = 200 * time.Millisecond
	// accuracySlack is how far the accuracy seen may be from the quality that
	// the manifest says, once enough answers were counted.
	accuracySlack   = 0.05
	accuracyAnswers = 1000
)

// errBad ends a run whose table shows something that must not be.
var errBad = errors.New("the run went wrong, see above")

// demo is one run.
type demo struct {
	options
	out, err io.Writer
	terminal bool
}

func (d *demo) run(ctx context.Context) error {
	p, err := newPlan(d.options)
	if err != nil {
		return err
	}
	d.header(p)
	d.sayf("starting the mesh: three regions, each a server and a worker of its own")
	m, err := startMesh(ctx, d.options, p, d.out, d.err)
	if err != nil {
		return err
	}
	pl, outcomes, err := d.work(ctx, p, m)
	if pl != nil {
		defer pl.close()
	}
	if err == nil && !d.once {
		d.next(m, outcomes)
		err = stay(ctx, m)
	}
	return errors.Join(err, m.stop())
}

// work deploys, plays, and prints the table.
func (d *demo) work(ctx context.Context, p *plan, m *mesh) (*player, []loadtest.Outcome, error) {
	pl, err := newPlayer(ctx, p, m.address, func(addresses []string) (*client.Client, error) { return client.New(addresses) })
	if err != nil {
		return nil, nil, err
	}
	qualities := map[string]float64{}
	for _, name := range []string{sentimentName, thumbnailName} {
		spec, took, err := deploy(ctx, pl.regions[places()[0].Region].client, d.options, name)
		if err != nil {
			return pl, nil, err
		}
		d.sayf("deployed %s: %s; runnable in every region after %s", name, variants(spec), took.Round(10*time.Millisecond))
		for _, v := range spec.GetVariants() {
			qualities[name+"/"+v.GetName()] = v.GetQuality()
		}
	}
	n, err := pl.warm(ctx, p.warmUp)
	if err != nil {
		return pl, nil, err
	}
	d.sayf("warmed up: %d tasks, each variant once in every region; they are not counted", n)
	d.sayf("sending %d requests in %s", len(p.jobs), d.play)
	stop := d.progress(pl)
	begin := time.Now()
	outcomes := pl.play(ctx)
	stop()
	if ctx.Err() != nil {
		return pl, nil, context.Cause(ctx)
	}
	d.sayf("all ended after %s; reading the decisions", time.Since(begin).Round(time.Second))
	explained := pl.explain(ctx, outcomes)
	// What is known is shown, whether or not every decision could be read.
	return pl, outcomes, errors.Join(d.report(loadtest.NewReport(outcomes), qualities), explained)
}

// report prints the table and says whether all is well.
func (d *demo) report(r loadtest.Report, qualities map[string]float64) error {
	_, _ = fmt.Fprintln(d.out)
	if err := r.Text(d.out); err != nil {
		return err
	}
	if d.options.report != "" {
		if err := writeJSON(d.options.report, r); err != nil {
			return err
		}
	}
	bad := r.Bad() > 0
	for _, a := range r.Answers {
		want, known := qualities[a.Function+"/"+a.Variant]
		if known && a.Answers >= accuracyAnswers && math.Abs(a.Share()-want) > accuracySlack {
			_, _ = fmt.Fprintf(d.out, "%s/%s was right in %.1f %%, its manifest says %.1f %%\n", a.Function, a.Variant, 100*a.Share(), 100*want)
			bad = true
		}
	}
	if missing := r.All.Tasks - r.All.Decided; missing > 0 {
		_, _ = fmt.Fprintf(d.out, "%d tasks have no stored decision\n", missing)
		bad = true
	}
	if bad {
		return errBad
	}
	return nil
}

func writeJSON(path string, r loadtest.Report) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return errors.Join(r.JSON(f), f.Close())
}

func variants(spec *isobarv1.FunctionSpec) string {
	var parts []string
	for _, v := range spec.GetVariants() {
		parts = append(parts, fmt.Sprintf("%s (%s, quality %g)", v.GetName(), v.GetRuntime(), v.GetQuality()))
	}
	return strings.Join(parts, ", ")
}

func (d *demo) sayf(format string, args ...any) {
	_, _ = fmt.Fprintf(d.out, "==> "+format+"\n", args...)
}

// header says what will be played, and how it stands for what.
func (d *demo) header(p *plan) {
	d.sayf("workload: %s", p.source)
	services := p.trace.Services()
	span := p.trace.Span().Round(time.Second)
	_, _ = fmt.Fprintf(d.out, "    sizes and arrivals: %d requests (%d conversations, %d code completions), %d of %d, evenly picked\n",
		len(p.jobs), services["conv"], services["code"], len(p.jobs), p.of)
	_, _ = fmt.Fprintf(d.out, "    time is compressed: %s of the workload are played in %s, %.1f times as fast; carbon's clock too\n", span, d.play, p.speed)
	for _, rule := range rules() {
		_, _ = fmt.Fprintln(d.out, "    "+rule)
	}
	_, _ = fmt.Fprintf(d.out, "    requests come in at %s, drawn by local time: %s\n", p.shares(), loadtest.SpreadRule)
	_, _ = fmt.Fprintf(d.out, "    each region offers %g core(s); carbon: %s, from %s; energy: watts and PUE of the mesh\n", d.cpu, p.carbonSource, p.carbonClock.UTC().Format("2006-01-02 15:04"))
	_, _ = fmt.Fprintf(d.out, "    a task's quality is priced at USD %s, low, so that the small variant does where no minimum is asked for\n",
		strconv.FormatFloat(d.quality, 'f', -1, 64))
}

// progress shows how far it is until the returned function is called: one line
// that changes on a terminal, a line every few seconds elsewhere.
func (d *demo) progress(pl *player) (stop func()) {
	every := progressEvery
	if d.terminal {
		every = redrawEvery
	}
	begin := time.Now()
	show := func() {
		line := fmt.Sprintf("%3.0f s: %d of %d sent, %d completed, %d bad, %d under way", time.Since(begin).Seconds(), pl.sent.Load(),
			len(pl.plan.jobs), pl.ended.Load()-pl.bad.Load(), pl.bad.Load(), pl.sent.Load()-pl.ended.Load())
		if d.terminal {
			_, _ = fmt.Fprintf(d.out, "\r    %-70s", line)
		} else {
			_, _ = fmt.Fprintln(d.out, "    "+line)
		}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				show()
			case <-quit:
				show()
				if d.terminal {
					_, _ = fmt.Fprintln(d.out)
				}
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

// next prints three commands to try on the mesh that stays up.
func (d *demo) next(m *mesh, outcomes []loadtest.Outcome) {
	task := outcomes[0].Task
	for _, o := range outcomes {
		if o.Moved {
			task = o.Task
			break
		}
	}
	_, _ = fmt.Fprintf(d.out, "\nthe mesh stays up; interrupt to end it. Three things to try in another terminal:\n\n")
	at := ""
	if d.ports != "fixed" {
		at = " --server " + m.address
	}
	_, _ = fmt.Fprintf(d.out, "  %s explain%s %s\n", d.binary, at, task)
	_, _ = fmt.Fprintf(d.out, "  %s submit%s --wait %s 'The soup was cold and the waiter was rude.'\n", d.binary, at, sentimentName)
	_, _ = fmt.Fprintf(d.out, "  %s mesh%s\n", d.binary, at)
}

// stay waits until it is interrupted, which is a good end, or the mesh ends.
func stay(ctx context.Context, m *mesh) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.ended:
		return fmt.Errorf("the mesh ended by itself: %w", m.err)
	}
}
