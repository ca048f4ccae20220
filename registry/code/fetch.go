package code

import (
	"context"
	"errors"
	"fmt"
)

// flight is one fetch and those who wait for it.
type flight struct {
	done    chan struct{}
	err     error // set before done is closed
	cancel  context.CancelFunc
	waiters int // guarded by Store.mu
}

// fetch waits until the module was fetched by this or another call. It goes on
// for the others when one of them gives up, and ends when all have.
func (s *Store) fetch(ctx context.Context, d string) error {
	s.mu.Lock()
	if s.closing.Err() != nil {
		s.mu.Unlock()
		return ErrClosed
	}
	f := s.flights[d]
	if f == nil {
		f = s.launch(ctx, d)
	}
	f.waiters++
	s.mu.Unlock()

	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
		s.land(d, f) // the next caller starts afresh
	}
	return context.Cause(ctx)
}

// launch starts a fetch. It keeps the values of its first caller's context,
// for the trace, but not its end. The caller holds s.mu.
func (s *Store) launch(ctx context.Context, d string) *flight {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(s.closing, cancel)
	f := &flight{done: make(chan struct{}), cancel: cancel}
	s.flights[d] = f
	s.running.Go(func() {
		defer stop()
		defer cancel()
		f.err = s.fetchNow(ctx, d)
		s.mu.Lock()
		s.land(d, f)
		s.mu.Unlock()
		close(f.done)
	})
	return f
}

func (s *Store) land(d string, f *flight) {
	if s.flights[d] == f {
		delete(s.flights, d)
	}
}

// fetchNow tries one source after the other.
func (s *Store) fetchNow(ctx context.Context, d string) error {
	// It may have arrived between the caller's look and the launch.
	if f, err := s.openVerified(d, false); err == nil {
		return f.Close()
	}
	failed := []error{ErrMissing}
	var sources []Source
	if s.options.Sources != nil {
		sources = s.options.Sources()
	}
	for _, src := range sources {
		err := s.fetchFrom(ctx, d, src)
		switch {
		case err == nil:
			s.log.Info("fetched a module", "digest", d, "source", src.Name)
			return nil
		case s.closing.Err() != nil:
			return ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		}
		s.log.Warn("could not fetch a module", "digest", d, "source", src.Name, "error", err)
		failed = append(failed, fmt.Errorf("from %s: %w", src.Name, err))
	}
	return errors.Join(failed...)
}

func (s *Store) fetchFrom(ctx context.Context, d string, src Source) (err error) {
	ctx, cancel := context.WithTimeout(ctx, s.options.FetchTimeout)
	defer cancel()
	r, err := src.Fetch(ctx, d)
	if err != nil {
		return err
	}
	_, err = s.write(d, r)
	// Bytes that match their digest are good however their stream ended.
	if closed := r.Close(); err != nil {
		return errors.Join(err, closed)
	}
	return nil
}
