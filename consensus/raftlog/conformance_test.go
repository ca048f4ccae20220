package raftlog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/consensustest"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/state/pebblestore"
)

// testLogger prints what the logs say when ISOBAR_TEST_LOG is set.
func testLogger() *slog.Logger {
	if os.Getenv("ISOBAR_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// single is the options of a server alone; it has no peers to wait for.
func single(t testing.TB, dir string) Options {
	t.Helper()
	id, err := LoadServerID(dir)
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Dir: dir, ServerID: id, Bind: "127.0.0.1:0",
		HeartbeatTimeout: 60 * time.Millisecond,
		SegmentBytes:     4 << 20,
		Logger:           testLogger(),
	}
}

func mustOpen(t testing.TB, o Options, m consensus.Machine) *Log {
	t.Helper()
	l, err := Open(o, m)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func backend(machine func(testing.TB, string) consensustest.Machine) consensustest.Backend {
	return consensustest.Backend{
		Open: func(t testing.TB, dir string, m consensus.Machine) consensus.Log {
			o := single(t, dir)
			o.Bootstrap = true
			return mustOpen(t, o, m)
		},
		Follower: func(t testing.TB, dir string, m consensus.Machine) consensus.Log {
			return mustOpen(t, single(t, dir), m)
		},
		Checkpoint: func(t testing.TB, log consensus.Log) {
			if err := log.(*Log).Snapshot(); err != nil {
				t.Fatal(err)
			}
		},
		Machine: machine,
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	consensustest.Run(t, backend(nil))
}

func TestConformanceOverMemory(t *testing.T) {
	t.Parallel()
	consensustest.Run(t, backend(func(t testing.TB, _ string) consensustest.Machine {
		return newRecorder(t, state.NewMemory())
	}))
}

func TestConformanceOverPebble(t *testing.T) {
	t.Parallel()
	consensustest.Run(t, backend(openPebbleRecorder))
}

func openPebbleRecorder(t testing.TB, dir string) consensustest.Machine {
	store, err := pebblestore.Open(dir, pebblestore.Options{MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return newRecorder(t, store)
}

// recorder is a Replica with one machine that keeps payloads in order.
type recorder struct {
	*state.Replica
	store state.Store
}

const list state.MachineID = 'l'

func newRecorder(t testing.TB, store state.Store) *recorder {
	t.Helper()
	r, err := state.NewReplica(store, map[state.MachineID]state.Machine{list: listMachine{}}, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &recorder{Replica: r, store: store}
}

func (r *recorder) Close() error { return r.store.Close() }

func (r *recorder) Encode(payload []byte) []byte {
	return state.EncodeGroup([]state.Command{{Machine: list, Body: payload}})
}

func (r *recorder) Payloads() [][]byte {
	var out [][]byte
	for _, v := range r.Reader(list).Scan([]byte("p"), []byte("q")) {
		out = append(out, v)
	}
	return out
}

func (r *recorder) Ordinal(result any) (int, error) {
	g, ok := result.(state.GroupResult)
	if !ok || len(g.Results) != 1 {
		return 0, fmt.Errorf("result is %#v", result)
	}
	return g.Results[0].(int), g.Err
}

// listMachine appends what it is given.
type listMachine struct{}

func (listMachine) Apply(tx state.Tx, body []byte) (any, error) {
	if bytes.Equal(body, []byte("refuse")) {
		return nil, errors.New("refused")
	}
	var n uint64
	if v, ok := tx.Get([]byte("count")); ok {
		n = binary.BigEndian.Uint64(v)
	}
	n++
	tx.Set([]byte("count"), binary.BigEndian.AppendUint64(nil, n))
	tx.Set(binary.BigEndian.AppendUint64([]byte("p"), n), body)
	return int(n), nil
}

func ctxFor(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), consensustest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until ok, or fails.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(consensustest.Patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", consensustest.Patience, what)
		}
	}
}
