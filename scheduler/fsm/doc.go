// Package fsm is the truth about tasks, leases and queues of one cell: a pure
// state machine over the replicated log.
//
// It owns what a committed command does to a task, and nothing else. It never
// chooses a place, never sees gossip, reads no clock and does no I/O: time
// comes with each command, as the leader's two clocks. Equal commands on equal
// states give equal states, results and effects on every server.
//
// A task's life:
//
//	(deferred) → ready → leased(holder, attempt, until) → completed | dead | cancelled | expired
//	    ↑___________ retry, lost holder, refused offer ___________|
//
// A holder is a worker's session of this cell or another cell: the same
// commands serve both. What this cell holds for another one is a guest record.
//
// Effects are hints for the leader's loop. Whatever must happen outside can be
// found again in the state (ready index, leases, ended guests), so a new leader
// rebuilds it and loses nothing.
package fsm
