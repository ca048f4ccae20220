package state_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/state/pebblestore"
)

// stores are what every test of this file runs over.
func stores(t *testing.T, test func(*testing.T, func(testing.TB) state.Store)) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, func(testing.TB) state.Store { return state.NewMemory() })
	})
	t.Run("pebble", func(t *testing.T) {
		t.Parallel()
		test(t, func(tb testing.TB) state.Store {
			s, err := pebblestore.Open(tb.TempDir(), pebblestore.Options{MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
			if err != nil {
				tb.Fatal(err)
			}
			tb.Cleanup(func() {
				if err := s.Close(); err != nil {
					tb.Error(err)
				}
			})
			return s
		})
	})
}

// script is a machine whose commands are small programs: lines of
// "set K V", "del K", "fail", "get K", "scan FROM TO".
type script struct{}

var errFail = errors.New("told to fail")

func (script) Apply(tx state.Tx, body []byte) (any, error) {
	var out []string
	for line := range bytes.SplitSeq(body, []byte("\n")) {
		f := bytes.Fields(line)
		switch string(f[0]) {
		case "set":
			tx.Set(f[1], f[2])
		case "del":
			tx.Delete(f[1])
		case "fail":
			return nil, errFail
		case "get":
			v, ok := tx.Get(f[1])
			out = append(out, fmt.Sprintf("%s %v", v, ok))
		case "scan":
			var to []byte
			if len(f) > 2 {
				to = f[2]
			}
			for k, v := range tx.Scan(f[1], to) {
				out = append(out, fmt.Sprintf("%s=%s", k, v))
			}
		}
	}
	return out, nil
}

func replica(t testing.TB, s state.Store, o state.Options) *state.Replica {
	t.Helper()
	r, err := state.NewReplica(s, map[state.MachineID]state.Machine{'a': script{}, 'b': script{}}, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func command(id state.MachineID, body string) state.Command {
	return state.Command{Machine: id, Body: []byte(body)}
}

func group(cs ...state.Command) []byte { return state.EncodeGroup(cs) }

func at(index uint64) consensus.Position { return consensus.Position{Index: index, Term: 1} }

// dump is one machine's committed state.
func dump(r *state.Replica, id state.MachineID) string {
	var out []string
	for k, v := range r.Reader(id).Scan(nil, nil) {
		out = append(out, fmt.Sprintf("%s=%s", k, v))
	}
	return fmt.Sprint(out)
}

func TestGroupsAreAllOrNothing(t *testing.T) {
	stores(t, func(t *testing.T, open func(testing.TB) state.Store) {
		r := replica(t, open(t), state.Options{})
		results := r.Apply(at(3), [][]byte{
			group(command('a', "set k 1"), command('b', "set k 2")),
			group(command('a', "set k 9\nset new 9\ndel k"), command('b', "del k\nset x 9"), command('a', "fail")),
			group(command('a', "get k\nset k 3\nget k\nscan a")),
			group(command('a', "fail")),
			group(command('c', "set k 1")),
			{7, 7, 7},
			nil,
			state.EncodeGroup(nil),
		})
		for i, want := range []error{nil, errFail, nil, errFail, state.ErrUnknownMachine, state.ErrCorruptGroup, state.ErrCorruptGroup, state.ErrEmptyGroup} {
			if got := results[i].(state.GroupResult).Err; !errors.Is(got, want) {
				t.Errorf("group %d: got %v, want %v", i, got, want)
			}
		}
		if got := fmt.Sprint(results[2].(state.GroupResult).Results); got != "[[1 true 3 true k=3]]" {
			t.Errorf("the third group saw %s", got)
		}
		if a, b := dump(r, 'a'), dump(r, 'b'); a != "[k=3]" || b != "[k=2]" {
			t.Errorf("state is a %s, b %s", a, b)
		}
		if got := r.Applied(); got != at(3) {
			t.Errorf("applied %v", got)
		}
		if again := r.Apply(at(3), [][]byte{group(command('a', "set k 4"))}); again != nil || dump(r, 'a') != "[k=3]" {
			t.Errorf("an entry was applied twice: %v", again)
		}
	})
}

// commits counts the batches of a store, and those without the position.
type commits struct {
	state.Store
	n, without int
}

func (c *commits) Commit(w []state.Write) error {
	c.n++
	if !slices.ContainsFunc(w, func(w state.Write) bool { return bytes.HasSuffix(w.Key, []byte("position")) }) {
		c.without++
	}
	return c.Store.Commit(w)
}

// An entry and its position are one batch: between two, a crash would leave an
// entry that is applied again, or one that never is.
func TestAnEntryIsOneBatchWithItsPosition(t *testing.T) {
	stores(t, func(t *testing.T, open func(testing.TB) state.Store) {
		c := &commits{Store: open(t)}
		r := replica(t, c, state.Options{})
		r.Apply(at(1), [][]byte{group(command('a', "set k 1"), command('b', "set k 2")), group(command('a', "set l 1"))})
		r.Apply(at(2), [][]byte{group(command('a', "fail"))})
		if c.n != 2 || c.without != 0 {
			t.Errorf("2 entries are %d batches, %d without a position", c.n, c.without)
		}
	})
}

func TestOnApplySeesCommittedState(t *testing.T) {
	stores(t, func(t *testing.T, open func(testing.TB) state.Store) {
		var r *state.Replica
		var told []string
		r = replica(t, open(t), state.Options{OnApply: func(p consensus.Position, results []state.GroupResult) {
			told = append(told, fmt.Sprintf("%d:%d %s %d", p.Index, len(results), dump(r, 'a'), r.Applied().Index))
		}})
		r.Apply(at(1), [][]byte{group(command('a', "set k 1"))})
		r.Apply(at(1), [][]byte{group(command('a', "set k 2"))})
		r.Apply(at(4), [][]byte{group(command('a', "set k 3")), group(command('a', "fail"))})
		want := "[1:1 [k=1] 1 4:2 [k=3] 4]"
		if got := fmt.Sprint(told); got != want {
			t.Errorf("told %s, want %s", got, want)
		}
	})
}

func TestCheckpointAndInstall(t *testing.T) {
	stores(t, func(t *testing.T, open func(testing.TB) state.Store) {
		r := replica(t, open(t), state.Options{})
		r.Apply(at(5), [][]byte{group(command('a', "set k 1\nset empty "+"x"), command('b', "set z 26"))})
		dir := filepath.Join(t.TempDir(), "checkpoint")
		if p, err := r.Checkpoint(dir); err != nil || p != at(5) {
			t.Fatalf("checkpoint at %v, %v", p, err)
		}
		hash := r.Hash()
		r.Apply(at(6), [][]byte{group(command('a', "del k\nset later 1"))})
		if r.Hash() == hash {
			t.Error("the hash did not change")
		}

		other := replica(t, open(t), state.Options{})
		other.Apply(at(2), [][]byte{group(command('a', "set other 1"))})
		for _, target := range []*state.Replica{other, r} {
			if err := target.Install(dir); err != nil {
				t.Fatal(err)
			}
			if target.Hash() != hash || target.Applied() != at(5) {
				t.Errorf("installed state differs: applied %v, a %s", target.Applied(), dump(target, 'a'))
			}
		}
		other.Apply(at(6), [][]byte{group(command('a', "set after 1"))})
		if got, _ := other.Reader('a').Get([]byte("after")); string(got) != "1" {
			t.Error("no writes after an install")
		}
		if err := other.Install(filepath.Join(dir, "not there")); err == nil || other.Applied() != at(6) {
			t.Errorf("a bad install: %v, applied %v", err, other.Applied())
		}
	})
}

// TestReadersDuringWritesAndInstall wants scans and views to see one entry's
// state each: every entry sets all keys to its own index.
func TestReadersDuringWritesAndInstall(t *testing.T) {
	stores(t, func(t *testing.T, open func(testing.TB) state.Store) {
		r := replica(t, open(t), state.Options{})
		body := func(i uint64) string {
			return fmt.Sprintf("set k1 %d\nset k2 %d\nset k3 %d", i, i, i)
		}
		r.Apply(at(1), [][]byte{group(command('a', body(1)))})
		var stop atomic.Bool
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for !stop.Load() {
					values := map[string]bool{}
					n := 0
					for _, v := range r.Reader('a').Scan(nil, nil) {
						values[string(v)] = true
						n++
						r.Reader('a').Get([]byte("k1")) // nested reads must not deadlock
					}
					if len(values) != 1 || n != 3 {
						t.Errorf("a scan saw %v", values)
						return
					}
					r.View('a', func(v state.Reader) {
						x, _ := v.Get([]byte("k1"))
						y, _ := v.Get([]byte("k3"))
						for _, z := range v.Scan([]byte("k2"), []byte("k3")) {
							if !bytes.Equal(x, y) || !bytes.Equal(x, z) {
								t.Errorf("a view saw %s %s %s", x, y, z)
							}
						}
					})
				}
			})
		}
		dirs := t.TempDir()
		for i := uint64(2); i < 200; i++ {
			r.Apply(at(i), [][]byte{group(command('a', body(i)))})
			if i%50 == 0 {
				dir := filepath.Join(dirs, fmt.Sprint(i))
				if _, err := r.Checkpoint(dir); err != nil {
					t.Error(err)
				}
				if err := r.Install(dir); err != nil {
					t.Error(err)
				}
			}
		}
		stop.Store(true)
		wg.Wait()
	})
}

func TestMountsAreChecked(t *testing.T) {
	t.Parallel()
	for _, id := range []state.MachineID{0, 'a'} {
		m := map[state.MachineID]state.Machine{id: nil}
		if id == 0 {
			m[id] = script{}
		}
		if _, err := state.NewReplica(state.NewMemory(), m, state.Options{}); !errors.Is(err, state.ErrBadMount) {
			t.Errorf("mount %d: got %v", id, err)
		}
	}
	bad := state.NewMemory()
	if err := bad.Commit([]state.Write{{Key: []byte("\x00position"), Value: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := state.NewReplica(bad, nil, state.Options{}); err == nil {
		t.Error("a damaged position was taken")
	}
}

// TestReplicaAgainstModel runs random entries over both stores and a map, with
// scans inside the commands, and compares everything.
func TestReplicaAgainstModel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		disk, err := pebblestore.Open(filepath.Join(dir, fmt.Sprint(n)), pebblestore.Options{MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		replicas := []*state.Replica{}
		for _, s := range []state.Store{state.NewMemory(), disk} {
			r, err := state.NewReplica(s, map[state.MachineID]state.Machine{'a': script{}, 0xff: script{}}, state.Options{})
			if err != nil {
				t.Fatal(err)
			}
			replicas = append(replicas, r)
		}
		model := map[state.MachineID]map[string]string{'a': {}, 0xff: {}}
		key := rapid.SampledFrom([]string{"a", "ab", "b", "b0", "c", "\xff", "\xff\xff"})
		for index := uint64(1); index <= uint64(rapid.IntRange(1, 8).Draw(t, "entries")); index++ {
			var groups [][]byte
			var want []string
			for range rapid.IntRange(1, 4).Draw(t, "groups") {
				next := map[state.MachineID]map[string]string{'a': maps.Clone(model['a']), 0xff: maps.Clone(model[0xff])}
				var cs []state.Command
				var outs []any
				failed := false
				for range rapid.IntRange(1, 3).Draw(t, "commands") {
					id := rapid.SampledFrom([]state.MachineID{'a', 0xff}).Draw(t, "machine")
					var body []string
					var out []string
					for range rapid.IntRange(1, 4).Draw(t, "steps") {
						k := key.Draw(t, "key")
						switch rapid.SampledFrom([]string{"set", "set", "del", "get", "scan", "scan2", "fail"}).Draw(t, "verb") {
						case "set":
							v := fmt.Sprint(rapid.IntRange(0, 99).Draw(t, "value"))
							body = append(body, "set "+k+" "+v)
							next[id][k] = v
						case "del":
							body = append(body, "del "+k)
							delete(next[id], k)
						case "get":
							body = append(body, "get "+k)
							v, ok := next[id][k]
							out = append(out, fmt.Sprintf("%s %v", v, ok))
						case "scan":
							body = append(body, "scan "+k)
							out = append(out, scanModel(next[id], k, "")...)
						case "scan2":
							to := key.Draw(t, "to")
							body = append(body, "scan "+k+" "+to)
							out = append(out, scanModel(next[id], k, to)...)
						case "fail":
							if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
								body = append(body, "fail")
								failed = true
							} else {
								body = append(body, "get "+k)
								v, ok := next[id][k]
								out = append(out, fmt.Sprintf("%s %v", v, ok))
							}
						}
						if failed {
							break
						}
					}
					cs = append(cs, command(id, join(body)))
					outs = append(outs, out)
					if failed {
						break
					}
				}
				groups = append(groups, group(cs...))
				if failed {
					want = append(want, fmt.Sprintf("%v", state.GroupResult{Err: errFail}))
				} else {
					model = next
					want = append(want, fmt.Sprintf("%v", state.GroupResult{Results: outs}))
				}
			}
			for i, r := range replicas {
				for j, got := range r.Apply(at(index), groups) {
					if fmt.Sprintf("%v", got) != want[j] {
						t.Fatalf("store %d, entry %d, group %d: got %v, want %s", i, index, j, got, want[j])
					}
				}
			}
		}
		for i, r := range replicas {
			for id, m := range model {
				if got, want := dump(r, id), fmt.Sprint(scanModel(m, "", "")); got != want {
					t.Fatalf("store %d, machine %d: got %s, want %s", i, id, got, want)
				}
			}
		}
		if replicas[0].Hash() != replicas[1].Hash() {
			t.Fatal("hashes differ")
		}
	})
}

func join(lines []string) string {
	var b []byte
	for i, l := range lines {
		if i > 0 {
			b = append(b, '\n')
		}
		b = append(b, l...)
	}
	return string(b)
}

func scanModel(m map[string]string, from, to string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k >= from && (to == "" || k < to) {
			out = append(out, k+"="+m[k])
		}
	}
	return out
}

// TestRejectedGroupCostsNothing is not parallel: it counts allocations.
func TestRejectedGroupCostsNothing(t *testing.T) {
	r := replica(t, state.NewMemory(), state.Options{})
	g := [][]byte{group(command('b', "fail"))}
	index := uint64(0)
	cost := testing.AllocsPerRun(100, func() {
		index++
		r.Apply(at(index), g)
	})
	if cost > 30 { // decoding, the results and the position; nothing of the size of the state
		t.Errorf("%v allocations for a rejected group", cost)
	}
}

func BenchmarkApply(b *testing.B) {
	for name, open := range map[string]func() state.Store{
		"memory": func() state.Store { return state.NewMemory() },
		"pebble": func() state.Store {
			s, err := pebblestore.Open(b.TempDir(), pebblestore.Options{})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = s.Close() })
			return s
		},
	} {
		b.Run(name, func(b *testing.B) {
			r := replica(b, open(), state.Options{})
			// One entry of 100 groups, each five writes and a read.
			for i := uint64(1); b.Loop(); i++ {
				groups := make([][]byte, 100)
				for j := range groups {
					k := binary.BigEndian.Uint32([]byte{0, byte(i), byte(i >> 8), byte(j)})
					groups[j] = group(command('a', fmt.Sprintf(
						"set k%d v\nset l%d v\nset m%d v\nset n%d v\nget k%d\nset o%d v", k, k, k, k, k, k)))
				}
				r.Apply(at(i), groups)
			}
			b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "groups/s")
		})
	}
}
