package fsm

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// submit t1 [tenant=] [function=] [lane=] [request=] [key= content=] [deadline=]
// [not-before=] [max-delay=] [lifetime=] [retention=] [timeout=] [attempts=] [backoff=]
// [max-backoff=] [bytes=] [ref=] [cap=] [cap-bytes=] [order=] [relaxed] [blocks]
// [tokens=] [cost-bytes=] [accelerator=] [cap-tokens=] [cap-cost-bytes=] [cap-accelerator=]
func (s *story) submit(a args) string {
	rec := &meshv1.TaskRecord{
		Id: a.first(), Tenant: a.str("tenant", "acme"), Function: a.str("function", "resize"), Lane: a.lane(),
		RequestId: a.str("request", ""), IdempotencyKey: a.str("key", ""),
		DeadlineMs: a.moment("deadline"), NotBeforeMs: a.moment("not-before"),
		LifetimeMs: wallBase + a.span("lifetime", "168h"), RetentionMs: a.span("retention", "1h"),
		TimeoutMs: a.span("timeout", "30s"), MaxAttempts: uint32(a.number("attempts", "3")),
		BackoffMs: a.span("backoff", "1s"), MaxBackoffMs: a.span("max-backoff", "10s"),
		PayloadBytes: a.number("bytes", "0"), PayloadRef: a.ref("ref"), MaxDelayMs: a.span("max-delay", "0s"),
	}
	rec.OrderingKey, rec.OrderRelaxed, rec.OrderBlocks = a.str("order", ""), a.has("relaxed"), a.has("blocks")
	if rec.IdempotencyKey != "" {
		sum := sha256.Sum256([]byte(a.str("content", "")))
		rec.IdempotencyHash = sum[:]
	}
	rec.Cost = CostMessage(a.cost("tokens", "cost-bytes", "accelerator"))
	return s.run(&meshv1.Accept{Task: rec, Cap: &meshv1.QueueCap{
		Count: a.number("cap", "0"), Bytes: a.number("cap-bytes", "0"), Cost: CostMessage(a.cost("cap-tokens", "cap-cost-bytes", "cap-accelerator")),
	}})
}

// cost reads the amounts of those names.
func (a args) cost(tokens, bytes, accelerator string) mesh.Cost {
	return mesh.Cost{Tokens: int64(a.number(tokens, "0")), Bytes: int64(a.number(bytes, "0")), AcceleratorMiB: int64(a.number(accelerator, "0"))}
}

// cancel t1 [reason=]
func (s *story) cancel(a args) string {
	return s.run(&meshv1.Cancel{TaskId: a.first(), Reason: a.str("reason", "")})
}

// defer t1/0 until= [plans=]; without until it may start at once
func (s *story) putOff(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.Defer{TaskId: id, Attempt: attempt, Plans: uint32(a.number("plans", "0")), UntilMs: a.moment("until")})
}

// block t1/0 constraint=
func (s *story) block(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.Block{TaskId: id, Attempt: attempt, Constraint: a.str("constraint", "")})
}

// trim acme/resize/standard ref= [outside=yes]
func (s *story) trim(a args) string {
	return s.run(&meshv1.Trim{Topic: a.first(), Ref: a.ref("ref"), Outside: a.str("outside", "") == "yes"})
}

// told acme/resize/standard ref=
func (s *story) told(a args) string {
	return s.run(&meshv1.TrimTold{Topic: a.first(), Ref: a.ref("ref")})
}

// tell lists the trims that a broker outside is to be told.
func (s *story) tell(args) string {
	var out []string
	for topic, ref := range TrimsToTell(s.reader()) {
		out = append(out, fmt.Sprintf("%s to %s", topic, ref))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, "\n")
}

// moved t1 from= to=
func (s *story) moved(a args) string {
	return s.run(&meshv1.Moved{TaskId: a.first(), OldRef: a.ref("from"), NewRef: a.ref("to")})
}
