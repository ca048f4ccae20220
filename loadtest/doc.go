// Package loadtest makes workloads, plays them against a mesh and reports what
// came of it. It owns the shapes of arrivals and sizes, the reading of published
// traces, the open-loop driver and the report; it knows the public API's
// messages and nothing of how servers work.
//
// A workload is a list of Arrivals in order of time: generated (Generate, with
// the shapes of Conv and Code) or read from a file (ReadAzureLLM). Merge, Window
// and Sample cut it to size, Spread gives each arrival the region it comes in
// at, and Drive plays it:
//
//	conv := loadtest.Generate(1, loadtest.Conv(), 1000)
//	samples := loadtest.Drive(ctx, conv, loadtest.Pace{Speed: 10}, send)
//
// Drive is open loop: a request is sent when it is due, whether or not those
// before it were answered, and its latency counts from when it was due. So a
// stalled server shows in the latencies of all that were due meanwhile, not in
// the one request that met the stall (no coordinated omission).
//
// Everything but Drive is a pure function of its arguments: equal seeds give
// equal workloads, and equal outcomes give equal reports.
package loadtest
