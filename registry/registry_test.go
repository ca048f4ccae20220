package registry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry/digest"
)

// cell is one cell's registry and the state behind it.
type cell struct {
	*Registry
	*replica
}

func newCell(t fataler, id mesh.CellID) *cell {
	r := newReplica(t)
	return &cell{Registry: New(r.committed(), Options{Cell: id}), replica: r}
}

func (c *cell) hash() uint64 {
	c.t.Helper()
	h, err := c.Registry.Hash()
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	return h
}

func execSpec(name string, command ...string) *isobarv1.FunctionSpec {
	return &isobarv1.FunctionSpec{Name: name, Variants: []*isobarv1.Variant{{Name: "v", Runtime: RuntimeExec, Command: command}}}
}

func (c *cell) deploy(now time.Time, spec *isobarv1.FunctionSpec) *isobarv1.Function {
	c.t.Helper()
	command, f, err := c.Deploy(spec, now)
	if err != nil {
		c.t.Fatalf("Deploy: %v", err)
	}
	if command != nil {
		if res := c.do(command)[0].(Merged); len(res.Refused) > 0 {
			c.t.Fatalf("Deploy is refused: %v", res.Refused)
		}
	}
	return f
}

// pull makes c learn everything that from has.
func (c *cell) pull(from *cell, members []mesh.CellID, now time.Time) {
	c.t.Helper()
	docs, err := from.Documents()
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	commands, err := c.MergeCommands(docs, members, now)
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	for _, res := range c.do(commands...) {
		if r := res.(Merged).Refused; len(r) > 0 {
			c.t.Fatalf("refused %v", r)
		}
	}
}

var start = time.UnixMilli(noon)

func TestDeployAndFind(t *testing.T) {
	t.Parallel()
	c := newCell(t, "eu-north-1")
	spec := execSpec("upper", "tr", "a-z", "A-Z")
	if _, err := c.Function("", "upper"); !errors.Is(err, ErrUnknownFunction) {
		t.Errorf("before Deploy: error %v, want ErrUnknownFunction", err)
	}
	command, f, err := c.Deploy(spec, start)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Function("", "upper"); !errors.Is(err, ErrUnknownFunction) {
		t.Errorf("before commit: error %v, want ErrUnknownFunction", err)
	}
	if _, err := c.Version(f.GetVersion()); !errors.Is(err, ErrUnknownVersion) {
		t.Errorf("before commit: error %v, want ErrUnknownVersion", err)
	}
	c.do(command)
	got, err := c.Function("default", "upper")
	if err != nil || !proto.Equal(got, f) {
		t.Errorf("Function is %v, error %v, want %v", got, err, f)
	}
	if !proto.Equal(got.GetSpec(), WithDefaults(spec)) || !digest.Valid(got.GetVersion()) ||
		!got.GetDeployed().AsTime().Equal(start) || !strings.HasPrefix(got.GetEditedBy(), "eu-north-1@") {
		t.Errorf("Function is %v", got)
	}
	if v, err := c.Version(f.GetVersion()); err != nil || !proto.Equal(v, f.GetSpec()) {
		t.Errorf("Version is %v, error %v", v, err)
	}

	// The same again changes nothing; another moves the name and keeps both.
	if command, again, err := c.Deploy(spec, start.Add(time.Hour)); command != nil || err != nil || !proto.Equal(again, f) {
		t.Errorf("the same again: command %x, function %v, error %v", command, again, err)
	}
	second := c.deploy(start.Add(time.Hour), execSpec("upper", "cat"))
	if now, err := c.Function("", "upper"); err != nil || now.GetVersion() != second.GetVersion() || second.GetVersion() == f.GetVersion() {
		t.Errorf("after another Deploy: %v, error %v", now, err)
	}
	if _, err := c.Version(f.GetVersion()); err != nil {
		t.Errorf("the first version is gone: %v", err)
	}

	// Back to the first, whose version is there already.
	if back := c.deploy(start.Add(2*time.Hour), spec); back.GetVersion() != f.GetVersion() {
		t.Errorf("the same spec has version %s, then %s", f.GetVersion(), back.GetVersion())
	}
	if n := len(c.documents()); n != 3 {
		t.Errorf("%d documents, want two versions and a function", n)
	}
}

// A Deploy whose commit is lost leaves nothing behind that a second relies on.
func TestDeployAfterLostCommit(t *testing.T) {
	t.Parallel()
	c := newCell(t, "eu")
	if _, _, err := c.Deploy(execSpec("f", "cat"), start); err != nil {
		t.Fatal(err)
	}
	c.deploy(start, execSpec("f", "cat"))
	if _, err := c.Function("", "f"); err != nil {
		t.Error(err)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	c := newCell(t, "eu")
	if _, err := c.Delete("", "f", start); !errors.Is(err, ErrUnknownFunction) {
		t.Errorf("error %v, want ErrUnknownFunction", err)
	}
	f := c.deploy(start, execSpec("f", "cat"))
	command, err := c.Delete("", "f", start)
	if err != nil {
		t.Fatal(err)
	}
	c.do(command)
	if _, err := c.Function("", "f"); !errors.Is(err, ErrUnknownFunction) {
		t.Errorf("after Delete: error %v, want ErrUnknownFunction", err)
	}
	if _, err := c.Delete("", "f", start); !errors.Is(err, ErrUnknownFunction) {
		t.Errorf("second Delete: error %v, want ErrUnknownFunction", err)
	}
	if _, err := c.Version(f.GetVersion()); err != nil {
		t.Errorf("the version went with the name: %v", err)
	}
	c.deploy(start, execSpec("f", "cat"))
	if _, err := c.Function("", "f"); err != nil {
		t.Errorf("deployed again: %v", err)
	}
}

func TestTenants(t *testing.T) {
	t.Parallel()
	c := newCell(t, "eu")
	if tenant, err := c.Tenant(""); err != nil || tenant.GetName() != "default" {
		t.Errorf("Tenant(\"\") is %v, error %v", tenant, err)
	}
	spec := execSpec("f", "cat")
	spec.Tenant = "acme"
	if _, _, err := c.Deploy(spec, start); !errors.Is(err, ErrUnknownTenant) {
		t.Errorf("Deploy for no tenant has error %v, want ErrUnknownTenant", err)
	}
	for _, tenant := range []*meshv1.Tenant{{Name: "acme", Allowed: []string{"SE", "eu", "se"}}, {Name: "default", Denied: []string{"us"}}} {
		command, err := c.SetTenant(tenant, start)
		if err != nil {
			t.Fatal(err)
		}
		c.do(command)
	}
	if tenant, err := c.Tenant("acme"); err != nil || fmt.Sprint(tenant.GetAllowed()) != "[eu se]" {
		t.Errorf("Tenant(acme) is %v, error %v", tenant, err)
	}
	if tenant, err := c.Tenant("default"); err != nil || fmt.Sprint(tenant.GetDenied()) != "[us]" {
		t.Errorf("Tenant(default) is %v, error %v", tenant, err)
	}
	if all, err := c.Tenants(); err != nil || len(all) != 2 || all[0].GetName() != "acme" || all[1].GetName() != "default" {
		t.Errorf("Tenants are %v, error %v", all, err)
	}
	c.deploy(start, spec)
	c.deploy(start, execSpec("g", "cat"))
	for tenant, want := range map[string]string{"acme": "f", "default": "g"} {
		if fs, err := c.Functions(tenant); err != nil || len(fs) != 1 || fs[0].GetSpec().GetName() != want {
			t.Errorf("Functions(%s) are %v, error %v, want %s", tenant, fs, err, want)
		}
	}
	var unknown *UnknownTenantError
	if _, err := c.Functions("acne"); !errors.As(err, &unknown) || unknown.Suggestion != "acme" {
		t.Errorf("Functions(acne) has error %v, want a suggestion", err)
	}
	for _, bad := range []*meshv1.Tenant{{}, {Name: "A"}, {Name: "a/b"}, {Name: "a", Allowed: []string{"e u"}}, {Name: "a", Allowed: []string{"eu"}, Denied: []string{"EU"}}} {
		if _, err := c.SetTenant(bad, start); !errors.Is(err, ErrInvalid) {
			t.Errorf("SetTenant(%v) has error %v, want ErrInvalid", bad, err)
		}
	}
}

func TestSuggestion(t *testing.T) {
	t.Parallel()
	c := newCell(t, "eu")
	for _, name := range []string{"thumbnail", "translate", "up"} {
		c.deploy(start, execSpec(name, "cat"))
	}
	for name, want := range map[string]string{
		"thumbnal": "thumbnail", "thubmnail": "thumbnail", "translat": "translate", "transalte": "translate",
		"": "", "weather": "", "u": "up", "upp": "up", "xy": "", strings.Repeat("x", 10_000): "",
	} {
		var unknown *UnknownFunctionError
		_, err := c.Function("", name)
		if !errors.As(err, &unknown) || unknown.Suggestion != want || unknown.Tenant != "default" {
			t.Errorf("%.20q: error %.200v, want suggestion %q", name, err, want)
		}
	}
}

// Edits made before any is applied have versions of their own, and every edit
// exceeds all its author saw, whatever the clock says.
func TestEditsExceed(t *testing.T) {
	t.Parallel()
	c := newCell(t, "eu")
	var commands [][]byte
	for i := range 5 {
		command, _, err := c.Deploy(execSpec("f", fmt.Sprint(i)), start.Add(-time.Duration(i)*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		commands = append(commands, command)
	}
	for _, command := range slices.Backward(commands) {
		c.do(command)
	}
	if f, err := c.Function("", "f"); err != nil || f.GetSpec().GetVariants()[0].GetCommand()[0] != "4" {
		t.Errorf("the last edit lost: %v, error %v", f, err)
	}

	// Another cell's clock is ahead; what this one edits after still wins.
	c.merge(noon, functionDoc(t, "f", "theirs", at(noon+50_000, 7, "us")))
	ours := c.deploy(start, execSpec("f", "ours"))
	if f, err := c.Function("", "f"); err != nil || f.GetVersion() != ours.GetVersion() {
		t.Errorf("an edit lost against what its author saw: %v, error %v", f, err)
	}
	if !strings.Contains(ours.GetEditedBy(), fmt.Sprintf("@%d.8", noon+50_000)) {
		t.Errorf("edited by %s, want a count above 7", ours.GetEditedBy())
	}

	// The count ends: the time goes on.
	c.merge(noon, functionDoc(t, "g", "theirs", at(noon+55_000, 1<<32-1, "us")))
	if f := c.deploy(start, execSpec("f", "later")); !strings.Contains(f.GetEditedBy(), fmt.Sprintf("@%d.0", noon+55_001)) {
		t.Errorf("edited by %s, want the next millisecond", f.GetEditedBy())
	}
	// A clock far behind must not edit: others would refuse it.
	if _, _, err := c.Deploy(execSpec("f", "x"), start.Add(-time.Minute)); !errors.Is(err, ErrClockBehind) {
		t.Errorf("error %v, want ErrClockBehind", err)
	}
}

func TestModules(t *testing.T) {
	t.Parallel()
	c := newCell(t, "eu")
	modules, versions := make([]string, 3), make([]string, 3)
	for i := range 3 {
		modules[i] = digest.Of(fmt.Append(nil, i))
		spec := &isobarv1.FunctionSpec{Name: "f", Variants: []*isobarv1.Variant{{Name: fmt.Sprint("v", i), Runtime: RuntimeWasm, Module: modules[i]}}}
		versions[i] = c.deploy(start.Add(time.Duration(i)*time.Second), spec).GetVersion()
	}
	got, err := c.Modules()
	if err != nil || !slices.Equal(got, modules[2:]) {
		t.Errorf("modules are %v, error %v, want that of the newest version, %v", got, err, modules[2:])
	}
	got, err = c.Pinned(map[string]struct{}{versions[0]: {}, "sha256:not here": {}})
	want := []string{modules[0], modules[2]}
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("with a pin they are %v, error %v, want %v", got, err, want)
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := newCell(t, "eu")
	c.Registry = New(c.committed(), Options{Cell: "eu", CachedVersions: 3})
	for i := range 10 {
		f := c.deploy(start, execSpec(fmt.Sprint("f", i), "cat"))
		first, err := c.Version(f.GetVersion())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := c.Version(f.GetVersion()); err != nil || again != first {
			t.Errorf("version %d was decoded twice", i)
		}
	}
	if n := len(c.specs.entries); n != 3 || c.specs.recent.Len() != 3 {
		t.Errorf("%d specs are kept, want 3", n)
	}
	for i := range 10 {
		if f, err := c.Function("", fmt.Sprint("f", i)); err != nil || f.GetSpec().GetName() != fmt.Sprint("f", i) {
			t.Errorf("function %d: %v, error %v", i, f, err)
		}
	}
}
