package pulsar

import (
	"context"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"

	"github.com/isobar-mesh/isobar/broker"
)

// What the producer here has sent need not be read back: its receipts say where
// it lies, and where one entry follows another in a ledger, nobody else's lies
// between. So while this server alone writes, the tail hears of all there is, and
// its reader rests. As soon as there is a gap (another producer's entry, a new
// ledger, a receipt that was lost), the reader fills it.

const (
	// restAfter is how many messages in a row the reader brings that were sent
	// from here, before it rests: more and more where others write too, and end
	// rests before they have lasted restWorth.
	restAfter     = 512
	restAfterMost = 128 << 10
	restWorth     = 10 * time.Second
	// restLook is how often it is looked whether a resting tail knows the newest
	// message: another producer's is shown after two looks at the latest, when it
	// is the first one in a while.
	restLook = 200 * time.Millisecond
	// restMost is how long nothing is sent before the reader reads again.
	restMost = time.Second
	// echoMost bounds the bytes of what was sent and waits for a gap to be filled.
	echoMost = 4 << 20
)

// echo is one entry that was sent from here.
type echo struct {
	at       place // of its first message
	whole    int   // how many messages it has
	messages []broker.StreamStored
	claims   []*claim // of each
}

// echoes are the entries that were sent from here and not taken in, in order. They
// are not safe for concurrent use.
type echoes struct {
	list []echo
	size int
	last time.Time // when one was taken out
}

// add notes a message by its receipt, and reports whether its entry is whole.
// Receipts come in the order of places.
func (e *echoes) add(receipt pulsar.MessageID, c *claim) (whole bool) {
	msg := broker.StreamStored{Position: c.at, StreamMessage: c.StreamMessage}
	if len(msg.Attributes) == 0 {
		msg.Attributes = nil
	}
	at, n := placeOf(0, receipt), max(int(receipt.BatchSize()), 1)
	if at.batch == 0 {
		e.list = append(e.list, echo{at: at, whole: n, messages: make([]broker.StreamStored, 0, n), claims: make([]*claim, 0, n)})
	}
	open := len(e.list) - 1
	if open < 0 || e.list[open].at.ledger != at.ledger || e.list[open].at.entry != at.entry || len(e.list[open].messages) != int(at.batch) {
		// Its beginning was dropped.
		return false
	}
	in := &e.list[open]
	in.messages, in.claims = append(in.messages, msg), append(in.claims, c)
	if e.size += sizeOf(&msg); e.size > echoMost {
		e.list, e.size = nil, 0 // the reader brings them
		return false
	}
	return len(in.messages) == in.whole
}

// waits reports whether there is a whole entry.
func (e *echoes) waits() bool { return len(e.list) > 0 && len(e.list[0].messages) == e.list[0].whole }

// pop takes the oldest entry out.
func (e *echoes) pop() ([]broker.StreamStored, []*claim) {
	msgs, claims := e.list[0].messages, e.list[0].claims
	e.list[0] = echo{}
	if e.list = e.list[1:]; len(e.list) == 0 {
		e.list = nil
	}
	for i := range msgs {
		e.size -= sizeOf(&msgs[i])
	}
	return msgs, claims
}

// drain takes in the entries that follow what is known without a gap. t.mu is held.
func (t *tail) drain() {
	for t.echoes.waits() {
		e := &t.echoes.list[0]
		known := e.messages[e.whole-1].Position < t.index.end.at
		follows := t.whole && t.index.end.messages > 0 && t.last.ledger == e.at.ledger && t.last.entry+1 == e.at.entry
		if !known && !follows {
			return
		}
		at := e.at
		at.batch += int32(e.whole) - 1
		msgs, claims := t.echoes.pop()
		t.echoes.last = time.Now()
		if known {
			continue
		}
		for i := range msgs {
			t.window.push(seen{id: claims[i].name, at: msgs[i].Position, has: true})
			t.admit(&msgs[i], claims[i].known)
		}
		t.keep(msgs...)
		t.last = at
	}
}

// hears reports whether the tail has just been told of what was sent from here.
func (t *tail) hears() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Since(t.echoes.last) < restMost
}

// rest leaves the reader alone until there is something that was not heard of, or
// nothing was for a while, and then goes on with another that begins there. alone
// is false when it was others who ended it, soon.
func (t *tail) rest(ctx context.Context) (alone bool, err error) {
	began := time.Now()
	look := time.NewTicker(restLook)
	defer look.Stop()
	// What was the newest at the look before must be known by now. What is the
	// newest now may be on its way: stored, and its receipt not here yet.
	var before, newest pulsar.MessageID
	for t.knows(before) && t.hears() {
		select {
		case <-t.gap:
			continue
		case <-look.C:
		case <-ctx.Done():
			return true, ctx.Err()
		}
		call, cancel := t.s.b.call(ctx)
		before = newest
		newest, err = await(call, t.current().GetLastMessageID, nil)
		cancel()
		if err != nil {
			break // the next reader finds out
		}
	}
	return time.Since(began) > restWorth || !t.hears(), t.readOn(ctx)
}

// knows reports whether the tail knows the message, and nothing lies before what it
// was told of.
func (t *tail) knows(m pulsar.MessageID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err == nil && !t.echoes.waits() && (m == nil || m.EntryID() < 0 || t.reached(m))
}

// readOn follows with a reader that begins at the end of what is known.
func (t *tail) readOn(ctx context.Context) error {
	t.mu.Lock()
	end := t.index.end.at
	t.mu.Unlock()
	ctx, cancel := t.s.b.call(ctx)
	defer cancel()
	r, err := t.open(ctx, end)
	if err != nil {
		return err
	}
	t.mu.Lock()
	old := t.reader
	if t.err == nil {
		t.reader = r
	} else {
		old = r
	}
	t.mu.Unlock()
	go old.Close() // that waits for the cluster
	return nil
}
