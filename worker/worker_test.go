package worker

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestAssignmentToCompletion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		spans := tracetest.NewSpanRecorder()
		r := newRig(t, []string{"a"}, func(o *Options) {
			o.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
			o.Capacity.GPUs = []mesh.Accelerators{{Model: "l4", Count: 2}}
			o.Functions = []string{"upper"}
		})
		st := r.start("a")
		h := st.hello
		if h.GetWorker() != "w1" || h.GetSession() != r.w.Session() || h.GetPid() == 0 || len(h.GetHeld()) != 0 {
			t.Errorf("hello = %v", h)
		}
		o := h.GetOffer()
		if o.GetCpu() != 4 || o.GetMemoryMib() != 1024 || !slices.Equal(o.GetRuntimes(), []string{"exec"}) ||
			o.GetAccelerators()[0].GetCount() != 2 || !slices.Equal(o.GetFunctions(), []string{"upper"}) {
			t.Errorf("offer = %v", o)
		}

		a := assignment("task-1", 3)
		a.Traceparent = parent
		st.assign(a)
		run := r.script.next(t)
		if run.in.TaskID != "task-1" || run.in.Attempt != 3 || string(run.in.Payload) != "secret payload" {
			t.Errorf("input = %+v", run.in)
		}
		if want := []attempt.Var{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}; !slices.Equal(run.spec.Env, want) {
			t.Errorf("env = %v, want %v", run.spec.Env, want)
		}
		if err := run.spec.Validate(); err != nil {
			t.Errorf("spec: %v", err)
		}
		if run.spec.Limits.Timeout != time.Hour || run.spec.Limits.MemoryMiB != 64 {
			t.Errorf("limits = %+v", run.spec.Limits)
		}
		run.finish <- attempt.Outcome{Status: attempt.Done, Result: []byte("secret result"), StderrTail: []byte("secret stderr"), Cold: time.Second}
		m := st.next(t)
		c := m.GetComplete()
		if c.GetLease().GetTaskId() != "task-1" || c.GetLease().GetAttempt() != 3 || c.GetSession() != h.GetSession() ||
			string(c.GetOutcome().GetResult()) != "secret result" || c.GetOutcome().GetStatus() != "done" || !c.GetOutcome().GetCold() {
			t.Errorf("complete = %v", c)
		}
		st.verdict(m, "accepted")
		<-time.After(time.Minute)
		st.quiet(t)
		if err := r.end(); err != nil {
			t.Fatal(err)
		}
		if s := r.w.Stats(); s.Started != 1 || s.Done != 1 || s.Garbage != 0 || s.Fenced != 0 {
			t.Errorf("stats = %+v", s)
		}
		if strings.Contains(r.log.String(), "secret") {
			t.Errorf("the log holds bytes of the task:\n%s", r.log)
		}
		if !strings.Contains(r.log.String(), "trace_id=0af7651916cd43dd8448eb211c80319c") {
			t.Errorf("the log has no trace id:\n%s", r.log)
		}
		checkSpan(t, spans, run.in.Traceparent)
	})
}

func checkSpan(t *testing.T, spans *tracetest.SpanRecorder, given string) {
	t.Helper()
	ended := spans.Ended()
	if len(ended) != 1 {
		t.Fatalf("%d spans", len(ended))
	}
	s := ended[0]
	if s.Name() != "isobar.attempt" || s.Parent().SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("span %q, parent %s", s.Name(), s.Parent().SpanID())
	}
	if want := "00-0af7651916cd43dd8448eb211c80319c-" + s.SpanContext().SpanID().String() + "-01"; given != want {
		t.Errorf("the function got traceparent %q, want %q", given, want)
	}
	attrs := map[attribute.Key]string{}
	for _, kv := range s.Attributes() {
		attrs[kv.Key] = kv.Value.String()
		if strings.Contains(kv.Value.String(), "secret") {
			t.Errorf("span attribute %s holds bytes of the task", kv.Key)
		}
	}
	for k, want := range map[attribute.Key]string{
		"isobar.task.id": "task-1", "isobar.attempt": "3", "isobar.function": "upper", "isobar.variant": "small",
		"isobar.worker": "w1", "isobar.outcome": "done", "faas.name": "upper", "faas.invocation_id": "task-1",
		"faas.coldstart": "true", "faas.trigger": "pubsub", "faas.instance": "w1",
	} {
		if attrs[k] != want {
			t.Errorf("%s = %q, want %q", k, attrs[k], want)
		}
	}
}

func TestExtendIsOneBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, nil)
		st := r.start("a")
		for i := range 3 {
			st.assign(assignment(task(i), 1))
			r.script.next(t)
		}
		synctest.Wait()
		before := len(st.extendsSoFar())
		<-time.After(10 * testEvery)
		synctest.Wait()
		got := st.extendsSoFar()[before:]
		if len(got) != 10 {
			t.Fatalf("%d extends in %v, want 10", len(got), 10*testEvery)
		}
		for _, e := range got {
			var tasks []string
			for _, ref := range e.GetLeases() {
				tasks = append(tasks, ref.GetTaskId())
			}
			if !slices.Equal(tasks, []string{"task-0", "task-1", "task-2"}) || e.GetSession() != r.w.Session() {
				t.Errorf("extend of %v", tasks)
			}
		}
		_ = r.end()
	})
}

// A leader change mid-run: attempts go on, the new leader hears of all that is
// held, and gets the result that the old one never acknowledged.
func TestLeaderChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a", "b"}, nil)
		st := r.start("a")
		st.assign(assignment("task-1", 1))
		st.assign(assignment("task-2", 2))
		one, two := r.script.next(t), r.script.next(t)
		if one.in.TaskID != "task-1" {
			one, two = two, one
		}
		two.finish <- attempt.Outcome{Status: attempt.Failed, Message: "exit code 1", ExitCode: 1}
		if m := st.next(t); m.GetFail().GetOutcome().GetStatus() != "failed" {
			t.Fatalf("got %v", m)
		}
		// The leader steps down without an answer and names its successor.
		st.end <- notLeader("http://b")
		st = r.servers["b"].stream(t)
		var held []string
		for _, ref := range st.hello.GetHeld() {
			held = append(held, ref.GetTaskId())
		}
		if !slices.Equal(held, []string{"task-1", "task-2"}) || st.hello.GetSession() != r.w.Session() {
			t.Errorf("hello at the new leader = %v", st.hello)
		}
		// It ends between the streams' hello and welcome.
		one.finish <- attempt.Outcome{Status: attempt.Done, Result: []byte("x")}
		synctest.Wait()
		st.welcome()
		m1, m2 := st.next(t), st.next(t)
		if m1.GetComplete() == nil || m2.GetFail() == nil {
			t.Errorf("after the welcome: %v, %v", m1, m2)
		}
		st.verdict(m1, "accepted")
		st.verdict(m2, "accepted")
		<-time.After(time.Minute)
		st.quiet(t)
		r.script.none(t)
		if err := r.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestResultIsRepeatedUntilAcknowledged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, nil)
		st := r.start("a")
		st.assign(assignment("task-1", 1))
		r.script.next(t).finish <- attempt.Outcome{Status: attempt.Done}
		first := st.next(t)
		second := st.next(t)
		st.end <- errors.New("crash")
		st = r.start("a")
		third := st.next(t)
		for _, m := range []*isobarv1.WorkRequest{first, second, third} {
			if m.GetComplete().GetLease().GetTaskId() != "task-1" {
				t.Errorf("got %v", m)
			}
		}
		st.verdict(third, "fenced")
		st.verdict(third, "fenced") // the answer to the repeat
		<-time.After(time.Minute)
		st.quiet(t)
		if s := r.w.Stats(); s.Fenced != 1 || s.Started != 1 || s.Garbage != 0 || s.Streams != 2 {
			t.Errorf("stats = %+v", s)
		}
		_ = r.end()
	})
}

// The cell falls silent: the attempt is over before the last confirmed lease.
func TestUnconfirmedLeaseIsKilledBeforeItsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, nil)
		r.script.lag = time.Second
		st := r.start("a")
		st.assign(assignment("task-1", 1))
		run := r.script.next(t)
		<-time.After(4*testEvery + time.Second)
		st.silence()
		st.mu.Lock()
		last := st.at[len(st.at)-1]
		st.mu.Unlock()
		// The silent stream is given up; the next server does not welcome.
		again := r.servers["a"].stream(t)
		if gap := time.Since(last); gap > testLease {
			t.Errorf("gave the silent stream up after %v", gap)
		}
		<-run.killed
		if end := last.Add(testLease); !run.death.Before(end) {
			t.Errorf("died %v after its lease ended", run.death.Sub(end))
		} else if end.Sub(run.death) > 3*time.Second {
			t.Errorf("died %v before its lease ended", end.Sub(run.death))
		}
		if run.why.Reason != attempt.Lost {
			t.Errorf("killed for %q", run.why.Reason)
		}
		_ = again
		st = r.servers["a"].stream(t)
		st.welcome()
		if m := st.next(t); m.GetFail().GetOutcome().GetStatus() != "lost" {
			t.Errorf("reported %v", m)
		} else {
			st.verdict(m, "fenced")
		}
		if s := r.w.Stats(); s.LeasesLost != 1 {
			t.Errorf("stats = %+v", s)
		}
		_ = r.end()
	})
}

func TestDeniedLeaseIsKilled(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]string{"cancelled": "cancelled", "expired": "lost", "fenced": "lost", "unknown": "lost"} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, []string{"a"}, nil)
				st := r.start("a")
				st.assign(assignment("task-1", 1))
				st.assign(assignment("task-2", 1))
				one, two := r.script.next(t), r.script.next(t)
				if one.in.TaskID != "task-1" {
					one, two = two, one
				}
				st.mu.Lock()
				st.deny["task-1"] = reason
				st.mu.Unlock()
				<-one.killed
				m := st.next(t)
				if m.GetFail().GetOutcome().GetStatus() != want {
					t.Errorf("reported %v, want %s", m, want)
				}
				st.verdict(m, "fenced")
				<-time.After(time.Minute)
				select {
				case <-two.killed:
					t.Error("the confirmed lease was killed too")
				default:
				}
				_ = r.end()
			})
		})
	}
}

func TestStopKills(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, nil)
		st := r.start("a")
		st.assign(assignment("task-1", 1))
		run := r.script.next(t)
		st.stop("task-1", 2) // another number: not this one
		st.stop("task-9", 1)
		synctest.Wait()
		at := time.Now()
		st.stop("task-1", 1)
		<-run.killed
		if d := run.death.Sub(at); d > r.w.opts.KillGrace {
			t.Errorf("took %v to die", d)
		}
		m := st.next(t)
		if m.GetFail().GetOutcome().GetStatus() != "cancelled" {
			t.Errorf("reported %v", m)
		}
		st.verdict(m, "accepted")
		synctest.Wait()
		// Its capacity is free again.
		big := assignment("task-2", 1)
		big.Variant.Resources.Cpu = 4
		st.assign(big)
		r.script.next(t)
		_ = r.end()
	})
}

func TestANumberStartsAtMostOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, nil)
		st := r.start("a")
		st.assign(assignment("task-1", 2))
		run := r.script.next(t)
		st.assign(assignment("task-1", 2))
		st.assign(assignment("task-1", 1)) // an older number
		r.script.none(t)
		run.finish <- attempt.Outcome{Status: attempt.Done}
		m := st.next(t)
		st.assign(assignment("task-1", 2)) // ended, not acknowledged
		r.script.none(t)
		st.verdict(m, "accepted")
		st.assign(assignment("task-1", 2)) // acknowledged
		r.script.none(t)
		st.end <- errors.New("crash")
		st = r.start("a")
		st.assign(assignment("task-1", 2)) // another stream
		r.script.none(t)
		st.assign(assignment("task-1", 3))
		if run := r.script.next(t); run.in.Attempt != 3 {
			t.Errorf("ran attempt %d", run.in.Attempt)
		}
		if s := r.w.Stats(); s.Duplicates != 5 || s.Started != 2 {
			t.Errorf("stats = %+v", s)
		}
		_ = r.end()
	})
}
