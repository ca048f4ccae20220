package registry

import (
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Deploy makes the command that stores the spec as a version and moves its
// name there. Defaults are filled in first; the function that will be is
// returned with them. The command is nil when the name stands for that very
// spec already. The server must lead its cell, and commit the command as one
// group; now is the leader's wall clock. Errors: an InvalidError, an
// UnknownTenantError, ErrClockBehind.
func (r *Registry) Deploy(spec *isobarv1.FunctionSpec, now time.Time) (command []byte, f *isobarv1.Function, err error) {
	spec = WithDefaults(spec)
	if err := Validate(spec); err != nil {
		return nil, nil, err
	}
	if _, err := r.Tenant(spec.GetTenant()); err != nil {
		return nil, nil, err
	}
	fail := func(err error) ([]byte, *isobarv1.Function, error) {
		return nil, nil, fmt.Errorf("registry: deploy %s/%s: %w", spec.GetTenant(), spec.GetName(), err)
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		return fail(err)
	}
	content, version := versionContent(encoded)
	if old, err := r.Function(spec.GetTenant(), spec.GetName()); err == nil && old.GetVersion() == version {
		return nil, old, nil
	}
	alias, err := proto.Marshal(&meshv1.Alias{Digest: version})
	if err != nil {
		return fail(err)
	}
	at, err := r.next(now)
	if err != nil {
		return fail(err)
	}
	function := &meshv1.Document{
		Kind: KindFunction, Name: functionName(spec.GetTenant(), spec.GetName()), Version: at, Content: alias,
	}
	docs := []*meshv1.Document{function}
	old, err := loadDocument(r.reader, KindVersion, version)
	if err != nil {
		return fail(err)
	}
	if old == nil || old.GetDeleted() {
		docs = []*meshv1.Document{{Kind: KindVersion, Name: version, Version: at, Content: content}, function}
	}
	if command, err = mergeCommand(docs, now); err != nil {
		return fail(err)
	}
	return command, deployed(spec, version, at), nil
}

// Delete makes the command that takes a function's name away. Its versions
// stay for the tasks that are pinned to them. Errors as Function, and
// ErrClockBehind.
func (r *Registry) Delete(tenant, name string, now time.Time) (command []byte, err error) {
	t, err := r.Tenant(tenant)
	if err != nil {
		return nil, err
	}
	full := functionName(t.GetName(), name)
	d, err := loadDocument(r.reader, KindFunction, full)
	if err != nil {
		return nil, fmt.Errorf("registry: delete %s: %w", full, err)
	}
	if d == nil || d.GetDeleted() {
		return nil, r.unknownFunction(t.GetName(), name)
	}
	at, err := r.next(now)
	if err != nil {
		return nil, fmt.Errorf("registry: delete %s: %w", full, err)
	}
	return mergeCommand([]*meshv1.Document{{
		Kind: KindFunction, Name: full, Version: at, Deleted: true, Acknowledged: []string{string(r.cell)},
	}}, now)
}

// SetTenant makes the command that creates or replaces a tenant. Errors: an
// InvalidError, ErrClockBehind.
func (r *Registry) SetTenant(t *meshv1.Tenant, now time.Time) (command []byte, err error) {
	t = proto.CloneOf(t)
	t.Allowed, t.Denied = jurisdictions(t.GetAllowed()), jurisdictions(t.GetDenied())
	if err := validateTenant(t); err != nil {
		return nil, err
	}
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("registry: set tenant %s: %w", t.GetName(), err)
	}
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(t)
	if err != nil {
		return fail(err)
	}
	at, err := r.next(now)
	if err != nil {
		return fail(err)
	}
	return mergeCommand([]*meshv1.Document{{Kind: KindTenant, Name: t.GetName(), Version: at, Content: content}}, now)
}

// next is a version for an edit: above every version merged here, so above
// all that the author can have seen, and above every other edit made here.
func (r *Registry) next(now time.Time) (*meshv1.Version, error) {
	s, err := loadSummary(r.reader)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	last := s.clock
	if CompareVersions(r.issued, last) > 0 {
		last = r.issued
	}
	v := &meshv1.Version{WallMs: now.UnixMilli(), Author: string(r.cell)}
	switch {
	case v.GetWallMs() > last.GetWallMs():
	case last.GetLogical() < math.MaxUint32:
		v.WallMs, v.Logical = last.GetWallMs(), last.GetLogical()+1
	default:
		v.WallMs = last.GetWallMs() + 1
	}
	if ahead := v.GetWallMs() - now.UnixMilli(); ahead > MaxAhead.Milliseconds() {
		return nil, fmt.Errorf("by %s: %w", time.Duration(ahead)*time.Millisecond, ErrClockBehind)
	}
	r.issued = v
	return v, nil
}

func mergeCommand(docs []*meshv1.Document, now time.Time) ([]byte, error) {
	b, err := proto.Marshal(&meshv1.RegistryCommand{Command: &meshv1.RegistryCommand_Merge{
		Merge: &meshv1.Merge{Documents: docs, NowMs: now.UnixMilli()},
	}})
	if err != nil {
		return nil, fmt.Errorf("registry: encode merge: %w", err)
	}
	return b, nil
}

// validateTenant wants jurisdictions as they are written back.
func validateTenant(t *meshv1.Tenant) error {
	var e fieldErrors
	e.name("name", t.GetName())
	e.jurisdictions("allowed", t.GetAllowed())
	e.jurisdictions("denied", t.GetDenied())
	for _, j := range t.GetAllowed() {
		if slices.Contains(t.GetDenied(), j) {
			e.add("denied", "%q is allowed and denied", j)
		}
	}
	e.number("weight", t.GetWeight(), 0, MaxWeight, "0 to 1,000; 0 counts as 1")
	e.concurrency("concurrency.", t.GetConcurrency())
	return e.err()
}
