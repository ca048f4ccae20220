package devmesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// ErrChild is wrapped by the error when a process ended before the mesh was
// ready, or all of them after.
var ErrChild = errors.New("a process of the mesh ended")

const (
	workerStop = workerGrace + 2*time.Second
	serverStop = 8 * time.Second
	tailLines  = 12
)

// Run starts the mesh and keeps it up until the context ends, then stops
// workers, then servers. hurry, when it closes, kills what is still stopping.
// The table and the line "isobar dev: ready" go to out, progress and reports
// of processes that ended to progress.
func Run(ctx context.Context, o Options, out, progress io.Writer, hurry <-chan struct{}) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.CarbonEpoch == nil && (o.CarbonClock != nil || o.CarbonSpeed != 1) {
		now := time.Now().UTC()
		o.CarbonEpoch = &now
	}
	l, err := plan(o)
	if err != nil {
		return err
	}
	if err := writeFiles(o, l); err != nil {
		return err
	}
	spawner := newSpawner()
	defer spawner.close()
	var servers, workers []*process
	defer func() {
		stop(workers, workerStop, hurry)
		stop(servers, serverStop, hurry)
	}()
	_, _ = fmt.Fprintf(progress, "starting %d servers and %d workers\n", len(l.servers), len(l.workers))
	for _, s := range l.servers {
		p, err := spawn(spawner, o, "server", s.region.Name, s.id(), s.dir)
		if err != nil {
			return err
		}
		servers = append(servers, p)
	}
	for _, w := range l.workers {
		p, err := spawn(spawner, o, "worker", w.region.Name, w.id(), w.dir)
		if err != nil {
			return err
		}
		workers = append(workers, p)
	}
	all := slices.Concat(servers, workers)
	ends := watch(all)
	if err := becomeReady(ctx, o, l, ends); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil // told to stop
	}
	printTable(out, o, l, servers, workers)
	_, _ = fmt.Fprintln(out, "isobar dev: ready")
	return supervise(ctx, all, ends, progress)
}

// watch receives each process once, when it has ended.
func watch(all []*process) <-chan *process {
	ends := make(chan *process, len(all))
	for _, p := range all {
		go func() {
			<-p.done
			ends <- p
		}()
	}
	return ends
}

func becomeReady(ctx context.Context, o Options, l layout, ends <-chan *process) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- waitReady(waiting, o, l) }()
	select {
	case err := <-ready:
		if ctx.Err() == nil {
			return err
		}
		return nil // told to stop: that it was not ready is no failure
	case p := <-ends:
		cancel()
		<-ready //nolint:errcheck // what ended says more
		if ctx.Err() != nil {
			return nil // told to stop
		}
		return fmt.Errorf("devmesh: start %s %s: %s: %w; the end of %s:\n%s", p.kind, p.id, p.how(), ErrChild, p.logPath, p.tail(tailLines))
	}
}

// supervise reports processes that end, until the context ends or none is left.
func supervise(ctx context.Context, all []*process, ends <-chan *process, progress io.Writer) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-ends:
			if ctx.Err() != nil {
				return nil
			}
			_, _ = fmt.Fprintf(progress, "isobar dev: %s %s (pid %d) ended: %s; the end of %s:\n%s  start it again with: %s\n",
				p.kind, p.id, p.pid(), p.how(), p.logPath, p.tail(tailLines), p.command)
			if !slices.ContainsFunc(all, func(p *process) bool { return !p.ended() }) {
				return fmt.Errorf("devmesh: run the mesh: none is left: %w", ErrChild)
			}
		}
	}
}

func printTable(out io.Writer, o Options, l layout, servers, workers []*process) {
	pids := func(ps []*process, region string) string {
		var words []string
		for _, p := range ps {
			if p.region == region {
				words = append(words, fmt.Sprint(p.pid()))
			}
		}
		return strings.Join(words, " ")
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "REGION\tCELL\tLIES IN\tCARBON ZONE\tAPI\tSERVER PIDS\tWORKER PIDS")
	for _, r := range o.Mesh.Regions {
		var apis []string
		for _, s := range l.of(r.Name) {
			apis = append(apis, s.apiURL())
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, cellOf(r.Name), strings.Join(r.Jurisdictions, ","), r.Zone,
			strings.Join(apis, " "), pids(servers, r.Name), pids(workers, r.Name))
	}
	_ = w.Flush()
	var trips []string
	for i, a := range o.Mesh.Regions {
		for _, b := range o.Mesh.Regions[i+1:] {
			there, _ := o.Mesh.RTTMs(a.Name, b.Name)
			trips = append(trips, fmt.Sprintf("%s to %s %v ms", a.Name, b.Name, there))
		}
	}
	if len(trips) > 0 {
		_, _ = fmt.Fprintf(out, "round trips (emulated): %s\n", strings.Join(trips, ", "))
	}
	source := "generated around published means (no measurement)"
	if o.CarbonFile != "" {
		source = o.CarbonFile
	}
	if o.CarbonClock != nil {
		source += ", from " + o.CarbonClock.UTC().Format(time.RFC3339)
	}
	_, _ = fmt.Fprintf(out, "carbon: %s, %v s a second\ndata: %s\n", source, o.CarbonSpeed, o.Data)
}
