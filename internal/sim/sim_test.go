package sim

import (
	"flag"
	"fmt"
	"strings"
	"testing"
)

var (
	seedFlag  = flag.Uint64("sim.seed", 1, "first seed")
	seedsFlag = flag.Uint64("sim.seeds", 30, "how many seeds to play")
)

// TestSeeds plays a set of seeds. It fails when an oracle does not hold, and
// when the whole set saw too little for its silence to mean anything.
//
//	go test ./internal/sim -run TestSeeds -sim.seed=17 -sim.seeds=1 -v
func TestSeeds(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	steps := 0
	for seed := *seedFlag; seed < *seedFlag+*seedsFlag; seed++ {
		r := Run(seed, Draw(seed))
		if r.Err != nil {
			t.Fatal(failure(r))
		}
		for what, n := range r.Seen {
			seen[what] += n
		}
		steps += r.Steps
	}
	t.Logf("%d seeds, %d events", *seedsFlag, steps)
	for _, what := range Sights() {
		t.Logf("%6d %s", seen[what], what)
		if seen[what] == 0 && *seedsFlag >= 10 {
			t.Errorf("never seen in %d seeds: %s", *seedsFlag, what)
		}
	}
}

// TestDeadLettersAreExact: 200 tasks, of which every tenth never ends an attempt or
// takes its worker with it, while leaders fall and regions go down. In the end
// exactly those 20 are dead letters, each with its attempts used up and none over,
// and all others are completed.
func TestDeadLettersAreExact(t *testing.T) {
	t.Parallel()
	for seed := *seedFlag; seed < *seedFlag+max(*seedsFlag/3, 1); seed++ {
		cfg := Draw(seed)
		cfg.Tasks, cfg.Poison, cfg.Workers, cfg.Slots, cfg.Abroad = 200, true, 3, 3, 0.3
		cfg.Fall, cfg.FaultEveryMs, cfg.SettleMs = max(cfg.Fall, 0.004), 2_500, 240_000
		r := Run(seed, cfg)
		if r.Err != nil {
			t.Fatal(failure(r))
		}
		if r.Dead != 20 || r.Completed != 180 {
			t.Fatalf("seed %d: %d dead letters and %d completed, want 20 and 180\n%s", seed, r.Dead, r.Completed, failure(r))
		}
		if r.Seen[SawLeaderLost] == 0 || r.Seen[SawRetry] < 40 {
			t.Errorf("seed %d: %v: too tame to mean anything", seed, r.Seen)
		}
	}
}

// TestSameSeedSameTrace: a seed that does not reproduce is worth nothing.
func TestSameSeedSameTrace(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 3; seed++ {
		one, two := Run(seed, Draw(seed)), Run(seed, Draw(seed))
		if one.Hash != two.Hash || one.Steps != two.Steps {
			t.Errorf("seed %d: traces %x and %x of %d and %d events", seed, one.Hash, two.Hash, one.Steps, two.Steps)
		}
	}
	if Run(1, Draw(1)).Hash == Run(2, Draw(1)).Hash {
		t.Error("two seeds gave one trace")
	}
}

// TestOraclesSee: leaders that break a rule are caught within a few seeds.
func TestOraclesSee(t *testing.T) {
	t.Parallel()
	for _, broken := range []Break{BreakStart, BreakAccept, BreakRebuild, BreakReport, BreakNumber} {
		t.Run(string(broken), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= 40; seed++ {
				cfg := Draw(seed)
				cfg.Break, cfg.Fall = broken, 0.05 // leaders fall at the worst moments
				if r := Run(seed, cfg); r.Err != nil {
					t.Logf("seed %d: %v", seed, r.Err)
					return
				}
			}
			t.Error("40 seeds did not see it")
		})
	}
}

func failure(r Report) string {
	return fmt.Sprintf("%v\nseed %d, %+v\nagain: go test ./internal/sim -run TestSeeds -sim.seed=%d -sim.seeds=1\nthe last %d of %d lines:\n%s",
		r.Err, r.Seed, r.Config, r.Seed, len(r.Tail), r.Lines, strings.Join(r.Tail, "\n"))
}
