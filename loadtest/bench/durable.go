package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/loadtest"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// payloadBytes of each task.
const payloadBytes = 256

// benchDurable measures durable tasks from Submit to the result, at cells of
// one and of three servers, with a fake worker on the real stream.
func benchDurable(ctx context.Context, o options, r *report) error {
	for _, n := range []int{1, 3} {
		if err := durableCell(ctx, o, r, n); err != nil {
			return fmt.Errorf("%d servers: %w", n, err)
		}
	}
	return nil
}

func durableCell(ctx context.Context, o options, r *report, n int) (err error) {
	floor, err := logFloor(ctx, o, n)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%d server", n)
	if n > 1 {
		name += "s"
	}
	r.add("durable", name+": the log alone", floor, "commits/s", fmt.Sprintf("groups of 512 bytes, %d in flight", o.inFlight))
	c, err := startCell(ctx, o, n, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	ctx, cancel := context.WithCancel(ctx)
	welcomed, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- runFake(ctx, c.leader, welcomed) }()
	defer func() { cancel(); err = errors.Join(err, <-ended) }()
	select {
	case <-welcomed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if _, _, err := closedLoop(ctx, c.client, o.span/5, o.inFlight); err != nil { // warm up
		return err
	}
	used := cpuTime()
	rate, lat, err := closedLoop(ctx, c.client, o.span, o.inFlight)
	if err != nil {
		return err
	}
	used = (cpuTime() - used) / time.Duration(max(lat.Count(), 1))
	r.add("durable", name+": closed loop", rate, "tasks/s", fmt.Sprintf("%d in flight, fake worker; %.2f of the log's commits/s at 3 commits a task", o.inFlight, 3*rate/floor))
	r.add("durable", name+": closed loop p50", millis(lat.Quantile(0.5)), "ms", fmt.Sprintf("p99 %.0f ms", millis(lat.Quantile(0.99))))
	r.add("durable", name+": CPU of a task", micros(used), "µs", "of servers, worker and client together")
	lat, err = openLoop(ctx, c.client, o.span, rate/2)
	if err != nil {
		return err
	}
	r.add("durable", name+": open loop p50", millis(lat.Quantile(0.5)), "ms", fmt.Sprintf("p99 %.0f ms at %.0f tasks/s, half of the closed loop's", millis(lat.Quantile(0.99)), rate/2))
	return nil
}

// task submits one task and waits for its result.
func task(ctx context.Context, c *client.Client, payload []byte) error {
	got, ended, err := c.SubmitAndWait(ctx, &isobarv1.TaskSpec{Function: function, Input: &isobarv1.TaskSpec_Payload{Payload: payload}}, time.Minute)
	if err != nil {
		return err
	}
	if !ended || got.State != isobarv1.TaskState_TASK_STATE_COMPLETED {
		return fmt.Errorf("task %s: %w: %s after a minute", got.Id, errNotDone, got.State)
	}
	return nil
}

var errNotDone = errors.New("did not complete")

// closedLoop keeps n tasks in flight for the span.
func closedLoop(ctx context.Context, c *client.Client, span time.Duration, n int) (rate float64, lat *loadtest.Latencies, err error) {
	payload := make([]byte, payloadBytes)
	return repeat(ctx, func(ctx context.Context) error { return task(ctx, c, payload) }, span, n)
}

// openLoop sends at the rate, however many are unanswered, with Poisson
// arrivals; latencies count from when each was due.
func openLoop(ctx context.Context, c *client.Client, span time.Duration, rate float64) (*loadtest.Latencies, error) {
	var arrivals []loadtest.Arrival
	rng := rand.New(rand.NewPCG(1, 2))
	for at := time.Duration(0); at < span; at += time.Duration(rng.ExpFloat64() / rate * float64(time.Second)) {
		arrivals = append(arrivals, loadtest.Arrival{At: at})
	}
	payload := make([]byte, payloadBytes)
	samples := loadtest.Drive(ctx, arrivals, loadtest.Pace{}, func(ctx context.Context, _ int, _ loadtest.Arrival) error {
		return task(ctx, c, payload)
	})
	lat := &loadtest.Latencies{}
	for _, s := range samples {
		if s.Err != nil {
			return nil, s.Err
		}
		lat.Add(s.Latency())
	}
	return lat, nil
}
