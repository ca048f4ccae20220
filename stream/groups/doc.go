// Package groups is the truth about the streams of one cell and their consumer
// groups: a pure state machine over the replicated log.
//
// It owns which streams there are, who is in a group, who has which partition,
// and which messages a group was given and has acknowledged. Messages are the
// broker's; the leader reads them and tells the machine of their positions and
// keys. The machine reads no clock and does no I/O: time comes with each
// command, as the leader's two clocks. Equal commands on equal states give
// equal states and results on every server.
//
// A group's place in one partition is its cursor:
//
//	          position                     next
//	----done----|--pending--done--pending--|----not told of----
//
// What is below next and not pending is acknowledged, so the pending list is
// all there is to store: the cumulative position is its first entry, and
// acknowledged ranges are the gaps. The list is bounded; a group that leaves
// too many holes is given nothing new until it has closed some.
//
// Every delivery has a number, higher than all before it in that cursor. An
// acknowledgement names it, and counts while it is the newest of its message.
package groups
