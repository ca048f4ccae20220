package pulsar

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/apache/pulsar-client-go/pulsar"
)

// errMoved: the cursor that keeps a partition's messages was moved by others.
var errMoved = errors.New("the subscription's cursor was moved by others")

// kept is the place behind the subscription's cursor: what lies before may be
// deleted by Pulsar at any time. acked is the cursor itself; its entry is -1 where
// nothing of its ledger is acknowledged.
func (a *admin) kept(ctx context.Context, t topicName) (acked, kept place, err error) {
	var stats struct {
		Cursors map[string]struct {
			MarkDelete string `json:"markDeletePosition"`
		} `json:"cursors"`
	}
	if err := a.call(ctx, http.MethodGet, t.path()+"/internalStats", nil, &stats); err != nil {
		return place{}, place{}, fmt.Errorf("read cursor of %s: %w", t, err)
	}
	text := stats.Cursors[subscription].MarkDelete
	if _, err := fmt.Sscanf(text, "%d:%d", &acked.ledger, &acked.entry); err != nil {
		return place{}, place{}, fmt.Errorf("read cursor of %s: %q is no position: %w", t, text, err)
	}
	return acked, place{ledger: acked.ledger, entry: acked.entry + 1}, nil
}

// lost looks whether the cursor lies above where this cell has put it, with
// messages in between: a TTL, a backlog quota's eviction or an operator has given
// them up, whatever of them can still be read. last is the newest message of the
// partition; nil if that is not known.
func (s streamState) lost(acked, kept place, last pulsar.MessageID) bool {
	from := s.base.place(s.from)
	if acked.entry >= 0 && !acked.less(place{ledger: from.ledger, entry: from.entry}) {
		return true
	}
	return last != nil && last.EntryID() >= 0 && !placeOf(0, last).less(place{ledger: from.ledger, entry: from.entry}) && placeOf(0, last).less(kept)
}

// giveUp takes what others have given up as trimmed: groups move on as after
// retention. It is an alarm, which names the range. The tail is not used yet.
func (t *tail) giveUp(ctx context.Context) error {
	acked, kept, err := t.s.b.admin.kept(ctx, t.topic)
	if err != nil {
		return err
	}
	last, err := await(ctx, t.reader.GetLastMessageID, nil)
	if err != nil {
		return err
	}
	// A former leader may have trimmed since: it notes the place, then moves the
	// cursor.
	if t.state.lost(acked, kept, last) {
		if t.state, err = t.s.b.admin.streamState(ctx, t.topic); err != nil {
			return err
		}
		t.state.base = t.base
	}
	if !t.state.lost(acked, kept, last) {
		return nil
	}
	at, err := t.base.position(kept)
	if err != nil {
		return err
	}
	state := t.state
	state.trimmed, state.from = max(state.trimmed, at), max(state.from, at)
	if err := t.s.b.admin.saveStream(ctx, t.topic, state); err != nil {
		return err
	}
	t.s.b.noteLost()
	t.s.b.options.Logger.Error("messages of a stream were dropped in Pulsar, not by Isobar; its groups go on behind them", "alarm", true,
		"partition", t.of.String(), "topic", t.topic.String(), "from", max(t.state.trimmed, t.state.from), "below", at,
		"hint", "look for a TTL, an eviction by backlog quota, or a clear-backlog of the subscription "+subscription)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = state
	return nil
}

func (b *Broker) noteLost() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lostRanges++
}

// checkCursors closes the tails of partitions whose cursor was moved by others:
// who opens them next finds what is left.
func (s *Streams) checkCursors() {
	s.mu.Lock()
	var tails []*tail
	for _, t := range s.tails {
		tails = append(tails, t)
	}
	s.mu.Unlock()
	for _, t := range tails {
		ctx, cancel := s.b.call(s.b.ctx)
		acked, kept, err := s.b.admin.kept(ctx, t.topic)
		_, _, state := t.shown()
		if err == nil && state.lost(acked, kept, nil) {
			// Perhaps by a trim of ours that is under way; see giveUp.
			state, err = s.b.admin.streamState(ctx, t.topic)
			state.base = t.base
		}
		cancel()
		if err == nil && state.lost(acked, kept, nil) {
			t.close(errMoved)
		}
	}
}
