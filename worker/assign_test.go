package worker

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		change func(*isobarv1.Assignment)
		want   string
	}{
		"more CPU than free":    {func(a *isobarv1.Assignment) { a.Variant.Resources.Cpu = 3.6 }, "more than the worker has free"},
		"more memory than free": {func(a *isobarv1.Assignment) { a.Variant.Resources.MemoryMib = 1024 }, "more than the worker has free"},
		"no such accelerator":   {func(a *isobarv1.Assignment) { a.Variant.Resources.Gpus = 1 }, "more than the worker has free"},
		"no such runtime":       {func(a *isobarv1.Assignment) { a.Variant.Runtime = "wasm" }, `no "wasm" runtime`},
		"no variant":            {func(a *isobarv1.Assignment) { a.Variant = nil }, "names no variant"},
		"lease too short":       {func(a *isobarv1.Assignment) { a.Lease = durationpb.New(time.Millisecond) }, "lease had run out"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, []string{"a"}, nil)
				st := r.start("a")
				st.assign(assignment("task-0", 1)) // takes half a core
				r.script.next(t)
				<-time.After(time.Second)
				a := assignment("task-1", 1)
				c.change(a)
				st.assign(a)
				m := st.next(t)
				o := m.GetFail().GetOutcome()
				if o.GetStatus() != "refused" || !strings.Contains(o.GetMessage(), c.want) || m.GetFail().GetLease().GetTaskId() != "task-1" {
					t.Errorf("got %v, want %q", m, c.want)
				}
				st.verdict(m, "accepted")
				r.script.none(t)
				if s := r.w.Stats(); s.Refused != 1 || s.Started != 1 {
					t.Errorf("stats = %+v", s)
				}
				_ = r.end()
			})
		})
	}
}

func TestInvoke(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a", "b"}, func(o *Options) { o.Addresses = o.Addresses[:1] })
		st := r.start("a")
		a := assignment("invoke-1", 1)
		a.Invoke, a.Lease = true, nil
		st.assign(a)
		run := r.script.next(t)
		<-time.After(time.Minute) // no lease to run out
		run.finish <- attempt.Outcome{Status: attempt.Done, Result: []byte("now")}
		if m := st.next(t); m.GetInvoked().GetTaskId() != "invoke-1" || string(m.GetInvoked().GetOutcome().GetResult()) != "now" {
			t.Errorf("got %v", m)
		}
		for _, e := range st.extendsSoFar() {
			if len(e.GetLeases()) > 0 {
				t.Errorf("an invoke was extended: %v", e)
			}
		}
		// The stream is cut and comes back: the caller waits still.
		for i, end := range []bool{false, true} {
			b := assignment("invoke-2", uint64(i+1))
			b.Invoke = true
			st.assign(b)
			run = r.script.next(t)
			st.end <- errors.New("cut")
			synctest.Wait()
			if end { // in between
				run.finish <- attempt.Outcome{Status: attempt.Done, Result: []byte("later")}
			}
			st = r.start("a")
			if len(st.hello.GetHeld()) > 0 {
				t.Errorf("hello = %v", st.hello)
			}
			if !end {
				run.finish <- attempt.Outcome{Status: attempt.Done, Result: []byte("later")}
			}
			if m := st.next(t); string(m.GetInvoked().GetOutcome().GetResult()) != "later" {
				t.Errorf("got %v", m)
			}
		}
		// Another server leads: nobody waits any more.
		b := assignment("invoke-4", 1)
		b.Invoke = true
		st.assign(b)
		run = r.script.next(t)
		st.end <- notLeader("http://b")
		st = r.start("b")
		<-run.killed
		<-time.After(time.Minute)
		st.quiet(t)
		// Refused ones are answered too.
		c := assignment("invoke-3", 1)
		c.Invoke, c.Variant.Resources.Cpu = true, 100
		st.assign(c)
		if m := st.next(t); m.GetInvoked().GetOutcome().GetStatus() != "refused" {
			t.Errorf("got %v", m)
		}
		_ = r.end()
	})
}

func TestWarmSet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, []string{"a"}, nil)
		st := r.start("a")
		finish := func(i int, o attempt.Outcome, fn string) {
			a := assignment(task(i), 1)
			a.Function = fn
			st.assign(a)
			r.script.next(t).finish <- o
			synctest.Wait()
		}
		var warm [][]string
		collect := func() {
			synctest.Wait()
			for {
				select {
				case m := <-st.in:
					if m.GetWarm() != nil {
						warm = append(warm, m.GetWarm().GetVariants())
					} else {
						st.verdict(m, "accepted")
					}
				default:
					return
				}
			}
		}
		finish(1, attempt.Outcome{Status: attempt.Done}, "upper")
		finish(2, attempt.Outcome{Status: attempt.Done}, "upper")
		finish(3, attempt.Outcome{Status: attempt.Failed, Reason: attempt.BadSpec}, "never")
		finish(4, attempt.Outcome{Status: attempt.Failed, Reason: attempt.Exit}, "lower")
		collect()
		st.end <- errors.New("crash")
		st = r.start("a")
		collect()
		want := [][]string{{"upper/small"}, {"lower/small", "upper/small"}, {"lower/small", "upper/small"}}
		if !slices.EqualFunc(warm, want, slices.Equal) {
			t.Errorf("warm = %v, want %v", warm, want)
		}
		_ = r.end()
	})
}
