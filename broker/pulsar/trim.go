package pulsar

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"

	"github.com/isobar-mesh/isobar/broker"
)

// Trim has nothing for the cell's log: the caller's own record of the trim is
// enough, and Trimmed follows it.
func (b *Broker) Trim(ctx context.Context, t broker.Topic, ref broker.Reference) ([]byte, error) {
	_, ok := parse(ref)
	switch err := errors.Join(ctx.Err(), b.ctx.Err(), checkTopic(t)); {
	case err != nil:
		return nil, fmt.Errorf("pulsar: trim %s: %w", t, b.cause(err))
	case !ok:
		return nil, fmt.Errorf("pulsar: trim %s: position %x is none of ours", t, []byte(ref))
	}
	return nil, nil
}

// Trimmed notes the position in the cluster and moves the cursor of the topic's
// subscription to it, never back. Pulsar deletes whole ledgers, later. A topic or
// a cluster that is gone has nothing left to trim.
func (b *Broker) Trimmed(ctx context.Context, t broker.Topic, ref broker.Reference) error {
	fail := func(err error) error { return fmt.Errorf("pulsar: trim %s: %w", t, b.cause(err)) }
	p, ok := parse(ref)
	if err := checkTopic(t); err != nil || !ok {
		return fail(errors.Join(err, fmt.Errorf("position %x", []byte(ref))))
	}
	ctx, cancel := b.call(ctx)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	name := topicOf(b.options.Cell, p.epoch, t)
	have, err := b.trimmed(ctx, name)
	if errors.Is(err, errNoTopic) {
		return nil
	}
	if err != nil {
		return fail(err)
	}
	if bytes.Compare(ref, have) <= 0 {
		return nil
	}
	if err := b.admin.trim(ctx, name, hex.EncodeToString(ref), messageID{p.ledger, p.entry, -1}); err != nil {
		if hasStatus(err, http.StatusNotFound) {
			err = b.noTopic(ctx)
		}
		if errors.Is(err, errNoTopic) {
			return nil
		}
		return fail(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if bytes.Compare(ref, b.trims[name]) > 0 {
		b.trims[name] = ref
	}
	return nil
}

// trimmed is the topic's trim position, nil for none; errNoTopic without the
// topic. What is kept here may be behind what another leader has done, which
// shows what may be deleted as still there, and nothing worse.
func (b *Broker) trimmed(ctx context.Context, t topicName) (broker.Reference, error) {
	b.mu.Lock()
	ref, ok := b.trims[t]
	b.mu.Unlock()
	if ok {
		return ref, nil
	}
	p, err := b.admin.subscriptionProperties(ctx, t)
	if hasStatus(err, http.StatusNotFound) {
		return nil, b.noTopic(ctx)
	}
	if err != nil {
		return nil, err
	}
	if ref, err = hex.DecodeString(p[trimProperty]); err != nil {
		return nil, fmt.Errorf("property %s of %s: %w", trimProperty, t, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if have, ok := b.trims[t]; ok && bytes.Compare(have, ref) > 0 {
		return have, nil
	}
	b.trims[t] = ref
	return ref, nil
}

// Stats are what operators watch.
type Stats struct {
	// Producers that are open.
	Producers int
	// Foreign messages met in our topics.
	Foreign uint64
	// Alarms is how many policies of namespaces in use are not as they must be.
	Alarms int
	// Strange: the cluster is not the one that holds payloads still needed.
	Strange bool
	// Lost is how often messages of a stream's partition were found given up by
	// others than Isobar.
	Lost uint64
	// Denied: Pulsar does not know us by our credentials, or there is no token.
	Denied bool
}

// Stats counts.
func (b *Broker) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Stats{Producers: len(b.writers), Foreign: b.foreign.count, Strange: b.strange != "", Denied: b.denied != "", Lost: b.lostRanges}
	for _, changed := range b.alarms {
		s.Alarms += len(changed)
	}
	return s
}
