package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func ids(f *fake) (out []string) {
	for _, s := range f.submits {
		var tasks []string
		for _, task := range s.GetTasks() {
			tasks = append(tasks, task.GetRequestId())
		}
		out = append(out, strings.Join(tasks, "+"))
	}
	return out
}

// One row a rule: what the servers answer, and whom a Submit of one task asks.
func TestSubmitRules(t *testing.T) {
	t.Parallel()
	bad := refuse(connect.CodeInvalidArgument, &isobarv1.TaskError{Reason: "unknown_lane", Outcome: NotAccepted, Field: "tasks[0].lane"})
	full := refuse(connect.CodeResourceExhausted, &isobarv1.TaskError{Reason: "queue_full", Outcome: NotAccepted, RetryAfter: durationpb.New(time.Minute)})
	cases := map[string]struct {
		known  []string
		fakes  map[string]*fake
		asked  map[string]int
		want   *Error // nil: accepted
		within time.Duration
	}{
		"accepted": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": submits(accept), "b": submits(accept)},
			asked: map[string]int{"a": 1, "b": 0},
		},
		"nobody listens at the first": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": {down: true}, "b": submits(accept)},
			asked: map[string]int{"b": 1},
		},
		"nobody listens at all": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": {down: true}, "b": {down: true}},
			want: &Error{Code: connect.CodeUnavailable}, within: time.Millisecond,
		},
		"not accepted, unavailable: elsewhere": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": submits(fail(notAccepted("no_leader"))), "b": submits(accept)},
			asked: map[string]int{"a": 1, "b": 1},
		},
		"not accepted, unavailable: again after a pause": {
			known: []string{"a"}, fakes: map[string]*fake{"a": submits(fail(notAccepted("no_leader")), fail(notAccepted("no_leader")), accept)},
			asked: map[string]int{"a": 3},
		},
		"not the leader: again, without a redirect": {
			known: []string{"a"}, fakes: map[string]*fake{"a": submits(fail(follower("b")), fail(follower("")), accept), "b": submits(accept)},
			asked: map[string]int{"a": 3, "b": 0},
		},
		"not accepted, unavailable: not for ever": {
			known: []string{"a"}, fakes: map[string]*fake{"a": submits(fail(notAccepted("no_leader")))},
			want: &Error{Reason: "no_leader", Outcome: NotAccepted}, within: defaultPatience + 2*maxPause,
		},
		"not accepted for good": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": submits(fail(bad)), "b": submits(accept)},
			asked: map[string]int{"a": 1, "b": 0}, want: &Error{Reason: "unknown_lane", Code: connect.CodeInvalidArgument}, within: time.Millisecond,
		},
		"not accepted, queue full": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": submits(fail(full)), "b": submits(accept)},
			asked: map[string]int{"a": 1, "b": 0}, want: &Error{Reason: "queue_full"}, within: time.Millisecond,
		},
		"outcome unknown: same address": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": submits(fail(unknown()), fail(unknown()), accept), "b": submits(accept)},
			asked: map[string]int{"a": 3, "b": 0},
		},
		"connection cut after the send: same address": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": submits(fail(errCut), accept), "b": submits(accept)},
			asked: map[string]int{"a": 2, "b": 0},
		},
		"outcome unknown, then unavailable": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": submits(fail(unknown()), fail(notAccepted("no_leader")), accept), "b": submits(accept)},
			asked: map[string]int{"a": 3, "b": 0},
		},
		"outcome unknown, then refused": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": submits(fail(unknown()), fail(full)), "b": submits(accept)},
			asked: map[string]int{"a": 2, "b": 0}, want: &Error{Reason: "queue_full"},
		},
		"outcome unknown until the end": {
			known: []string{"a", "b"}, fakes: map[string]*fake{"a": submits(fail(unknown())), "b": submits(accept)},
			asked: map[string]int{"b": 0}, want: &Error{Outcome: OutcomeUnknown}, within: time.Minute + time.Second,
		},
		"redirect": {
			known: []string{"a"}, fakes: map[string]*fake{"a": submits(fail(pointer("b"))), "b": submits(accept)},
			asked: map[string]int{"a": 1, "b": 1},
		},
		"redirect, once": {
			known: []string{"a"}, fakes: map[string]*fake{"a": submits(fail(pointer("b"))), "b": submits(fail(pointer("c"))), "c": submits(accept)},
			asked: map[string]int{"a": 1, "b": 1, "c": 0}, want: &Error{Reason: "residency"},
		},
		"redirect to where nobody listens": {
			known: []string{"a", "c"}, fakes: map[string]*fake{"a": submits(fail(pointer("b"))), "b": {down: true}, "c": submits(accept)},
			asked: map[string]int{"a": 1, "c": 0}, want: &Error{Code: connect.CodeUnavailable},
		},
		"redirect, then outcome unknown": {
			known: []string{"a"}, fakes: map[string]*fake{"a": submits(fail(pointer("b"))), "b": submits(fail(unknown()), accept)},
			asked: map[string]int{"a": 1, "b": 2},
		},
		"pointer to nowhere": {
			known: []string{"a"}, fakes: map[string]*fake{"a": submits(fail(pointer("ftp://x")))},
			asked: map[string]int{"a": 1}, want: &Error{Reason: "residency"},
		},
		"another number of results": {
			known: []string{"a"}, fakes: map[string]*fake{"a": submits(func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
				return &isobarv1.SubmitResponse{}, nil
			}, accept)},
			asked: map[string]int{"a": 2},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cl := newClient(t, c.known, c.fakes)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				begin := time.Now()
				req := &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{{Function: "upper"}}}
				res, err := cl.Submit(ctx, req)
				if req.Tasks[0].GetRequestId() != "" {
					t.Error("the caller's message was changed")
				}
				checkSubmit(t, res, err, c.want)
				if d := time.Since(begin); c.within > 0 && d > c.within {
					t.Errorf("took %v", d)
				}
				for name, n := range c.asked {
					if got := len(c.fakes[name].submits); got != n {
						t.Errorf("%s was asked %d times, want %d", name, got, n)
					}
				}
				var seen []string
				for _, f := range c.fakes {
					seen = append(seen, ids(f)...)
				}
				if slices.Sort(seen); len(seen) > 0 && (seen[0] == "" || seen[0] != seen[len(seen)-1]) {
					t.Errorf("request ids differ: %v", seen)
				}
			})
		})
	}
}

func checkSubmit(t *testing.T, res *isobarv1.SubmitResponse, err error, want *Error) {
	t.Helper()
	if want == nil {
		if err != nil || len(res.GetResults()) != 1 || !strings.HasPrefix(res.Results[0].GetTaskId(), "id-") {
			t.Errorf("submit: %v, %v", res, err)
		}
		return
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || !errors.Is(err, want) {
		t.Fatalf("submit: %v, want %+v", err, want)
	}
	if want.Code == connect.CodeUnavailable != errors.Is(err, ErrUnreachable) {
		t.Errorf("unreachable: %v", err)
	}
	if (want.Outcome == OutcomeUnknown) != (e.RequestID != "") {
		t.Errorf("request id %q", e.RequestID)
	}
}

func TestSubmitBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		per := func(how map[string]*isobarv1.TaskError) func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
			return func(r *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
				res, _ := accept(r)
				for i, task := range r.GetTasks() {
					if te := how[task.GetRequestId()]; te != nil {
						res.Results[i] = &isobarv1.SubmitResult{Error: te}
					}
				}
				return res, nil
			}
		}
		there := &isobarv1.TaskError{Code: "failed_precondition", Reason: "residency", Outcome: NotAccepted, Address: "http://b/"}
		a := submits(per(map[string]*isobarv1.TaskError{
			"2": {Code: "invalid_argument", Reason: "unknown_function", Field: "tasks[1].function", Outcome: NotAccepted, RetryAfter: durationpb.New(time.Second)},
			"3": {Code: "unavailable", Reason: "commit_unknown", Outcome: OutcomeUnknown},
			"4": there, "5": there,
		}), accept)
		b := submits(accept)
		var followed []Redirect
		cl := newClient(t, []string{"a"}, map[string]*fake{"a": a, "b": b}, WithRedirect(func(r Redirect) { followed = append(followed, r) }))
		res, err := cl.Submit(t.Context(), one("1", "2", "3", "4", "5"))
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"id-1", "", "id-3", "id-4", "id-5"} {
			if got := res.Results[i].GetTaskId(); got != want {
				t.Errorf("result %d = %v", i, res.Results[i])
			}
		}
		if e := res.Results[1].GetError(); e.GetReason() != "unknown_function" || e.GetCode() != "invalid_argument" ||
			e.GetField() != "tasks[1].function" || e.GetRetryAfter().AsDuration() != time.Second {
			t.Errorf("error = %v", e)
		}
		if got := ids(a); !slices.Equal(got, []string{"1+2+3+4+5", "3"}) {
			t.Errorf("a was asked %v", got)
		}
		if got := ids(b); !slices.Equal(got, []string{"4+5"}) {
			t.Errorf("b was asked %v", got)
		}
		if want := (Redirect{Op: "submit", From: "http://a", To: "http://b", Reason: "residency"}); len(followed) != 1 || followed[0] != want {
			t.Errorf("followed %+v", followed)
		}
		// All for one reason is the call's error.
		b.set(true)
		cl = newClient(t, []string{"b"}, map[string]*fake{"b": b})
		if _, err := cl.Submit(t.Context(), one("1", "2")); !errors.Is(err, ErrUnreachable) {
			t.Errorf("submit to nobody: %v", err)
		}
	})
}

// A server that hangs is left for the next one of the list.
func TestAQuestionLeavesASilentServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := &fake{hangs: true}, &fake{}
		cl := newClient(t, []string{"a", "b"}, map[string]*fake{"a": a, "b": b})
		began := time.Now()
		if _, err := cl.Get(t.Context(), &isobarv1.GetRequest{TaskId: "x"}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < readTimeout || took > readTimeout+time.Second || b.gets != 1 {
			t.Errorf("answered after %s, b was asked %d times", took, b.gets)
		}
	})
}

// What stands behind a task that may exist is asked about with it, in order, and so
// is what found its home away; what was refused for good is not.
func TestSubmitAsksAgainInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := &isobarv1.TaskError{Code: "unavailable", Reason: "home_unavailable", Outcome: NotAccepted}
		first := map[string]*isobarv1.TaskError{
			"1": {Code: "unavailable", Reason: "commit_unknown", Outcome: OutcomeUnknown}, "2": away,
			"3": {Code: "resource_exhausted", Reason: "queue_full", Outcome: NotAccepted}, "4": away,
		}
		a := submits(func(r *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
			res, _ := accept(r)
			for i, task := range r.GetTasks() {
				if te := first[task.GetRequestId()]; te != nil {
					res.Results[i] = &isobarv1.SubmitResult{Error: te}
				}
			}
			return res, nil
		}, accept)
		req := one("1", "2", "3", "4", "5")
		req.Tasks[0].OrderingKey, req.Tasks[1].OrderingKey = "k", "k"
		res, err := newClient(t, []string{"a"}, map[string]*fake{"a": a}).Submit(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"id-1", "id-2", "", "id-4", "id-5"} {
			if got := res.Results[i].GetTaskId(); got != want {
				t.Errorf("result %d = %v", i, res.Results[i])
			}
		}
		if got := ids(a); !slices.Equal(got, []string{"1+2+3+4+5", "1+2+4"}) {
			t.Errorf("asked %v", got)
		}
	})
}

// A server dies with a Submit in flight: another one of its cell is asked,
// never one of another cell.
func TestSubmitGoesOnInTheCell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a1, a2, b := submits(accept), submits(accept), submits(accept)
		a1.answers[0] = func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
			a1.down = true // its lock is held
			return nil, errCut
		}
		b.cells = &isobarv1.CellsResponse{Cells: []*isobarv1.CellInfo{
			{Cell: "b", Addresses: []string{"http://b"}},
			// Gossip has seen that a1 is down.
			{Cell: "a", Addresses: []string{"a2"}, Servers: []*isobarv1.ServerInfo{{Address: "http://a1"}, {Address: "http://a2", Alive: true}}},
		}}
		cl := newClient(t, []string{"a1", "b"}, map[string]*fake{"a1": a1, "a2": a2, "b": b})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := cl.Submit(ctx, one("x")); err != nil {
			t.Fatal(err)
		}
		if got := ids(a2); !slices.Equal(got, []string{"x"}) || len(b.submits) != 0 {
			t.Errorf("a2 was asked %v, b %v", got, ids(b))
		}
	})
}

// A server hangs with a Submit in flight: another one of its cell is asked.
func TestSubmitLeavesASilentServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a1, a2, b := submits(accept), submits(accept), submits(accept)
		a1.hangs = true
		b.cells = &isobarv1.CellsResponse{Cells: []*isobarv1.CellInfo{
			{Cell: "b", Addresses: []string{"http://b"}}, {Cell: "a", Addresses: []string{"http://a1", "http://a2"}},
		}}
		cl := newClient(t, []string{"a1", "b"}, map[string]*fake{"a1": a1, "a2": a2, "b": b})
		began := time.Now()
		if _, err := cl.Submit(t.Context(), one("x", "y")); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < submitTimeout || took > submitTimeout+2*maxPause {
			t.Errorf("accepted after %s", took)
		}
		if got := ids(a2); !slices.Equal(got, []string{"x+y"}) || len(b.submits) != 0 {
			t.Errorf("a2 was asked %v, b %v", got, ids(b))
		}
	})
}

// A server that hangs under a Wait is left for the next one.
func TestWaitLeavesASilentServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := &fake{}, &fake{}
		a.wait = func(ctx context.Context, _ *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		b.wait = func(context.Context, *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
			return &isobarv1.WaitResponse{Task: &isobarv1.Task{Id: "t"}, Ended: true}, nil
		}
		began := time.Now()
		_, ended, err := newClient(t, []string{"a", "b"}, map[string]*fake{"a": a, "b": b}).Wait(t.Context(), "t", time.Minute)
		if took := time.Since(began); err != nil || !ended || took > longestPoll+pollSlack+2*maxPause {
			t.Errorf("ended %t, %v, after %s", ended, err, took)
		}
	})
}

// A stream whose server ends it, or hangs, goes on at the next one.
func TestWatchGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := &fake{hangs: true}, &fake{}
		cl := newClient(t, []string{"a", "b"}, map[string]*fake{"a": a, "b": b})
		began := time.Now()
		var told []string
		var times []time.Duration
		enough := errors.New("enough")
		err := cl.Watch(t.Context(), func(cells []*isobarv1.CellInfo) error {
			told, times = append(told, cells[0].GetCell()), append(times, time.Since(began))
			if len(told) == 3 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) || !slices.Equal(told, []string{"a", "b", "a"}) {
			t.Fatalf("told by %v, %v", told, err)
		}
		if times[0] != 0 || times[1] < silence || times[1] > silence+maxPause || times[2] > silence+2*maxPause {
			t.Errorf("told after %v", times)
		}
	})
}

func TestReadsAreRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		count := 0
		flaky := func() error {
			if count++; count < 3 {
				return notAccepted("no_leader")
			}
			return nil
		}
		a, b := &fake{get: flaky}, &fake{get: flaky}
		cl := newClient(t, []string{"a", "b"}, map[string]*fake{"a": a, "b": b})
		res, err := cl.Get(t.Context(), &isobarv1.GetRequest{TaskId: "t"})
		if err != nil || res.GetTask().GetHome() != "a" || a.gets != 2 || b.gets != 1 {
			t.Errorf("get: %v, %v; a %d, b %d", res, err, a.gets, b.gets)
		}
		a.get = func() error {
			return refuse(connect.CodeNotFound, &isobarv1.TaskError{Reason: "unknown_task", TaskId: "t", Hint: "look again"})
		}
		_, err = cl.Get(t.Context(), &isobarv1.GetRequest{TaskId: "t"})
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != connect.CodeNotFound || e.TaskID != "t" || e.Hint != "look again" || e.Address != "http://a" || a.gets != 3 {
			t.Errorf("get: %+v, asked %d", e, a.gets)
		}
		// An answer without end of patience.
		a.get = func() error { return notAccepted("no_leader") }
		b.get = a.get
		begin := time.Now()
		if _, err = cl.Get(t.Context(), &isobarv1.GetRequest{}); !errors.Is(err, &Error{Reason: "no_leader"}) {
			t.Errorf("get: %v", err)
		}
		if d := time.Since(begin); d < defaultPatience/2 || d > defaultPatience+2*maxPause {
			t.Errorf("patience lasted %v", d)
		}
	})
}

func TestInvokeIsNotRepeatedOnceSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cases := map[string]struct {
			first error
			asked int
			ok    bool
		}{
			"cut":          {errCut, 1, false},
			"unavailable":  {connect.NewError(connect.CodeUnavailable, "who knows"), 1, false},
			"not accepted": {notAccepted("no_worker"), 2, true},
			"failed":       {refuse(connect.CodeAborted, &isobarv1.TaskError{Reason: "function_failed"}), 1, false},
		}
		for name, c := range cases {
			a := &fake{}
			a.invoke = func() error {
				if a.invokes == 1 {
					return c.first
				}
				return nil
			}
			cl := newClient(t, []string{"a"}, map[string]*fake{"a": a})
			_, err := cl.Invoke(t.Context(), &isobarv1.InvokeRequest{Function: "upper"})
			if (err == nil) != c.ok || a.invokes != c.asked {
				t.Errorf("%s: %v, asked %d", name, err, a.invokes)
			}
		}
		a, b := &fake{invoke: func() error { return pointer("b") }}, &fake{}
		cl := newClient(t, []string{"x", "a"}, map[string]*fake{"a": a, "b": b, "x": {down: true}})
		if res, err := cl.Invoke(t.Context(), &isobarv1.InvokeRequest{}); err != nil || res.GetCell() != "b" {
			t.Errorf("invoke: %v, %v", res, err)
		}
	})
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ends time.Time
		var polls []time.Duration
		a := &fake{}
		a.wait = func(ctx context.Context, r *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
			polls = append(polls, r.GetTimeout().AsDuration())
			w := min(r.GetTimeout().AsDuration(), time.Until(ends))
			if !sleep(ctx, w) {
				return nil, ctx.Err()
			}
			return &isobarv1.WaitResponse{Task: &isobarv1.Task{Id: r.GetTaskId()}, Ended: !time.Now().Before(ends)}, nil
		}
		cl := newClient(t, []string{"a"}, map[string]*fake{"a": a})
		ends = time.Now().Add(5 * longestPoll / 2)
		task, ended, err := cl.Wait(t.Context(), "t", 0)
		if err != nil || !ended || task.GetId() != "t" || len(polls) != 3 {
			t.Errorf("wait: %v %v %v, polls %v", task, ended, err, polls)
		}
		// The timeout passes first: not an error.
		ends = time.Now().Add(time.Hour)
		begin := time.Now()
		task, ended, err = cl.Wait(t.Context(), "t", 45*time.Second)
		if err != nil || ended || task.GetId() != "t" || time.Since(begin) != 45*time.Second {
			t.Errorf("wait: %v %v %v after %v", task, ended, err, time.Since(begin))
		}
		// The context ends: an error.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, _, err = cl.Wait(ctx, "t", 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait: %v", err)
		}
		// The server goes away for a while, and one that does not wait.
		ends = time.Now().Add(2 * time.Minute)
		go func() {
			<-time.After(20 * time.Second)
			a.set(true)
			<-time.After(60 * time.Second)
			a.set(false)
		}()
		if _, ended, err = cl.Wait(t.Context(), "t", 0); err != nil || !ended {
			t.Errorf("wait: %v %v", ended, err)
		}
		calls := 0
		a.wait = func(context.Context, *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
			calls++
			return &isobarv1.WaitResponse{Task: &isobarv1.Task{}}, nil
		}
		if _, ended, err = cl.Wait(t.Context(), "t", time.Minute); err != nil || ended || calls > 60 {
			t.Errorf("wait: %v %v, %d calls", ended, err, calls)
		}
		a.set(true)
		if _, _, err = cl.Wait(t.Context(), "t", time.Minute); !errors.Is(err, ErrUnreachable) {
			t.Errorf("wait at nobody: %v", err)
		}
	})
}

// One call where the task is short; a wait of its own for the rest of the timeout.
func TestSubmitAndWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		done := &isobarv1.Task{Id: "t", State: isobarv1.TaskState_TASK_STATE_COMPLETED}
		answer := func(took time.Duration, task *isobarv1.Task) func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
			return func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
				time.Sleep(took)
				return &isobarv1.SubmitResponse{Results: []*isobarv1.SubmitResult{{TaskId: "t", Task: task}}}, nil
			}
		}
		asked := func(f *fake) (waits []time.Duration) {
			for _, r := range f.submits {
				waits = append(waits, r.GetWait().AsDuration())
			}
			return waits
		}
		spec := &isobarv1.TaskSpec{Function: "upper"}

		a := submits(fail(errCut), answer(time.Second, done)) // and a lost answer before
		task, ended, err := newClient(t, []string{"a"}, map[string]*fake{"a": a}).SubmitAndWait(t.Context(), spec, 5*time.Second)
		if err != nil || !ended || task.GetId() != "t" || len(a.submits) != 2 || a.submits[0].Tasks[0].RequestId != a.submits[1].Tasks[0].RequestId {
			t.Errorf("short: %v %v %v, asked %v", task, ended, err, a.submits)
		}
		if w := asked(a); w[0] != 5*time.Second || w[1] <= 0 || w[1] >= w[0] {
			t.Errorf("waits %v", w)
		}

		a = submits(answer(longestPoll, nil))
		var polls []time.Duration
		a.wait = func(ctx context.Context, r *isobarv1.WaitRequest) (*isobarv1.WaitResponse, error) {
			polls = append(polls, r.GetTimeout().AsDuration())
			sleep(ctx, r.GetTimeout().AsDuration())
			return &isobarv1.WaitResponse{Task: &isobarv1.Task{Id: "t"}}, nil
		}
		began := time.Now()
		cl := newClient(t, []string{"a"}, map[string]*fake{"a": a})
		task, ended, err = cl.SubmitAndWait(t.Context(), spec, 15*time.Second)
		if err != nil || ended || task.GetId() != "t" || time.Since(began) != 15*time.Second || asked(a)[0] != longestPoll || !slices.Equal(polls, []time.Duration{5 * time.Second}) {
			t.Errorf("long: %v %v %v after %v, polls %v", task, ended, err, time.Since(began), polls)
		}
		// Accepted, and then nobody answers any more: which task it was is not lost.
		a.answers = []func(*isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error){func(r *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
			a.down = true // its lock is held
			return answer(0, nil)(r)
		}}
		if task, ended, err = cl.SubmitAndWait(t.Context(), spec, time.Minute); !errors.Is(err, ErrUnreachable) || ended || task.GetId() != "t" {
			t.Errorf("cut off: %v %v %v", task, ended, err)
		}
		if task, _, err = cl.SubmitAndWait(t.Context(), spec, time.Minute); !errors.Is(err, ErrUnreachable) || task != nil {
			t.Errorf("at nobody: %v %v", task, err)
		}
	})
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for _, addresses := range [][]string{nil, {"ftp://a"}, {"http://"}, {"a b"}, {"http://a", ""}} {
		if _, err := New(addresses); !errors.Is(err, ErrAddress) {
			t.Errorf("New(%q): %v", addresses, err)
		}
	}
	e := errorOf("submit", "http://a", &isobarv1.TaskError{Code: "resource_exhausted", Reason: "queue_full", Message: "the queue is full", Outcome: NotAccepted})
	var err = fmt.Errorf("wrapped: %w", e)
	for _, target := range []*Error{{Code: connect.CodeResourceExhausted}, {Reason: "queue_full"}, {Reason: "queue_full", Outcome: NotAccepted}} {
		if !errors.Is(err, target) {
			t.Errorf("is not %+v", target)
		}
	}
	for _, target := range []*Error{{}, {Reason: "x"}, {Reason: "queue_full", Code: connect.CodeNotFound}, {Outcome: OutcomeUnknown}} {
		if errors.Is(err, target) {
			t.Errorf("is %+v", target)
		}
	}
	if got := err.Error(); got != "wrapped: client: submit: the queue is full" {
		t.Errorf("reads %q", got)
	}
}
