// Package meshtest holds the tests of whole meshes: real server and worker
// processes on loopback, killed, stopped and started again, and judged from
// outside by what the API, the functions' own files, logs and traces say.
//
// There is nothing to import. The tests build the binary once, start
// `isobar dev --ports auto` in temporary directories and end every process they
// started, also when a test fails or is interrupted. `go test -short` skips
// them.
//
//	go test ./meshtest
//	go test -count=1 -v -timeout=0 -run=TestKilledServer ./meshtest -meshtest.runs=20 -meshtest.seed=1
//
// prints a line for each run of the kill test. Tests with a real Apache Pulsar
// start standalones of their own; `make soak-pulsar` is the longest. Poll loops with deadlines are
// the only waits here.
package meshtest
