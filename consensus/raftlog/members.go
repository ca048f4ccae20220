package raftlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isobar-mesh/isobar/consensus"
)

// ErrAddressTaken: another member has the address of the server that joins.
// When that one is gone for good, Leave it first.
var ErrAddressTaken = errors.New("address belongs to another member")

// Join adds a server as non-voter; see consensus.Members. A member that joins
// again as it is costs nothing.
func (l *Log) Join(ctx context.Context, s consensus.Server) error {
	if s.ID == "" || s.Address == "" {
		return fmt.Errorf("raftlog: join %q at %q: id and address are needed: %w", s.ID, s.Address, ErrOptions)
	}
	if l.raft.State() != raft.Leader {
		return wrap("join", consensus.ErrNotLeader)
	}
	members, _, err := l.configuration()
	if err != nil {
		return wrap("join", err)
	}
	for _, m := range members {
		same := m.ID == raft.ServerID(s.ID)
		if string(m.Address) != s.Address {
			continue
		}
		if same {
			return nil
		}
		return fmt.Errorf("raftlog: join %s: %s is of %s: %w", s.ID, s.Address, m.ID, ErrAddressTaken)
	}
	return wrap("join "+s.ID, l.change(ctx, func(timeout time.Duration) raft.Future {
		return l.raft.AddNonvoter(raft.ServerID(s.ID), raft.ServerAddress(s.Address), 0, timeout)
	}))
}

// Leave removes a server; one that is no member is no error.
func (l *Log) Leave(ctx context.Context, id string) error {
	if l.raft.State() != raft.Leader {
		return wrap("leave", consensus.ErrNotLeader)
	}
	members, _, err := l.configuration()
	if err != nil {
		return wrap("leave", err)
	}
	if !slices.ContainsFunc(members, func(m raft.Server) bool { return string(m.ID) == id }) {
		return nil
	}
	return wrap("leave "+id, l.change(ctx, func(timeout time.Duration) raft.Future {
		return l.raft.RemoveServer(raft.ServerID(id), 0, timeout)
	}))
}

// change makes one change of members. Raft takes one at a time, and waits for
// its turn up to the timeout.
func (l *Log) change(ctx context.Context, begin func(time.Duration) raft.Future) error {
	timeout := 30 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(deadline), time.Millisecond)
	}
	err := l.await(ctx, func() raft.Future { return begin(timeout) })
	switch {
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown),
		errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return outcome(err)
	default:
		return err // refused: the configuration would not be a valid one
	}
}

func (l *Log) configuration() (members []raft.Server, index uint64, err error) {
	f := l.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, 0, err
	}
	return f.Configuration().Servers, f.Index(), nil
}

// Servers lists the members of the newest configuration this server knows.
func (l *Log) Servers() ([]consensus.Server, error) {
	members, _, err := l.configuration()
	if err != nil {
		return nil, wrap("servers", err)
	}
	out := make([]consensus.Server, len(members))
	for i, m := range members {
		out[i] = consensus.Server{ID: string(m.ID), Address: string(m.Address), Voter: m.Suffrage == raft.Voter}
	}
	slices.SortFunc(out, func(a, b consensus.Server) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Transfer hands leadership to the voter of the id, or with "" to the most
// caught up one. Nil means that this server no longer leads.
func (l *Log) Transfer(ctx context.Context, to string) error {
	begin := l.raft.LeadershipTransfer
	if to != "" {
		members, _, err := l.configuration()
		if err != nil {
			return wrap("transfer", err)
		}
		i := slices.IndexFunc(members, func(m raft.Server) bool { return string(m.ID) == to && m.Suffrage == raft.Voter })
		if i < 0 {
			return wrap("transfer", fmt.Errorf("to %s: %w", to, errNotVoter))
		}
		begin = func() raft.Future { return l.raft.LeadershipTransferToServer(members[i].ID, members[i].Address) }
	}
	err := l.await(ctx, begin)
	if errors.Is(err, raft.ErrNotLeader) {
		err = outcome(err)
	}
	return wrap("transfer", err)
}

var errNotVoter = errors.New("it is no voter")

// Address is what the other servers dial.
func (l *Log) Address() string { return l.stream.Addr().String() }

// progress is the answer to a leader's question: how far the log is known to
// be committed here. It is raft's index and not the machine's, since entries
// of raft's own count. A peer may ask before raft runs: it dials as soon as the
// port is open.
func (l *Log) progress() (id string, applied uint64) {
	if r := l.asked.Load(); r != nil {
		applied = r.AppliedIndex()
	}
	return l.opts.ServerID, applied
}

// round is one lap of a joiner's race against the leader's commits.
type round struct {
	target uint64
	began  time.Time
}

// promoteLoop makes voters of non-voters that keep up: one that reaches, within
// an election timeout, what was committed when the round began. Were a voter
// promoted that is far behind, commits could come to wait for it. It also
// tells the members this leader's own address, when that has changed.
func (l *Log) promoteLoop(ctx context.Context) {
	tick := time.NewTicker(max(l.opts.HeartbeatTimeout/4, 20*time.Millisecond))
	defer tick.Stop()
	rounds := make(map[raft.ServerID]round)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if l.raft.State() != raft.Leader {
			clear(rounds)
			continue
		}
		members, index, err := l.configuration()
		if err != nil {
			continue
		}
		for _, m := range members {
			if m.Suffrage == raft.Voter {
				delete(rounds, m.ID)
				if string(m.ID) == l.opts.ServerID && string(m.Address) != l.Address() {
					m.Address = raft.ServerAddress(l.Address()) // it was restarted elsewhere
					l.promote(ctx, m, index)
					break
				}
			} else if l.caughtUp(ctx, m, rounds) {
				l.promote(ctx, m, index)
				break // the index is spent
			}
		}
	}
}

func (l *Log) caughtUp(ctx context.Context, m raft.Server, rounds map[raft.ServerID]round) bool {
	r, ok := rounds[m.ID]
	if !ok {
		rounds[m.ID] = round{target: l.raft.CommitIndex(), began: time.Now()}
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, l.opts.HeartbeatTimeout)
	defer cancel()
	id, applied, err := l.stream.askProgress(ctx, string(m.Address))
	if err != nil || id != string(m.ID) {
		l.logger.Debug("non-voter does not answer", "member", m.ID, "address", m.Address, "id", id, "error", err)
		delete(rounds, m.ID)
		return false
	}
	if applied < r.target {
		return false
	}
	delete(rounds, m.ID)
	return time.Since(r.began) <= l.opts.ElectionTimeout
}

func (l *Log) promote(ctx context.Context, m raft.Server, index uint64) {
	err := l.await(ctx, func() raft.Future {
		return l.raft.AddVoter(m.ID, m.Address, index, l.opts.ElectionTimeout)
	})
	if err != nil {
		l.logger.Debug("promotion failed, it is tried again", "member", m.ID, "error", err)
		return
	}
	if m.Suffrage != raft.Voter {
		l.promotions.Add(1)
	}
	l.logger.Info("voter added or moved", "member", m.ID, "address", m.Address)
}
