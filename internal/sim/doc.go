// Package sim plays a whole mesh in one thread and virtual time: cells with the
// real state machine of scheduler/fsm on a model of the replicated log, model
// leaders that keep the safety rules at home and as a guest, workers, clients,
// and a network that delays, loses, repeats and reorders, with partitions,
// elections, crashes of workers and of whole regions.
//
// It owns the world and its oracles, and nothing of the product: what a leader
// does here is written down a second time, as small as the rules allow, so that
// a rule that does not hold shows, whoever implements it.
//
// A run is a function of its seed: the seed draws the configuration, every
// delay and every fault. The same seed gives the same trace, so a failure is
// reported as a seed and the last events before it:
//
//	go test ./internal/sim -run TestSeeds -sim.seed=17 -sim.seeds=1
//
// Oracles, at each step: a number starts at most once anywhere, it is granted
// once, a task ends once, and a result is one that a worker made in the attempt
// it is recorded for. Each second: no accepted task is lost, and counters equal
// what a scan says. After the last fault is healed: every accepted task ends,
// no lease and no guest record is left, and a server that replays the log from
// its beginning, or from a snapshot, holds the same state.
package sim
