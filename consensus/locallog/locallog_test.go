package locallog_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/consensustest"
	"github.com/isobar-mesh/isobar/consensus/locallog"
)

// backend keeps a Disk for each directory of the suite.
func backend() consensustest.Backend {
	var mu sync.Mutex
	disks := map[string]*locallog.Disk{}
	open := func(t testing.TB, dir string, m consensus.Machine) *locallog.Log {
		mu.Lock()
		defer mu.Unlock()
		if disks[dir] == nil {
			disks[dir] = new(locallog.Disk)
		}
		l, err := locallog.Open(disks[dir], m, locallog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	return consensustest.Backend{
		Open: func(t testing.TB, dir string, m consensus.Machine) consensus.Log { return open(t, dir, m) },
		Follower: func(t testing.TB, dir string, m consensus.Machine) consensus.Log {
			l := open(t, dir, m)
			l.Depose()
			return l
		},
		Checkpoint: func(t testing.TB, log consensus.Log) {
			if err := log.(*locallog.Log).Checkpoint(t.TempDir()); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	consensustest.Run(t, backend())
}

// history plays the same calls against a faulty log and writes down what
// happened.
func history(t *testing.T, seed uint64) (told []string, applied [][]byte) {
	t.Helper()
	m := new(consensustest.Ledger)
	disk := new(locallog.Disk)
	l, err := locallog.Open(disk, m, locallog.Options{Seed: seed, Faults: locallog.Faults{
		Depose: 0.05, LostBefore: 0.1, LostAfter: 0.1, Late: 0.1,
	}})
	if err != nil {
		t.Fatal(err)
	}
	accepted, unknown := map[string]bool{}, map[string]bool{}
	for i := range 300 {
		p := fmt.Sprint(i)
		result, err := l.Propose(context.Background(), []byte(p))
		told = append(told, fmt.Sprint(result, err, l.Status()))
		switch {
		case err == nil:
			accepted[p] = true
		case errors.Is(err, consensus.ErrOutcomeUnknown):
			unknown[p] = true
		case !errors.Is(err, consensus.ErrNotLeader):
			t.Fatal(err)
		}
		if i%50 == 49 { // the machine kept nothing
			m = new(consensustest.Ledger)
			if err := l.Crash(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	seen := map[string]int{}
	for _, p := range m.Payloads() {
		seen[string(p)]++
	}
	committed := 0
	for i := range 300 {
		p := fmt.Sprint(i)
		if n := seen[p]; n > 1 || accepted[p] && n != 1 || !accepted[p] && !unknown[p] && n != 0 {
			t.Errorf("seed %d: %s: accepted %v, unknown %v, applied %d times", seed, p, accepted[p], unknown[p], n)
		}
		if unknown[p] && seen[p] == 1 {
			committed++
		}
	}
	if committed == 0 || committed == len(unknown) || len(accepted) == 300 {
		t.Errorf("seed %d is too tame: %d unknown, %d of them committed", seed, len(unknown), committed)
	}
	return told, m.Payloads()
}

func TestFaultsAreDeterministicAndSafe(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		told1, applied1 := history(t, seed)
		told2, applied2 := history(t, seed)
		if fmt.Sprint(told1) != fmt.Sprint(told2) || fmt.Sprint(applied1) != fmt.Sprint(applied2) {
			t.Fatalf("seed %d: two runs differ", seed)
		}
	}
}

func TestDeposeAndElect(t *testing.T) {
	t.Parallel()
	l, err := locallog.Open(new(locallog.Disk), new(consensustest.Ledger), locallog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	<-l.Changes()
	before := l.Status()
	l.Depose()
	<-l.Changes()
	if _, err := l.Propose(context.Background(), []byte("x")); !errors.Is(err, consensus.ErrNotLeader) {
		t.Fatalf("got %v, want ErrNotLeader", err)
	}
	l.Elect()
	<-l.Changes()
	if now := l.Status(); now.Role != consensus.Leader || now.Term <= before.Term {
		t.Fatalf("elected again: %+v, before %+v", now, before)
	}
	if _, err := l.Propose(context.Background(), []byte("x")); err != nil {
		t.Fatal(err)
	}
}

func TestMachineAheadIsRefused(t *testing.T) {
	t.Parallel()
	m := new(consensustest.Ledger)
	l, err := locallog.Open(new(locallog.Disk), m, locallog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Propose(context.Background(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := locallog.Open(new(locallog.Disk), m, locallog.Options{}); !errors.Is(err, locallog.ErrDiverged) {
		t.Fatalf("got %v, want ErrDiverged", err)
	}
}
