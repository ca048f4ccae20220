package process

import (
	"os/exec"
	"runtime"

	"github.com/isobar-mesh/isobar/worker/attempt"
)

// spawner starts every command from one thread. The death signal that makes a
// command end with the worker is sent when the *thread* that started it ends,
// and the threads of a Go program may end before it does; this one ends last.
type spawner struct {
	starts chan start
	done   chan struct{}
}

type start struct {
	cmd    *exec.Cmd
	limits attempt.Limits
	err    chan<- error
}

func newSpawner() *spawner {
	s := &spawner{starts: make(chan start), done: make(chan struct{})}
	go s.loop()
	return s
}

func (s *spawner) loop() {
	defer close(s.done)
	runtime.LockOSThread()
	// Unlocked, the thread outlives the loop.
	defer runtime.UnlockOSThread()
	for st := range s.starts {
		st.err <- startLimited(st.cmd, st.limits)
	}
}

// start starts the command within its limits.
func (s *spawner) start(cmd *exec.Cmd, limits attempt.Limits) error {
	err := make(chan error, 1)
	s.starts <- start{cmd, limits, err}
	return <-err
}

// close ends the thread's duty; no start may follow.
func (s *spawner) close() {
	close(s.starts)
	<-s.done
}
