package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/isobar-mesh/isobar/broker"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// renewEvery is how often open sessions are renewed: three fit a lease.
func (l *leader) renewEvery() time.Duration { return l.Lease / 3 }

// tickLoop commits time: when something is due, and once a second while
// anything waits, so that lease time goes on. A new leader ends nothing for one
// renewal interval, in which sessions come back.
func (l *leader) tickLoop() {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	elected := l.clock.Elected()
	last, more := elected, false
	for {
		if !more {
			select {
			case <-l.ctx.Done():
				return
			case <-ticker.C:
			}
		}
		now := time.Now()
		due, waits := groups.Due(l.State, l.clock.LeaseMs(now))
		if now.Sub(elected) <= l.renewEvery() || !due && (!waits || now.Sub(last) < time.Second) {
			more = false
			continue
		}
		last = now
		res, err := l.command(l.ctx, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Tick{Tick: &meshv1.StreamTick{Limit: 256}}})
		if more = err == nil && res.More; err != nil && l.ctx.Err() == nil {
			l.Logger.Warn("streams: tick failed", "error", err)
		}
	}
}

// renewLoop keeps the sessions in their groups that have a call under way.
func (l *leader) renewLoop() {
	ticker := time.NewTicker(l.renewEvery())
	defer ticker.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-ticker.C:
		}
		renew := &meshv1.GroupRenew{TtlMs: l.Lease.Milliseconds()}
		read := map[groups.Group]bool{}
		l.mu.Lock()
		for s := range l.open { // any order: each is renewed on its own
			renew.Sessions = append(renew.Sessions, &meshv1.GroupSession{Name: s.Message(), Session: s.id})
			read[s.Group] = true
		}
		l.mu.Unlock()
		l.cursors.keep(read)
		if len(renew.Sessions) == 0 {
			continue
		}
		if _, err := l.command(l.ctx, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Renew{Renew: renew}}); err != nil && l.ctx.Err() == nil {
			l.Logger.Warn("streams: sessions not renewed", "error", err)
		}
	}
}

// retainLoop drops old messages, and finishes what a Delete left.
func (l *leader) retainLoop() {
	ticker := time.NewTicker(l.RetainEvery)
	defer ticker.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-ticker.C:
		}
		for _, rec := range l.List("") {
			n := groups.Name{Tenant: rec.Tenant, Stream: rec.Name}
			var err error
			if rec.Deleting {
				err = l.drop(l.ctx, n)
			} else {
				err = l.retain(l.ctx, n, rec)
			}
			if l.ctx.Err() != nil {
				return
			}
			if err != nil {
				l.Logger.Warn("streams: old messages not dropped", "stream", n.String(), "error", err)
			}
		}
	}
}

// retain trims each partition to the stream's age and bytes.
func (l *leader) retain(ctx context.Context, n groups.Name, rec *meshv1.StreamRecord) error {
	since := time.UnixMilli(l.clock.WallMs(time.Now()) - rec.MaxAgeMs)
	for p := range rec.Partitions {
		part := partition(n, p)
		ext, err := l.Messages.Extent(ctx, part, 0)
		if err != nil {
			return err
		}
		keep, err := l.Messages.Find(ctx, part, broker.Search{Since: since, Bytes: rec.MaxBytes})
		if err != nil {
			return err
		}
		keep = max(keep, ext.First)
		if keep == l.told[part] {
			continue
		}
		// Also where a former leader trimmed and got no further: the groups still
		// hold what is gone.
		for more := true; more; {
			command, err := l.Messages.Trim(ctx, part, keep)
			if err != nil {
				return err
			}
			trimmed := &meshv1.StreamTrimmed{Name: n.Message(), Partition: p, First: keep}
			more, err = l.unfinished(ctx, command, &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Trimmed{Trimmed: trimmed}})
			if err != nil {
				return err
			}
		}
		l.told[part] = keep
	}
	return nil
}

// unfinished commits the broker's command, if it has one, and ours, and reports
// whether they must be committed again.
func (l *leader) unfinished(ctx context.Context, command []byte, cmd *meshv1.StreamCommand) (bool, error) {
	var before [][]byte
	if command != nil {
		before = append(before, command)
	}
	results, err := l.commit(ctx, cmd, before...)
	if err != nil {
		return false, err
	}
	u, ok := results[0].(broker.Unfinished)
	if res, mine := results[len(results)-1].(*groups.Result); mine && res.More {
		return true, nil
	}
	return ok && u.Unfinished(), nil
}

// drop removes what a deleted stream left, its messages first.
func (l *leader) drop(ctx context.Context, n groups.Name) error {
	rec, ok := groups.Stream(l.State, n)
	if !ok {
		return nil
	}
	// Whoever found the stream before it was marked has appended.
	l.publishing.Lock()
	l.publishing.Unlock() //nolint:staticcheck // waits, and guards nothing
	// A Delete that is there already changes nothing: it goes with the broker's
	// command, which needs a group.
	again := &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Delete{Delete: &meshv1.StreamDelete{Name: n.Message()}}}
	for p := range rec.Partitions {
		for more := true; more; {
			command, err := l.Messages.Drop(ctx, partition(n, p))
			if err != nil {
				return fmt.Errorf("stream: delete %s: %w", n, err)
			}
			if more = command != nil; more {
				if more, err = l.unfinished(ctx, command, again); err != nil {
					return fmt.Errorf("stream: delete %s: %w", n, err)
				}
			}
		}
	}
	sweep := &meshv1.StreamCommand{Command: &meshv1.StreamCommand_Sweep{Sweep: &meshv1.StreamSweep{Name: n.Message(), Limit: 512}}}
	for more := true; more; {
		var err error
		if more, err = l.unfinished(ctx, nil, sweep); err != nil {
			return fmt.Errorf("stream: delete %s: %w", n, err)
		}
	}
	return nil
}
