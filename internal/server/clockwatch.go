package server

import (
	"context"
	"slices"
	"time"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

const (
	// clockEvery is how often a leader compares its clock with the voters'.
	clockEvery = 30 * time.Second
	// clockLimit is how far off the voters' median a leader may be: deadlines
	// and retention follow its clock.
	clockLimit = time.Minute
)

// watchClock hands leadership over when this leader's wall clock is far off the
// median of its cell's servers.
func (s *Server) watchClock(ctx context.Context) {
	ticker := time.NewTicker(clockEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !s.sched.Leading() {
			continue
		}
		off, n := s.clockOffset(ctx)
		if n < 2 || off.Abs() <= clockLimit {
			continue
		}
		s.log.Error("this leader's clock is far off its voters': handing over", "alarm", true, "ahead_by", off, "voters_asked", n)
		if err := s.raft.Transfer(ctx); err != nil {
			s.log.Warn("leadership not handed over", "error", err)
		}
	}
}

// clockOffset is how far this server's clock is ahead of the median of the
// other servers of its cell, half a round trip taken off, and how many answered.
func (s *Server) clockOffset(ctx context.Context) (time.Duration, int) {
	var offsets []time.Duration
	for _, srv := range s.mesh.Servers() {
		if srv.Cell != s.cell.ID || srv.ID == s.id || !srv.Alive {
			continue
		}
		call, cancel := context.WithTimeout(ctx, 3*time.Second)
		sent := time.Now()
		res, err := s.peers.Member(srv).Applied(call, &meshv1.AppliedRequest{})
		cancel()
		if err == nil {
			offsets = append(offsets, sent.Add(time.Since(sent)/2).Sub(time.UnixMilli(res.WallMs)))
		}
	}
	return medianOffset(offsets), len(offsets)
}

// medianOffset is the middle of the offsets, the nearer to zero of two.
func medianOffset(offsets []time.Duration) time.Duration {
	if len(offsets) == 0 {
		return 0
	}
	slices.Sort(offsets)
	a, b := offsets[(len(offsets)-1)/2], offsets[len(offsets)/2]
	if b.Abs() < a.Abs() {
		return b
	}
	return a
}
