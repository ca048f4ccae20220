package attempt

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	limits := Limits{Timeout: time.Second}
	for _, test := range []struct {
		name  string
		spec  Spec
		field string // of the SpecError; "": valid
	}{
		{"wasm", Spec{Kind: Wasm, Digest: "d", Limits: limits}, ""},
		{"exec", Spec{Kind: Exec, Command: []string{"tr", "a", "b"}, Limits: limits}, ""},
		{"exec absolute", Spec{Kind: Exec, Command: []string{"/bin/tr"}, Limits: limits}, ""},
		{"http", Spec{Kind: HTTP, URL: "https://x/", Limits: limits}, ""},
		{"no runtime", Spec{Limits: limits}, "runtime"},
		{"unknown runtime", Spec{Kind: "jvm", Limits: limits}, "runtime"},
		{"no module", Spec{Kind: Wasm, Limits: limits}, "module"},
		{"no command", Spec{Kind: Exec, Limits: limits}, "command"},
		{"empty command", Spec{Kind: Exec, Command: []string{""}, Limits: limits}, "command"},
		{"relative command", Spec{Kind: Exec, Command: []string{"bin/tr"}, Limits: limits}, "command"},
		{"NUL in command", Spec{Kind: Exec, Command: []string{"tr", "\x00"}, Limits: limits}, "command"},
		{"no url", Spec{Kind: HTTP, Limits: limits}, "url"},
		{"no timeout", Spec{Kind: Wasm, Digest: "d"}, "timeout"},
		{"negative memory", Spec{Kind: Wasm, Digest: "d", Limits: Limits{Timeout: 1, MemoryMiB: -1}}, "memory_mib"},
		{"negative result", Spec{Kind: Wasm, Digest: "d", Limits: Limits{Timeout: 1, ResultBytes: -1}}, "result_bytes"},
		{"negative files", Spec{Kind: Wasm, Digest: "d", Limits: Limits{Timeout: 1, OpenFiles: -1}}, "open_files"},
		{"bad env", Spec{Kind: Wasm, Digest: "d", Limits: limits, Env: []Var{{"PATH", "/"}}}, "env"},
	} {
		err := test.spec.Validate()
		e, typed := errors.AsType[*SpecError](err)
		if test.field == "" && err != nil || test.field != "" && (!typed || e.Field != test.field) {
			t.Errorf("%s: got %v, want an error of %q", test.name, err, test.field)
		}
	}
}

func TestValidateEnv(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		env []Var
		ok  bool
	}{
		{nil, true},
		{[]Var{{"A", ""}, {"_b1", "x=y\n"}}, true},
		{[]Var{{"B", ""}, {"A", ""}}, false},
		{[]Var{{"A", ""}, {"A", "2"}}, false},
		{[]Var{{"", ""}}, false},
		{[]Var{{"1A", ""}}, false},
		{[]Var{{"A=B", ""}}, false},
		{[]Var{{"A", "\x00"}}, false},
		{[]Var{{"PATH", ""}}, false},
		{[]Var{{"TRACEPARENT", ""}}, false},
		{[]Var{{"ISOBAR_ATTEMPT", "9"}}, false},
	} {
		if err := ValidateEnv(test.env); (err == nil) != test.ok {
			t.Errorf("%q: got %v, want valid: %v", test.env, err, test.ok)
		}
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := Limits{Timeout: time.Hour}
	for _, test := range []struct {
		name            string
		deadline, until time.Time
	}{
		{"no deadline", time.Time{}, now.Add(time.Hour)},
		{"later deadline", now.Add(2 * time.Hour), now.Add(time.Hour)},
		{"earlier deadline", now.Add(time.Minute), now.Add(time.Minute)},
	} {
		ctx, until, cancel := Window(t.Context(), l, test.deadline, now)
		if !until.Equal(test.until) || ctx.Err() != nil {
			t.Errorf("%s: got until %s, %v, want %s", test.name, until, ctx.Err(), test.until)
		}
		cancel(&Kill{Lost, "lease lost"})
		if k := KillOf(ctx); k.Reason != Lost {
			t.Errorf("%s: got %+v, want lost", test.name, k)
		}
	}
	ctx, _, cancel := Window(t.Context(), l, now.Add(-time.Second), now)
	defer cancel(nil)
	if k := KillOf(ctx); k.Reason != Timeout {
		t.Errorf("past deadline: got %+v, want timeout", k)
	}
}

func TestKillOf(t *testing.T) {
	t.Parallel()
	expired, stop := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer stop()
	for _, test := range []struct {
		ctx  context.Context
		want Kill
	}{
		{expired, Kill{Timeout, "ran past its time"}},
		{cancelled(nil), Kill{Cancelled, "was cancelled"}},
		{cancelled(errors.New("no longer wanted")), Kill{Cancelled, "was cancelled: no longer wanted"}},
		{cancelled(&Kill{Memory, "too much"}), Kill{Memory, "too much"}},
	} {
		ctx, _, cancel := Window(test.ctx, Limits{Timeout: time.Hour}, time.Time{}, time.Now())
		if got := KillOf(ctx); *got != test.want {
			t.Errorf("got %+v, want %+v", *got, test.want)
		}
		cancel(nil)
	}
}

func cancelled(cause error) context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	return ctx
}

// TestTail: whatever is written in whatever pieces, its end is kept.
func TestTail(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var tail Tail
		var all []byte
		for _, n := range rapid.SliceOf(rapid.IntRange(0, 3*mesh.MaxStderrTail)).Draw(t, "writes") {
			piece := make([]byte, n)
			for i := range piece {
				piece[i] = byte(len(all) + i*7)
			}
			all = append(all, piece...)
			if got, err := tail.Write(piece); got != n || err != nil {
				t.Fatalf("got %d, %v, want %d", got, err, n)
			}
			if want := all[max(0, len(all)-mesh.MaxStderrTail):]; !bytes.Equal(tail.Bytes(), want) {
				t.Fatalf("got %d bytes, want the last %d of %d", len(tail.Bytes()), len(want), len(all))
			}
			if cap(tail.buf) > 4*mesh.MaxStderrTail {
				t.Fatalf("the tail holds %d bytes", cap(tail.buf))
			}
		}
	})
}

func TestResult(t *testing.T) {
	t.Parallel()
	var kills []*Kill
	r := NewResult(4, func(k *Kill) { kills = append(kills, k) })
	if b := r.Bytes(); b == nil || len(b) > 0 {
		t.Errorf("got %v of nothing, want empty and not nil", b)
	}
	for _, p := range []string{"ab", "cd"} {
		if n, err := r.Write([]byte(p)); n != 2 || err != nil {
			t.Fatalf("got %d, %v", n, err)
		}
	}
	if string(r.Bytes()) != "abcd" {
		t.Errorf("got %q", r.Bytes())
	}
	for range 2 {
		if n, err := r.Write([]byte("e")); n != 0 || !errors.Is(err, ErrTooLarge) {
			t.Errorf("got %d, %v, want ErrTooLarge", n, err)
		}
	}
	if r.Bytes() != nil || len(kills) != 1 || kills[0].Reason != TooLarge {
		t.Errorf("got %q and kills %v, want none and one", r.Bytes(), kills)
	}
}

func TestEnviron(t *testing.T) {
	t.Parallel()
	until := time.Date(2026, 3, 1, 12, 0, 0, 5, time.FixedZone("", 3600))
	got := Environ(Spec{Env: []Var{{"A", "1"}}}, Input{TaskID: "t", Attempt: 2}, until)
	want := []Var{{"ISOBAR_TASK_ID", "t"}, {"ISOBAR_ATTEMPT", "2"}, {"ISOBAR_DEADLINE", "2026-03-01T11:00:00.000000005Z"}, {"A", "1"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
