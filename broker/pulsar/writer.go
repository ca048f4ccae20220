package pulsar

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"

	"github.com/isobar-mesh/isobar/broker"
)

// writer is a topic's producer, open while there is work.
type writer struct {
	name     topicName
	epoch    uint64
	producer *sender
	used     time.Time
}

// How messages are put together. A batch costs Pulsar one entry, and a submit
// waits for it at most this long.
const (
	batchDelay    = time.Millisecond
	batchMessages = 1000
	batchBytes    = 512 << 10
	pendingMost   = 4096
)

// writer returns the topic's producer and opens it if it is not. Callers that
// come together share one opening, which outlives each of them.
func (b *Broker) writer(ctx context.Context, t broker.Topic) (*writer, error) {
	b.mu.Lock()
	w, err := b.ready(t)
	term := b.term
	b.mu.Unlock()
	if w != nil || err != nil {
		return w, err
	}
	opened := b.opening.DoChan(t.String(), func() (any, error) {
		ctx, cancel := b.call(context.Background())
		defer cancel()
		w, err := b.open(ctx, t, term)
		if err != nil {
			err = b.cause(err)
			b.shut(t, err)
		}
		return w, err
	})
	select {
	case res := <-opened:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*writer), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ready is the topic's producer if it is open, and an error if it may not be
// opened now. b.mu is held.
func (b *Broker) ready(t broker.Topic) (*writer, error) {
	if b.ctx.Err() != nil {
		return nil, fmt.Errorf("closed: %w", broker.ErrUnavailable)
	}
	if !b.leading {
		return nil, fmt.Errorf("not leading: %w", broker.ErrUnavailable)
	}
	if w := b.writers[t]; w != nil {
		w.used = time.Now()
		return w, nil
	}
	if g := b.gates[t]; g != nil {
		return nil, g.check()
	}
	return nil, nil
}

// shut keeps calls away from a topic that failed, for a pause.
func (b *Broker) shut(t broker.Topic, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gates[t] == nil {
		b.gates[t] = &gate{}
	}
	b.gates[t].shut(err)
}

// open makes what the topic needs, then its producer.
func (b *Broker) open(ctx context.Context, t broker.Topic, term uint64) (*writer, error) {
	epoch, err := b.epoch(ctx, true)
	if err != nil {
		return nil, err
	}
	w := &writer{name: topicOf(b.options.Cell, epoch, t), epoch: epoch, used: time.Now()}
	incarnation := b.options.Log.Incarnation()
	want := wanted(b.options.Quota)
	want.Properties = map[string]string{incarnationProperty: incarnation}
	have, err := b.admin.ensureNamespace(ctx, w.name.namespace, b.options.Cluster, want)
	if err != nil {
		return nil, err
	}
	if is := have.Properties[incarnationProperty]; is != incarnation {
		return nil, fmt.Errorf("namespace %s is of incarnation %q, and the cell is %q", w.name.namespace, is, incarnation)
	}
	b.judge(w.name.namespace, have)
	if err := b.admin.ensureTopic(ctx, w.name); err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.serial++
	name := fmt.Sprintf("isobar/%s/%s/%d/%d", b.options.Cell, b.options.Server, term, b.serial)
	b.mu.Unlock()
	producer, err := await(ctx, func() (pulsar.Producer, error) {
		return b.client.CreateProducer(pulsar.ProducerOptions{
			Topic: w.name.String(), Name: name, SendTimeout: b.options.Timeout, MaxPendingMessages: pendingMost,
			BatchingMaxPublishDelay: batchDelay, BatchingMaxMessages: batchMessages, BatchingMaxSize: batchBytes,
			BackOffPolicyFunc: policy(), Properties: map[string]string{"isobar-cell": b.options.Cell, "isobar-server": b.options.Server},
		})
	}, func(p pulsar.Producer) { p.Close() })
	if err != nil {
		return nil, fmt.Errorf("make a producer of %s: %w", w.name, err)
	}
	w.producer = &sender{producer: producer}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil || !b.leading || b.term != term {
		w.producer.end()
		return nil, fmt.Errorf("not leading any more: %w", broker.ErrUnavailable)
	}
	b.writers[t] = w
	delete(b.gates, t)
	return w, nil
}

// drop closes a producer that failed, once, and with an error keeps calls away
// from its topic for a pause.
func (b *Broker) drop(t broker.Topic, w *writer, err error) {
	b.mu.Lock()
	dropped := b.letGo(t, w)
	b.mu.Unlock()
	if dropped && err != nil {
		b.shut(t, err)
	}
}

// letGo forgets the producer and closes it beside: that waits for the cluster.
// b.mu is held.
func (b *Broker) letGo(t broker.Topic, w *writer) bool {
	if b.writers[t] != w {
		return false
	}
	delete(b.writers, t)
	w.producer.end()
	return true
}

// closeIdle closes the producers of topics that have no work.
func (b *Broker) closeIdle() {
	ticker := time.NewTicker(b.options.IdleAfter / 4)
	defer ticker.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-ticker.C:
		}
		b.mu.Lock()
		for t, w := range b.writers {
			if time.Since(w.used) > b.options.IdleAfter {
				b.letGo(t, w)
			}
		}
		for t, g := range b.gates {
			if time.Since(g.until) > b.options.IdleAfter {
				delete(b.gates, t)
			}
		}
		b.mu.Unlock()
	}
}

// watch looks, with each term and now and then, whether the cluster is the one
// that holds the payloads, and at the policies of the namespaces in use. While
// it is not known who shares the cluster, it looks more often.
func (b *Broker) watch() {
	ticker := time.NewTicker(b.options.CheckEvery)
	defer ticker.Stop()
	pause := lookAgainFirst
	again := time.NewTimer(b.options.CheckEvery)
	defer again.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-b.led:
			pause = lookAgainFirst
		case <-again.C:
		case <-ticker.C:
			b.checkPolicies()
		}
		if again.Stop(); !b.recognise() {
			again.Reset(min(pause, b.options.CheckEvery))
			pause = min(2*pause, lookAgainMost)
		}
	}
}

func (b *Broker) checkPolicies() {
	b.mu.Lock()
	namespaces := map[namespace]bool{}
	for n := range b.alarms {
		namespaces[n] = true
	}
	for _, w := range b.writers {
		namespaces[w.name.namespace] = true
	}
	b.mu.Unlock()
	for n := range namespaces {
		ctx, cancel := b.call(b.ctx)
		have, err := b.admin.policies(ctx, n)
		cancel()
		if err == nil {
			b.judge(n, have)
		}
	}
}

// judge raises an alarm for a namespace whose policies are not ours, once for
// each change.
func (b *Broker) judge(n namespace, have *policies) {
	changed := have.changed()
	b.mu.Lock()
	before := b.alarms[n]
	if len(changed) == 0 {
		delete(b.alarms, n)
	} else {
		b.alarms[n] = changed
	}
	b.mu.Unlock()
	switch {
	case slices.Equal(before, changed):
	case len(changed) == 0:
		b.options.Logger.Info("policies are as they should be again", "namespace", n.String())
	default:
		b.options.Logger.Error("policies of a namespace were changed; payloads are in danger", "alarm", true,
			"namespace", n.String(), "policies", strings.Join(changed, "; "))
	}
}

// await runs a call that takes no context, and gives it up when ctx ends: what it
// brings later is undone.
func await[T any](ctx context.Context, f func() (T, error), undo func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil && undo != nil {
				undo(r.v)
			}
		}()
		var none T
		return none, ctx.Err()
	}
}
