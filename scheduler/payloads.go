package scheduler

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"sync"

	"github.com/isobar-mesh/isobar/broker"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// payload reads a task's bytes and checks them against its record.
func (l *leader) payload(ctx context.Context, rec *meshv1.TaskRecord) ([]byte, error) {
	b, err := l.payloads.get(ctx, rec)
	if err != nil && isLost(err) {
		// It may have been moved, and its old place trimmed, since the record was read.
		if now, ok := fsm.Task(l.State, rec.Id); ok && !bytes.Equal(now.PayloadRef, rec.PayloadRef) {
			b, err = l.payloads.get(ctx, now)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("scheduler: read payload of %s: %w", rec.Id, err)
	}
	return b, nil
}

// payloads is the leader's memory of payloads between accept and lease, for a
// broker that is far: to fetch one costs it tens of milliseconds, to read on
// costs next to nothing. What is not here is read in order, by one reader a topic,
// and what that meets on its way is kept. Nothing in it is truth.
//
// It is safe for concurrent use.
type payloads struct {
	ctx    context.Context //nolint:containedctx // of the term: readers outlive the calls that start them
	broker broker.Broker
	// live tells the task whose live payload lies at a reference.
	live func(topic string, ref []byte) (task string, ok bool)
	most int // bytes; 0 keeps nothing and reads each from the broker

	mu    sync.Mutex
	bytes int
	tasks map[string]*keptPayload
	// waiting are kept payloads that nobody has asked for yet, used those that
	// were handed out and stay for a retry; both oldest first.
	waiting, used list.List
	// wants are the questions that the running reader of a topic answers, by
	// reference; a topic without a reader has no entry.
	wants map[string]map[string]*wantedPayload
}

// keptPayload is one payload in memory.
type keptPayload struct {
	task    string
	ref     []byte
	sum     [32]byte // as accepted; a record with another is of another payload
	payload []byte
	in      *list.List
	at      *list.Element
}

// wantedPayload is one question.
type wantedPayload struct {
	rec    *meshv1.TaskRecord
	answer chan payloadAnswer // of room one
}

type payloadAnswer struct {
	payload []byte
	err     error
}

// How far one reader reads on: what a burst of leases takes, and no more than a
// share of the memory, or readers would push out what they have just found.
const (
	readOnCount = 512
	readOnBytes = 8 << 20
	readOnShare = 16
)

func newPayloads(ctx context.Context, b broker.Broker, most int, live func(string, []byte) (string, bool)) *payloads {
	return &payloads{ctx: ctx, broker: b, live: live, most: most, tasks: map[string]*keptPayload{}, wants: map[string]map[string]*wantedPayload{}}
}

// keep keeps a payload that was just appended, if there is room: those before it
// are needed sooner.
func (p *payloads) keep(task string, ref, sum, payload []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes+len(payload) <= p.most {
		p.put(task, ref, [32]byte(sum), payload)
	}
}

// forget drops the payload of a task that has ended.
func (p *payloads) forget(task string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.tasks[task]; k != nil {
		p.drop(k)
	}
}

// overhead of a kept payload, roughly: an empty one is not free.
const overhead = 256

func (p *payloads) put(task string, ref []byte, sum [32]byte, payload []byte) {
	if p.most == 0 {
		return
	}
	if k := p.tasks[task]; k != nil {
		p.drop(k)
	}
	k := &keptPayload{task: task, ref: bytes.Clone(ref), sum: sum, payload: payload, in: &p.waiting}
	k.at = k.in.PushBack(k)
	p.tasks[task] = k
	p.bytes += len(payload) + overhead
}

func (p *payloads) drop(k *keptPayload) {
	k.in.Remove(k.at)
	delete(p.tasks, k.task)
	p.bytes -= len(k.payload) + overhead
}

// room drops what was handed out, then what has waited longest, until a reader's
// find has room.
func (p *payloads) room(n int) {
	for p.bytes+n > p.most {
		e := p.used.Front()
		if e == nil {
			e = p.waiting.Front()
		}
		if e == nil {
			return
		}
		p.drop(e.Value.(*keptPayload))
	}
}

// find returns the payload if it is kept. p.mu is held.
func (p *payloads) find(rec *meshv1.TaskRecord) ([]byte, bool) {
	k := p.tasks[rec.Id]
	if k == nil || !bytes.Equal(k.ref, rec.PayloadRef) || !bytes.Equal(k.sum[:], rec.PayloadSha256) {
		return nil, false
	}
	k.in.Remove(k.at)
	k.in = &p.used
	k.at = k.in.PushBack(k)
	return k.payload, true
}

// get returns the payload from memory, or else as a reader meets it, or else by a
// fetch of its own, whose word counts.
func (p *payloads) get(ctx context.Context, rec *meshv1.TaskRecord) ([]byte, error) {
	if p.most == 0 {
		return p.fetch(ctx, rec)
	}
	topic := fsm.QueueOf(rec).String()
	w := &wantedPayload{rec: rec, answer: make(chan payloadAnswer, 1)}
	p.mu.Lock()
	if b, ok := p.find(rec); ok {
		p.mu.Unlock()
		return b, nil
	}
	if p.wants[topic] == nil {
		p.wants[topic] = map[string]*wantedPayload{}
		go p.read(topic, fsm.QueueOf(rec))
	}
	if other := p.wants[topic][string(rec.PayloadRef)]; other != nil {
		p.mu.Unlock()
		return p.fetch(ctx, rec) // asked twice at once: rare, and each needs its answer
	}
	p.wants[topic][string(rec.PayloadRef)] = w
	p.mu.Unlock()
	select {
	case a := <-w.answer:
		return a.payload, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fetch asks the broker for one payload.
func (p *payloads) fetch(ctx context.Context, rec *meshv1.TaskRecord) ([]byte, error) {
	q := fsm.QueueOf(rec)
	m, err := p.broker.Fetch(ctx, broker.Topic{Tenant: q.Tenant, Function: q.Function, Lane: q.Lane}, rec.PayloadRef)
	if err == nil {
		err = m.Err
	}
	if err != nil {
		return nil, err
	}
	return checked(rec, m)
}

// checked is the payload if it is the record's.
func checked(rec *meshv1.TaskRecord, m broker.Stored) ([]byte, error) {
	if m.Err != nil {
		return nil, m.Err
	}
	if string(m.TaskID) != rec.Id || !bytes.Equal(m.SHA256[:], rec.PayloadSha256) {
		return nil, fmt.Errorf("another message lies there: %w", broker.ErrLost)
	}
	return m.Payload, nil
}

// read answers the topic's questions until there are none: pass after pass, each
// from the lowest reference that is asked for.
func (p *payloads) read(topic string, q fsm.Queue) {
	for {
		p.mu.Lock()
		var lowest *wantedPayload
		for _, w := range p.wants[topic] {
			if lowest == nil || bytes.Compare(w.rec.PayloadRef, lowest.rec.PayloadRef) < 0 {
				lowest = w
			}
		}
		if lowest == nil {
			delete(p.wants, topic)
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		err := p.pass(topic, q, lowest.rec.PayloadRef)
		switch {
		case err != nil:
			p.answerAll(topic, err)
		case p.take(topic, lowest.rec.PayloadRef) != nil:
			// The reader did not meet it where it lies: the broker itself must say
			// that it is lost.
			payload, err := p.fetch(p.ctx, lowest.rec)
			lowest.answer <- payloadAnswer{payload, err}
		}
	}
}

// pass reads the topic from a reference on, as far as somebody asks and a little
// further.
func (p *payloads) pass(topic string, q fsm.Queue, from []byte) error {
	count, size := 0, 0
	for m, err := range p.broker.Read(p.ctx, broker.Topic{Tenant: q.Tenant, Function: q.Function, Lane: q.Lane}, from) {
		if err != nil {
			return err
		}
		count, size = count+1, size+len(m.Payload)+overhead
		if w := p.take(topic, m.Ref); w != nil {
			payload, err := checked(w.rec, m)
			w.answer <- payloadAnswer{payload, err}
		} else if task, ok := p.live(topic, m.Ref); ok && m.Err == nil && task == string(m.TaskID) {
			p.readAhead(task, m)
		}
		if (count >= readOnCount || size >= min(readOnBytes, p.most/readOnShare)) && !p.askedAbove(topic, m.Ref) {
			return nil
		}
	}
	return nil
}

// readAhead keeps what the reader met and nobody has asked for yet.
func (p *payloads) readAhead(task string, m broker.Stored) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.tasks[task]; k != nil && bytes.Equal(k.ref, m.Ref) {
		return
	}
	p.room(len(m.Payload) + overhead)
	p.put(task, m.Ref, m.SHA256, m.Payload)
}

// take returns the question about a reference, once.
func (p *payloads) take(topic string, ref []byte) *wantedPayload {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.wants[topic][string(ref)]
	delete(p.wants[topic], string(ref))
	return w
}

func (p *payloads) askedAbove(topic string, ref []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for other := range p.wants[topic] {
		if other > string(ref) {
			return true
		}
	}
	return false
}

func (p *payloads) answerAll(topic string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.wants[topic] {
		w.answer <- payloadAnswer{nil, err}
	}
	clear(p.wants[topic])
}
