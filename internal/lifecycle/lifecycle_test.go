package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/isobar-mesh/isobar/internal/lifecycle"
	"github.com/isobar-mesh/isobar/internal/lifecycle/lifecycletest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewKeepsTheContract(t *testing.T) {
	lifecycletest.Stress(t, func(*testing.T) lifecycle.Service {
		return lifecycle.New("x", func(ctx context.Context, ready func()) error {
			ready()
			ready() // a second call is harmless
			<-ctx.Done()
			return ctx.Err()
		})
	})
}

var errBroken = errors.New("broken")

func TestStartFails(t *testing.T) {
	s := lifecycle.New("x", func(context.Context, func()) error { return errBroken })
	if err := s.Start(t.Context()); !errors.Is(err, errBroken) {
		t.Error(err)
	}
	if err := s.Err(); !errors.Is(err, errBroken) {
		t.Error(err)
	}
}

func TestStartStopsWaitingWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := lifecycle.New("x", func(ctx context.Context, _ func()) error { <-ctx.Done(); return nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		<-s.Done()
	})
}

func TestStopGivesUpOnAStuckService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := lifecycle.New("x", func(_ context.Context, ready func()) error { ready(); <-release; return nil })
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		close(release)
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// recorder notes the order in which its services start and stop.
type recorder struct{ events []string }

func (r *recorder) service(name string, fail error) lifecycle.Service {
	return lifecycle.New(name, func(ctx context.Context, ready func()) error {
		r.events = append(r.events, "start "+name)
		if fail != nil {
			return fail
		}
		ready()
		<-ctx.Done()
		r.events = append(r.events, "stop "+name)
		return nil
	})
}

func TestGroupStopsInReverse(t *testing.T) {
	var r recorder
	var g lifecycle.Group
	for _, name := range []string{"a", "b", "c"} {
		g.Add(name, r.service(name, nil))
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := g.Run(ctx, cancel); err != nil {
		t.Error(err)
	}
	want := []string{"start a", "start b", "start c", "stop c", "stop b", "stop a"}
	if !slices.Equal(r.events, want) {
		t.Errorf("got %v, want %v", r.events, want)
	}
}

func TestGroupStopsWhatStartedWhenOneCannot(t *testing.T) {
	var r recorder
	var g lifecycle.Group
	g.Add("a", r.service("a", nil))
	g.Add("b", r.service("b", errBroken))
	g.Add("c", r.service("c", nil))
	if err := g.Run(t.Context(), func() { t.Error("started") }); !errors.Is(err, errBroken) {
		t.Error(err)
	}
	if want := []string{"start a", "start b", "stop a"}; !slices.Equal(r.events, want) {
		t.Errorf("got %v, want %v", r.events, want)
	}
}

func TestGroupEndsWithTheFirstFailure(t *testing.T) {
	for _, fail := range []error{errBroken, nil} {
		var r recorder
		var g lifecycle.Group
		release := make(chan struct{})
		g.Add("a", r.service("a", nil))
		g.Add("b", lifecycle.New("b", func(_ context.Context, ready func()) error {
			ready()
			<-release
			return fail
		}))
		err := g.Run(t.Context(), func() { close(release) })
		if want := fail; (want == nil && !errors.Is(err, lifecycle.ErrEnded)) || (want != nil && !errors.Is(err, want)) {
			t.Errorf("got %v, want %v", err, fail)
		}
		if want := []string{"start a", "stop a"}; !slices.Equal(r.events, want) {
			t.Errorf("got %v, want %v", r.events, want)
		}
	}
}

func TestGroupToldToStopWhileStarting(t *testing.T) {
	var g lifecycle.Group
	ctx, cancel := context.WithCancel(t.Context())
	g.Add("a", lifecycle.New("a", func(ctx context.Context, _ func()) error {
		cancel()
		<-ctx.Done()
		return nil
	}))
	if err := g.Run(ctx, nil); err != nil {
		t.Error(err)
	}
}
