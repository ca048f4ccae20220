package server

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

const (
	// clockEvery is how often a server compares its clock with the others' of its
	// cell.
	clockEvery = 30 * time.Second
	// clockLimit is how far off their median a leader may be: deadlines and
	// retention follow its clock.
	clockLimit = time.Minute
)

var errBadClock = errors.New("the clock of this server is far off; leadership was handed over")

// clockWatch is what a server knows of its own calendar.
type clockWatch struct {
	wall  func() time.Time
	every time.Duration

	mu    sync.Mutex
	ahead time.Duration // of the cell's median, when last compared
	best  string        // the other server that was nearest to the median
}

// watchClock compares this server's wall clock with those of its cell, and hands
// leadership over when it leads with a bad one. Who does not lead compares too,
// so that it knows when it is elected.
func (s *Server) watchClock(ctx context.Context) {
	wait := min(time.Second, s.clock.every) // nobody may be known yet
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		others := s.clockOffsets(ctx)
		s.clock.compared(others)
		if s.sched.Leading() {
			s.yield(ctx)
		}
		if len(others) > 0 {
			wait = s.clock.every
		}
	}
}

// compared notes how this clock stands to the others'. Of two clocks nobody can say
// which is wrong: while fewer than two others answer, what was found before holds,
// or a bad leader would forget that it is bad.
func (c *clockWatch) compared(others []offset) {
	if len(others) < 2 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead, c.best = medianOffset(others)
}

// yield hands leadership to the server whose clock is best if this one's is far
// off, and reports whether it did. Where that server can't lead this one goes
// on: a bad clock is better than no leader.
func (s *Server) yield(ctx context.Context) bool {
	s.clock.mu.Lock()
	ahead, best := s.clock.ahead, s.clock.best
	s.clock.mu.Unlock()
	if ahead.Abs() <= clockLimit {
		return false
	}
	s.log.Error("this leader's clock is far off the median of its cell: handing over", "alarm", true, "ahead_by", ahead, "to", best)
	if err := s.raft.Transfer(ctx, best); err != nil {
		s.log.Warn("leadership not handed over", "error", err)
		return false
	}
	return true
}

// offset is how far this server's clock is ahead of another's.
type offset struct {
	server string
	by     time.Duration
}

// clockOffsets compares with each other server of the cell, half a round trip
// taken off.
func (s *Server) clockOffsets(ctx context.Context) []offset {
	var out []offset
	for _, srv := range s.mesh.Servers() {
		if srv.Cell != s.cell.ID || srv.ID == s.id || !srv.Alive {
			continue
		}
		call, cancel := context.WithTimeout(ctx, 3*time.Second)
		wall, sent := s.clock.wall(), time.Now()
		res, err := s.peers.Member(srv).Applied(call, &meshv1.AppliedRequest{})
		cancel()
		if err == nil {
			out = append(out, offset{srv.ID, wall.Add(time.Since(sent) / 2).Sub(time.UnixMilli(res.WallMs))})
		}
	}
	return out
}

// medianOffset is how far a clock is ahead of the median of itself and the
// others, of two middle ones the nearer to it, and which other is nearest to
// that. Its own counts: of clocks that all differ the middle one must not be
// called wrong.
func medianOffset(others []offset) (ahead time.Duration, best string) {
	all := append([]offset{{}}, others...)
	slices.SortFunc(all, func(a, b offset) int { return cmp.Compare(a.by, b.by) })
	ahead = all[(len(all)-1)/2].by
	if b := all[len(all)/2].by; b.Abs() < ahead.Abs() {
		ahead = b
	}
	var near time.Duration
	for i, o := range others {
		if i == 0 || (o.by-ahead).Abs() < near {
			best, near = o.server, (o.by - ahead).Abs()
		}
	}
	return ahead, best
}
