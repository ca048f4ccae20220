// Package lifecycle starts and stops the parts of a process in order.
//
// It owns the contract of Service, one way to meet it (New), and Group, which
// runs several: started in the order given, stopped in the reverse, the first
// that fails ends all. It never restarts anything and never calls os.Exit.
package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Service is a part that runs until stopped. Its methods are safe for
// concurrent use.
type Service interface {
	// Start returns once the service is ready, or with why it cannot be. The
	// context bounds the start only, not the run. A second Start, and a Start
	// after Stop, is ErrStarted or ErrStopped and changes nothing.
	Start(ctx context.Context) error
	// Stop asks the service to end and waits for it, at most until the
	// context's end. It may be called before Start, while Start runs (which
	// then fails), and more than once; each call waits, and after the end each
	// returns nil. A service that does not end in time keeps ending.
	Stop(ctx context.Context) error
	// Done is closed once the service has ended, by itself, by Stop, or by a
	// failed Start.
	Done() <-chan struct{}
	// Err is why the service ended by itself; nil while it runs, and after an
	// end that Stop asked for.
	Err() error
}

// Errors of a Service.
var (
	// ErrStarted: Start was called before.
	ErrStarted = errors.New("already started")
	// ErrStopped: Stop was called before or during Start.
	ErrStopped = errors.New("already stopped")
	// ErrEnded: the run returned without a failure and without being asked to.
	ErrEnded = errors.New("ended by itself")
)

// Run is the body of a service. It calls ready once it can be used, and
// returns soon after the context's end, with nothing of its own left running.
type Run func(ctx context.Context, ready func()) error

type service struct {
	name   string
	run    Run
	ctx    context.Context //nolint:containedctx // the run's life, not a call's
	cancel context.CancelFunc
	ready  chan struct{}
	done   chan struct{}

	mu      sync.Mutex
	started bool
	stopped bool
	err     error
}

// New makes a Service of a function. The name stands in errors.
func New(name string, run Run) Service {
	ctx, cancel := context.WithCancel(context.Background())
	return &service{name: name, run: run, ctx: ctx, cancel: cancel, ready: make(chan struct{}), done: make(chan struct{})}
}

func (s *service) Start(ctx context.Context) error {
	s.mu.Lock()
	switch {
	case s.stopped:
		s.mu.Unlock()
		return fmt.Errorf("lifecycle: start %s: %w", s.name, ErrStopped)
	case s.started:
		s.mu.Unlock()
		return fmt.Errorf("lifecycle: start %s: %w", s.name, ErrStarted)
	}
	s.started = true
	s.mu.Unlock()

	go s.body()
	select {
	case <-s.ready:
		return nil
	case <-s.done:
		if err := s.Err(); err != nil {
			return fmt.Errorf("lifecycle: start %s: %w", s.name, err)
		}
		return fmt.Errorf("lifecycle: start %s: %w", s.name, ErrStopped)
	case <-ctx.Done():
		s.cancel()
		return fmt.Errorf("lifecycle: start %s: %w", s.name, context.Cause(ctx))
	}
}

func (s *service) body() {
	defer close(s.done)
	defer s.cancel()
	err := s.run(s.ctx, sync.OnceFunc(func() { close(s.ready) }))
	asked := s.ctx.Err() != nil
	switch {
	case asked && (err == nil || errors.Is(err, context.Canceled)):
		return
	case err == nil:
		err = ErrEnded
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *service) Stop(ctx context.Context) error {
	s.mu.Lock()
	if !s.started && !s.stopped {
		close(s.done)
	}
	s.stopped = true
	s.mu.Unlock()
	s.cancel()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("lifecycle: stop %s: %w", s.name, context.Cause(ctx))
	}
}

func (s *service) Done() <-chan struct{} { return s.done }

func (s *service) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Group runs services together. Add before Run; a Group is run once.
type Group struct {
	members []member
	// StopTimeout bounds the stop of each service; 0 means 10 s.
	StopTimeout time.Duration
}

type member struct {
	name string
	s    Service
}

// Add appends a service: it is started after, and stopped before, those added
// earlier.
func (g *Group) Add(name string, s Service) { g.members = append(g.members, member{name, s}) }

// Run starts the services one after the other, calls started (may be nil), and
// waits for the context's end or the first service that ends. Then it stops
// what was started, in reverse order. The error is nil when the context ended
// it and every service stopped in time.
func (g *Group) Run(ctx context.Context, started func()) error {
	var failure error
	ended := make(chan member, len(g.members))
	running := 0
	for _, m := range g.members {
		running++ // a service that failed to start is stopped too
		if err := m.s.Start(ctx); err != nil {
			failure = err
			break
		}
		go func() {
			<-m.s.Done()
			ended <- m
		}()
	}
	if failure == nil {
		if started != nil {
			started()
		}
		select {
		case <-ctx.Done():
		case m := <-ended:
			// Both may have happened: an end that the context caused is no failure.
			if err := m.s.Err(); err != nil || ctx.Err() == nil {
				failure = fmt.Errorf("lifecycle: run %s: %w", m.name, cmp.Or(err, ErrEnded))
			}
		}
	} else if ctx.Err() != nil && errors.Is(failure, context.Cause(ctx)) {
		failure = nil // told to stop while starting
	}
	return errors.Join(failure, g.stop(g.members[:running]))
}

func (g *Group) stop(members []member) error {
	timeout := g.StopTimeout
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	var errs []error
	for i := len(members) - 1; i >= 0; i-- {
		// The group's own context has ended by now, so each stop gets a new one.
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		errs = append(errs, members[i].s.Stop(ctx))
		cancel()
	}
	return errors.Join(errs...)
}
