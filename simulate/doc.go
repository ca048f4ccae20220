// Package simulate plays a trace of tasks over a mesh in virtual time, by
// simple policies, by the real placement code, and by an oracle that knows
// everything, and reports what each would have cost.
//
// It owns the trace's format, the energy and cost accounts of a simulated run,
// the oracle with its lower bound, and the report. It never decides for a
// running mesh: the policy called isobar asks package placement, as a cell
// does. It has no clock, no network and no goroutine; equal inputs give equal
// reports, byte for byte.
//
//	trace, err := (&simulate.TraceReader{Mesh: mesh}).ReadFile("trace.csv")
//	report, err := simulate.Run(simulate.Input{Mesh: mesh, Trace: trace, Carbon: table}, simulate.Options{})
//	report.WriteText(os.Stdout)
//
// Times are kept in whole nanoseconds, so that "in time" is exact; energy,
// carbon and money are floating-point and never rounded.
package simulate
