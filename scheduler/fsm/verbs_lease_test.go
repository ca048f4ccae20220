package fsm

import (
	"fmt"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// holder is cell=, or worker= with session= (s-WORKER when left out).
func (a args) holder() *meshv1.Holder {
	if c := a.str("cell", ""); c != "" {
		return &meshv1.Holder{Cell: c}
	}
	w := a.str("worker", "w1")
	return &meshv1.Holder{Worker: w, Session: a.str("session", "s-"+w), RequestId: a.str("request", "")}
}

// grant t1/1 (worker= [session=] | cell=) [ttl=] [started] [start-within=]
func (s *story) grant(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.Grant{
		TaskId: id, Attempt: attempt, Holder: a.holder(), TtlMs: a.span("ttl", "10s"), Variant: a.str("variant", ""),
		Started: a.has("started"), StartWithinMs: a.span("start-within", "0s"),
	})
}

// extend t1/1 (worker= | cell=) [ttl=] [started] [on=]
func (s *story) extend(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.Extend{Items: []*meshv1.ExtendItem{{
		TaskId: id, Attempt: attempt, Holder: a.holder(), TtlMs: a.span("ttl", "10s"),
		Started: a.has("started"), Worker: a.str("on", ""),
	}}})
}

func (a args) ended(status string) *meshv1.Ended {
	return &meshv1.Ended{
		Status: a.str("status", status), Result: a.ref("result"), Message: a.str("message", ""),
		Started: a.has("started"), RetryAfterMs: a.span("retry-after", "0s"),
	}
}

// complete t1/1 [result=]
func (s *story) complete(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.Complete{TaskId: id, Attempt: attempt, Ended: a.ended("done")})
}

// fail t1/1 [status=retry] [message=] [started] [retry-after=]
func (s *story) fail(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.Fail{TaskId: id, Attempt: attempt, Ended: a.ended("retry")})
}

// refuse t1 from= to=: attempts granted to another cell that refuses each.
func (s *story) refuse(a args) string {
	from, to := a.number("from", "1"), a.number("to", "1")
	for n := from; n <= to; n++ {
		s.must(abroad(a.first(), n, "us-east-1"))
		s.must(failure(a.first(), n, "refused"))
	}
	return fmt.Sprintf("%d offers refused\n%s\n", to-from+1, s.taskLine(s.task(a.first())))
}
