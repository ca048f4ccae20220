package worker

import "sync/atomic"

// Stats counts what a worker has done since it was made.
type Stats struct {
	// Streams that a cell welcomed.
	Streams uint64
	// Assigned, of which Duplicates were seen before, Refused did not fit or
	// came too late, and Started ran.
	Assigned, Duplicates, Refused, Started uint64
	// Done and Failed attempts; Failed counts every end but done.
	Done, Failed uint64
	// Fenced results: another attempt or a terminal state had won.
	Fenced uint64
	// LeasesLost were not confirmed in time, or denied.
	LeasesLost uint64
	// Garbage from the cell: messages that no cell should send.
	Garbage uint64
}

type counters struct {
	streams, assigned, duplicates, refused, started atomic.Uint64
	done, failed, fenced, leasesLost, garbage       atomic.Uint64
}

// Stats returns the counts so far. It is safe for concurrent use.
func (w *Worker) Stats() Stats {
	c := &w.counts
	return Stats{
		Streams:    c.streams.Load(),
		Assigned:   c.assigned.Load(),
		Duplicates: c.duplicates.Load(),
		Refused:    c.refused.Load(),
		Started:    c.started.Load(),
		Done:       c.done.Load(),
		Failed:     c.failed.Load(),
		Fenced:     c.fenced.Load(),
		LeasesLost: c.leasesLost.Load(),
		Garbage:    c.garbage.Load(),
	}
}
