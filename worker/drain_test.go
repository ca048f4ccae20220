package worker

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

func TestDrainLetsAttemptsFinish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, nil)
		st := r.start("a")
		st.assign(assignment("task-1", 1))
		run := r.script.next(t)
		r.stop()
		// It says hello again, with nothing to offer and what it holds.
		st = r.start("a")
		if h := st.hello; h.GetOffer().GetCpu() != 0 || h.GetOffer().GetMemoryMib() != 0 || len(h.GetHeld()) != 1 {
			t.Errorf("hello = %v", h)
		}
		st.assign(assignment("task-2", 1))
		refused := st.next(t)
		if refused.GetFail().GetOutcome().GetStatus() != "refused" {
			t.Errorf("got %v", refused)
		}
		st.verdict(refused, "accepted")
		<-time.After(20 * time.Second) // leases are extended meanwhile
		run.finish <- attempt.Outcome{Status: attempt.Done}
		m := st.next(t)
		if m.GetComplete() == nil {
			t.Errorf("got %v", m)
		}
		select {
		case <-r.left:
			t.Fatal("left before its result was acknowledged")
		default:
		}
		st.verdict(m, "accepted")
		if err := <-r.left; err != nil {
			t.Error(err)
		}
		<-st.gone
	})
}

func TestDrainKillsAtItsTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, func(o *Options) { o.DrainTimeout = 10 * time.Second })
		st := r.start("a")
		st.assign(assignment("task-1", 1))
		run := r.script.next(t)
		begin := time.Now()
		r.stop()
		st = r.start("a")
		<-run.killed
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("killed after %v", d)
		}
		m := st.next(t)
		o := m.GetFail().GetOutcome()
		if o.GetStatus() != "lost" || o.GetMessage() != "the worker is stopping" {
			t.Errorf("got %v", m)
		}
		st.verdict(m, "accepted")
		if err := <-r.left; err != nil {
			t.Error(err)
		}
	})
}

// Nobody takes the result: the worker leaves all the same, in bounded time.
func TestDrainWithoutACell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, func(o *Options) { o.DrainTimeout = -1 })
		st := r.start("a")
		st.assign(assignment("task-1", 1))
		r.script.next(t)
		r.servers["a"].refuse(func() error { return errors.New("down") })
		st.end <- errors.New("crash")
		synctest.Wait()
		begin := time.Now()
		if err := r.end(); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("took %v to leave", d)
		}
	})
}

func TestIdleWorkerLeavesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, nil)
		st := r.start("a")
		begin := time.Now()
		if err := r.end(); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > time.Second {
			t.Errorf("took %v", d)
		}
		<-st.gone
		if err := r.w.Run(t.Context()); !errors.Is(err, ErrRan) {
			t.Errorf("second run: %v", err)
		}
	})
}

func TestStuckAttemptIsReported(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, func(o *Options) { o.DrainTimeout = time.Second })
		r.script.lag = time.Hour
		st := r.start("a")
		st.assign(assignment("task-1", 1))
		run := r.script.next(t)
		if err := r.end(); !errors.Is(err, ErrStuck) {
			t.Errorf("left with %v", err)
		}
		<-run.killed
	})
}

func TestRedirectsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a", "b"}, nil)
		r.servers["a"].refuse(func() error { return notLeader("http://b") })
		r.servers["b"].refuse(func() error { return notLeader("a") })
		<-time.After(30 * time.Second)
		synctest.Wait()
		n := len(r.servers["a"].streams) + len(r.servers["b"].streams)
		if n < 10 || n > 100 {
			t.Errorf("%d streams in 30 s", n)
		}
		_ = r.end()
	})
}

func TestAServerThatNamesNoUsableLeader(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "ftp://b", "http://", "::", "http://nobody"} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, []string{"a", "b"}, nil)
				r.servers["a"].refuse(func() error { return notLeader(address) })
				st := r.start("b")
				st.assign(assignment("task-1", 1))
				r.script.next(t)
				_ = r.end()
			})
		})
	}
}

// What no cell should send is dropped and counted, and changes nothing.
func TestGarbageFromTheCell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, nil)
		st := r.servers["a"].stream(t)
		ref := &isobarv1.LeaseRef{TaskId: "task-1", Attempt: 1}
		st.assign(assignment("task-0", 1)) // before the welcome
		st.out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Welcome{Welcome: &isobarv1.Welcome{}}}
		st.out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Welcome{Welcome: &isobarv1.Welcome{}}}
		synctest.Wait()
		r.script.none(t)
		st.assign(assignment("task-1", 1))
		run := r.script.next(t)
		synctest.Wait()
		for _, m := range []*isobarv1.WorkResponse{
			{},
			{Message: &isobarv1.WorkResponse_Assign{}},
			{Message: &isobarv1.WorkResponse_Assign{Assign: &isobarv1.Assignment{TaskId: "x"}}},
			{Message: &isobarv1.WorkResponse_Extended{Extended: &isobarv1.ExtendResponse{
				Results: []*isobarv1.ExtendResult{{Lease: ref, Reason: "expired"}}}}}, // no question
			{Message: &isobarv1.WorkResponse_Completed{Completed: &isobarv1.CompleteResponse{Lease: ref, Verdict: "accepted"}}},
			{Message: &isobarv1.WorkResponse_Failed{Failed: &isobarv1.FailResponse{Lease: ref}}},
		} {
			st.out <- m
		}
		// Nothing to say about what is not held.
		for _, m := range []*isobarv1.WorkResponse{
			{Message: &isobarv1.WorkResponse_Completed{}},
			{Message: &isobarv1.WorkResponse_Failed{Failed: &isobarv1.FailResponse{}}},
			{Message: &isobarv1.WorkResponse_Stop{}},
			{Message: &isobarv1.WorkResponse_Stop{Stop: &isobarv1.LeaseRef{}}},
		} {
			st.out <- m
		}
		<-time.After(time.Minute)
		synctest.Wait()
		select {
		case <-run.killed:
			t.Fatal("garbage killed an attempt")
		default:
		}
		if s := r.w.Stats(); s.Garbage != 8 || s.Streams != 1 {
			t.Errorf("stats = %+v", s)
		}
		// A message of the attempt that the wire could not carry.
		run.finish <- attempt.Outcome{Status: attempt.Failed, Message: "bad \xff utf-8"}
		m := st.next(t)
		if got := m.GetFail().GetOutcome().GetMessage(); got != "bad \uFFFD utf-8" {
			t.Errorf("message = %q", got)
		}
		st.verdict(m, "nonsense")
		<-time.After(time.Minute)
		st.quiet(t)
		_ = r.end()
	})
}
