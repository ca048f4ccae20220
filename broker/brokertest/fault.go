package brokertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/isobar-mesh/isobar/broker"
)

// patience is how long a backend may take to be itself again after a fault, and
// promptly how long a call may take that fails: its own deadline and some.
const (
	patience = 3 * time.Minute
	promptly = 30 * time.Second
)

// within tries until done says so, and reports whether it did.
func (s *suite) within(done func() bool) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if done() {
			return true
		}
		select {
		case <-s.ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
	return false
}

// load is writers that append while something happens, and note what was
// acknowledged: prepared and committed without an error.
type load struct {
	s     *suite
	topic broker.Topic

	mu     sync.Mutex
	broker broker.Broker
	acked  map[string]broker.Message // by reference
	failed int
	halted bool
	wg     sync.WaitGroup
}

const writers = 4

func (s *suite) load(t broker.Topic) *load {
	l := &load{s: s, topic: t, broker: s.Broker, acked: map[string]broker.Message{}}
	for w := range writers {
		l.wg.Go(func() {
			for i := 0; l.append(message(t, fmt.Sprintf("task-%d-%05d", w, i), fmt.Appendf(nil, "payload %d of %d", i, w))); i++ {
			}
		})
	}
	return l
}

// append tries one message once; it reports whether to go on.
func (l *load) append(m broker.Message) bool {
	l.mu.Lock()
	b, halted := l.broker, l.halted
	l.mu.Unlock()
	if halted {
		return false
	}
	ctx, cancel := context.WithTimeout(l.s.ctx, promptly)
	defer cancel()
	p, err := b.Prepare(ctx, []broker.Message{m})
	if err == nil {
		err = l.s.tryCommit(p...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed++
		time.Sleep(5 * time.Millisecond) // a caller would answer its own and wait
		return true
	}
	if _, twice := l.acked[string(p[0].Ref)]; twice {
		l.s.Errorf("reference %x was given out twice", []byte(p[0].Ref))
	}
	l.acked[string(p[0].Ref)] = m
	return true
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// more waits until n more were acknowledged.
func (l *load) more(n int) {
	l.s.Helper()
	target := l.count() + n
	if !l.s.within(func() bool { return l.count() >= target }) {
		l.s.Fatalf("%d appends acknowledged, %d failed; waited for %d", l.count(), l.failed, target)
	}
}

// use lets the writers go on with another leader.
func (l *load) use(b broker.Broker) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broker, l.s.Broker = b, b
}

// check ends the writers and looks for every acknowledged message: there once,
// whole, in order. Others may lie between: orphans of appends whose answer was
// lost.
func (l *load) check() {
	l.s.Helper()
	l.mu.Lock()
	l.halted = true
	l.mu.Unlock()
	l.wg.Wait()
	seen := map[string]int{}
	orphans := 0
	var last broker.Reference
	for _, m := range l.s.read(l.topic, nil) {
		if bytes.Compare(m.Ref, last) <= 0 {
			l.s.Errorf("reference %x is read behind %x", []byte(m.Ref), []byte(last))
		}
		last = m.Ref
		want, ok := l.acked[string(m.Ref)]
		if !ok {
			orphans++
			continue
		}
		seen[string(m.Ref)]++
		l.s.same(m, want, m.Ref)
	}
	lost := 0
	for ref := range l.acked {
		if seen[ref] != 1 {
			lost++
		}
	}
	if lost > 0 {
		l.s.Errorf("%d of %d acknowledged messages are not there once", lost, len(l.acked))
	}
	l.s.Logf("acknowledged %d, failed %d, orphans %d", len(l.acked), l.failed, orphans)
}

func testKill(s *suite) {
	l := s.load(topic("f"))
	l.more(40)
	end := s.Fault(Kill)
	l.use(end())
	l.more(40)
	l.check()
}

func testUnload(s *suite) {
	l := s.load(topic("f"))
	for range 3 {
		l.more(20)
		l.use(s.Fault(Unload)())
	}
	l.more(20)
	l.check()
}

func testSlow(s *suite) {
	l := s.load(topic("f"))
	l.more(20)
	end := s.Fault(Slow)
	l.more(20)
	for m, err := range s.Broker.Read(s.ctx, topic("f"), nil) {
		if err != nil || m.Err != nil {
			s.Errorf("Read of a slow broker: %v, %v", err, m.Err)
		}
	}
	l.use(end())
	l.more(20)
	l.check()
}

// While nothing answers, every call ends by its deadline.
func testHang(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 5)
	refs := s.put(msgs[:3]...)
	end := s.Fault(Hang)
	const deadline = 2 * time.Second
	bounded := func(what string, f func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(s.ctx, deadline)
		defer cancel()
		start := time.Now()
		err := f(ctx)
		if took := time.Since(start); took > 2*deadline {
			s.Errorf("%s took %v with a deadline of %v", what, took, deadline)
		}
		return err
	}
	if err := bounded("an append", func(ctx context.Context) error {
		p, err := s.Broker.Prepare(ctx, msgs[3:4])
		if err != nil {
			return err
		}
		return s.tryCommit(p...)
	}); err == nil {
		s.Error("an append was acknowledged while nothing answers")
	}
	_ = bounded("Fetch", func(ctx context.Context) error { _, err := s.Broker.Fetch(ctx, t, refs[0]); return err }) // may be read here
	_ = bounded("Read", func(ctx context.Context) error {                                                           // may be read here
		for _, err := range s.Broker.Read(ctx, t, nil) {
			if err != nil {
				return err
			}
		}
		return nil
	})
	_ = bounded("Trimmed", func(ctx context.Context) error { return s.Broker.Trimmed(ctx, t, refs[0]) }) // see above
	s.Broker = end()

	var late []broker.Prepared
	if !s.within(func() bool {
		p, err := s.Broker.Prepare(s.ctx, msgs[4:])
		if err == nil {
			err = s.tryCommit(p...)
		}
		late = p
		return err == nil
	}) {
		s.Fatal("no append after the fault ended")
	}
	got := s.read(t, nil)
	for i, ref := range append(refs, late[0].Ref) {
		n := 0
		for _, m := range got {
			if bytes.Equal(m.Ref, ref) {
				n++
				s.same(m, append(msgs[:3:3], msgs[4])[i], ref)
			}
		}
		if n != 1 {
			s.Errorf("acknowledged message %d is read %d times, want once", i, n)
		}
	}
}

// An empty one in its place: while a task needs a payload of the old one nothing
// is lost or taken, for the address may only be wrong. Then what lay in the old
// one is lost and says so, new references lie above all before, and a trim of old
// ones harms none of them.
func testReplace(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 6)
	refs := s.put(msgs[:3]...)
	s.trim(t, refs[1])
	if s.Need != nil {
		s.Need(refs[2])
	}
	s.Broker = s.Fault(Replace)()
	if s.Need != nil {
		s.checkNeeded(t, msgs[3:], refs[2])
		s.Need(nil)
	}
	var again []broker.Reference
	if !s.within(func() bool {
		p, err := s.Broker.Prepare(s.ctx, msgs[3:])
		if err != nil || s.tryCommit(p...) != nil {
			return false
		}
		for _, m := range p {
			again = append(again, m.Ref)
		}
		return true
	}) {
		s.Fatal("no append to the new broker")
	}
	for _, r := range refs {
		s.wantLost(t, r)
	}
	if bytes.Compare(again[0], refs[2]) <= 0 {
		s.Errorf("reference %x of the new broker is not above %x", []byte(again[0]), []byte(refs[2]))
	}
	s.trim(t, refs[2])
	s.trim(t, append(bytes.Clone(refs[2]), 0))
	s.wantRead(t, nil, msgs[3:], again)
	s.wantRead(t, refs[0], msgs[3:], again)
	s.trim(t, again[1])
	s.wantRead(t, nil, msgs[4:], again[1:])
}

// checkNeeded looks until the backend says that it is another one, and holds
// that it does nothing else.
func (s *suite) checkNeeded(t broker.Topic, msgs []broker.Message, needed broker.Reference) {
	s.Helper()
	if !s.within(func() bool {
		_, err := s.Broker.Prepare(s.ctx, msgs)
		if err == nil {
			s.Fatal("an append to another broker while a payload of the old one is needed")
		}
		return errors.Is(err, broker.ErrReplaced)
	}) {
		s.Fatal("an append does not say that the broker is another")
	}
	if _, err := s.Broker.Fetch(s.ctx, t, needed); !errors.Is(err, broker.ErrReplaced) || errors.Is(err, broker.ErrLost) {
		s.Errorf("Fetch of a needed payload has error %v, want ErrReplaced", err)
	}
	if err := s.Broker.Trimmed(s.ctx, t, append(bytes.Clone(needed), 0)); !errors.Is(err, broker.ErrReplaced) {
		s.Errorf("Trimmed has error %v, want ErrReplaced", err)
	}
}

// Leadership moves while appends are on their way: what both leaders had
// acknowledged is there.
func testMovedLeadership(s *suite) {
	l := s.load(topic("f"))
	for range 3 {
		l.more(20)
		l.use(s.Crash())
	}
	l.more(20)
	l.check()
}

// What a deposed leader appends has no record: it does no harm, and falls under
// a trim.
func testDeposed(s *suite) {
	t := topic("f")
	msgs := numbered(t, 0, 6)
	refs := s.put(msgs[:2]...)
	old := s.Broker
	s.crash()
	refs = append(refs, s.put(msgs[2])...)
	orphans, err := old.Prepare(s.ctx, msgs[4:5])
	if err != nil {
		s.Logf("the deposed leader was refused: %v", err)
	}
	refs = append(refs, s.put(msgs[3])...)
	for i, m := range msgs[:4] {
		s.wantFetch(m, refs[i])
	}
	for _, p := range orphans {
		for _, r := range refs {
			if bytes.Equal(p.Ref, r) {
				s.Errorf("two leaders gave out the reference %x", []byte(r))
			}
		}
	}
	last := s.put(msgs[5])[0]
	s.trim(t, last)
	s.wantRead(t, nil, msgs[5:], []broker.Reference{last})
	for _, p := range orphans {
		s.wantLost(t, p.Ref)
	}
}
