// Package worker is the process that runs attempts for its cell.
//
// A [Worker] keeps one Work stream to the cell's leader, offers it capacity,
// runs what is assigned in the runtimes of the attempt packages, keeps the
// leases alive in one batch and hands every result over until the cell has
// acknowledged it. A [Code] keeps modules by digest on disk, verified.
//
// It guarantees that
//
//   - an attempt number starts at most once in the life of the process;
//   - nothing runs on a lease that was not confirmed in time: an attempt is
//     killed before its lease ends, counted on the monotonic clock from when
//     the message that the cell answered was sent;
//   - a result waits in memory, over any number of streams and leaders, until
//     the cell says accepted or fenced;
//   - no payload, result or stderr is written to a log line or a span.
//
// It never chooses work, retries an attempt by itself, or trusts the cell with
// more than it offered: an assignment above what is free is refused.
//
//	w, err := worker.New(worker.Options{
//		Name:      "w1",
//		Addresses: []string{"http://127.0.0.1:7101"},
//		Capacity:  mesh.Capacity{CPUMilli: 4000, MemoryMiB: 8192},
//		Runtimes:  map[attempt.Kind]attempt.Runtime{attempt.Exec: commands},
//	})
//	if err != nil {
//		return err
//	}
//	return w.Run(ctx)
package worker
