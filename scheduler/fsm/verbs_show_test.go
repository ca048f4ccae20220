package fsm

import (
	"fmt"
	"strings"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// dump: every key of the machine, as stored, without clocks and bootstrap.
func (s *story) dump(args) string {
	keys := s.keys()
	if len(keys) == 0 {
		return "nothing\n"
	}
	return strings.Join(keys, "\n") + "\n"
}

// queues: counts of each queue, and its ready tasks in order.
func (s *story) queues(args) string {
	var b strings.Builder
	for q, n := range Queues(s.reader()) {
		fmt.Fprintf(&b, "%s ready=%d deferred=%d leased=%d bytes=%d", q, n.Ready, n.Deferred, n.Leased, n.Bytes)
		if c := CostOf(n.Cost, 0); c != (mesh.Cost{Bytes: int64(n.Bytes)}) { // more than payloads
			fmt.Fprintf(&b, " cost=%q", c)
		}
		if n.Dead > 0 {
			fmt.Fprintf(&b, " dead=%d", n.Dead)
		}
		if n.Pause != nil {
			b.WriteString(" paused")
		}
		for id := range Ready(s.reader(), q, "") {
			fmt.Fprintf(&b, " %s", id)
		}
		b.WriteByte('\n')
	}
	return orNone(&b)
}

// leases: every leased task, the first to run out first.
func (s *story) leases(args) string {
	var b strings.Builder
	for rec := range Leases(s.reader()) {
		fmt.Fprintln(&b, s.taskLine(rec))
	}
	return orNone(&b)
}

// guests: every guest record.
func (s *story) guests(args) string {
	var b strings.Builder
	for g := range Guests(s.reader()) {
		fmt.Fprintln(&b, guestLine(g))
	}
	return orNone(&b)
}

// task t1: the record with its attempts and result.
func (s *story) show(a args) string {
	rec, ok := Task(s.reader(), a.first())
	if !ok {
		return "unknown\n"
	}
	var b strings.Builder
	fmt.Fprintln(&b, s.taskLine(rec))
	for _, att := range rec.Attempts {
		fmt.Fprintf(&b, "  %d %s", att.Number, att.Outcome)
		if att.Cell != "" {
			fmt.Fprintf(&b, " at %s", att.Cell)
		}
		if att.Worker != "" {
			fmt.Fprintf(&b, " on %s", att.Worker)
		}
		if att.Counted {
			b.WriteString(" counted")
		}
		if att.Message != "" {
			fmt.Fprintf(&b, ": %s", att.Message)
		}
		b.WriteByte('\n')
	}
	if result, ok := TaskResult(s.reader(), rec.Id); ok {
		fmt.Fprintf(&b, "  result %q\n", result)
	}
	return b.String()
}

func orNone(b *strings.Builder) string {
	if b.Len() == 0 {
		return "none\n"
	}
	return b.String()
}
