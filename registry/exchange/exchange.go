// Package exchange brings the registries of all cells to the same set of
// documents: a change is pushed to every cell, and what was missed (a cell was
// away, a push was lost) is found by comparing hashes and pulled. Merging is a
// join, so order, loss and repetition do no harm.
//
// It also fetches the modules that arrived documents name, so that a function
// can run in a cell soon after its document did. Any server exchanges when
// asked; only a leader starts an exchange and commits what it learnt.
package exchange

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/registry"
)

// Modules are the modules this server holds.
type Modules interface {
	Has(digest string) bool
	// Ensure fetches the module if it is missing.
	Ensure(ctx context.Context, digest string) error
}

// Options of an Exchange.
type Options struct {
	Cell     mesh.CellID
	Registry *registry.Registry
	Modules  Modules
	// Commit commits commands of the registry's machine, a group each.
	Commit func(ctx context.Context, command []byte) error
	// Leading reports whether this server leads its cell.
	Leading func() bool
	// Sync asks another cell.
	Sync func(ctx context.Context, to mesh.CellID, r *meshv1.SyncRequest) (*meshv1.SyncResponse, error)
	// Cells lists the other cells with the hash their digest shows; 0 for one
	// not heard of.
	Cells func() map[mesh.CellID]uint64
	// Members lists all cells of the mesh, reachable or not, this one included:
	// a tombstone is kept until each has acknowledged it.
	Members func() []mesh.CellID
	// Every is how often hashes are compared. Default 1 s.
	Every  time.Duration
	Logger *slog.Logger
}

// Exchange is one server's part. It is safe for concurrent use.
type Exchange struct {
	Options
	mu    sync.Mutex
	ready map[mesh.CellID][]string // modules each cell said it lacks
	wake  chan struct{}
}

// New makes an exchange; Run drives it.
func New(o Options) *Exchange {
	if o.Every == 0 {
		o.Every = time.Second
	}
	return &Exchange{Options: o, ready: map[mesh.CellID][]string{}, wake: make(chan struct{}, 1)}
}

// Changed says that documents changed here: they are pushed at once, and their
// modules fetched.
func (e *Exchange) Changed() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Run exchanges until ctx ends.
func (e *Exchange) Run(ctx context.Context) error {
	ticker := time.NewTicker(e.Every)
	defer ticker.Stop()
	hourly := time.NewTicker(forgetAfter)
	defer hourly.Stop()
	// Modules come beside: one that nobody has, or that comes from far, must not
	// hold up the documents.
	due := make(chan struct{}, 1)
	var fetching sync.WaitGroup
	defer fetching.Wait()
	fetching.Go(func() { e.fetchLoop(ctx, due) })
	for {
		push := false
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
			push = true
		case <-ticker.C:
		case now := <-hourly.C:
			if e.Leading() {
				e.forget(ctx, now)
			}
		}
		select {
		case due <- struct{}{}:
		default:
		}
		if e.Leading() {
			e.round(ctx, push)
		}
	}
}

func (e *Exchange) fetchLoop(ctx context.Context, due <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-due:
			e.fetch(ctx)
		}
	}
}

// fetch brings the modules of every version here.
func (e *Exchange) fetch(ctx context.Context) {
	for _, digest := range e.Missing() {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		if err := e.Modules.Ensure(call, digest); err != nil && ctx.Err() == nil {
			e.Logger.Debug("module not fetched yet", "digest", digest, "error", err)
		}
		cancel()
	}
}

// Missing lists modules that documents name and this server lacks.
func (e *Exchange) Missing() []string {
	digests, err := e.Registry.Modules()
	if err != nil {
		e.Logger.Error("registry can't be read", "error", err)
		return nil
	}
	return slices.DeleteFunc(digests, e.Modules.Has)
}

// round exchanges with every cell whose hash differs, side by side.
func (e *Exchange) round(ctx context.Context, push bool) {
	own, err := e.Registry.Hash()
	if err != nil {
		e.Logger.Error("registry can't be read", "error", err)
		return
	}
	var wait sync.WaitGroup
	for cell, hash := range e.Cells() {
		if !push && hash == own {
			continue
		}
		wait.Go(func() {
			call, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			if err := e.With(call, cell); err != nil && ctx.Err() == nil {
				e.Logger.Debug("registry not exchanged", "cell", cell, "error", err)
			}
		})
	}
	wait.Wait()
}

// With exchanges with one cell, until both hold the same set.
func (e *Exchange) With(ctx context.Context, cell mesh.CellID) error {
	own, err := e.Registry.Hash()
	if err != nil {
		return err
	}
	docs, err := e.Registry.Documents()
	if err != nil {
		return err
	}
	res, err := e.Sync(ctx, cell, &meshv1.SyncRequest{Cell: string(e.Cell), Hash: own, Documents: docs, Pull: true})
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.ready[cell] = res.MissingCode
	if res.Hash != own && len(res.Documents) == 0 {
		e.ready[cell] = append(e.ready[cell], "documents")
	}
	e.mu.Unlock()
	return e.merge(ctx, res.Documents)
}

// Readiness tells what a cell still lacked when it was asked last; nil for
// nothing, ok is false when it was never asked.
func (e *Exchange) Readiness(cell mesh.CellID) (lacks []string, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	lacks, ok = e.ready[cell]
	return lacks, ok
}

func (e *Exchange) merge(ctx context.Context, docs []*meshv1.Document) error {
	if len(docs) == 0 {
		return nil
	}
	commands, err := e.Registry.MergeCommands(docs, e.Members(), time.Now())
	if err != nil {
		return err
	}
	for _, c := range commands {
		if err := e.Commit(ctx, c); err != nil {
			return fmt.Errorf("exchange: merge documents: %w", err)
		}
	}
	return nil
}

// forgetAfter is how old a tombstone is before it may be dropped: far longer
// than any message that could bring its document back stays under way.
const forgetAfter = time.Hour

// forget drops tombstones that every cell has acknowledged.
func (e *Exchange) forget(ctx context.Context, now time.Time) {
	commands, err := e.Registry.ForgetCommands(e.Members(), now.Add(-forgetAfter))
	for _, c := range commands {
		if err == nil {
			err = e.Commit(ctx, c)
		}
	}
	if err != nil && ctx.Err() == nil {
		e.Logger.Warn("tombstones not dropped", "error", err)
	}
}

// Answer takes what another cell pushed and gives it what it lacks.
func (e *Exchange) Answer(ctx context.Context, from mesh.CellID, r *meshv1.SyncRequest) (*meshv1.SyncResponse, error) {
	if err := e.merge(ctx, r.Documents); err != nil {
		return nil, err
	}
	// What arrived may name modules: fetch them before we say what is missing,
	// for the asker waits to hear that the function can run here.
	e.fetch(ctx)
	out := &meshv1.SyncResponse{MissingCode: e.Missing()}
	var err error
	if out.Hash, err = e.Registry.Hash(); err != nil {
		return nil, err
	}
	if r.Pull && out.Hash != r.Hash {
		if out.Documents, err = e.Registry.Lacking(r.Documents); err != nil {
			return nil, err
		}
	}
	e.Logger.Debug("registry exchanged", "cell", from, "got", len(r.Documents), "gave", len(out.Documents))
	return out, nil
}
