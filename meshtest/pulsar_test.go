package meshtest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/broker/pulsar/pulsartest"
	"github.com/isobar-mesh/isobar/broker/pulsar/standalone"
	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Tasks whose payloads lie in a real Pulsar, which is killed and started again on
// its data while they are accepted and run, and so are the cell's leaders: every
// accepted task completes exactly once, with its own payload.
//
// The judge reads what the function wrote, the records of the cell's log, and
// Pulsar's own log with Pulsar's own client.
func TestKilledPulsar(t *testing.T) {
	whole(t)
	r := &pulsarRun{rng: rand.New(rand.NewPCG(*seed, 7)), accepted: map[string]string{}}
	began := time.Now()
	defer func() {
		verdict := "ok"
		if t.Failed() {
			verdict = "FAILED"
		}
		fmt.Printf("pulsar seed=%d tasks=%d completed=%d pulsar_kills=%d leader_kills=%d refused=%d max_attempt=%d messages=%d orphans=%d seconds=%.1f %s\n",
			*seed, len(r.accepted), r.completed, r.brokerKills, r.leaderKills, r.refused.Load(), r.maxAttempt, r.messages, r.orphans, time.Since(began).Seconds(), verdict)
	}()
	r.run(t)
}

const (
	pulsarRegion = "north"
	// backlogMost bounds what waits, so that tasks are accepted while others run.
	backlogMost = 1000
	// brokerAway is how long a killed Pulsar stays away, at least.
	brokerAway = 3 * time.Second
)

// pulsarRun is one run and what it saw.
type pulsarRun struct {
	rng    *rand.Rand
	m      *mesh
	broker *standalone.Instance

	mu       sync.Mutex
	accepted map[string]string // payload by task id
	waiting  atomic.Int64      // tasks not ended, as of the last look
	refused  atomic.Int64      // submits that were not accepted at first

	brokerKills, leaderKills int
	completed                int
	maxAttempt               uint64
	messages, orphans        int
}

func (r *pulsarRun) run(t *testing.T) {
	// Pulsar keeps what was trimmed, so that all of it can be read at the end.
	r.broker = pulsartest.Own(t, map[string]string{"defaultRetentionTimeInMinutes": "-1", "defaultRetentionSizeInMB": "-1"})
	r.m = start(t, options{
		servers: 3, workers: 2, mesh: "regions:\n  " + pulsarRegion + ": {zone: SE-SE1, jurisdictions: [eu], cpu: 4}\n",
		args: []string{"--broker", pulsarRegion + "=" + r.broker.Service + "," + r.broker.Admin},
	})
	ledger := filepath.Join(r.m.dir, "ledger")
	r.m.deploy(t, pulsarRegion, payloadLedger(ledger))
	c := r.m.client(t, pulsarRegion)

	ctx, cancel := context.WithCancel(t.Context())
	var watching, submitting sync.WaitGroup
	watching.Go(func() { r.watch(ctx) })
	for i := range 4 {
		submitting.Go(func() { r.submit(ctx, t, c, i, *pulsarTasks/4) })
	}
	r.kills(t)
	submitting.Wait()
	cancel()
	watching.Wait()
	if t.Failed() {
		return
	}
	eventually(t, 2*time.Minute+time.Duration(*pulsarTasks)*10*time.Millisecond, "end of all tasks", func(ctx context.Context) error {
		n, err := r.inFlight(ctx)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d tasks are in flight", n)
		}
		return err
	})
	r.check(t, ledger)
}

// payloadLedger is a function that appends "task attempt payload" to the file and
// answers "task attempt".
func payloadLedger(file string) *isobarv1.FunctionSpec {
	const script = `read -r payload; echo "$ISOBAR_TASK_ID $ISOBAR_ATTEMPT $payload" >>"$LEDGER"; echo "$ISOBAR_TASK_ID $ISOBAR_ATTEMPT"`
	return &isobarv1.FunctionSpec{
		Name: "ledger", Timeout: durationpb.New(30 * time.Second), Env: map[string]string{"LEDGER": file},
		Retry: &isobarv1.RetryPolicy{MaxAttempts: 50, Backoff: durationpb.New(100 * time.Millisecond), MaxBackoff: durationpb.New(2 * time.Second)},
		Variants: []*isobarv1.Variant{{
			Name: "default", Runtime: "exec", Command: []string{"sh", "-c", script}, Quality: 1,
			Resources: &isobarv1.Resources{Cpu: 0.25, MemoryMib: 16}, Run: durationpb.New(50 * time.Millisecond),
		}},
	}
}

// submit submits n tasks of one client, batch after batch, each until it is
// accepted.
func (r *pulsarRun) submit(ctx context.Context, t *testing.T, c *client.Client, who, n int) {
	for next := 0; next < n; {
		if r.waiting.Load() > backlogMost {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pollEvery):
				continue
			}
		}
		var tasks []*isobarv1.TaskSpec
		for range min(batch, n-next) {
			request := fmt.Sprintf("pulsar-%d-%d-%d", *seed, who, next)
			tasks = append(tasks, &isobarv1.TaskSpec{
				Function: "ledger", RequestId: request, Input: &isobarv1.TaskSpec_Text{Text: request + strings.Repeat(" "+request, 20)},
			})
			next++
		}
		r.waiting.Add(int64(len(tasks))) // until the next look
		if err := r.untilAccepted(ctx, c, tasks); err != nil {
			t.Errorf("submit %s and those behind it: %v", tasks[0].GetRequestId(), err)
			return
		}
	}
}

// untilAccepted repeats what was not accepted, under the same request ids.
func (r *pulsarRun) untilAccepted(ctx context.Context, c *client.Client, tasks []*isobarv1.TaskSpec) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		res, err := c.Submit(ctx, &isobarv1.SubmitRequest{Tasks: tasks})
		if err != nil {
			if e, ok := errors.AsType[*client.Error](err); !ok || e.Reason != "unavailable" && e.Reason != "outcome_unknown" && e.Reason != "not_leader" && e.Reason != "" {
				return err
			}
		}
		var again []*isobarv1.TaskSpec
		for i, spec := range tasks {
			switch item := at(res.GetResults(), i); {
			case item.GetTaskId() != "" && item.GetError() == nil:
				r.mu.Lock()
				r.accepted[item.GetTaskId()] = spec.GetText()
				r.mu.Unlock()
			default:
				err = errors.Join(err, errors.New(item.GetError().GetMessage()))
				again = append(again, spec)
			}
		}
		if tasks = again; len(tasks) == 0 {
			return nil
		}
		r.refused.Add(int64(len(tasks)))
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d tasks are not accepted: %w: %w", len(tasks), ctx.Err(), err)
		case <-time.After(time.Second):
		}
	}
}

func at(list []*isobarv1.SubmitResult, i int) *isobarv1.SubmitResult {
	if i < len(list) {
		return list[i]
	}
	return nil
}

// watch looks how many tasks have not ended.
func (r *pulsarRun) watch(ctx context.Context) {
	for {
		if n, err := r.inFlight(ctx); err == nil {
			r.waiting.Store(int64(n))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(4 * pollEvery):
		}
	}
}

// inFlight is how many tasks have not ended, by the word of who leads.
func (r *pulsarRun) inFlight(ctx context.Context) (int, error) {
	for _, s := range r.m.serversOf(pulsarRegion) {
		if samples, err := scrape(ctx, s); err == nil && samples["isobar_leading"] == 1 {
			return tasksIn(samples, ""), nil
		}
	}
	return 0, errors.New("no server leads")
}

func (r *pulsarRun) done() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.accepted) - int(r.waiting.Load())
}

// kills kills Pulsar and leaders in an order that is drawn, each when its share
// of the tasks has ended.
func (r *pulsarRun) kills(t *testing.T) {
	t.Helper()
	events := append(slices.Repeat([]bool{true}, *pulsarKills), slices.Repeat([]bool{false}, *leaderKills)...)
	r.rng.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	for i, broker := range events {
		want := (i + 1) * *pulsarTasks / (len(events) + 1)
		eventually(t, 5*time.Minute, fmt.Sprintf("end of %d tasks", want), func(context.Context) error {
			if n := r.done(); n < want {
				return fmt.Errorf("%d have ended", n)
			}
			return nil
		})
		if n := r.waiting.Load(); n == 0 {
			t.Error("nothing is in flight at a kill")
		}
		if broker {
			r.killBroker(t)
		} else {
			r.killLeader(t)
		}
	}
}

// killBroker kills Pulsar, waits until a submit has felt it, and starts it again.
func (r *pulsarRun) killBroker(t *testing.T) {
	t.Helper()
	before := r.refused.Load()
	r.broker.Kill()
	r.brokerKills++
	time.Sleep(brokerAway) // it is a crash, and no restart in one breath
	if err := r.broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("Pulsar was killed; %d submits were refused meanwhile", r.refused.Load()-before)
}

// killLeader kills the leader, and starts it again once another leads.
func (r *pulsarRun) killLeader(t *testing.T) {
	t.Helper()
	s := r.m.leader(t, pulsarRegion)
	kill(t, s.pid)
	r.leaderKills++
	next := r.m.leader(t, pulsarRegion)
	t.Logf("%s was killed; %s leads", s.id(), next.id())
	r.m.restart(t, s)
	(&killRun{m: r.m, servers: []*server{s}}).awaitCaughtUp(t)
}

func (r *pulsarRun) check(t *testing.T, ledger string) {
	t.Helper()
	ids := make([]string, 0, len(r.accepted))
	for id := range r.accepted {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if len(ids) != *pulsarTasks/4*4 {
		t.Errorf("%d tasks for %d requests", len(ids), *pulsarTasks/4*4)
	}
	// What the function did, and with which payload.
	var ran []string
	for _, line := range readLedger(t, ledger) {
		words := strings.SplitN(line, " ", 3)
		if len(words) != 3 || words[2] != r.accepted[words[0]] {
			t.Errorf("%q ran with another payload than %q", line, r.accepted[words[0]])
		}
		ran = append(ran, strings.Join(words[:2], " "))
	}
	// What the cell's log says.
	held, err := r.m.list(t.Context(), r.m.leader(t, pulsarRegion), isobarv1.TaskState_TASK_STATE_UNSPECIFIED)
	if err != nil {
		t.Fatal(err)
	}
	if len(held) != len(ids) {
		t.Errorf("the cell holds %d tasks, %d were accepted", len(held), len(ids))
	}
	tasks := r.m.get(t, ids)
	for _, task := range tasks {
		if task.GetState() == completed {
			r.completed++
		}
	}
	r.maxAttempt = highestAttempt(tasks)
	checkAudit(t, ran, tasks, ids)
	r.checkPulsar(t, ids)
}

// checkPulsar reads every message that Pulsar keeps of the tasks: each accepted
// task has its payload there. Others are orphans: their submit was not answered.
func (r *pulsarRun) checkPulsar(t *testing.T, ids []string) {
	t.Helper()
	cluster := pulsartest.Cluster{Service: r.broker.Service, Admin: r.broker.Admin}
	c, err := pulsar.NewClient(pulsar.ClientOptions{URL: cluster.Service, Logger: log.DefaultNopLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var namespaces []string
	if status := pulsartest.Admin(t.Context(), cluster, http.MethodGet, "/namespaces/isobar-default", "", &namespaces); status != http.StatusOK || len(namespaces) != 1 {
		t.Fatalf("namespaces %v, status %d; want one", namespaces, status)
	}
	var topics []string
	if status := pulsartest.Admin(t.Context(), cluster, http.MethodGet, "/persistent/"+namespaces[0], "", &topics); status != http.StatusOK || len(topics) != 1 {
		t.Fatalf("topics %v, status %d; want one", topics, status)
	}
	stored := map[string]bool{}
	reader, err := c.CreateReader(pulsar.ReaderOptions{Topic: topics[0], StartMessageID: pulsar.EarliestMessageID()})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for reader.HasNext() {
		m, err := reader.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.messages++
		task := m.Properties()["isobar-task"]
		payload, ok := r.accepted[task]
		sum := fmt.Sprintf("%x", sha256.Sum256(m.Payload()))
		switch {
		case !ok || stored[task]:
			r.orphans++
		case !bytes.Equal(m.Payload(), []byte(payload)) || m.Properties()["isobar-sha256"] != sum:
			t.Errorf("Pulsar keeps %q of %s, accepted was %q", m.Payload(), task, payload)
		default:
			stored[task] = true
		}
	}
	if len(stored) != len(ids) {
		t.Errorf("Pulsar keeps the payloads of %d of %d accepted tasks", len(stored), len(ids))
	}
}
