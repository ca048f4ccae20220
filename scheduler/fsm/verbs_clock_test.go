package fsm

import (
	"fmt"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// bootstrap cell= incarnation=
func (s *story) bootstrap(a args) string {
	out := s.run(&meshv1.Bootstrap{Cell: a.str("cell", ""), Incarnation: a.str("incarnation", "")})
	return out + "incarnation " + Incarnation(s.reader()) + "\n"
}

// clock [by=] [lease=] [wall=]: what the leader's clocks say from now on; each
// span is added, and may be negative. It tells the committed clocks.
func (s *story) clock(a args) string {
	s.lease += a.span("by", "0s") + a.span("lease", "0s")
	s.wall += a.span("by", "0s") + a.span("wall", "0s")
	lease, wall := ReadClocks(s.reader())
	return fmt.Sprintf("leader says lease +%s, wall %s; committed lease +%s, wall %s\n",
		span(s.lease), wallTime(s.wall), span(lease), wallTime(wall))
}

// tick [by=] [limit=] [no-expiry]: time passes on both clocks, then what is due
// happens.
func (s *story) ticked(a args) string {
	s.after(a.span("by", "0s"))
	return s.run(&meshv1.Tick{Limit: uint32(a.number("limit", "0")), ExpireLeases: !a.has("no-expiry")})
}
