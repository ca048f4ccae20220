// Package embedded keeps payloads in the cell's own log: nothing to install,
// and an accept costs one commit, because payload and record are one group of
// one entry.
//
// It has two halves. [Machine] is the pure state machine that every server of
// the cell runs; [Broker] is the leader's door to it, the broker.Broker of the
// seam. Prepare makes commands and stores nothing; the caller commits them in
// the group that holds the record. Reads go to the committed state.
//
// # References
//
// Prepare must name a payload before its group is committed, while many other
// groups are on their way, so the leader gives out the names by itself:
//
//	reference = term (8 bytes, big-endian) ++ counter (8 bytes, big-endian)
//
// They are unique. A term has one leader, a server that restarts leads again
// only in a later term, and one Broker never gives out a counter twice in a
// term. They grow: a later leader has a higher term, so all its references lie
// above those of the leaders before it. Lead also starts above every reference
// that the committed state has seen, so even a log that kept its term over a
// restart makes no name twice.
//
// Groups may commit in another order than their references were given out in:
// of one leader, because groups are proposed concurrently; of two, because a
// group of the old leader may be proposed again by a server that took it over
// late. This is what holds then:
//
//   - Read is in the order of references, over what is committed at that
//     moment. A message that commits later below a reader's position is not
//     seen by that reader. This loses nothing: dispatch goes by records, and
//     Fetch finds the payload of each record.
//   - The machine refuses an append at or below the topic's trimmed position
//     ([ErrTrimmed]), and with it the whole group, so no record is accepted
//     without its payload.
//   - An append of the same message under the same reference is done once; of
//     another message, it is refused ([ErrConflict]).
//
// # Limits
//
// The byte cap travels in each append command and is checked by the machine
// against its counter of live bytes, so it holds exactly however many groups
// are in flight. Prepare looks at the same counter first and refuses early.
package embedded
