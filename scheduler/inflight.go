package scheduler

import (
	"bytes"
	"sync"

	"github.com/isobar-mesh/isobar/broker"
)

// inflightRefs knows the accepts that have, or are about to get, a payload's
// reference and have no record yet; no trim may pass them. A broker gives out
// references of a topic in rising order, so an accept that has none yet will
// get one above all that were known when it began.
type inflightRefs struct {
	mu     sync.Mutex
	topics map[string]*inflightTopic
}

type inflightTopic struct {
	highest broker.Reference // ever prepared here, nil for none in this term
	accepts map[*inflightAccept]struct{}
}

// inflightAccept is one accept under way.
type inflightAccept struct {
	of    *inflightRefs
	topic *inflightTopic
	floor []byte // its reference is this or above
}

func newInflightRefs() *inflightRefs {
	return &inflightRefs{topics: map[string]*inflightTopic{}}
}

// begin is called before a reference is asked for, end when the record is
// committed or refused.
func (f *inflightRefs) begin(topic string) *inflightAccept {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.topics[topic]
	if t == nil {
		t = &inflightTopic{accepts: map[*inflightAccept]struct{}{}}
		f.topics[topic] = t
	}
	a := &inflightAccept{of: f, topic: t}
	if t.highest != nil {
		a.floor = above(t.highest)
	}
	t.accepts[a] = struct{}{}
	return a
}

// prepared notes the reference the accept was given.
func (a *inflightAccept) prepared(ref broker.Reference) {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	a.floor = ref
	if bytes.Compare(ref, a.topic.highest) > 0 {
		a.topic.highest = ref
	}
}

func (a *inflightAccept) end() {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	delete(a.topic.accepts, a)
}

// lowest is the least reference an accept of the topic may hold; nil, which is
// below every reference, while the first accept of a term has none yet. ok is
// false when none is under way.
func (f *inflightRefs) lowest(topic string) (low []byte, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.topics[topic]
	if t == nil {
		return nil, false
	}
	for a := range t.accepts {
		if !ok || bytes.Compare(a.floor, low) < 0 {
			low, ok = a.floor, true
		}
	}
	return low, ok
}

// above is the least position above a reference.
func above(ref []byte) []byte { return append(bytes.Clone(ref), 0) }
