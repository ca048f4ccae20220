package server

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/identity"
	"github.com/isobar-mesh/isobar/internal/loopback"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/telemetry"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// member is a whole server in this process whose calendar can be set wrong.
type member struct {
	*Server
	wrong atomic.Int64 // ns
}

func (m *member) wall() time.Time { return time.Now().Add(time.Duration(m.wrong.Load())) }

// calendar is the cell's, as this member's replica knows it.
func (m *member) calendar() time.Time {
	_, wall := fsm.ReadClocks(m.sched.State)
	return time.UnixMilli(wall)
}

// startCell runs a cell of n servers that compare their clocks often, and
// returns when all vote.
func startCell(t *testing.T, n int, every time.Duration) []*member {
	t.Helper()
	configs := cellConfigs(t, n)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, n)
	var cell []*member
	for _, cfg := range configs {
		tel, err := telemetry.New(ctx, telemetry.Options{Service: "isobar-server", Instance: cfg.Name})
		if err != nil {
			t.Fatal(err)
		}
		m := &member{}
		m.Server = &Server{cfg: cfg, log: slog.New(slog.DiscardHandler), tel: tel, clock: clockWatch{wall: m.wall, every: every}}
		if err := m.open(); err != nil {
			t.Fatal(err)
		}
		cell = append(cell, m)
		go func() {
			defer m.close()
			ended <- m.serve(ctx)
		}()
	}
	t.Cleanup(func() {
		cancel()
		for range n {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	await(t, "all to vote and one to lead", func() bool {
		servers, err := cell[0].raft.Servers()
		voters := 0
		for _, s := range servers {
			if s.Voter {
				voters++
			}
		}
		return err == nil && voters == n && leaderOf(cell) != nil
	})
	return cell
}

func leaderOf(cell []*member) *member {
	for _, m := range cell {
		if m.sched.Leading() {
			return m
		}
	}
	return nil
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	const most = 2 * time.Minute // on a machine that does much else
	for end := time.Now().Add(most); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s", most, what)
		}
	}
}

func cellConfigs(t *testing.T, n int) []config.Server {
	t.Helper()
	dir := t.TempDir()
	ca, err := identity.NewAuthority("test", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caFile, key := file("ca.pem", ca.CertPEM()), make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	ports := freePorts(t, 4*n)
	var out []config.Server
	for i := range n {
		cfg := config.DefaultServer()
		cfg.Name, cfg.Mesh, cfg.Region, cfg.Cell = fmt.Sprintf("s%d", i+1), "test", "r", "r-1"
		cfg.Data = filepath.Join(dir, cfg.Name)
		cfg.API.Address, cfg.Peer.Address, cfg.Raft.Address, cfg.Gossip.Address = ports[4*i], ports[4*i+1], ports[4*i+2], ports[4*i+3]
		cfg.Gossip.Keys = []string{base64.StdEncoding.EncodeToString(key)}
		cfg.Bootstrap = i == 0
		if i > 0 {
			cfg.Gossip.Join, cfg.Join = []string{out[0].Gossip.Address}, []string{out[0].Peer.Address}
		}
		pair, err := ca.Issue(identity.Identity{Mesh: "test", Server: cfg.Name, Cell: mesh.Cell{ID: "r-1", Region: "r"}}, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		cfg.TLS = config.TLS{CA: caFile, Cert: file(cfg.Name+".pem", pair.Cert), Key: file(cfg.Name+"-key.pem", pair.Key)}
		out = append(out, cfg)
	}
	return out
}

// freePorts finds loopback addresses nothing listens on.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	ports, err := loopback.Free(n)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, port := range ports {
		out = append(out, loopback.Address(port))
	}
	return out
}

// deploy makes the function f known.
func deploy(t *testing.T, cell []*member) {
	t.Helper()
	c, err := client.New([]string{leaderOf(cell).apiURL()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Deploy(t.Context(), &isobarv1.DeployRequest{Spec: &isobarv1.FunctionSpec{
		Name: "f", Timeout: durationpb.New(time.Second), Variants: []*isobarv1.Variant{{Name: "only", Runtime: "exec", Command: []string{"cat"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// submit hands a task to whoever leads, which stamps it with its time.
func submit(ctx context.Context, cell []*member, deadline *timestamppb.Timestamp) error {
	for _, m := range cell {
		_, err := m.sched.Submit(ctx, scheduler.Submission{Spec: &isobarv1.TaskSpec{Tenant: "default", Function: "f", Deadline: deadline}})
		if !errors.Is(err, scheduler.ErrNotLeader) {
			return err
		}
	}
	return scheduler.ErrNotLeader
}

// TestBadClockHandsOver: a leader whose calendar is far off the median of its
// cell hands leadership over; elected again, it does so before it has stamped
// anything, so that the cell's calendar stays right while tasks come in.
func TestBadClockHandsOver(t *testing.T) {
	t.Parallel()
	cell := startCell(t, 3, 500*time.Millisecond)
	deploy(t, cell)
	bad := leaderOf(cell)
	bad.wrong.Store(int64(time.Hour))
	goodLeads := func() bool { l := leaderOf(cell); return l != nil && l != bad }
	await(t, "the leader with the bad clock to hand over", goodLeads)

	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	load.Go(func() {
		for ctx.Err() == nil {
			_ = submit(ctx, cell, nil)
		}
	})
	term := electAgain(t, cell, bad)
	await(t, "another to lead after it", func() bool { l := leaderOf(cell); return l != nil && l != bad && l.raft.Status().Term > term })
	cancel()
	load.Wait()
	var err error
	await(t, "a task with five minutes to be accepted", func() bool {
		was := err
		if err = submit(t.Context(), cell, timestamppb.New(time.Now().Add(5*time.Minute))); err != nil && (was == nil || was.Error() != err.Error()) {
			t.Log(err)
		}
		return err == nil
	})
	for _, m := range cell {
		if ahead := time.Until(m.calendar()); ahead > time.Minute {
			t.Errorf("%s: the calendar of the cell is %v ahead", m.cfg.Name, ahead)
		}
	}
}

// electAgain moves leadership to the member and returns the term in which it
// was elected.
func electAgain(t *testing.T, cell []*member, wanted *member) uint64 {
	t.Helper()
	for range 30 {
		var l *member
		await(t, "another to lead", func() bool { l = leaderOf(cell); return l != nil && l != wanted })
		term := l.raft.Status().Term
		err := l.raft.Transfer(t.Context(), wanted.id)
		if err == nil {
			return term + 1
		}
		t.Log(err)
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s was not elected again", wanted.cfg.Name)
	return 0
}
