package loadtest

import (
	"context"
	"sync"
	"time"
)

// Pace says how fast a workload is played.
type Pace struct {
	// Speed is how many seconds of the workload pass in one second; 0 is 1.
	Speed float64
}

// Due is when an arrival is to be sent, from the start of the play.
func (p Pace) Due(a Arrival) time.Duration {
	if p.Speed <= 0 {
		return a.At
	}
	return time.Duration(float64(a.At) / p.Speed)
}

// Send does one request to its end and says whether it failed. It is called
// from a goroutine of its own for each request. i is the request's place in the
// workload.
type Send func(ctx context.Context, i int, a Arrival) error

// Sample is what the driver saw of one request. Times are from the start of the
// play.
type Sample struct {
	// Due is when the request was to be sent, Sent when it was, Done when Send
	// returned. Sent is 0 and Done is Due for one never sent.
	Due, Sent, Done time.Duration
	// Err is what Send returned; the context's cause for a request never sent.
	Err error
}

// Latency counts from when the request was due, not from when it was sent: what
// the driver itself was late is part of it.
func (s Sample) Latency() time.Duration { return s.Done - s.Due }

// Drive plays a workload, open loop: each request is sent when it is due,
// however many are still unanswered. It returns once every Send has returned,
// with a sample for each arrival in their order. When ctx ends nothing more is
// sent, and the sends under way are told by it.
//
// Memory grows with what is unanswered: a workload of n arrivals has at most n
// sends at once.
func Drive(ctx context.Context, arrivals []Arrival, pace Pace, send Send) []Sample {
	samples := make([]Sample, len(arrivals))
	start := time.Now()
	var sends sync.WaitGroup
	defer sends.Wait()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, a := range arrivals {
		s := &samples[i]
		s.Due = pace.Due(a)
		if wait := s.Due - time.Since(start); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			skip(samples, arrivals, i, pace, context.Cause(ctx))
			break
		}
		sends.Go(func() {
			s.Sent = time.Since(start)
			s.Err = send(ctx, i, a)
			s.Done = time.Since(start)
		})
	}
	return samples
}

// skip marks what was never sent.
func skip(samples []Sample, arrivals []Arrival, from int, pace Pace, err error) {
	for i := from; i < len(samples); i++ {
		due := pace.Due(arrivals[i])
		samples[i] = Sample{Due: due, Done: due, Err: err}
	}
}
