// Package lifecycletest hammers a lifecycle.Service: every service of the
// project can be held to the contract with one call.
package lifecycletest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/lifecycle"
)

// patience is how long a service may take to start or stop before the test
// calls it stuck.
const patience = 10 * time.Second

// Stress checks the contract of Service on fresh services made by the factory,
// each able to start. Run it with the race detector.
func Stress(t *testing.T, factory func(t *testing.T) lifecycle.Service) {
	t.Helper()
	t.Run("stop before start", func(t *testing.T) {
		s := factory(t)
		stop(t, s)
		if err := s.Start(t.Context()); !errors.Is(err, lifecycle.ErrStopped) {
			t.Errorf("start after stop: %v, want ErrStopped", err)
		}
		mustBeDone(t, s)
	})
	t.Run("start, stop, stop", func(t *testing.T) {
		s := factory(t)
		start(t, s)
		if err := s.Err(); err != nil {
			t.Errorf("running, but Err is %v", err)
		}
		stop(t, s)
		mustBeDone(t, s)
		stop(t, s)
		if err := s.Err(); err != nil {
			t.Errorf("stopped when asked, but Err is %v", err)
		}
	})
	t.Run("start twice", func(t *testing.T) {
		s := factory(t)
		start(t, s)
		if err := s.Start(t.Context()); !errors.Is(err, lifecycle.ErrStarted) {
			t.Errorf("second start: %v, want ErrStarted", err)
		}
		stop(t, s)
		if err := s.Start(t.Context()); err == nil {
			t.Error("started after stop")
		}
	})
	t.Run("start and stop at once", func(t *testing.T) {
		for range 50 {
			s := factory(t)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() { _ = s.Start(t.Context()) }) // may lose against Stop
				wg.Go(func() { stop(t, s) })
			}
			wg.Wait()
			mustBeDone(t, s)
		}
	})
	t.Run("start with an ended context", func(t *testing.T) {
		s := factory(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = s.Start(ctx) // may win the race, must not hang
		stop(t, s)
		mustBeDone(t, s)
	})
}

func start(t *testing.T, s lifecycle.Service) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Fatalf("start: %v", err)
	}
}

func stop(t *testing.T, s lifecycle.Service) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func mustBeDone(t *testing.T, s lifecycle.Service) {
	t.Helper()
	select {
	case <-s.Done():
	default:
		t.Error("Stop returned, but Done is open")
	}
}
