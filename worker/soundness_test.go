package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

// fickle is a cell that keeps leases by its own clock, over a network that
// delays, stalls and cuts at random. It knows when each lease ends in truth.
type fickle struct {
	isobarv1.UnimplementedWorkerServiceHandler
	mu    sync.Mutex
	rng   *rand.Rand
	ends  map[key]time.Time // end of the lease, as the cell has it
	next  int
	acked map[key]bool
}

func (f *fickle) draw(most time.Duration) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rng.IntN(2) == 0 {
		return 0
	}
	return time.Duration(f.rng.Int64N(int64(most)))
}

func (f *fickle) chance(percent int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rng.IntN(100) < percent
}

func (f *fickle) Work(ctx context.Context, ws isobarv1.WorkerServiceWorkServerStream) error {
	if _, err := ws.Receive(); err != nil {
		return err
	}
	if f.chance(20) {
		return notLeader("http://a")
	}
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan *isobarv1.WorkResponse, 1024)
	out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Welcome{Welcome: &isobarv1.Welcome{
		ExtendEvery: durationpb.New(testEvery), Lease: durationpb.New(testLease)}}}
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { f.sender(ctx, ws, out) })
	all.Go(func() { f.assigner(ctx, out) })
	done := make(chan error, 1)
	go func() { done <- f.reader(ctx, ws, out) }()
	select {
	case err := <-done:
		return err
	case <-time.After(5*time.Second + f.draw(time.Minute)):
		return errors.New("cut")
	}
}

// sender delays each message, in order.
func (f *fickle) sender(ctx context.Context, ws isobarv1.WorkerServiceWorkServerStream, out <-chan *isobarv1.WorkResponse) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-out:
			select {
			case <-ctx.Done():
				return
			case <-time.After(f.draw(4 * time.Second)):
			}
			if ws.Send(m) != nil {
				return
			}
		}
	}
}

// assigner grants leases; what it grants is known before it is told.
func (f *fickle) assigner(ctx context.Context, out chan<- *isobarv1.WorkResponse) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second + f.draw(3*time.Second)):
		}
		f.mu.Lock()
		f.next++
		a := assignment(fmt.Sprintf("task-%d", f.next), 1)
		f.ends[key{a.TaskId, 1}] = time.Now().Add(testLease)
		out <- &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Assign{Assign: a}}
		f.mu.Unlock()
	}
}

// reader takes messages late, and now and then loses an answer.
func (f *fickle) reader(ctx context.Context, ws isobarv1.WorkerServiceWorkServerStream, out chan<- *isobarv1.WorkResponse) error {
	for {
		m, err := ws.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(f.draw(2 * time.Second)):
		}
		if f.chance(5) {
			continue
		}
		if res := f.answer(m); res != nil {
			out <- res
		}
	}
}

func (f *fickle) answer(m *isobarv1.WorkRequest) *isobarv1.WorkResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	switch {
	case m.GetExtend() != nil:
		res := &isobarv1.ExtendResponse{}
		for _, ref := range m.GetExtend().GetLeases() {
			r := &isobarv1.ExtendResult{Lease: ref}
			if end := f.ends[keyOf(ref)]; end.After(now) && f.rng.IntN(10) > 0 {
				r.Confirmed, r.Duration = true, durationpb.New(testLease)
				f.ends[keyOf(ref)] = now.Add(testLease)
			} else {
				r.Reason = "expired"
			}
			res.Results = append(res.Results, r)
		}
		return &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Extended{Extended: res}}
	case m.GetComplete() != nil:
		f.acked[keyOf(m.GetComplete().GetLease())] = true
		return &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Completed{
			Completed: &isobarv1.CompleteResponse{Lease: m.GetComplete().GetLease(), Verdict: "accepted"}}}
	case m.GetFail() != nil:
		f.acked[keyOf(m.GetFail().GetLease())] = true
		return &isobarv1.WorkResponse{Message: &isobarv1.WorkResponse_Failed{
			Failed: &isobarv1.FailResponse{Lease: m.GetFail().GetLease(), Verdict: "fenced"}}}
	default:
		return nil
	}
}

// Whatever the network does, nothing runs past the lease as the cell has it,
// nothing starts twice, and every outcome is handed over.
func TestLeasesAreNeverOutlived(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { outlive(t, seed) })
		})
	}
}

func outlive(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	f := &fickle{rng: rand.New(rand.NewPCG(seed, 1)), ends: map[key]time.Time{}, acked: map[key]bool{}}
	r := newRigOn(t, f, func(o *Options) {
		o.Capacity.CPUMilli, o.Capacity.MemoryMiB = 1e6, 1e6
		o.Runtimes[attempt.Exec].(*script).lag = time.Second // of two seconds' grace
	})
	started := map[key]bool{}
	var over sync.WaitGroup
	until := time.After(10 * time.Minute)
	running, killed := 0, 0
	var mu sync.Mutex
	for done := false; !done; {
		select {
		case <-until:
			done = true
		case run := <-r.script.runs:
			k := key{string(run.in.TaskID), run.in.Attempt}
			if started[k] {
				t.Errorf("%v started twice", k)
			}
			started[k] = true
			running++
			life := time.Duration(rng.IntN(60)) * time.Second
			over.Go(func() {
				select {
				case <-time.After(life):
					run.finish <- attempt.Outcome{Status: attempt.Done}
				case <-run.killed:
				}
				f.mu.Lock()
				end := f.ends[k]
				f.mu.Unlock()
				if late := time.Since(end); late > 0 {
					t.Errorf("%v ran %v past its lease", k, late)
				}
				select {
				case <-run.killed:
					mu.Lock()
					killed++
					mu.Unlock()
				default:
				}
			})
		}
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
	over.Wait()
	if running < 50 || killed == 0 {
		t.Errorf("too tame: %d ran, %d were killed", running, killed)
	}
	missing := 0
	for k := range started {
		if !f.acked[k] {
			missing++
		}
	}
	// Those that ended in the last moments may not have found a stream.
	if missing > 0 {
		t.Logf("%d of %d outcomes found no stream in the end", missing, len(started))
	}
	if missing > len(started)/10 {
		t.Errorf("%d of %d outcomes were never handed over", missing, len(started))
	}
}

var _ isobarv1.WorkerServiceHandler = (*fickle)(nil)
