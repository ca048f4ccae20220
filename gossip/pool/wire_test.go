package pool

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

func sample() Member {
	return Member{
		ID: "0d3b5a6e-3f0c-4a5e-9a55-0a8f4e8f2f11", Name: "eu-north-1a", Cell: "eu-north-1", Region: "eu-north",
		PeerAddress: "127.0.0.1:7111", APIAddress: "127.0.0.1:7101", RaftAddress: "[::1]:7121", PID: 4711,
	}
}

func TestMemberRoundTrip(t *testing.T) {
	t.Parallel()
	for _, leaving := range []bool{false, true} {
		b, err := encodeMember(sample(), leaving)
		if err != nil {
			t.Fatal(err)
		}
		got, gone, err := decodeMember(b)
		if err != nil || got != sample() || gone != leaving {
			t.Errorf("%+v, %v, %v", got, gone, err)
		}
		t.Logf("%d bytes of %d", len(b), memberlist.MetaMaxSize)
	}
}

// Every shorter, longer or otherwise marked description is refused.
func TestMemberIsStrict(t *testing.T) {
	t.Parallel()
	good, err := encodeMember(sample(), false)
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{"trailing": append(bytes.Clone(good), 0)}
	for i := range good {
		bad["cut at "+string(rune('0'+i%10))+strings.Repeat("'", i/10)] = good[:i]
	}
	for i, v := range map[int]byte{0: 2, 1: 4} {
		b := bytes.Clone(good)
		b[i] = v
		bad["header "+string(rune('0'+i))] = b
	}
	escape := bytes.Replace(good, []byte("eu-north-1a"), []byte("eu\x1bnorth-1a"), 1)
	bad["terminal escape"] = escape
	for name, b := range bad {
		if m, _, err := decodeMember(b); err == nil {
			t.Errorf("%s: accepted as %+v", name, m)
		}
	}
}

func TestMemberProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := func(label string) string { return rapid.StringMatching(`[a-zä-ü0-9.-]{1,40}`).Draw(t, label) }
		in := Member{
			ID: text("id"), Name: text("name"), Cell: mesh.CellID(text("cell")), Region: text("region"),
			APIAddress: text("host") + ":1", PID: rapid.IntRange(0, 1<<22).Draw(t, "pid"),
		}
		leaving := rapid.Bool().Draw(t, "leaving")
		b, err := encodeMember(in, leaving)
		if err != nil {
			t.Fatal(err)
		}
		if out, gone, err := decodeMember(b); err != nil || out != in || gone != leaving {
			t.Fatalf("%+v, %v, %v", out, gone, err)
		}
	})
}

func FuzzDecodeMember(f *testing.F) {
	b, err := encodeMember(sample(), true)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, leaving, err := decodeMember(b)
		if err != nil {
			return
		}
		again, err := encodeMember(m, leaving)
		if len(b) > memberlist.MetaMaxSize {
			return
		}
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if out, _, err := decodeMember(again); err != nil || out != m {
			t.Fatalf("%+v, %+v, %v", m, out, err)
		}
	})
}

var epoch = time.Unix(1_700_000_000, 0)

func stateOf(t testing.TB, digests ...*meshv1.Digest) []byte {
	t.Helper()
	v := gossip.NewView()
	v.Accept("a-1", "i")
	for i, d := range digests {
		if _, err := v.Merge(d, epoch.Add(-time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return encodeState(v.Snapshot(), epoch)
}

func TestStateRoundTrip(t *testing.T) {
	t.Parallel()
	a := &meshv1.Digest{Cell: "a-1", Region: "a", Incarnation: "i", Term: 1, Sequence: 2}
	held := &meshv1.Digest{Cell: "b-1", Region: "b", Incarnation: "j", Term: 3, Sequence: 4}
	list, err := decodeState(stateOf(t, a, held))
	if err != nil || len(list) != 2 {
		t.Fatalf("%d, %v", len(list), err)
	}
	for i, want := range []*meshv1.Digest{a, held} {
		encoded, _, err := gossip.Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(list[i], aged{time.Duration(i) * time.Second, encoded}) {
			t.Errorf("%d: %+v", i, list[i])
		}
	}
	if list, err := decodeState(stateOf(t)); err != nil || len(list) != 0 {
		t.Errorf("empty: %v, %v", list, err)
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add(stateOf(f, &meshv1.Digest{Cell: "a-1", Region: "a", Incarnation: "i", Term: 1, Sequence: 2}))
	f.Add([]byte{stateVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeState(b)
		if err != nil {
			return
		}
		total := 1
		for _, a := range list {
			total += len(a.encoded) + 2
			if a.age < 0 || a.age > maxAge || len(a.encoded) > gossip.MaxEncoded {
				t.Fatalf("age %v, %d bytes", a.age, len(a.encoded))
			}
			_, _ = gossip.Decode(a.encoded)
		}
		if total > len(b) {
			t.Fatalf("%d bytes out of %d", total, len(b))
		}
	})
}
