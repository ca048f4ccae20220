// Package pulsar keeps payloads in an Apache Pulsar cluster, one cluster a
// region. The cell's log carries records only: a payload is durable when Prepare
// returns, before its record is proposed, so one whose record never came is an
// orphan and falls under a later trim.
//
// # Where things lie
//
//	isobar/CELL.INCARNATION                       a namespace without topics, the cell's mark with the epoch
//	isobar-TENANT/CELL.EPOCH/FUNCTION.LANE        a topic
//	isobar-TENANT/CELL.EPOCH/FUNCTION.LANE isobar its durable subscription
//	isobar-TENANT/CELL.EPOCH.streams/STREAM       a stream's partitioned topic, with such subscriptions
//
// The subscription has no consumer. Its cursor is the trim position: what lies
// below may be deleted by Pulsar, what lies above may not. It is made before the
// first message and moved through the admin API; the exact position, which may
// lie within a batch, is a property of the subscription.
//
// # The epoch
//
// Ledger ids start anew in another cluster, so a reference begins with the
// cluster's epoch: when this cell first wrote to it, in milliseconds. The epoch is
// a property written with the creation of the namespace isobar/CELL.INCARNATION,
// which Pulsar does once however many ask, and is part of the names of all topics.
// So a producer that was open when a cluster was replaced finds no topic in the new
// one, instead of giving out references that are below those of before; and two
// cells of one name, of different meshes or one bootstrapped anew, never share a
// topic.
//
// The namespace is the cell's mark, too. A cluster without it, or with another
// epoch, while the cell's log needs a payload from elsewhere, is not the cell's: a
// wrong URL, or an empty cluster in the place of another. Every call is refused
// then with broker.ErrReplaced, and nothing is called lost: the word "lost" is only
// spoken of what our own cluster lacks.
//
//	reference = epoch (8 bytes) ++ ledger (8) ++ entry (8) ++ batch index (4), big-endian
//
// Ledger ids grow within a cluster, also when a topic is deleted and made again,
// entries grow in a ledger and indexes in a batch: references of a topic compare
// in append order.
//
// # Streams
//
// Streams shares its topics with Pulsar's own clients, so its producers are not
// exclusive; but there is one of the cell's on a partition at a time, by its name.
// It never connects again: the client would send again what was stored already.
// Whoever opens the next one reads the partition to its end first, and so knows
// every message that a repeat could be of. Where that reading ends, following
// begins: the leader has the newest messages in memory, sums to find places by, and
// the IDs of the newest broker.DedupWindow. What its own producer sends it need not
// read back: a receipt says where an entry lies, and while entry follows entry in a
// ledger there is nobody else's between. Then the reader rests; a gap, or a newest
// message that was not heard of, wakes it.
//
// # What is not asked of Pulsar
//
// No single acknowledgements, no redelivery, no delayed delivery, no dead-letter
// policy, no deduplication, no TTL, no eviction: what they mean is the
// scheduler's, and most of it is not safe across a crash in Pulsar or its Go
// client. Policies that would drop payloads are watched, and their change is an
// alarm. Producers of payloads are shared-mode: a deposed leader may still append,
// and makes an orphan.
package pulsar
