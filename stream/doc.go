// Package stream is one server's part of its cell's streams: what publishes,
// delivers to consumer groups, acknowledges, seeks and drops.
//
// What is true is in stream/groups, behind the replicated log, and the messages
// are behind broker.Streams. What is here is one term's: who waits for what.
// A message leaves the server after its delivery was committed, and is given
// again when that delivery is not acknowledged in time, so every group gets
// every message at least once. The package knows no Raft, no Pulsar and no
// HTTP, and nothing of tasks.
package stream
