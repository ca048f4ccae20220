package registry

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/consensus"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/registry/digest"
	"github.com/isobar-mesh/isobar/state"
)

// replica applies registry commands to a store in memory.
type replica struct {
	t     fataler
	store *state.Memory
	*state.Replica
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newReplica(t fataler) *replica {
	t.Helper()
	store := state.NewMemory()
	r, err := state.NewReplica(store, map[state.MachineID]state.Machine{state.RegistryMachine: Machine{}}, state.Options{})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return &replica{t: t, store: store, Replica: r}
}

func (r *replica) try(command []byte) (any, error) {
	g := state.EncodeGroup([]state.Command{{Machine: state.RegistryMachine, Body: command}})
	out := r.Apply(consensus.Position{Index: r.Applied().Index + 1, Term: 1}, [][]byte{g})
	res := out[0].(state.GroupResult)
	if res.Err != nil {
		return nil, res.Err
	}
	return res.Results[0], nil
}

func (r *replica) do(commands ...[]byte) []any {
	r.t.Helper()
	var out []any
	for _, c := range commands {
		res, err := r.try(c)
		if err != nil {
			r.t.Fatalf("apply: %v", err)
		}
		out = append(out, res)
	}
	return out
}

func (r *replica) merge(now int64, docs ...*meshv1.Document) Merged {
	r.t.Helper()
	return r.do(encode(r.t, &meshv1.RegistryCommand{Command: &meshv1.RegistryCommand_Merge{
		Merge: &meshv1.Merge{Documents: docs, NowMs: now},
	}}))[0].(Merged)
}

func (r *replica) forget(d *meshv1.Document) bool {
	r.t.Helper()
	return r.do(encode(r.t, &meshv1.RegistryCommand{Command: &meshv1.RegistryCommand_Forget{
		Forget: &meshv1.Forget{Kind: d.GetKind(), Name: d.GetName(), Version: d.GetVersion()},
	}}))[0].(Forgotten).Dropped
}

func (r *replica) committed() state.Reader { return r.Reader(state.RegistryMachine) }

func (r *replica) documents() []*meshv1.Document {
	r.t.Helper()
	docs, err := New(r.committed(), Options{Cell: "test"}).Documents()
	if err != nil {
		r.t.Fatalf("%v", err)
	}
	return docs
}

func encode(t fataler, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return b
}

const noon = 1_700_000_000_000

func at(ms int64, logical uint32, author string) *meshv1.Version {
	return &meshv1.Version{WallMs: ms, Logical: logical, Author: author}
}

func alias(t fataler, content string) []byte {
	return encode(t, &meshv1.Alias{Digest: digest.Of([]byte(content))})
}

// functionDoc stands for the version of the content.
func functionDoc(t fataler, name, content string, v *meshv1.Version) *meshv1.Document {
	return &meshv1.Document{Kind: KindFunction, Name: "default/" + name, Version: v, Content: alias(t, content)}
}

func versionDoc(t fataler, name string, v *meshv1.Version) *meshv1.Document {
	content, d := versionContent(encode(t, &isobarv1.FunctionSpec{Tenant: "default", Name: name}))
	return &meshv1.Document{Kind: KindVersion, Name: d, Version: v, Content: content}
}

func TestLastWriterWins(t *testing.T) {
	t.Parallel()
	older := functionDoc(t, "f", "1", at(noon, 0, "b"))
	tests := []struct {
		name  string
		other *meshv1.Document
		wins  bool
	}{
		{"later", functionDoc(t, "f", "2", at(noon+1, 0, "a")), true},
		{"earlier", functionDoc(t, "f", "2", at(noon-1, 9, "z")), false},
		{"same time, later count", functionDoc(t, "f", "2", at(noon, 1, "a")), true},
		{"same time, higher author", functionDoc(t, "f", "2", at(noon, 0, "c")), true},
		{"same time, lower author", functionDoc(t, "f", "2", at(noon, 0, "a")), false},
		{"deletion", &meshv1.Document{Kind: KindFunction, Name: "default/f", Version: at(noon+1, 0, "a"), Deleted: true}, true},
		{"deletion of the same version", &meshv1.Document{Kind: KindFunction, Name: "default/f", Version: at(noon, 0, "b"), Deleted: true}, true},
		{"the same", older, false},
	}
	for _, tt := range tests {
		r := newReplica(t)
		r.merge(noon, older)
		got := r.merge(noon, tt.other)
		if changed := len(got.Changed) == 1; changed != tt.wins || len(got.Refused) != 0 {
			t.Errorf("%s: changed %v, refused %v, want changed %v", tt.name, got.Changed, got.Refused, tt.wins)
		}
		want := older
		if tt.wins {
			want = tt.other
			if !proto.Equal(got.Changed[0], want) {
				t.Errorf("%s: the result has %v, want %v", tt.name, got.Changed[0], want)
			}
		}
		if docs := r.documents(); len(docs) != 1 || !proto.Equal(docs[0], want) {
			t.Errorf("%s: the state has %v, want %v", tt.name, docs, want)
		}
	}
}

// What is refused is refused alone.
func TestMergeRefuses(t *testing.T) {
	t.Parallel()
	good := functionDoc(t, "good", "x", at(noon, 0, "a"))
	version := versionDoc(t, "f", at(noon, 0, "a"))
	edit := func(d *meshv1.Document, f func(*meshv1.Document)) *meshv1.Document {
		d = proto.CloneOf(d)
		f(d)
		return d
	}
	other := versionDoc(t, "g", at(noon+5, 0, "z"))
	tests := []struct {
		name string
		doc  *meshv1.Document
		want error
	}{
		{"a minute and more ahead", edit(good, func(d *meshv1.Document) { d.Version.WallMs = noon + 60_001 }), ErrFuture},
		{"end of time", edit(good, func(d *meshv1.Document) { d.Version.WallMs = math.MaxInt64 }), ErrFuture},
		{"no kind", edit(good, func(d *meshv1.Document) { d.Kind = "" }), ErrMalformed},
		{"bad kind", edit(good, func(d *meshv1.Document) { d.Kind = "Fun\x00" }), ErrMalformed},
		{"no name", edit(good, func(d *meshv1.Document) { d.Name = "" }), ErrMalformed},
		{"control in the name", edit(good, func(d *meshv1.Document) { d.Name = "default/\x00" }), ErrMalformed},
		{"function without tenant", edit(good, func(d *meshv1.Document) { d.Name = "f" }), ErrMalformed},
		{"no version", edit(good, func(d *meshv1.Document) { d.Version = nil }), ErrMalformed},
		{"no author", edit(good, func(d *meshv1.Document) { d.Version.Author = "" }), ErrMalformed},
		{"before 1970", edit(good, func(d *meshv1.Document) { d.Version.WallMs = -1 }), ErrMalformed},
		{"not an alias", edit(good, func(d *meshv1.Document) { d.Content = []byte{0xff} }), ErrMalformed},
		{"alias of nothing", edit(good, func(d *meshv1.Document) { d.Content = nil }), ErrMalformed},
		{"tombstone with content", edit(good, func(d *meshv1.Document) { d.Deleted = true }), ErrMalformed},
		{"acknowledged and alive", edit(good, func(d *meshv1.Document) { d.Acknowledged = []string{"a"} }), ErrMalformed},
		{"too large", edit(good, func(d *meshv1.Document) { d.Content = make([]byte, maxContent+1) }), ErrMalformed},
		{"tenant of another name", &meshv1.Document{Kind: KindTenant, Name: "x", Version: at(noon, 0, "a"), Content: encode(t, &meshv1.Tenant{Name: "y"})}, ErrMalformed},
		{"version of another content", edit(version, func(d *meshv1.Document) { d.Content, d.Version = other.Content, other.Version }), ErrImmutable},
		{"version with more in it", edit(version, func(d *meshv1.Document) { d.Content = append(slices.Clone(d.Content), d.Content...) }), ErrImmutable},
		{"version cut", edit(version, func(d *meshv1.Document) { d.Content = d.Content[:3] }), ErrMalformed},
		{"version of no spec", func() *meshv1.Document {
			content, name := versionContent([]byte{0xff, 0xff})
			return &meshv1.Document{Kind: KindVersion, Name: name, Version: at(noon, 0, "a"), Content: content}
		}(), ErrMalformed},
	}
	for _, tt := range tests {
		r := newReplica(t)
		r.merge(noon, version)
		got := r.merge(noon, tt.doc, good)
		if len(got.Refused) != 1 || !errors.Is(got.Refused[0].Err, tt.want) || got.Refused[0].Name != tt.doc.GetName() {
			t.Errorf("%s: refused %+v, want %v", tt.name, got.Refused, tt.want)
		}
		if len(got.Changed) != 1 || !proto.Equal(got.Changed[0], good) {
			t.Errorf("%s: changed %v, want the good one", tt.name, got.Changed)
		}
		if docs := r.documents(); len(docs) != 2 || !proto.Equal(docs[0], version) {
			t.Errorf("%s: the state has %v", tt.name, docs)
		}
	}
	if got := newReplica(t).merge(noon, edit(good, func(d *meshv1.Document) { d.Version.WallMs = noon + 60_000 })); len(got.Refused) != 0 {
		t.Errorf("a minute ahead is refused: %v", got.Refused)
	}
}

// A kind of a later release is kept.
func TestUnknownKind(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	d := &meshv1.Document{Kind: "policy", Name: "p", Version: at(noon, 0, "a"), Content: []byte{0xff, 1}}
	if got := r.merge(noon, d); len(got.Changed) != 1 {
		t.Errorf("refused: %v", got.Refused)
	}
}

func TestApplyRefusesCommands(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	for _, c := range [][]byte{nil, {0xff}, []byte("no command at all")} {
		if _, err := r.try(c); err == nil {
			t.Errorf("command %x has no error", c)
		}
	}
	if r.store.Len() != 1 { // the replica's position
		t.Errorf("refused commands left %d keys", r.store.Len())
	}
}

func TestForget(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	live := functionDoc(t, "f", "1", at(noon, 0, "a"))
	tomb := &meshv1.Document{Kind: KindFunction, Name: "default/f", Version: at(noon, 1, "a"), Deleted: true, Acknowledged: []string{"a"}}
	r.merge(noon, live)
	if r.forget(live) {
		t.Error("a live document was forgotten")
	}
	if r.forget(tomb) {
		t.Error("a tombstone that is not here was forgotten")
	}
	r.merge(noon, tomb)
	if r.forget(live) {
		t.Error("a tombstone was forgotten at another version")
	}
	if !r.forget(tomb) || r.forget(tomb) {
		t.Error("the tombstone was not forgotten once")
	}
	if h, err := Hash(r.committed()); err != nil || h != 0 || len(r.documents()) != 0 {
		t.Errorf("hash %x, error %v, %d documents, want none", h, err, len(r.documents()))
	}
}

// drawDocument draws from few names and versions, so that documents meet.
func drawDocument(t *rapid.T) *meshv1.Document {
	v := at(noon+rapid.Int64Range(0, 2).Draw(t, "wall"), rapid.Uint32Range(0, 1).Draw(t, "logical"), rapid.SampledFrom([]string{"eu", "us"}).Draw(t, "author"))
	name := rapid.SampledFrom([]string{"f", "g"}).Draw(t, "name")
	switch rapid.IntRange(0, 4).Draw(t, "what") {
	case 0:
		return versionDoc(t, name, v)
	case 1, 2:
		acks := rapid.SliceOfN(rapid.SampledFrom([]string{"eu", "us", "ap"}), 0, 3).Draw(t, "acks")
		return &meshv1.Document{Kind: KindFunction, Name: "default/" + name, Version: v, Deleted: true, Acknowledged: acks}
	case 3:
		return &meshv1.Document{Kind: KindVersion, Name: versionDoc(t, name, v).Name, Version: v, Content: []byte("forged")}
	default:
		return functionDoc(t, name, rapid.SampledFrom([]string{"1", "2"}).Draw(t, "content"), v)
	}
}

// The set after merging does not depend on order, grouping or repeats, and the
// hash kept on the way is that of the set.
func TestMergeIsJoin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		docs := rapid.SliceOfN(rapid.Custom(drawDocument), 1, 12).Draw(t, "docs")
		one := newReplica(t)
		one.merge(noon, docs...)

		again := rapid.Permutation(slices.Concat(docs, docs[:rapid.IntRange(0, len(docs)).Draw(t, "repeats")])).Draw(t, "order")
		two := newReplica(t)
		for len(again) > 0 {
			n := rapid.IntRange(1, len(again)).Draw(t, "group")
			two.merge(noon, again[:n]...)
			again = again[n:]
		}
		if one.Hash() != two.Hash() {
			t.Fatalf("the sets differ:\n%v\n%v", one.documents(), two.documents())
		}
		if got := two.merge(noon, one.documents()...); len(got.Changed) != 0 {
			t.Fatalf("merging the set into itself changes %v", got.Changed)
		}

		var want uint64
		for _, d := range one.documents() {
			want += hashDocument(d)
		}
		if got, err := Hash(one.committed()); err != nil || got != want {
			t.Fatalf("hash is %x, error %v, want %x", got, err, want)
		}
		sum := mustSummary(one.committed())
		if int(sum.count) != len(one.documents()) {
			t.Fatalf("counts %d documents, there are %d", sum.count, len(one.documents()))
		}
	})
}

// Merging parts and then the wholes gives what merging all gives.
func TestMergeIsAssociative(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		docs := rapid.SliceOfN(rapid.Custom(drawDocument), 3, 12).Draw(t, "docs")
		i := rapid.IntRange(1, len(docs)-2).Draw(t, "i")
		j := rapid.IntRange(i+1, len(docs)-1).Draw(t, "j")
		merged := func(parts ...[]*meshv1.Document) []*meshv1.Document {
			r := newReplica(t)
			for _, p := range parts {
				r.merge(noon, p...)
			}
			return r.documents()
		}
		a, b, c := docs[:i], docs[i:j], docs[j:]
		left, right := merged(merged(a, b), c), merged(a, merged(b, c))
		if !slices.EqualFunc(left, right, func(a, b *meshv1.Document) bool { return proto.Equal(a, b) }) {
			t.Fatalf("(a+b)+c is %v\na+(b+c) is %v", left, right)
		}
	})
}

func TestSummaryEncoding(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := summary{
			hash: rapid.Uint64().Draw(t, "hash"), count: rapid.Uint64().Draw(t, "count"),
			clock: at(rapid.Int64().Draw(t, "wall"), rapid.Uint32().Draw(t, "logical"), rapid.String().Draw(t, "author")),
		}
		b := want.encode()
		got, err := decodeSummary(b)
		if err != nil || got.hash != want.hash || got.count != want.count || !proto.Equal(got.clock, want.clock) {
			t.Fatalf("%+v comes back as %+v, error %v", want, got, err)
		}
		for n := range min(len(b), 11) {
			if _, err := decodeSummary(b[:n]); err == nil {
				t.Fatalf("the first %d bytes have no error", n)
			}
		}
	})
}

func FuzzApply(f *testing.F) {
	f.Add(encode(f, &meshv1.RegistryCommand{Command: &meshv1.RegistryCommand_Merge{Merge: &meshv1.Merge{
		NowMs: noon, Documents: []*meshv1.Document{functionDoc(f, "f", "1", at(noon, 0, "a")), versionDoc(f, "f", at(noon, 0, "a"))},
	}}}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, command []byte) {
		r := newReplica(t)
		if _, err := r.try(command); err != nil {
			return
		}
		r.documents() // all can be read
	})
}

func BenchmarkMerge(b *testing.B) {
	r := newReplica(b)
	rng := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		r.merge(noon, functionDoc(b, fmt.Sprint(rng.IntN(1000)), "1", at(noon, rng.Uint32(), "a")))
	}
}
