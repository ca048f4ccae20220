package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/broker/pulsar/standalone"
	"github.com/isobar-mesh/isobar/internal/config"
)

// Aims of what a region's Pulsar serves, as shares of what its own client does
// with the same messages in the same run.
const (
	streamAim = 0.7
	taskAim   = 0.25
)

const (
	// partitions of the topic and of the stream, and consumers of each.
	partitions = 4
	// publishers send so many messages at once and wait until all are stored.
	publishers   = 8
	publishBatch = 500
	// turns: everything is measured so often, one after the other, so that what
	// else the machine does meets all alike. Told are medians, and medians of the
	// quotients within a turn.
	turns = 5
)

// sample is one measurement.
type sample struct {
	n    int64 // messages or tasks
	took time.Duration
	cpu  time.Duration // of this process: without Pulsar's
}

func (s sample) rate() float64 { return float64(s.n) / s.took.Seconds() }

// series are the samples of one row, one a turn.
type series []sample

func median(list []float64) float64 {
	slices.Sort(list)
	if len(list) == 0 {
		return 0
	}
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}

func (s series) rate() float64 {
	var all []float64
	for _, x := range s {
		all = append(all, x.rate())
	}
	return median(all)
}

// cpu is the processor time of one message, in microseconds.
func (s series) cpu() float64 {
	var all []float64
	for _, x := range s {
		all = append(all, micros(x.cpu)/float64(max(x.n, 1)))
	}
	return median(all)
}

// over is s in terms of another series.
func (s series) over(o series) float64 {
	var all []float64
	for i := range s {
		all = append(all, s[i].rate()/o[i].rate())
	}
	return median(all)
}

// contender is one row's work.
type contender func(ctx context.Context, span time.Duration) (n int64, took time.Duration, err error)

// inTurns lets each work for the span, turn after turn; the first is not counted:
// Pulsar compiles as it runs.
func inTurns(ctx context.Context, span time.Duration, all ...contender) ([]series, error) {
	out := make([]series, len(all))
	for turn := range turns + 1 {
		for i, c := range all {
			used := cpuTime()
			n, took, err := c(ctx, span)
			if err != nil {
				return nil, err
			}
			if turn > 0 {
				out[i] = append(out[i], sample{n: n, took: took, cpu: cpuTime() - used})
			}
		}
	}
	return out, nil
}

// onPulsar lets a server keep its payloads and streams in a Pulsar.
func onPulsar(service, admin string) func(*config.Server) {
	return func(c *config.Server) { c.Broker.Kind, c.Broker.Service, c.Broker.Admin = "pulsar", service, admin }
}

// benchStreams measures Pulsar's own client, and streams on the region's Pulsar
// and on the embedded broker, with the same messages.
func benchStreams(ctx context.Context, o options, r *report) (err error) {
	const part = "pulsar-streams"
	service, admin, err := findPulsar(ctx)
	if err != nil {
		fmt.Fprintf(o.status, "bench: %s: left out: %v\n", part, err)
		return nil
	}
	raw, err := openRaw(ctx, service, admin, 1)
	if err != nil {
		return err
	}
	defer raw.close(ctx)
	each, err := openRaw(ctx, service, admin, partitions)
	if err != nil {
		return err
	}
	defer each.close(ctx)
	s, err := openSeam(ctx, service, admin, o)
	if err != nil {
		return fmt.Errorf("broker.Streams: %w", err)
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	all := []contender{raw.pipelined, each.publishers, s.run}
	for _, change := range []func(*config.Server){onPulsar(service, admin), nil} {
		c, err := startCell(ctx, o, 1, change)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.close()) }()
		for _, order := range []string{"strict", "relaxed"} {
			load, err := newStreamLoad(ctx, c.client, order)
			if err != nil {
				return err
			}
			all = append(all, load.run)
		}
	}
	got, err := inTurns(ctx, o.span*2/5, all...)
	if err != nil {
		return err
	}
	flow, loop, seam, streams, relaxed, embedded, embeddedRelaxed := got[0], got[1], got[2], got[3], got[4], got[5], got[6]
	tell := func(name string, s series, note string) {
		r.add(part, name, s.rate(), "messages/s", fmt.Sprintf("%s; %.1f µs of CPU here a message", note, s.cpu()))
	}
	tell("raw client: produce and consume", flow, fmt.Sprintf("%d bytes, open loop: as fast as it takes them, %d partitions, one producer, one consumer", payloadBytes, partitions))
	tell("raw client: the loop of the streams", loop, fmt.Sprintf("%d publishers that wait for %d at once, %d consumers", publishers, publishBatch, partitions))
	tell("broker.Streams on Pulsar", seam, fmt.Sprintf("%.2f of raw: append and read, without groups, log and API", seam.over(flow)))
	tell("streams on Pulsar", streams, fmt.Sprintf("strict order by key; %d publishers that wait for %d a Publish, %d consumers over the API", publishers, publishBatch, partitions))
	tell("streams on Pulsar, relaxed", relaxed, "a key's next message comes before the one before is acknowledged, as from Pulsar")
	const deaf = "of produce and consume, whose acknowledgements nobody waits for"
	r.atLeast(part, "streams on Pulsar / raw", streams.over(flow), streamAim, "", deaf)
	r.atLeast(part, "streams on Pulsar / raw, same loop", streams.over(loop), streamAim, "", "as above, with as many messages on their way")
	r.atLeast(part, "relaxed streams on Pulsar / raw", relaxed.over(flow), streamAim, "", deaf)
	r.atLeast(part, "relaxed streams on Pulsar / raw, same loop", relaxed.over(loop), streamAim, "", "the like with the like")
	tell("streams embedded", embedded, fmt.Sprintf("%.2f of raw, %.2f of those on Pulsar", embedded.over(flow), embedded.over(streams)))
	tell("streams embedded, relaxed", embeddedRelaxed, fmt.Sprintf("%.2f of raw, %.2f of those on Pulsar", embeddedRelaxed.over(flow), embeddedRelaxed.over(relaxed)))
	return nil
}

// benchTasks measures a closed loop of Pulsar's own client, and durable tasks on
// the region's Pulsar and on the embedded broker.
func benchTasks(ctx context.Context, o options, r *report) (err error) {
	const part = "pulsar-tasks"
	service, admin, err := findPulsar(ctx)
	if err != nil {
		fmt.Fprintf(o.status, "bench: %s: left out: %v\n", part, err)
		return nil
	}
	raw, err := openRaw(ctx, service, admin, 1)
	if err != nil {
		return err
	}
	defer raw.close(ctx)
	all := []contender{func(ctx context.Context, span time.Duration) (int64, time.Duration, error) {
		return raw.closedLoop(ctx, span, o.inFlight)
	}}
	for _, change := range []func(*config.Server){onPulsar(service, admin), nil} {
		c, err := startCell(ctx, o, 1, change)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.close()) }()
		stop, err := startFake(ctx, c)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
		all = append(all, func(ctx context.Context, span time.Duration) (int64, time.Duration, error) {
			start := time.Now()
			_, lat, err := closedLoop(ctx, c.client, span, o.inFlight)
			if err != nil {
				return 0, 0, err
			}
			return int64(lat.Count()), time.Since(start), nil
		})
	}
	got, err := inTurns(ctx, o.span/2, all...)
	if err != nil {
		return err
	}
	loop, tasks, embedded := got[0], got[1], got[2]
	tell := func(name string, s series, unit, note string) {
		r.add(part, name, s.rate(), unit, fmt.Sprintf("%s; %.0f µs of CPU here each", note, s.cpu()))
	}
	tell("raw client: closed loop", loop, "messages/s", fmt.Sprintf("%d in flight, each sent alone and waited for at the consumer", o.inFlight))
	tell("durable tasks on Pulsar", tasks, "tasks/s", fmt.Sprintf("submit to result, %d in flight, closed loop, fake worker", o.inFlight))
	r.atLeast(part, "durable tasks on Pulsar / raw", tasks.over(loop), taskAim, "", "of the closed loop")
	tell("durable tasks embedded", embedded, "tasks/s", fmt.Sprintf("%.2f of those on Pulsar", embedded.over(tasks)))
	return nil
}

// startFake runs a fake worker in the cell and returns when it is welcome.
func startFake(ctx context.Context, c *cell) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	welcomed, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- runFake(ctx, c.leader, welcomed) }()
	stop = func() error { cancel(); return <-ended }
	select {
	case <-welcomed:
		return stop, nil
	case <-ctx.Done():
		return nil, errors.Join(stop(), context.Cause(ctx))
	}
}

// findPulsar is the Pulsar of ISOBAR_TEST_PULSAR, as tests read it, or the shared
// one of this machine.
func findPulsar(ctx context.Context) (service, admin string, err error) {
	if v := os.Getenv("ISOBAR_TEST_PULSAR"); v != "" {
		service, admin, ok := strings.Cut(v, ",")
		if !ok {
			admin = "http://" + strings.Split(strings.TrimPrefix(service, "pulsar://"), ":")[0] + ":8080"
		}
		return service, admin, nil
	}
	s, err := standalone.Shared(ctx)
	if err != nil {
		return "", "", err
	}
	return s.Service, s.Admin, nil
}
