package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/cenkalti/backoff/v5"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const (
	firstPause = 100 * time.Millisecond
	// maxPause is short against a lease: a worker that finds its cell's new
	// leader late has lost what it runs.
	maxPause = time.Second
	// maxHops is how many addresses a round asks that are not configured, but
	// were named as the leader's.
	maxHops = 3
)

// errAnnounce ends a stream only to say hello again with another offer.
var errAnnounce = errors.New("the offer changed")

// link is one Work stream. Fields below the line belong to the worker's loop.
type link struct {
	address  string
	cancel   context.CancelCauseFunc
	welcomed atomic.Bool

	mu    sync.Mutex
	queue []*isobarv1.WorkRequest // nil closes the sending side
	wake  chan struct{}

	// ---
	opened time.Time
	// up is set by the cell's Welcome.
	up    bool
	every time.Duration
	lease time.Duration
	// answered is when the newest message was sent that the cell has answered:
	// what the cell grants after it holds at least from then.
	answered time.Time
	// pending are the leases of the Extend in flight, sent at pendingAt. There
	// is at most one, so an answer belongs to it.
	pending    []*isobarv1.LeaseRef
	pendingAt  time.Time
	nextExtend time.Time
}

func newLink(address string, cancel context.CancelCauseFunc) *link {
	return &link{address: address, cancel: cancel, wake: make(chan struct{}, 1)}
}

// send queues a message and returns at once. The queue is bounded by what the
// worker holds: a stream that does not take it is given up for silence.
func (l *link) send(m *isobarv1.WorkRequest) {
	l.mu.Lock()
	l.queue = append(l.queue, m)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// close ends the sending side after what is queued.
func (l *link) close() { l.send(nil) }

func (l *link) take() []*isobarv1.WorkRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue
	l.queue = nil
	return q
}

// write sends what is queued until the context ends or the stream fails.
func (l *link) write(ctx context.Context, stream isobarv1.WorkerServiceWorkClientStream) {
	for {
		for _, m := range l.take() {
			if m == nil {
				_ = stream.CloseSend()
				return
			}
			if err := stream.Send(m); err != nil {
				// io.EOF means that the cell ended the stream; Receive has why.
				if !errors.Is(err, io.EOF) {
					l.cancel(fmt.Errorf("worker: send: %w", err))
				}
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
	}
}

// event is what the other goroutines tell the loop. Exactly one of the parts
// is set.
type event struct {
	link     *link
	attached bool
	detached bool
	msg      *isobarv1.WorkResponse

	job     *job
	outcome *isobarv1.Outcome
	warm    bool
}

// post hands an event to the loop; it reports false when the loop has ended.
func (w *Worker) post(e event) bool {
	select {
	case w.events <- e:
		return true
	case <-w.done:
		return false
	}
}

// connect keeps one stream open until the context ends: at the leader when one
// is named, else at the configured addresses in turn. A round asks each address
// once; between rounds is a growing, jittered pause.
func (w *Worker) connect(ctx context.Context) {
	pause := &backoff.ExponentialBackOff{
		InitialInterval:     firstPause,
		RandomizationFactor: 0.5,
		Multiplier:          2,
		MaxInterval:         maxPause,
	}
	pause.Reset()
	round := map[string]bool{}
	for leader := ""; ctx.Err() == nil; {
		address := leader
		if leader == "" {
			if address = w.untried(round); address == "" {
				clear(round)
				select {
				case <-ctx.Done():
				case <-time.After(pause.NextBackOff()):
				}
				continue
			}
		}
		round[address] = true
		start := time.Now()
		welcomed, err := w.stream(ctx, address)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errAnnounce) {
			leader = address
			continue
		}
		if welcomed && time.Since(start) > maxPause {
			pause.Reset()
			clear(round)
		}
		// Two servers in disagreement would point at each other for ever.
		if leader = leaderOf(err); round[leader] || len(round) >= len(w.opts.Addresses)+maxHops {
			leader = ""
		}
		switch {
		case welcomed:
			w.log.Warn("stream ended", "address", address, "error", err)
		case leader != "":
			w.log.Debug("follow to the leader", "address", address, "leader", leader)
		default:
			w.log.Warn("no stream", "address", address, "error", err)
		}
	}
}

// untried is the next configured address of the round; "" when it is over.
func (w *Worker) untried(round map[string]bool) string {
	for _, a := range w.opts.Addresses {
		// Checked by New.
		if address, _ := baseURL(a); !round[address] {
			return address
		}
	}
	return ""
}

// stream opens one Work stream and passes on what it brings until it ends. It
// reports whether the cell welcomed the worker, and why the stream ended.
func (w *Worker) stream(ctx context.Context, address string) (welcomed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	calls := isobarv1.NewWorkerServiceClient(connect.NewClient(w.opts.Transport(address)))
	s, err := calls.Work(ctx)
	if err != nil {
		return false, fmt.Errorf("worker: open stream: %w", err)
	}
	defer func() { _ = s.Close() }()
	l := newLink(address, cancel)
	if !w.post(event{link: l, attached: true}) {
		return false, nil
	}
	var writer sync.WaitGroup
	writer.Go(func() { l.write(ctx, s) })
	for {
		var m *isobarv1.WorkResponse
		if m, err = s.Receive(); err != nil {
			break
		}
		if m.GetWelcome() != nil {
			l.welcomed.Store(true)
		}
		if !w.post(event{link: l, msg: m}) {
			break
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	writer.Wait()
	w.post(event{link: l, detached: true})
	if err != nil {
		err = fmt.Errorf("worker: receive: %w", err)
	}
	return l.welcomed.Load(), err
}
