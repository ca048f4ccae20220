package registry

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/state"
)

// DefaultTenant always exists, and is meant where no tenant is named.
const DefaultTenant = "default"

// Options of a Registry.
type Options struct {
	// Cell is the author of this cell's edits and acknowledgements. Required.
	Cell mesh.CellID
	// CachedVersions is how many decoded specs are kept; default 1,024.
	CachedVersions int
}

// Registry reads the documents of a cell's committed state, as far as this
// server has applied it, and makes the commands that change them. What it
// hands out is shared and must not be changed. All methods are safe for
// concurrent use.
type Registry struct {
	reader state.Reader
	cell   mesh.CellID

	mu    sync.Mutex
	specs *specCache
	// issued is the highest version given to an edit here. Two edits made
	// before either is applied must not share one.
	issued *meshv1.Version
}

// New returns a Registry that reads the Machine's committed state.
func New(reader state.Reader, o Options) *Registry {
	if o.CachedVersions <= 0 {
		o.CachedVersions = 1024
	}
	return &Registry{reader: reader, cell: o.Cell, specs: newSpecCache(o.CachedVersions)}
}

// Tenant returns a tenant; "" is DefaultTenant. The error is an
// UnknownTenantError.
func (r *Registry) Tenant(name string) (*meshv1.Tenant, error) {
	if name == "" {
		name = DefaultTenant
	}
	d, err := loadDocument(r.reader, KindTenant, name)
	if err != nil {
		return nil, fmt.Errorf("registry: read tenant %q: %w", name, err)
	}
	if d == nil || d.GetDeleted() {
		if name == DefaultTenant {
			return &meshv1.Tenant{Name: DefaultTenant}, nil
		}
		all, err := r.Tenants()
		if err != nil {
			return nil, err
		}
		names := make([]string, len(all))
		for i, t := range all {
			names[i] = t.GetName()
		}
		return nil, &UnknownTenantError{Name: name, Suggestion: nearest(name, names)}
	}
	t, err := decodeTenant(d.GetContent())
	if err != nil {
		return nil, fmt.Errorf("registry: read tenant %q: %w", name, err)
	}
	return t, nil
}

// Tenants lists every tenant by name, DefaultTenant included.
func (r *Registry) Tenants() ([]*meshv1.Tenant, error) {
	out := []*meshv1.Tenant{{Name: DefaultTenant}}
	err := r.each(KindTenant, "", func(d *meshv1.Document) error {
		t, err := decodeTenant(d.GetContent())
		if err != nil {
			return err
		}
		if t.GetName() == DefaultTenant {
			out[0] = t
			return nil
		}
		out = append(out, t)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("registry: list tenants: %w", err)
	}
	slices.SortFunc(out, func(a, b *meshv1.Tenant) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

// Function returns the version that the name stands for now; an empty tenant
// is DefaultTenant. Errors: an UnknownTenantError, an UnknownFunctionError,
// ErrUnknownVersion.
func (r *Registry) Function(tenant, name string) (*isobarv1.Function, error) {
	t, err := r.Tenant(tenant)
	if err != nil {
		return nil, err
	}
	d, err := loadDocument(r.reader, KindFunction, functionName(t.GetName(), name))
	if err != nil {
		return nil, fmt.Errorf("registry: read function %s/%s: %w", t.GetName(), name, err)
	}
	if d == nil || d.GetDeleted() {
		return nil, r.unknownFunction(t.GetName(), name)
	}
	return r.function(d)
}

func (r *Registry) unknownFunction(tenant, name string) error {
	names, err := r.functionNames(tenant)
	if err != nil {
		return err
	}
	return &UnknownFunctionError{Tenant: tenant, Name: name, Suggestion: nearest(name, names)}
}

// function decodes a function document and finds its version.
func (r *Registry) function(d *meshv1.Document) (*isobarv1.Function, error) {
	a, err := decodeAlias(d.GetContent())
	if err != nil {
		return nil, fmt.Errorf("registry: read function %s: %w", d.GetName(), err)
	}
	spec, err := r.version(a.GetDigest())
	if err != nil {
		return nil, fmt.Errorf("registry: read function %s: %w", d.GetName(), err)
	}
	return deployed(spec, a.GetDigest(), d.GetVersion()), nil
}

// deployed is the version as the function document of version at names it.
func deployed(spec *isobarv1.FunctionSpec, digest string, at *meshv1.Version) *isobarv1.Function {
	return &isobarv1.Function{
		Spec:     spec,
		Version:  digest,
		Deployed: timestamppb.New(time.UnixMilli(at.GetWallMs())),
		EditedBy: fmt.Sprintf("%s@%d.%d", at.GetAuthor(), at.GetWallMs(), at.GetLogical()),
	}
}

// Functions lists a tenant's functions by name. One whose version has not come
// yet is left out. The error is an UnknownTenantError.
func (r *Registry) Functions(tenant string) ([]*isobarv1.Function, error) {
	t, err := r.Tenant(tenant)
	if err != nil {
		return nil, err
	}
	var out []*isobarv1.Function
	err = r.each(KindFunction, functionName(t.GetName(), ""), func(d *meshv1.Document) error {
		f, err := r.function(d)
		if errors.Is(err, ErrUnknownVersion) {
			return nil
		}
		if err != nil {
			return err
		}
		out = append(out, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("registry: list functions of %s: %w", t.GetName(), err)
	}
	return out, nil
}

func (r *Registry) functionNames(tenant string) ([]string, error) {
	var out []string
	front := functionName(tenant, "")
	err := r.each(KindFunction, front, func(d *meshv1.Document) error {
		out = append(out, d.GetName()[len(front):])
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("registry: list functions of %s: %w", tenant, err)
	}
	return out, nil
}

// Version returns the spec with that digest. The error is ErrUnknownVersion.
func (r *Registry) Version(digest string) (*isobarv1.FunctionSpec, error) {
	spec, err := r.version(digest)
	if err != nil {
		return nil, fmt.Errorf("registry: read %w", err)
	}
	return spec, nil
}

func (r *Registry) version(digest string) (*isobarv1.FunctionSpec, error) {
	r.mu.Lock()
	spec := r.specs.get(digest)
	r.mu.Unlock()
	if spec != nil {
		return spec, nil
	}
	d, err := loadDocument(r.reader, KindVersion, digest)
	if err != nil {
		return nil, fmt.Errorf("version %s: %w", digest, err)
	}
	if d == nil || d.GetDeleted() {
		return nil, fmt.Errorf("version %.80q: %w", digest, ErrUnknownVersion)
	}
	var f isobarv1.Function
	if err := proto.Unmarshal(d.GetContent(), &f); err != nil {
		return nil, fmt.Errorf("version %s: %w", digest, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.specs.put(digest, f.GetSpec())
	return f.GetSpec(), nil
}

// Modules lists, sorted, the digests of the modules that this cell must have:
// those of the versions that a function's name stands for now. Versions that
// have not come yet are left out.
func (r *Registry) Modules() ([]string, error) { return r.modules(nil) }

// Pinned is Modules together with those of the given versions, by digest: what a
// cell must keep, for tasks are pinned to the version they were accepted with.
func (r *Registry) Pinned(versions map[string]struct{}) ([]string, error) { return r.modules(versions) }

func (r *Registry) modules(versions map[string]struct{}) ([]string, error) {
	wanted := maps.Clone(versions)
	if wanted == nil {
		wanted = map[string]struct{}{}
	}
	err := r.each(KindFunction, "", func(d *meshv1.Document) error {
		a, err := decodeAlias(d.GetContent())
		if err == nil {
			wanted[a.GetDigest()] = struct{}{}
		}
		return err
	})
	set := map[string]struct{}{}
	for version := range wanted {
		if err != nil {
			break
		}
		var spec *isobarv1.FunctionSpec
		if spec, err = r.version(version); errors.Is(err, ErrUnknownVersion) {
			err = nil
		}
		for _, v := range spec.GetVariants() {
			if v.GetModule() != "" {
				set[v.GetModule()] = struct{}{}
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("registry: list modules: %w", err)
	}
	return slices.Sorted(maps.Keys(set)), nil
}

// each calls fn with the kind's live documents whose names begin with front,
// by name.
func (r *Registry) each(kind, front string, fn func(*meshv1.Document) error) error {
	return r.all(documentKey(kind, front), func(d *meshv1.Document) error {
		if d.GetDeleted() {
			return nil
		}
		return fn(d)
	})
}

// all calls fn with the documents whose keys begin with front, by key.
func (r *Registry) all(front []byte, fn func(*meshv1.Document) error) error {
	end := slices.Clone(front)
	end[len(end)-1]++ // no front ends in 0xff: kinds and names are UTF-8
	for k, v := range r.reader.Scan(front, end) {
		d, err := decodeDocument(v)
		if err != nil {
			return fmt.Errorf("document %q: %w", k[1:], err)
		}
		if err := fn(d); err != nil {
			return err
		}
	}
	return nil
}

func functionName(tenant, name string) string { return tenant + "/" + name }
