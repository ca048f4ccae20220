package raftlog

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/consensustest"
	"github.com/isobar-mesh/isobar/state"
)

// eachStore runs a test over both stores of state.
func eachStore(t *testing.T, test func(*testing.T, func(testing.TB, string) consensustest.Machine)) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) { t.Parallel(); test(t, memoryRecorder) })
	t.Run("pebble", func(t *testing.T) { t.Parallel(); test(t, openPebbleRecorder) })
}

func hashOf(m consensustest.Machine) [32]byte { return m.(*recorder).Hash() }

func TestLeaderKilledUnderLoad(t *testing.T) {
	eachStore(t, func(t *testing.T, machine func(testing.TB, string) consensustest.Machine) {
		c := newCluster(t, 3, machine, nil)
		old := c.leader()
		var mu sync.Mutex
		accepted, unknown := map[string]bool{}, map[string]bool{}
		var wg sync.WaitGroup
		started := make(chan struct{}, 20)
		for i := range 20 {
			wg.Go(func() {
				for j := 0; ; j++ {
					p := fmt.Sprintf("%d/%d", i, j)
					_, err := old.Log.Propose(ctxFor(t), old.m.Encode([]byte(p)))
					mu.Lock()
					accepted[p], unknown[p] = err == nil, errors.Is(err, consensus.ErrOutcomeUnknown)
					mu.Unlock()
					if j == 0 {
						started <- struct{}{}
					}
					if err != nil {
						return
					}
				}
			})
		}
		for range 20 {
			<-started
		}
		log := old.Log
		c.net.isolate(old.opts.ServerID) // a process that is gone answers nobody
		log.closeOnce.Do(func() { log.shutdown(false) })
		wg.Wait()
		old.closeMachine(t)

		next := c.leader()
		if next == old {
			t.Fatal("the dead leads")
		}
		c.propose("after")
		seen := map[string]int{}
		for _, p := range next.m.Payloads() {
			seen[string(p)]++
		}
		for p, ok := range accepted {
			if n := seen[p]; n > 1 || ok && n != 1 || !ok && !unknown[p] && n != 0 {
				t.Errorf("%s: accepted %v, unknown %v, applied %d times", p, ok, unknown[p], n)
			}
		}

		c.net.heal(old.opts.ServerID)
		c.start(old)
		c.await(old, len(next.m.Payloads()))
		if hashOf(old.m) != hashOf(next.m) {
			t.Error("the restarted server's state differs")
		}
	})
}

func TestCloseHandsLeadershipOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, memoryRecorder, func(o *Options) { o.HeartbeatTimeout = 2 * time.Second })
	old := c.leader()
	c.propose("one")
	term := old.Status().Term
	begin := time.Now()
	c.stop(old)
	next := c.leader()
	if took := time.Since(begin); took > 1900*time.Millisecond {
		t.Errorf("a leader after %v: waited for the heartbeat to time out", took)
	}
	if got := next.Status().Term; got != term+1 {
		t.Errorf("term %d, want %d", got, term+1)
	}
	for _, nd := range c.others(nil) {
		eventually(t, "knows the leader", func() bool { return nd.Status().Leader.ID == next.opts.ServerID })
	}
}

func TestTransfer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, memoryRecorder, nil)
	old := c.leader()
	if err := old.Transfer(ctxFor(t), ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another leads", func() bool { return c.leader() != old })
	if err := old.Transfer(ctxFor(t), ""); !errors.Is(err, consensus.ErrNotLeader) {
		t.Errorf("transfer by a follower: got %v, want ErrNotLeader", err)
	}
	// To each of the others in turn: the most caught up one would not do.
	for _, to := range c.others(nil) {
		l := c.leader()
		if err := l.Transfer(ctxFor(t), "nobody"); err == nil || errors.Is(err, consensus.ErrNotLeader) {
			t.Errorf("transfer to nobody: %v", err)
		}
		if l == to {
			continue
		}
		if err := l.Transfer(ctxFor(t), to.opts.ServerID); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the chosen one leads", func() bool { return c.leader() == to })
	}
}

// TestEmptyDirectoryGetsSnapshot brings a new server up by a streamed
// snapshot, since the entries it would need are gone.
func TestEmptyDirectoryGetsSnapshot(t *testing.T) {
	eachStore(t, func(t *testing.T, machine func(testing.TB, string) consensustest.Machine) {
		c := newCluster(t, 3, machine, func(o *Options) { o.TrailingBytes = 1 })
		const n = 200
		for i := range n {
			c.propose(fmt.Sprintf("%d %s", i, strings.Repeat("x", 5000)))
		}
		lost := c.others(c.leader())[0]
		c.kill(lost)
		for _, nd := range c.others(nil) { // whichever leads when it is needed
			if err := nd.Snapshot(); err != nil {
				t.Fatal(err)
			}
			if s := nd.Stats(); s.FirstIndex < 50 || s.SnapshotBytes == 0 {
				t.Fatalf("the log was not trimmed: %+v", s)
			}
		}
		if err := c.leader().Leave(ctxFor(t), lost.opts.ServerID); err != nil {
			t.Fatal(err)
		}

		fresh := c.add(false)
		c.join(fresh)
		c.awaitVoters(3)
		c.propose("after")
		c.await(fresh, n+1)
		if hashOf(fresh.m) != hashOf(c.leader().m) {
			t.Error("the new server's state differs")
		}
		if s := fresh.Stats(); s.Snapshot.Index == 0 {
			t.Errorf("no snapshot was installed: %+v", s)
		}
		promotions := uint64(0)
		for _, nd := range c.others(nil) {
			promotions += nd.Stats().Promotions
		}
		if promotions == 0 {
			t.Error("nobody counted the promotion")
		}

		// What was installed is there after a restart, and is passed on.
		c.stop(fresh)
		c.start(fresh)
		c.await(fresh, n+1)
	})
}

func TestPartitionedServerDoesNotBumpTerm(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, memoryRecorder, nil)
	leader := c.leader()
	away := c.others(leader)[0]
	c.propose("before")
	term := leader.Status().Term

	c.net.isolate(away.opts.ServerID)
	eventually(t, "the cut-off server campaigns", func() bool { return away.Status().Role == consensus.Candidate })
	for range 3 { // election timeouts
		<-time.After(2 * away.opts.HeartbeatTimeout)
	}
	if got := away.Status().Term; got != term {
		t.Errorf("cut off, the term rose from %d to %d: pre-vote is not active", term, got)
	}
	c.propose("during")
	c.net.heal(away.opts.ServerID)
	c.await(away, 2)
	if s := leader.Status(); s.Role != consensus.Leader || s.Term != term {
		t.Errorf("its return deposed the leader: %+v, term was %d", s, term)
	}
}

func TestTransportCarriesPreVote(t *testing.T) {
	t.Parallel()
	if err := requirePreVote(struct{ raft.Transport }{}); err == nil {
		t.Error("a wrapper that hides pre-vote was accepted")
	}
	if err := requirePreVote(&raft.NetworkTransport{}); err != nil {
		t.Error(err)
	}
}

// TestVerifyAndProposeWithoutMajority wants a cut-off leader to say neither
// that it leads nor that a proposal was refused.
func TestVerifyAndProposeWithoutMajority(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, memoryRecorder, nil)
	old := c.leader()
	c.net.isolate(old.opts.ServerID)
	result := make(chan error, 1)
	go func() {
		_, err := old.Propose(ctxFor(t), old.m.Encode([]byte("lost")))
		result <- err
	}()
	if err := old.Verify(ctxFor(t)); !errors.Is(err, consensus.ErrNotLeader) {
		t.Errorf("verify: got %v, want ErrNotLeader", err)
	}
	if err := <-result; !errors.Is(err, consensus.ErrOutcomeUnknown) {
		t.Errorf("propose: got %v, want ErrOutcomeUnknown", err)
	}
	eventually(t, "it steps down", func() bool { return old.Status().Role != consensus.Leader })
	if _, err := old.Propose(ctxFor(t), old.m.Encode([]byte("x"))); !errors.Is(err, consensus.ErrNotLeader) {
		t.Errorf("propose by a deposed leader: got %v, want ErrNotLeader", err)
	}
	c.net.heal(old.opts.ServerID)
	c.propose("after")
}

func TestJoinRules(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, memoryRecorder, nil)
	first := c.leader()
	joiner := c.add(false)
	if err := joiner.Join(ctxFor(t), consensus.Server{ID: "x", Address: "127.0.0.1:1"}); !errors.Is(err, consensus.ErrNotLeader) {
		t.Errorf("join at a follower: got %v, want ErrNotLeader", err)
	}
	taken := consensus.Server{ID: "x", Address: first.Address()}
	if err := first.Join(ctxFor(t), taken); !errors.Is(err, ErrAddressTaken) {
		t.Errorf("join at a member's address: got %v, want ErrAddressTaken", err)
	}
	// A server that does not answer stays a non-voter, and harms nothing.
	ghost := consensus.Server{ID: "ghost", Address: "127.0.0.1:1"}
	if err := first.Join(ctxFor(t), ghost); err != nil {
		t.Fatal(err)
	}
	c.join(joiner)
	c.join(joiner) // again, as after a restart
	c.awaitVoters(2)
	servers, err := first.Servers()
	if err != nil || len(servers) != 3 {
		t.Fatalf("members %+v, %v", servers, err)
	}
	for _, s := range servers {
		if s.Voter != (s.ID != "ghost") {
			t.Errorf("member %+v", s)
		}
	}
	if err := first.Leave(ctxFor(t), "ghost"); err != nil {
		t.Fatal(err)
	}
	if err := first.Leave(ctxFor(t), "ghost"); err != nil {
		t.Errorf("leave twice: %v", err)
	}
	c.propose("two vote")
	c.await(joiner, 1)

	// With a third, so that a majority stays, the joiner moves: it keeps its id
	// and its vote.
	c.join(c.add(false))
	c.awaitVoters(3)
	c.stop(joiner)
	joiner.opts.Bind = "127.0.0.1:0"
	c.start(joiner)
	moved := consensus.Server{ID: joiner.opts.ServerID, Address: joiner.Address()}
	eventually(t, "moved", func() bool { return c.leader().Join(ctxFor(t), moved) == nil })
	c.awaitVoters(3)
	c.propose("moved")
	c.await(joiner, 2)
}

// TestNothingIsLeftRunning is not parallel: it looks at every goroutine.
func TestNothingIsLeftRunning(t *testing.T) {
	before := goleak.IgnoreCurrent()
	c := newCluster(t, 3, memoryRecorder, nil)
	c.propose("one")
	for _, nd := range c.nodes {
		c.stop(nd)
	}
	goleak.VerifyNone(t, before)
}

func TestGarbageOnThePort(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, memoryRecorder, nil)
	nd := c.leader()
	send := func(conn net.Conn, bytes []byte) {
		t.Helper()
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(consensustest.Patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(bytes); err != nil {
			return // closed already
		}
		// Closed by the server: EOF or a reset, after perhaps a TLS alert.
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("garbage %.10q was not answered by closing", bytes)
		}
	}
	plain := func() net.Conn {
		conn, err := net.Dial("tcp", nd.Address())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	dialTLS := func(conf *tls.Config) (net.Conn, error) {
		conf.InsecureSkipVerify = true
		return tls.Dial("tcp", nd.Address(), conf)
	}
	want := uint64(0)
	counted := func(what string) {
		t.Helper()
		want++
		eventually(t, what+" is counted", func() bool { return nd.Stats().RejectedConnections == want })
	}

	send(plain(), bytes.Repeat([]byte{0xff}, 4096))
	counted("noise")
	send(plain(), []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	counted("HTTP")

	// TLS without a certificate, of another cell, of another authority.
	other := newAuthority(t)
	for what, conf := range map[string]*tls.Config{
		"no certificate":    {NextProtos: []string{alpn}},
		"another cell":      c.auth.tls("us-1"),
		"another authority": other.tls("eu-1"),
		"another protocol":  c.auth.tls("eu-1"),
	} {
		if what != "another protocol" {
			conf.NextProtos = []string{alpn}
		} else {
			conf.NextProtos = []string{"h2"}
		}
		if conn, err := dialTLS(conf); err == nil {
			send(conn, []byte{0})
		}
		counted(what)
	}

	// Of the cell, but speaking nonsense: at the first byte, and after it.
	for what, garbage := range map[string][]byte{
		"unknown exchange": bytes.Repeat([]byte{0xee}, 64),
		"broken exchange":  append([]byte{1}, bytes.Repeat([]byte{0xc1}, 4096)...),
	} {
		conf := c.auth.tls("eu-1")
		conf.NextProtos = []string{alpn}
		conn, err := dialTLS(conf)
		if err != nil {
			t.Fatal(err)
		}
		send(conn, garbage)
		counted(what)
	}
	c.propose("still here")
}

func TestDivergedDataIsRefused(t *testing.T) {
	t.Parallel()
	dir, machDir := t.TempDir(), t.TempDir()
	o := single(t, dir)
	o.Bootstrap = true
	fill := func(n int) consensus.Position {
		m := openPebbleRecorder(t, machDir).(*recorder)
		l := mustOpen(t, o, m)
		consensustest.AwaitLeader(t, l)
		for range n {
			if _, err := l.Propose(ctxFor(t), m.Encode([]byte("x"))); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(l.Close(), m.Close()); err != nil {
			t.Fatal(err)
		}
		return m.Applied()
	}
	at := fill(5)

	refused := func(what string, logPath string) {
		t.Helper()
		m := openPebbleRecorder(t, machDir).(*recorder)
		defer m.Close()
		bad := single(t, logPath)
		bad.Bootstrap = true
		l, err := Open(bad, m)
		if err == nil {
			_ = l.Close()
		}
		var detail *DivergedError
		if !errors.Is(err, ErrDiverged) || !errors.As(err, &detail) || detail.Data != at {
			t.Errorf("%s: got %v, want ErrDiverged with data at %v", what, err, at)
		}
	}
	refused("the log is gone", t.TempDir())

	// Another log, with another term at the same index.
	other := t.TempDir()
	otherOpts := single(t, other)
	otherOpts.Bootstrap = true
	for range 3 { // each start is a term
		m := newRecorder(t, state.NewMemory())
		l := mustOpen(t, otherOpts, m)
		consensustest.AwaitLeader(t, l)
		for range 4 {
			if _, err := l.Propose(ctxFor(t), m.Encode([]byte("y"))); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	refused("another log", other)

	// The other log again, as a snapshot ahead of the data: it replaces it.
	m := newRecorder(t, state.NewMemory())
	l := mustOpen(t, otherOpts, m)
	consensustest.AwaitLeader(t, l)
	if err := errors.Join(l.Snapshot(), l.Close()); err != nil {
		t.Fatal(err)
	}
	behind := openPebbleLike(t)
	l = mustOpen(t, otherOpts, behind)
	consensustest.AwaitLeader(t, l)
	if got := len(behind.Payloads()); got != 12 {
		t.Errorf("installed from the snapshot: %d payloads, want 12", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	if again := fill(1); again.Index <= at.Index {
		t.Errorf("its own log takes the data: at %v after %v", again, at)
	}
}

// openPebbleLike is an empty machine of the same kind as its log's snapshots.
func openPebbleLike(t *testing.T) *recorder { return newRecorder(t, state.NewMemory()) }

func TestSnapshotsGoByBytes(t *testing.T) {
	t.Parallel()
	o := single(t, t.TempDir())
	o.Bootstrap = true
	o.SegmentBytes = 256 << 10
	o.SnapshotBytes = 1 << 20
	o.TrailingBytes = 256 << 10
	m := newRecorder(t, state.NewMemory())
	l := mustOpen(t, o, m)
	t.Cleanup(func() { _ = l.Close() })
	consensustest.AwaitLeader(t, l)
	payload := m.Encode(bytes.Repeat([]byte{'x'}, 10<<10))
	snapshots := map[uint64]bool{}
	eventually(t, "three snapshots", func() bool {
		for range 20 {
			if _, err := l.Propose(ctxFor(t), payload); err != nil {
				t.Fatal(err)
			}
		}
		snapshots[l.Stats().Snapshot.Index] = true
		return len(snapshots) > 3 // zero is none
	})
	kept, err := os.ReadDir(filepath.Join(o.Dir, snapshotDir))
	if err != nil || len(kept) > 3 { // one may be in the making
		t.Errorf("%d snapshots kept, %v", len(kept), err)
	}
	eventually(t, "a bounded log", func() bool { return l.Stats().LogBytes < 3<<20 })
}

func TestLoadServerID(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	a, err := LoadServerID(dir)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := LoadServerID(dir); err != nil || a != b {
		t.Errorf("loaded again: %q and %v, want %q", b, err, a)
	}
	if err := os.WriteFile(filepath.Join(dir, serverIDFile), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadServerID(dir); err == nil {
		t.Error("a damaged id was taken")
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	good := single(t, t.TempDir())
	for what, change := range map[string]func(*Options){
		"no dir":              func(o *Options) { o.Dir = "" },
		"no id":               func(o *Options) { o.ServerID = "" },
		"plain and public":    func(o *Options) { o.Bind = "0.0.0.0:0" },
		"election too short":  func(o *Options) { o.ElectionTimeout = o.HeartbeatTimeout / 2 },
		"lease too long":      func(o *Options) { o.LeaderLease = 2 * o.HeartbeatTimeout },
		"too much in flight":  func(o *Options) { o.InFlight = 65 },
		"segments too small":  func(o *Options) { o.SegmentBytes = 1 },
		"heartbeat too short": func(o *Options) { o.HeartbeatTimeout = time.Millisecond },
		"nobody can dial it":  func(o *Options) { o.Bind, o.TLS = "0.0.0.0:0", new(tls.Config) },
	} {
		o := good
		change(&o)
		l, err := Open(o, new(consensustest.Ledger))
		if err == nil {
			_ = l.Close()
		}
		if !errors.Is(err, ErrOptions) {
			t.Errorf("%s: got %v, want ErrOptions", what, err)
		}
	}
}
