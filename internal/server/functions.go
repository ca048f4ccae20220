package server

import (
	"errors"
	"sync"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry"
)

// functionsOf is the registry as the scheduler asks it: for each task several
// times, always for the same few. What it answered is kept until a document
// changes, and shared: nobody may change it.
type functionsOf struct {
	registry *registry.Registry

	mu    sync.RWMutex
	edits uint64 // how often it was forgotten
	known map[answerKey]any
}

// answerKey names an answer: a function by its name, a version by its digest in
// name, a tenant by its own.
type answerKey struct {
	kind         kind
	tenant, name string
}

type kind uint8

const (
	byName kind = iota
	byDigest
	tenantOf
)

// maxAnswers bounds what is kept; past it all is forgotten.
const maxAnswers = 10_000

func newFunctionsOf(r *registry.Registry) *functionsOf {
	return &functionsOf{registry: r, known: map[answerKey]any{}}
}

// forget is called once documents have changed in the state.
func (f *functionsOf) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.edits++
	clear(f.known)
}

// answer returns what is kept under the key, or reads and keeps it. A read that
// a change overtook is not kept. Errors are not kept: what is missing arrives.
func answer[T any](f *functionsOf, key answerKey, read func() (T, error)) (T, error) {
	f.mu.RLock()
	known, ok := f.known[key]
	edits := f.edits
	f.mu.RUnlock()
	if ok {
		return known.(T), nil
	}
	got, err := read()
	if err != nil {
		return got, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.edits == edits {
		if len(f.known) >= maxAnswers {
			clear(f.known)
		}
		f.known[key] = got
	}
	return got, nil
}

func (f *functionsOf) Function(tenant, name string) (*isobarv1.Function, error) {
	return answer(f, answerKey{byName, tenant, name}, func() (*isobarv1.Function, error) {
		return f.registry.Function(tenant, name)
	})
}

// Gone is false for a function whose version has not come yet.
func (f *functionsOf) Gone(tenant, name string) bool {
	_, err := f.Function(tenant, name)
	return errors.Is(err, registry.ErrUnknownFunction)
}

func (f *functionsOf) Version(digest string) (*isobarv1.Function, error) {
	return answer(f, answerKey{kind: byDigest, name: digest}, func() (*isobarv1.Function, error) {
		spec, err := f.registry.Version(digest)
		if err != nil {
			return nil, err
		}
		return &isobarv1.Function{Spec: spec, Version: digest}, nil
	})
}

func (f *functionsOf) Tenant(name string) (*meshv1.Tenant, error) {
	return answer(f, answerKey{kind: tenantOf, tenant: name}, func() (*meshv1.Tenant, error) {
		return f.registry.Tenant(name)
	})
}

// Hash is 0 when the registry can't be read: the exchange then compares.
func (f *functionsOf) Hash() uint64 {
	h, err := f.registry.Hash()
	if err != nil {
		return 0
	}
	return h
}
