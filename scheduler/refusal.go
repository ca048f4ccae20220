package scheduler

import (
	"errors"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/placement"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// Reason names why something was refused. The names are part of the API
// (docs/errors.md); scheduler/api maps each to a Connect code.
type Reason string

// The reasons.
const (
	BadRequest       Reason = "bad_request"
	UnknownFunction  Reason = "unknown_function"
	UnknownTenant    Reason = "unknown_tenant"
	UnknownTask      Reason = "unknown_task"
	UnknownLane      Reason = "unknown_lane"
	UnknownRegion    Reason = "unknown_region"
	UnknownModule    Reason = "unknown_module"
	BadFunction      Reason = "bad_function"
	BadModule        Reason = "bad_module"
	PayloadTooLarge  Reason = "payload_too_large"
	ResultTooLarge   Reason = "result_too_large"
	DeadlinePast     Reason = "deadline_past"
	Infeasible       Reason = "infeasible"
	ResidencyForbids Reason = "residency"
	BrokerShared     Reason = "broker_shared"
	KeyConflict      Reason = "idempotency_key_reused"
	UnknownQueue     Reason = "unknown_queue"
	NotDead          Reason = "not_dead"
	PayloadLost      Reason = "payload_lost"
	QueueFull        Reason = "queue_full"
	DiskFull         Reason = "disk_full"
	NoRoom           Reason = "no_room"
	Paced            Reason = "paced"
	NotLeader        Reason = "not_leader"
	WrongCell        Reason = "wrong_cell"
	HomeUnavailable  Reason = "home_unavailable"
	NotHolder        Reason = "not_holder"
	OutcomeUnknown   Reason = "outcome_unknown"
	Unavailable      Reason = "unavailable"
	HomesDiffer      Reason = "homes_differ"
	TimedOut         Reason = "timed_out"
	FunctionFailed   Reason = "function_failed"
	Internal         Reason = "internal"

	UnknownStream    Reason = "unknown_stream"
	UnknownGroup     Reason = "unknown_group"
	UnknownPartition Reason = "unknown_partition"
	StreamExists     Reason = "stream_exists"
	BeforeRetention  Reason = "before_retention"
	BehindEnd        Reason = "behind_end"
	DeliveryMoved    Reason = "delivery_moved"
	TooMany          Reason = "too_many"
)

// Refusal is an error meant for whoever asked: what, why, and what to do.
type Refusal struct {
	Reason  Reason
	Field   string // of the request: "tasks[0].lane"
	Message string
	Hint    string
	TaskID  string
	// Cell and Address say where to ask instead.
	Cell    mesh.CellID
	Address string
	// RetryAfter, when not 0, is how long to wait before a repeat.
	RetryAfter time.Duration
	// Unknown: the request may have taken effect.
	Unknown bool
	Err     error
}

func (r *Refusal) Error() string {
	s := "scheduler: " + string(r.Reason) + ": " + r.Message
	if r.Err != nil {
		s += ": " + r.Err.Error()
	}
	return s
}

func (r *Refusal) Unwrap() error { return r.Err }

var errDamagedPayload = errors.New("payload does not match its hash")

func isLost(err error) bool {
	return errors.Is(err, broker.ErrLost) || errors.Is(err, broker.ErrDamaged)
}

// queueFull is the refusal of a queue at its cap; id is the task's, if it has one.
func queueFull(id string, full *fsm.QueueFullError) *Refusal {
	return &Refusal{
		Reason: QueueFull, TaskID: id, Message: full.Error(), RetryAfter: time.Second,
		Hint: "wait and try again, add workers, or raise queue." + full.By,
	}
}

// infeasible is the refusal when no place is allowed at all.
func infeasible(d *placement.Decision) *Refusal {
	r := &Refusal{Reason: Infeasible, Message: "no cell can run it", Hint: d.Hint}
	if len(d.RuledOut) > 0 {
		r.Message = "no cell can run it: " + d.RuledOut[0].Detail
	}
	return r
}
