package api

import (
	"errors"
	"slices"
	"strings"
	"testing"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
)

// Tasks of one ordering key in one Submit are accepted one after the other, and
// not beyond one that was refused; all others side by side.
func TestOneSubmitKeepsTheOrder(t *testing.T) {
	t.Parallel()
	var specs []*isobarv1.TaskSpec
	for _, key := range []string{"a", "", "b", "a", "", "a", "b"} {
		specs = append(specs, &isobarv1.TaskSpec{Function: "f", OrderingKey: key})
	}
	specs = append(specs, &isobarv1.TaskSpec{Function: "g", OrderingKey: "a"}, nil)
	specs[3].Tenant = defaultTenant // what leaves it out has it too
	got := lines(specs)
	want := [][]int{{0, 3, 5}, {1}, {2, 6}, {4}, {7}, {8}}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Fatalf("lines are %v, want %v", got, want)
	}

	errs := make([]error, len(specs))
	refuseRest(errs, got[0], 3, &scheduler.Refusal{Reason: scheduler.QueueFull, Field: "x", Message: "it is full", Unknown: true})
	if errs[0] != nil || errs[3] == nil || errs[5] == nil || errs[6] != nil {
		t.Fatalf("errors %v", errs)
	}
	behind, _ := errors.AsType[*scheduler.Refusal](errs[5])
	if behind.Reason != scheduler.QueueFull || behind.Unknown || behind.Field != "" || !strings.Contains(behind.Message, "tasks[3]") {
		t.Errorf("what is behind it is told %+v", behind)
	}
	if at, _ := errors.AsType[*scheduler.Refusal](errs[3]); !at.Unknown || at.Field != "tasks[3].x" {
		t.Errorf("it is told %+v", at)
	}
}

// An order needs one home, which its key decides, with an idempotency key or not.
func TestHomeKey(t *testing.T) {
	t.Parallel()
	spec := func(key, order string) *isobarv1.TaskSpec {
		return &isobarv1.TaskSpec{Function: "f", IdempotencyKey: key, OrderingKey: order}
	}
	if homeKey(spec("", "")) != "" || homeKey(spec("k", "")) != "k" {
		t.Error("a task without an ordering key")
	}
	if a, b := homeKey(spec("", "o")), homeKey(spec("k", "o")); a == "" || a != b || a == homeKey(spec("", "p")) {
		t.Errorf("of one ordering key: %q and %q", a, b)
	}
}
