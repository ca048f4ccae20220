package fsm

import (
	"fmt"
	"strings"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// redrive t1/3 [cap=]: 3 is the highest attempt granted.
func (s *story) redrive(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.Redrive{TaskId: id, Attempt: attempt, Cap: &meshv1.QueueCap{
		Count: a.number("cap", "0"), Cost: CostMessage(a.cost("cap-tokens", "cap-cost-bytes", "cap-accelerator")),
	}})
}

// slow [function=] [rate=] [reason=] [report=] [errors=] [drift=] [safety=]: rate in
// thousandths.
func (s *story) slow(a args) string {
	c := &meshv1.Slow{
		Tenant: "acme", Function: a.str("function", "resize"), RateMilli: int64(a.number("rate", "0")), Reason: a.str("reason", ""),
		ReportId: a.str("report", ""), Errors: a.number("errors", "0"), Drift: a.number("drift", "0"), Safety: a.number("safety", "0"),
	}
	res, err := s.do(c)
	if err != nil {
		return told(err) + "\n"
	}
	p := Pace(s.reader(), c.Tenant, c.Function)
	return fmt.Sprintf("%s, %d counted: %d/1000 a second since %s (%s), errors=%d drift=%d safety=%d reports=%v\n",
		res.Verdict, res.Count, p.RateMilli, wallTime(p.SinceMs), p.Reason, p.Errors, p.Drift, p.Safety, p.Reports)
}

// forget-pace [function=] [seen=]: with seen another record was looked at; what is
// kept then.
func (s *story) forgetPace(a args) string {
	c := &meshv1.ForgetPace{Tenant: "acme", Function: a.str("function", "resize")}
	c.Seen = Pace(s.reader(), c.Tenant, c.Function)
	if a.has("seen") {
		c.Seen.Errors++
	}
	out := s.run(c)
	for tenant, function := range Paced(s.reader()) {
		out += "kept: " + tenant + "/" + function + "\n"
	}
	return out
}

// pause [function=] [lane=] [reason=]
func (s *story) pause(a args) string { return s.pauseQueue(a, true) }

// resume [function=] [lane=]
func (s *story) resume(a args) string { return s.pauseQueue(a, false) }

func (s *story) pauseQueue(a args, paused bool) string {
	out := s.run(&meshv1.PauseQueue{
		Tenant: "acme", Function: a.str("function", "resize"), Lane: a.lane(), Paused: paused, Reason: a.str("reason", ""),
	})
	var b strings.Builder
	b.WriteString(out)
	for q, n := range Queues(s.reader()) {
		p := n.Pause
		if p == nil {
			continue
		}
		fmt.Fprintf(&b, "%s paused since %s (%s)\n", q, wallTime(p.SinceMs), p.Reason)
	}
	return b.String()
}

// purge before= [lane=] [limit=] [reason=]
func (s *story) purge(a args) string {
	c := &meshv1.Purge{
		Tenant: "acme", Function: "resize", Lane: a.lane(), BeforeId: a.str("before", ""), Limit: uint32(a.number("limit", "0")), Reason: a.str("reason", ""),
	}
	res, err := s.do(c)
	if err != nil {
		return told(err) + "\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d cancelled\n", res.Count)
	for _, e := range res.Effects {
		fmt.Fprintf(&b, "  → %s\n", effectLine(e))
	}
	if res.More {
		b.WriteString("more is left\n")
	}
	return b.String()
}

// letters: dead letters of each queue, with their causes and earlier deaths.
func (s *story) letters(args) string {
	var b strings.Builder
	for q, n := range Queues(s.reader()) {
		for id := range DeadLetters(s.reader(), q, "") {
			rec := s.task(id)
			fmt.Fprintf(&b, "%s cause=%s redrives=%d (%s)\n", id, Cause(rec), rec.Redrives, rec.Reason)
			for _, d := range rec.Deaths {
				fmt.Fprintf(&b, "  died %s of %s after attempt %d, redriven %s\n", wallTime(d.EndedMs), d.Cause, d.Attempt, wallTime(d.RedrivenMs))
			}
		}
		if n.Dead > 0 {
			fmt.Fprintf(&b, "%s: %d, %d bytes kept\n", q, n.Dead, n.Bytes)
		}
	}
	return orNone(&b)
}
