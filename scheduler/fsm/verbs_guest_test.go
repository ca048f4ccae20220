package fsm

import (
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// guest-accept t1/1 [home=] [start-within=] [timeout=]
func (s *story) guestAccept(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.GuestAccept{Guest: &meshv1.GuestRecord{
		TaskId: id, Attempt: attempt, Home: a.str("home", "us-east-1"), Tenant: "acme", Function: "resize", Lane: a.lane(),
		TimeoutMs: a.span("timeout", "30s"), StartWithinMs: a.span("start-within", "20s"),
	}})
}

// guest-start t1/1 [worker=]
func (s *story) guestStart(a args) string {
	id, attempt := a.attempt()
	w := a.str("worker", "w1")
	return s.run(&meshv1.GuestStart{TaskId: id, Attempt: attempt, Worker: w, Session: "s-" + w})
}

// guest-end t1/1 [status=done] [result=]
func (s *story) guestEnd(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.GuestEnd{TaskId: id, Attempt: attempt, Ended: a.ended("done")})
}

// guest-forget t1/1
func (s *story) guestForget(a args) string {
	id, attempt := a.attempt()
	return s.run(&meshv1.GuestForget{TaskId: id, Attempt: attempt})
}
