package pool_test

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/gossip"
	"github.com/isobar-mesh/isobar/gossip/pool"
)

func TestConvergenceAndLeaderChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 20
		servers := newNetwork(t, 40*time.Millisecond).startAll(t, n, oneSide)
		took := eventually(t, "all see all", 15*time.Second, func() bool { return all(servers, n, pool.Alive) })
		t.Logf("%d members know each other after %v", n, took)

		for i := 0; i < n; i += 3 {
			publish(t, servers[i], 1, 1)
		}
		took = eventually(t, "all digests everywhere", 30*time.Second, func() bool {
			for i := 0; i < n; i += 3 {
				if !sees(servers, cellOf(i), gossip.Version{Term: 1, Sequence: 1}) {
					return false
				}
			}
			return true
		})
		t.Logf("7 digests are everywhere after %v", took)

		// Cell 0 has a new leader; the old one does not know and goes on.
		publish(t, servers[1], 2, 1)
		publish(t, servers[0], 1, 99)
		took = eventually(t, "the new leader's digest everywhere", 30*time.Second, func() bool {
			return sees(servers, cellOf(0), gossip.Version{Term: 2, Sequence: 1})
		})
		t.Logf("a new leader's digest is everywhere after %v", took)
		if _, err := servers[0].Publish(digest(servers[0], 1, 100)); !errors.Is(err, pool.ErrStale) {
			t.Errorf("the deposed leader publishes: %v", err)
		}
		pass(30 * time.Second) // several exchanges
		if !sees(servers, cellOf(0), gossip.Version{Term: 2, Sequence: 1}) {
			t.Error("the deposed leader overwrote")
		}
		for _, s := range servers {
			if r := s.Stats().Refused(); r != 0 {
				t.Errorf("%s refused %d messages: %+v", s.self.Name, r, s.Stats())
			}
		}
	})
}

// The halves are apart for so long that memberlist has forgotten the other's.
func TestPartitionAndHeal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 18
		network := newNetwork(t, 40*time.Millisecond)
		half := func(i int) int { return i / (n / 2) }
		servers := network.startAll(t, n, half)
		west, east := servers[:n/2], servers[n/2:]
		eventually(t, "all see all", 15*time.Second, func() bool { return all(servers, n, pool.Alive) })
		publish(t, west[0], 1, 1)
		publish(t, east[0], 1, 1)
		eventually(t, "both digests", 30*time.Second, func() bool {
			return sees(servers, cellOf(0), gossip.Version{Term: 1, Sequence: 1}) &&
				sees(servers, cellOf(n/2), gossip.Version{Term: 1, Sequence: 1})
		})

		network.part(true)
		took := eventually(t, "each half reports the other failed", 30*time.Second, func() bool {
			return all(servers, n/2, pool.Alive) && all(servers, n/2, pool.Failed)
		})
		t.Logf("each half reports the other after %v", took)
		publish(t, west[0], 1, 2)
		publish(t, east[0], 3, 1)
		pass(5 * time.Minute)
		if !sees(west, cellOf(n/2), gossip.Version{Term: 1, Sequence: 1}) || !sees(east, cellOf(n/2), gossip.Version{Term: 3, Sequence: 1}) {
			t.Fatal("each half has its own digests, and the other's old ones")
		}
		e, _ := west[1].View().Cell(cellOf(n / 2))
		if age := e.Age(time.Now()); age < 5*time.Minute {
			t.Errorf("the other half's digest looks %v old", age)
		}

		network.part(false)
		took = eventually(t, "one mesh again", time.Minute, func() bool {
			return all(servers, n, pool.Alive) && sees(servers, cellOf(0), gossip.Version{Term: 1, Sequence: 2}) &&
				sees(servers, cellOf(n/2), gossip.Version{Term: 3, Sequence: 1})
		})
		t.Logf("one mesh again after %v", took)
	})
}

func TestDeadRegionIsReported(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 9
		servers := newNetwork(t, 100*time.Millisecond).startAll(t, n, oneSide)
		eventually(t, "all see all", 15*time.Second, func() bool { return all(servers, n, pool.Alive) })
		pass(10 * time.Second)
		dead, left := servers[3:6], append(append([]*server(nil), servers[:3]...), servers[6:]...)
		for _, s := range dead {
			s.unplug()
		}
		took := eventually(t, "the survivors report the region", 8*time.Second, func() bool {
			return all(left, 3, pool.Failed) && all(left, 6, pool.Alive)
		})
		t.Logf("a dead region of 3 of %d is reported everywhere after %v (round trips of 200ms)", n, took)
	})
}

func TestLeaveIsNoFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		servers := newNetwork(t, 20*time.Millisecond).startAll(t, 4, oneSide)
		eventually(t, "all see all", 15*time.Second, func() bool { return all(servers, 4, pool.Alive) })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := servers[3].Leave(ctx); err != nil {
			t.Fatal(err)
		}
		if err := servers[3].Close(); err != nil {
			t.Fatal(err)
		}
		if err := servers[3].Leave(ctx); !errors.Is(err, pool.ErrClosed) {
			t.Errorf("leave after close: %v", err)
		}
		if _, err := servers[3].Publish(digest(servers[3], 1, 1)); !errors.Is(err, pool.ErrClosed) {
			t.Errorf("publish after close: %v", err)
		}
		rest := servers[:3]
		eventually(t, "it left", 5*time.Second, func() bool { return all(rest, 1, pool.Left) && all(rest, 3, pool.Alive) })
		pass(time.Minute)
		if !all(rest, 1, pool.Left) {
			t.Error("a member that left is reported otherwise later")
		}
	})
}

// A server that crashed comes back under its id with another process, and at
// another address.
func TestRestartElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network := newNetwork(t, 20*time.Millisecond)
		servers := network.startAll(t, 3, oneSide)
		eventually(t, "all see all", 15*time.Second, func() bool { return all(servers, 3, pool.Alive) })
		servers[2].unplug()
		eventually(t, "it failed", 15*time.Second, func() bool { return all(servers[:2], 1, pool.Failed) })
		if err := servers[2].Close(); err != nil {
			t.Error(err)
		}
		again := network.start(t, 2, 0, func(o *pool.Options) { o.Self.PID = 7 })
		eventually(t, "it is back", 15*time.Second, func() bool {
			for _, s := range servers[:2] {
				m := s.Members()[2]
				if m.State != pool.Alive || m.PID != 7 || m.GossipAddress != again.Address() {
					return false
				}
			}
			return true
		})
	})
}

// A member's round-trip time is what the emulated distance makes it.
func TestRoundTripTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const latency = time.Millisecond
		distance := map[string]time.Duration{"region-0": 0, "region-1": 50 * time.Millisecond, "region-2": 120 * time.Millisecond}
		far := func(self string) func(*pool.Options) {
			return func(o *pool.Options) {
				o.Delay = func(region string) time.Duration {
					if region == self {
						return 0
					}
					return max(distance[region], distance[self])
				}
			}
		}
		network := newNetwork(t, latency)
		var servers []*server
		for i := range 9 {
			servers = append(servers, network.start(t, i, 0, far(regionOf(i))))
		}
		measured := func() bool {
			for _, s := range servers {
				for i := 0; i < 9; i += 3 {
					if _, ok := s.RTT(cellOf(i)); !ok {
						return false
					}
				}
			}
			return true
		}
		took := eventually(t, "all round trips are measured", 15*time.Second, measured)
		t.Logf("all round trips are measured after %v", took)
		pass(20 * time.Second)
		for _, c := range []struct {
			from, to int
			want     time.Duration
		}{{0, 3, 100 * time.Millisecond}, {0, 6, 240 * time.Millisecond}, {3, 6, 240 * time.Millisecond}, {6, 0, 240 * time.Millisecond}, {0, 0, 0}} {
			got, ok := servers[c.from].RTT(cellOf(c.to))
			if want := c.want + 2*latency; !ok || got < want-5*time.Millisecond || got > want+5*time.Millisecond {
				t.Errorf("from %d to %d: %v, %v; want %v", c.from, c.to, got, ok, want)
			}
		}
		if _, ok := servers[0].RTT("nowhere-1"); ok {
			t.Error("an unknown cell has a round-trip time")
		}
		publish(t, servers[0], 1, 1)
		for _, s := range servers {
			s.Accept(cellOf(0), "inc-1")
		}
		eventually(t, "digests cross the distance", 30*time.Second, func() bool {
			return sees(servers, cellOf(0), gossip.Version{Term: 1, Sequence: 1})
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := servers[8].Leave(ctx); err != nil {
			t.Error(err)
		}
		if err := servers[8].Close(); err != nil {
			t.Error(err)
		}
		eventually(t, "a leave crosses the distance", 5*time.Second, func() bool { return all(servers[:8], 8, pool.Alive) })
		left := 0
		for _, s := range servers[:8] {
			left += count(s, pool.Left)
		}
		if left < 6 { // one that heard the notice before the mark says failed
			t.Errorf("%d of 8 report it as left", left)
		}
	})
}

func TestIncarnationsAreHeldUntilAccepted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		servers := newNetwork(t, 20*time.Millisecond).startAll(t, 6, oneSide)
		eventually(t, "all see all", 15*time.Second, func() bool { return all(servers, 6, pool.Alive) })
		publish(t, servers[0], 9, 9)
		eventually(t, "the digest", 30*time.Second, func() bool { return sees(servers, cellOf(0), gossip.Version{Term: 9, Sequence: 9}) })

		changes, cancel := servers[5].Subscribe()
		defer cancel()
		restored := digest(servers[0], 1, 1)
		restored.Incarnation = "inc-2"
		if _, err := servers[0].Publish(restored); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the restored cell is reported", 30*time.Second, func() bool { return len(servers[5].View().Held) == 1 })
		select {
		case <-changes:
		default:
			t.Error("no change was told")
		}
		if e, _ := servers[5].View().Cell(cellOf(0)); e.Incarnation() != "inc-1" {
			t.Errorf("%s is shown unaccepted", e.Incarnation())
		}
		servers[5].Accept(cellOf(0), "inc-2")
		e, ok := servers[5].View().Cell(cellOf(0))
		if !ok || e.Incarnation() != "inc-2" || len(servers[5].View().Held) != 0 {
			t.Errorf("after Accept: %v %v", e.Incarnation(), ok)
		}
		select {
		case <-changes:
		default:
			t.Error("Accept was not told")
		}
		// By way of an answer, not by gossip.
		if out, err := servers[5].Learn(digest(servers[3], 4, 4)); err != nil || out != gossip.Fresh {
			t.Errorf("learn: %v, %v", out, err)
		}
		eventually(t, "what one learned is spread", 30*time.Second, func() bool { return sees(servers, cellOf(3), gossip.Version{Term: 4, Sequence: 4}) })
	})
}

// A server that comes later learns all digests as it joins, with their age.
func TestLateJoinerLearnsAges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network := newNetwork(t, 20*time.Millisecond)
		servers := network.startAll(t, 3, oneSide)
		publish(t, servers[0], 1, 1)
		pass(time.Hour)
		late := network.start(t, 3, 0)
		late.Accept(cellOf(0), "inc-1")
		eventually(t, "the late server knows", 2*time.Second, func() bool { return sees([]*server{late}, cellOf(0), gossip.Version{Term: 1, Sequence: 1}) })
		e, _ := late.View().Cell(cellOf(0))
		if age := e.Age(time.Now()); age < 59*time.Minute || age > 61*time.Minute {
			t.Errorf("the digest looks %v old", age)
		}
	})
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old, next := pool.NewKey(), pool.NewKey()
		with := func(k ...string) func(*pool.Options) { return func(o *pool.Options) { o.Keys = k } }
		network := newNetwork(t, 20*time.Millisecond)
		// The middle of a rotation: one writes the new key, one still the old.
		servers := []*server{network.start(t, 0, 0, with(old, next)), network.start(t, 1, 0, with(next, old))}
		stranger := network.start(t, 2, 0, with(pool.NewKey()))
		foreign := network.start(t, 3, 0, with(old), func(o *pool.Options) { o.Mesh = "another" })
		eventually(t, "both keys are read", 15*time.Second, func() bool { return all(servers, 2, pool.Alive) })
		pass(time.Minute)
		if !all(servers, 2, pool.Alive) || !all([]*server{stranger, foreign}, 1, pool.Alive) {
			t.Error("a server with another key or of another mesh was let in")
		}
		s := servers[0].Stats()
		if s.WrongKey == 0 || s.RefusedStreams <= s.WrongKey {
			t.Errorf("not counted: %+v", s)
		}
	})
}

func TestPublishRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNetwork(t, 0).start(t, 0, 0)
		d := digest(s, 1, 1)
		d.Cell = "another-1"
		if _, err := s.Publish(d); !errors.Is(err, pool.ErrForeign) {
			t.Errorf("another cell's: %v", err)
		}
		if _, err := s.Publish(digest(s, 0, 1)); !errors.Is(err, gossip.ErrInvalid) {
			t.Errorf("invalid: %v", err)
		}
		publish(t, s, 1, 1)
		if _, err := s.Publish(digest(s, 1, 1)); !errors.Is(err, pool.ErrStale) {
			t.Errorf("again: %v", err)
		}
		big := digest(s, 1, 2)
		big.Warm = make([]uint64, 500)
		if cut, err := s.Publish(big); err != nil || cut.Warm == 0 {
			t.Errorf("large: %+v, %v", cut, err)
		}
	})
}

func TestOptions(t *testing.T) {
	t.Parallel()
	good := pool.Options{Mesh: "m", Self: selfOf(0), Keys: keys, Bind: "127.0.0.1:0"}
	for name, c := range map[string]struct {
		spoil func(*pool.Options)
		want  string
	}{
		"no key":          {func(o *pool.Options) { o.Keys = nil }, pool.ErrNoKey.Error()},
		"not base64":      {func(o *pool.Options) { o.Keys = []string{"SECRET!!"} }, "key 1 is not base64"},
		"key of 8 bytes":  {func(o *pool.Options) { o.Keys = append(o.Keys, base64.StdEncoding.EncodeToString(make([]byte, 8))) }, "key 2 has 8 bytes"},
		"no mesh":         {func(o *pool.Options) { o.Mesh = "" }, "mesh name"},
		"long mesh":       {func(o *pool.Options) { o.Mesh = strings.Repeat("m", 65) }, "mesh name"},
		"no id":           {func(o *pool.Options) { o.Self.ID = "" }, "required"},
		"no region":       {func(o *pool.Options) { o.Self.Region = "" }, "required"},
		"slash in id":     {func(o *pool.Options) { o.Self.ID = "a/b" }, "slash"},
		"bad address":     {func(o *pool.Options) { o.Self.APIAddress = "nowhere" }, "missing port"},
		"long names":      {func(o *pool.Options) { o.Self.Name, o.Self.Region = strings.Repeat("n", 250), strings.Repeat("r", 250) }, "at most 512"},
		"bind to a name":  {func(o *pool.Options) { o.Bind = "localhost:7946" }, "bind address"},
		"bind everywhere": {func(o *pool.Options) { o.Bind = "0.0.0.0:0" }, "advertised"},
		"bad advertised":  {func(o *pool.Options) { o.Advertise = "x" }, "advertised address"},
		"probe timeout":   {func(o *pool.Options) { o.Timing = pool.DevTiming(); o.Timing.ProbeTimeout = time.Second }, "probe timeout"},
		"no interval":     {func(o *pool.Options) { o.Timing = pool.Timing{ProbeInterval: time.Second} }, "above zero"},
		"no multiplier":   {func(o *pool.Options) { o.Timing = pool.DevTiming(); o.Timing.SuspicionMult = 0 }, "multipliers"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := good
			o.Keys = append([]string(nil), keys...)
			c.spoil(&o)
			p, err := pool.New(o)
			if err == nil {
				_ = p.Close()
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%v; want %q", err, c.want)
			}
		})
	}
}
