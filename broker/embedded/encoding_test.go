package embedded

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/state"
)

func FuzzDecodeCommand(f *testing.F) {
	t := broker.Topic{Tenant: "default", Function: "thumbnail", Lane: mesh.Batch}
	f.Add(appendCommand{topic: t, ref: newReference(3, 9), limit: 1 << 40, taskID: "id", body: []byte("body")}.encode())
	f.Add(appendCommand{ref: newReference(0, 0)}.encode())
	f.Add(trimCommand{topic: t, position: newReference(3, 9)}.encode())
	f.Add([]byte{})
	f.Add([]byte{encodingV1, kindAppend, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		switch c, err := decodeCommand(b); c := c.(type) {
		case appendCommand:
			if !bytes.Equal(c.encode(), b) {
				t.Fatalf("%x encodes again as %x", b, c.encode())
			}
		case trimCommand:
			if !bytes.Equal(c.encode(), b) {
				t.Fatalf("%x encodes again as %x", b, c.encode())
			}
		default:
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v, want ErrMalformed", err)
			}
		}
		// The stored records must take any bytes, too.
		_, _ = decodeHeader(b)
		_, _ = decodeTopicRecord(b)
		_, _ = decodeTotalRecord(b)
	})
}

func TestRecordsRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ref := func(name string) broker.Reference {
			return broker.Reference(rapid.StringN(0, -1, maxPosition).Draw(t, name))
		}
		h := header{
			taskID: mesh.TaskID(rapid.StringN(0, -1, maxNameLen).Draw(t, "id")),
			sha:    sha256.Sum256([]byte(rapid.String().Draw(t, "body"))),
			size:   rapid.Uint64().Draw(t, "size"),
		}
		if got, err := decodeHeader(h.encode()); err != nil || got != h {
			t.Fatalf("header %+v comes back as %+v, error %v", h, got, err)
		}
		usage := Usage{Messages: rapid.Uint64().Draw(t, "n"), Bytes: rapid.Uint64().Draw(t, "b")}
		tr := topicRecord{Usage: usage, trimmed: ref("trimmed"), dropped: ref("dropped")}
		got, err := decodeTopicRecord(tr.encode())
		if err != nil || got.Usage != usage || !bytes.Equal(got.trimmed, tr.trimmed) || !bytes.Equal(got.dropped, tr.dropped) {
			t.Fatalf("topic record %+v comes back as %+v, error %v", tr, got, err)
		}
		total := totalRecord{Usage: usage, last: ref("last")}
		gotTotal, err := decodeTotalRecord(total.encode())
		if err != nil || gotTotal.Usage != usage || !bytes.Equal(gotTotal.last, total.last) {
			t.Fatalf("total record %+v comes back as %+v, error %v", total, gotTotal, err)
		}
	})
}

// Bad commands are refused and leave nothing.
func TestApplyRefuses(t *testing.T) {
	t.Parallel()
	good := appendCommand{ref: newReference(1, 1), taskID: "a", body: []byte("x")}.encode()
	version := bytes.Clone(good)
	version[0] = 9
	kind := bytes.Clone(good)
	kind[1] = 9
	tests := []struct {
		name    string
		command []byte
		want    error
	}{
		{"empty", nil, ErrMalformed},
		{"later version", version, ErrMalformed},
		{"unknown kind", kind, ErrMalformed},
		{"cut", good[:20], ErrMalformed},
		{"trim without position", trimCommand{}.encode(), ErrMalformed},
		{"trim of a long position", trimCommand{position: make([]byte, maxPosition+1)}.encode(), ErrMalformed},
		{"payload above the limit", appendCommand{ref: newReference(1, 1), body: make([]byte, mesh.MaxPayload+1)}.encode(), broker.ErrTooLarge},
		{"cap", appendCommand{ref: newReference(1, 1), limit: 3, body: []byte("four")}.encode(), broker.ErrFull},
	}
	for _, tt := range tests {
		store := state.NewMemory()
		if err := apply(t, store, tt.command); !errors.Is(err, tt.want) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
		if store.Len() != 1 { // the replica's position
			t.Errorf("%s: the store has %d keys", tt.name, store.Len())
		}
	}
}

func apply(t interface{ Fatal(...any) }, store *state.Memory, commands ...[]byte) error {
	r, err := state.NewReplica(store, map[state.MachineID]state.Machine{state.BrokerMachine: Machine{}}, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var group []state.Command
	for _, c := range commands {
		group = append(group, state.Command{Machine: state.BrokerMachine, Body: c})
	}
	out := r.Apply(consensus.Position{Index: r.Applied().Index + 1, Term: 1}, [][]byte{state.EncodeGroup(group)})
	return out[0].(state.GroupResult).Err
}

// The machine agrees with a model that is a map, under any order of appends
// and trims, and its counters with what is there.
func TestMachineAgreesWithModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		store := state.NewMemory()
		type key struct {
			topic broker.Topic
			ref   string
		}
		live := map[key]string{}
		trimmed := map[broker.Topic]string{}
		topics := []broker.Topic{{Tenant: "a", Function: "b"}, {Tenant: "a", Function: "b", Lane: 1}, {Tenant: "ab"}}
		const limit = 60

		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			topic := rapid.SampledFrom(topics).Draw(t, "topic")
			ref := newReference(rapid.Uint64Range(0, 2).Draw(t, "term"), rapid.Uint64Range(0, 5).Draw(t, "counter"))
			if rapid.IntRange(0, 4).Draw(t, "op") == 0 {
				if rapid.Bool().Draw(t, "behind") {
					ref = append(ref, 0)
				}
				if err := apply(t, store, trimCommand{topic: topic, position: ref}.encode()); err != nil {
					t.Fatal(err)
				}
				trimmed[topic] = max(trimmed[topic], string(ref))
				maps.DeleteFunc(live, func(k key, _ string) bool { return k.topic == topic && k.ref < trimmed[topic] })
				continue
			}
			body := rapid.SampledFrom([]string{"", "x", "y", "0123456789"}).Draw(t, "body")
			k := key{topic, string(ref)}
			old, there := live[k]
			sum := len(body)
			for _, v := range live {
				sum += len(v)
			}
			var want error
			switch {
			case there && old != body:
				want = ErrConflict
			case there:
			case k.ref <= trimmed[topic]:
				want = ErrTrimmed
			case sum > limit:
				want = broker.ErrFull
			}
			err := apply(t, store, appendCommand{topic: topic, ref: ref, limit: limit, taskID: "id", sha: sha256.Sum256([]byte(body)), body: []byte(body)}.encode())
			if !errors.Is(err, want) {
				t.Fatalf("append %s %x: error %v, want %v", topic, []byte(ref), err, want)
			}
			if want == nil {
				live[k] = body
			}
		}

		r, err := state.NewReplica(store, nil, state.Options{})
		if err != nil {
			t.Fatal(err)
		}
		b := New(r.Reader(state.BrokerMachine), Options{})
		var total Usage
		for _, topic := range topics {
			var want []string
			for k := range live {
				if k.topic == topic {
					want = append(want, k.ref)
				}
			}
			slices.SortFunc(want, cmp.Compare[string])
			var got []string
			var usage Usage
			for m, err := range b.Read(t.Context(), topic, nil) {
				if err != nil || m.Err != nil || string(m.Payload) != live[key{topic, string(m.Ref)}] {
					t.Fatalf("read %+v, error %v", m, err)
				}
				got = append(got, string(m.Ref))
				usage.Messages++
				usage.Bytes += uint64(len(m.Payload))
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s holds %x, want %x", topic, got, want)
			}
			if u, err := b.TopicBytes(topic); err != nil || u != usage {
				t.Fatalf("TopicBytes(%s) = %+v, error %v, want %+v", topic, u, err, usage)
			}
			total.Messages += usage.Messages
			total.Bytes += usage.Bytes
		}
		if u, err := b.Bytes(); err != nil || u != total {
			t.Fatalf("Bytes = %+v, error %v, want %+v", u, err, total)
		}
	})
}
