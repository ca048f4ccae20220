package meshtest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// A whole region is killed with work in flight: tasks homed elsewhere finish
// elsewhere, also those it held as a guest; its own are not unknown meanwhile,
// and finish after it is started again on its data.
func TestKilledRegion(t *testing.T) {
	whole(t)
	m := start(t, options{})
	ledger := filepath.Join(m.dir, "ledger")
	m.deploy(t, "us-east", ledgerSpec(t, ledger))
	l := newLoad(m, "region", *seed, 2*time.Second)
	l.submit(t, 450)
	if len(l.failures) > 0 {
		t.Fatalf("submits failed: %s", strings.Join(l.failures, "; "))
	}
	ids := l.ids()
	const lost = "eu-north"
	healths := watchHealth(t, m, "us-east", lost)
	server, worker := m.serversOf(lost)[0], m.workersOf(lost)[0]
	kill(t, server.pid)
	kill(t, worker.pid)

	var own, others []string
	for _, id := range ids {
		if homeRegion(id) == lost {
			own = append(own, id)
		} else {
			others = append(others, id)
		}
	}
	checkAway(t, m.serversOf("us-east")[0], own[0])
	eventually(t, 2*time.Minute, "end of the tasks homed elsewhere", func(ctx context.Context) error {
		for _, region := range []string{"us-east", "ap-south"} {
			samples, err := scrape(ctx, m.serversOf(region)[0])
			if err != nil {
				return err
			}
			if n := tasksIn(samples, ""); n > 0 {
				return fmt.Errorf("%d tasks of %s are in flight", n, region)
			}
		}
		return nil
	})
	if alive(server.pid) || alive(worker.pid) {
		t.Fatal("the region is alive")
	}
	tasks := m.get(t, others)

	m.restart(t, server)
	m.run(t, "worker", worker.dir)
	unfinished := 0
	eventually(t, 2*time.Minute, "end of the region's own tasks", func(ctx context.Context) error {
		samples, err := scrape(ctx, m.leader(t, lost))
		if err != nil {
			return err
		}
		n := tasksIn(samples, "")
		unfinished = max(unfinished, n)
		if n > 0 {
			return fmt.Errorf("%d are in flight", n)
		}
		return nil
	})
	if unfinished == 0 {
		t.Error("the region had no task in flight when it was killed")
	}
	eventually(t, 30*time.Second, "a watcher in us-east that saw "+lost+" go and come back", func(context.Context) error {
		if got := healths(); !slices.Contains(got, "not reachable") || got[len(got)-1] != "ok" {
			return fmt.Errorf("it was told %q", got)
		}
		return nil
	})
	maps.Copy(tasks, m.get(t, own))
	checkAudit(t, readLedger(t, ledger), tasks, ids)
	checkOrder(t, readLedger(t, ledger), tasks, l.lines)
	t.Logf("%d tasks homed elsewhere, %d of the region's own of which %d were in flight, highest attempt %d",
		len(others), len(own), unfinished, highestAttempt(tasks))
}

// watchHealth watches the mesh by the word of one region, to the end of the test;
// the function it returns says how the other's health changed so far: whether it
// was ok, or could not be reached.
func watchHealth(t *testing.T, m *mesh, by, of string) (healths func() []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var told []string
	var watching sync.WaitGroup
	c := m.client(t, by)
	watching.Go(func() {
		err := c.Watch(ctx, func(cells []*isobarv1.CellInfo) error {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range cells {
				h := c.GetHealth()
				if c.GetRegion() == of && (h == "ok" || h == "not reachable") && (len(told) == 0 || told[len(told)-1] != h) {
					told = append(told, h)
				}
			}
			return nil
		})
		if err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); watching.Wait() })
	healths = func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(told)
	}
	eventually(t, 30*time.Second, "a watcher of "+of, func(context.Context) error {
		if len(healths()) == 0 {
			return errors.New("it is told nothing")
		}
		return nil
	})
	return healths
}

// checkAway holds that a task whose home is away is unavailable, not unknown.
func checkAway(t *testing.T, at *server, id string) {
	t.Helper()
	c, err := client.New([]string{at.api()}, client.WithPatience(0))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Get(t.Context(), &isobarv1.GetRequest{TaskId: id})
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != connect.CodeUnavailable || e.Reason != "home_unavailable" {
		t.Errorf("a task of the killed region, asked for elsewhere: %v (code %v, reason %q)", err, e.Code, e.Reason)
	}
}

// A second start on the same data goes on where the first one was stopped, and
// where all of it was killed at once.
func TestSecondStart(t *testing.T) {
	whole(t)
	m := start(t, options{})
	ledger := filepath.Join(m.dir, "ledger")
	m.deploy(t, "ap-south", ledgerSpec(t, ledger))
	l := newLoad(m, "second", *seed, 3*time.Second)
	for i, end := range []func(*testing.T){m.stopDev, m.killDev} {
		l.submit(t, 150)
		end(t)
		m.startDev(t)
		// Nothing is deployed again, and what was accepted is there.
		tasks := m.get(t, l.ids())
		live := 0
		for _, task := range tasks {
			if task.GetEnded() == nil {
				live++
			}
		}
		if len(tasks) != len(l.ids()) || live == 0 {
			t.Errorf("start %d: %d of %d tasks are there, %d in flight", i+2, len(tasks), len(l.ids()), live)
		}
	}
	l.submit(t, 30)
	if len(l.failures) > 0 {
		t.Errorf("submits failed: %s", strings.Join(l.failures, "; "))
	}
	ids := l.ids()
	for _, region := range m.regions() {
		eventually(t, 2*time.Minute, "end of the tasks of "+region, func(ctx context.Context) error {
			samples, err := scrape(ctx, m.leader(t, region))
			if err != nil {
				return err
			}
			if n := tasksIn(samples, ""); n > 0 {
				return fmt.Errorf("%d are in flight", n)
			}
			return nil
		})
	}
	checkAudit(t, readLedger(t, ledger), m.get(t, ids), ids)
	if !slices.ContainsFunc(ids, func(id string) bool { return homeRegion(id) == "ap-south" }) {
		t.Error("ap-south accepted none")
	}
}
