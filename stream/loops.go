package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// kept is what the retain loop knows of a stream. Only that loop changes it.
type kept struct {
	// told is how far the groups were told in this term that a partition is trimmed.
	told map[uint32]broker.Position
	// next is the partition to begin with.
	next uint32
	// pause is how long the stream is left alone after it failed, until when.
	pause time.Duration
	until time.Time
}

const (
	// maxRetainPause bounds how long a stream that fails is left alone.
	maxRetainPause = 5 * time.Minute
	// maxRetainFailures is after how many partitions that fail a stream is left:
	// each may take as long as a call of the broker.
	maxRetainFailures = 3
)

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
		list := l.List("")
		l.keep(list)
		for _, rec := range list {
			n := groups.Name{Tenant: rec.Tenant, Stream: rec.Name}
			k := l.keptOf(n)
			if time.Now().Before(k.until) || rec.Deleting && l.publishing.over(n) != nil {
				continue
			}
			var err error
			if rec.Deleting {
				err = l.drop(l.ctx, n)
			} else {
				err = l.retain(l.ctx, n, rec, k)
			}
			if l.ctx.Err() != nil {
				return
			}
			if err == nil {
				k.pause = 0
				continue
			}
			k.pause = min(max(2*k.pause, l.RetainEvery), maxRetainPause)
			k.until = time.Now().Add(k.pause)
			l.Logger.Warn("streams: old messages not dropped", "stream", n.String(), "again_in", k.pause, "error", err)
		}
	}
}

func (l *leader) keptOf(n groups.Name) *kept {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kept[n]
	if k == nil {
		k = &kept{told: map[uint32]broker.Position{}}
		l.kept[n] = k
	}
	return k
}

// keep lets go of what was known of streams that are not there.
func (l *leader) keep(list []*meshv1.StreamRecord) {
	there := make(map[groups.Name]bool, len(list))
	for _, rec := range list {
		there[groups.Name{Tenant: rec.Tenant, Stream: rec.Name}] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.kept, func(n groups.Name, _ *kept) bool { return !there[n] })
}

// forget lets go of what was known of a stream that is gone: another may get its
// name, and begin at the same positions.
func (l *leader) forget(n groups.Name) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.kept, n)
	delete(l.placed, n)
}

// retain trims each partition to the stream's age and bytes. One that fails holds up
// no other; after some, the next call begins behind them.
func (l *leader) retain(ctx context.Context, n groups.Name, rec *meshv1.StreamRecord, k *kept) error {
	var failed []error
	for range rec.Partitions {
		p := k.next % rec.Partitions
		k.next = p + 1
		if err := l.retainIn(ctx, n, rec, p, k); err != nil {
			failed = append(failed, fmt.Errorf("partition %d: %w", p, err))
		}
		if ctx.Err() != nil || len(failed) == maxRetainFailures {
			break
		}
	}
	return errors.Join(failed...)
}

// retainIn trims one partition.
func (l *leader) retainIn(ctx context.Context, n groups.Name, rec *meshv1.StreamRecord, p uint32, k *kept) error {
	since := time.UnixMilli(l.clock.WallMs(time.Now()) - rec.MaxAgeMs)
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
	if keep == k.told[p] {
		return nil
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
	k.told[p] = keep
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

// dropAlone lets one drop of a stream run at a time: one that still ran when another
// had finished would take a stream with it that has got the name since.
func (l *leader) dropAlone(ctx context.Context, n groups.Name) (done func(), err error) {
	mine := make(chan struct{})
	for {
		l.mu.Lock()
		other := l.drops[n]
		if other == nil {
			l.drops[n] = mine
		}
		l.mu.Unlock()
		if other == nil {
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.drops, n)
				close(mine)
			}, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("stream: delete %s: %w", n, ctx.Err())
		}
	}
}

// drop removes what a deleted stream left, its messages first.
func (l *leader) drop(ctx context.Context, n groups.Name) error {
	done, err := l.dropAlone(ctx, n)
	if err != nil {
		return err
	}
	defer done()
	rec, ok := groups.Stream(l.State, n)
	if !ok || !rec.Deleting {
		return nil
	}
	// Whoever found the stream before it was marked has appended.
	if over := l.publishing.over(n); over != nil {
		select {
		case <-over:
		case <-ctx.Done():
			return fmt.Errorf("stream: delete %s, which is published to: %w", n, ctx.Err())
		}
	}
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
	l.forget(n)
	return nil
}
