package process

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/worker/attempt"
)

// drain is how long output may still come after the whole group was killed:
// only from a process that escaped it.
const drain = time.Second

// stdio are the three pipes of an attempt. The worker's ends are its own, not
// those of os/exec, so that the end of the command is seen while a process of
// its group still holds a pipe open.
type stdio struct {
	childIn, childOut, childErr *os.File
	in, out, err                *os.File

	payload []byte
	limit   int
	result  *attempt.Result
	stderr  attempt.Tail
	copies  sync.WaitGroup
}

// newStdio opens the pipes. A result above limit bytes cancels the attempt.
func newStdio(payload []byte, limit int, cancel context.CancelCauseFunc) (*stdio, error) {
	s := &stdio{payload: payload, limit: limit}
	s.result = attempt.NewResult(limit, func(k *attempt.Kill) { cancel(k) })
	for _, p := range []struct{ read, write **os.File }{
		{&s.childIn, &s.in}, {&s.out, &s.childOut}, {&s.err, &s.childErr},
	} {
		var err error
		if *p.read, *p.write, err = os.Pipe(); err != nil {
			s.closeChildEnds()
			s.abandon()
			return nil, fmt.Errorf("process: open pipes: %w", err)
		}
	}
	return s, nil
}

func (s *stdio) closeChildEnds() { closeAll(s.childIn, s.childOut, s.childErr) }

// abandon closes the worker's ends of pipes that no command came to use.
func (s *stdio) abandon() { closeAll(s.in, s.out, s.err) }

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // A pipe: nothing is lost by a failure.
		}
	}
}

// copy starts to move the payload in and the output out.
func (s *stdio) copy() {
	s.copies.Go(func() {
		// A command may end, or close stdin, without reading all of it: that
		// is its right, and its exit code tells.
		_, _ = s.in.Write(s.payload)
		_ = s.in.Close()
	})
	s.copies.Go(func() { _, _ = io.Copy(s.result, s.out) })
	s.copies.Go(func() { _, _ = io.Copy(&s.stderr, s.err) })
}

// finish takes in what is left in the pipes after the group is dead.
func (s *stdio) finish() {
	for _, f := range []*os.File{s.in, s.out, s.err} {
		_ = f.SetDeadline(time.Now().Add(drain)) // Fails when it is closed: then nothing waits for it.
	}
	s.copies.Wait()
	s.abandon()
}
