package pulsar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"golang.org/x/sync/singleflight"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Broker is one server's door to the region's Pulsar. Reads work on every
// server; Prepare works on the leader only, between Lead and Resign. All methods
// are safe for concurrent use.
type Broker struct {
	options Options
	client  pulsar.Client
	admin   *admin
	tokens  *tokens // nil without OAuth2

	ctx     context.Context //nolint:containedctx // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup
	opening singleflight.Group // writers, by topic
	led     chan struct{}      // a term has begun
	streams *Streams

	mu         sync.Mutex
	leading    bool
	term       uint64
	serial     uint64 // of producers
	writers    map[broker.Topic]*writer
	gates      map[broker.Topic]*gate // of topics that could not be written to
	trims      map[topicName]broker.Reference
	foreign    foreign
	alarms     map[namespace][]string
	sharers    map[string][]string
	looked     time.Time // when all sharers were found; zero while some may not be known
	strange    string    // why the cluster is not ours; "" while it is, or is not known
	lostRanges uint64    // of streams
	denied     string    // why we may not in; "" while we may, or it is not known
}

var _ broker.Broker = (*Broker)(nil)

// Open makes a Broker. It does not wait for the cluster: while that cannot be
// reached, calls fail with broker.ErrUnavailable. Errors are about options and
// the files they name.
func Open(o Options) (*Broker, error) {
	if err := o.defaults(); err != nil {
		return nil, fmt.Errorf("pulsar: open: %w", err)
	}
	provider, err := o.Auth.provider(o.Timeout)
	if err != nil {
		return nil, fmt.Errorf("pulsar: open: %w", err)
	}
	adm, err := newAdmin(o, provider)
	if err != nil {
		return nil, fmt.Errorf("pulsar: open: %w", err)
	}
	client, err := newClient(o, provider)
	if err != nil {
		return nil, fmt.Errorf("pulsar: open: %w", err)
	}
	b := &Broker{
		options: o, client: client, admin: adm, led: make(chan struct{}, 1), writers: map[broker.Topic]*writer{}, gates: map[broker.Topic]*gate{},
		trims: map[topicName]broker.Reference{}, foreign: foreign{seen: map[topicName]broker.Reference{}}, alarms: map[namespace][]string{},
	}
	b.tokens, _ = provider.(*tokens)
	adm.asked = b.noteAccess
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.streams = newStreams(b)
	b.running.Go(b.closeIdle)
	b.running.Go(b.watch)
	return b, nil
}

// Streams keeps the messages of streams in the same cluster.
func (b *Broker) Streams() *Streams { return b.streams }

// Lead lets Prepare append, under producers named by the term, and Streams.
func (b *Broker) Lead(term uint64) error {
	b.streams.lead(term)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leading, b.term = true, term
	if time.Since(b.looked) > seenWithin {
		b.looked = time.Time{} // another led meanwhile, and looked
	}
	select {
	case b.led <- struct{}{}:
	default:
	}
	return nil
}

// Resign stops Prepare until the next Lead. What is on its way may still be
// stored, as an orphan.
func (b *Broker) Resign() {
	b.streams.resign()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leading = false
	for t, w := range b.writers {
		b.letGo(t, w)
	}
	clear(b.gates)
}

// Close ends every call with broker.ErrUnavailable.
func (b *Broker) Close() error {
	b.mu.Lock()
	first := b.ctx.Err() == nil
	b.cancel()
	b.leading = false
	clear(b.writers)
	b.mu.Unlock()
	if !first {
		return nil
	}
	b.running.Wait()
	// The client says goodbye to the cluster, which may hang.
	closed := make(chan struct{})
	go func() { b.client.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(b.options.Timeout):
	}
	b.admin.http.CloseIdleConnections()
	return nil
}

// call bounds a call by its context, the timeout and Close.
func (b *Broker) call(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, b.options.Timeout)
	stop := context.AfterFunc(b.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// cause turns an error of Pulsar's into one of the seam's.
func (b *Broker) cause(err error) error {
	err = b.access(err)
	for _, known := range []error{broker.ErrLost, broker.ErrDamaged, broker.ErrFull, broker.ErrTooLarge, broker.ErrReplaced, broker.ErrUnavailable, ErrName} {
		if errors.Is(err, known) {
			return err
		}
	}
	var p *pulsar.Error
	switch {
	case b.ctx.Err() != nil:
		return fmt.Errorf("closed: %w", broker.ErrUnavailable)
	case strings.Contains(err.Error(), "ProducerBlockedQuotaExceeded"), errors.Is(err, pulsar.ErrProducerBlockedQuotaExceeded):
		return fmt.Errorf("%w: %w", broker.ErrFull, err)
	case errors.As(err, &p) && p.Result() == pulsar.MessageTooBig:
		return fmt.Errorf("%w: %w", broker.ErrTooLarge, err)
	}
	// The binary protocol's client does not say why it cannot connect.
	if lack := b.tokens.lack(); lack != nil {
		return b.access(errors.Join(err, lack))
	}
	return fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
}

// Prepare appends the messages and waits until Pulsar has acknowledged them.
// Every error means that no reference was given out; what was stored all the
// same is an orphan.
func (b *Broker) Prepare(ctx context.Context, msgs []broker.Message) ([]broker.Prepared, error) {
	for i, m := range msgs {
		if len(m.Payload) > mesh.MaxPayload {
			return nil, fmt.Errorf("pulsar: prepare message %d: %d bytes, at most %d: %w", i, len(m.Payload), mesh.MaxPayload, broker.ErrTooLarge)
		}
		if err := checkTopic(m.Topic); err != nil {
			return nil, fmt.Errorf("pulsar: prepare message %d: %w", i, err)
		}
	}
	ctx, cancel := b.call(ctx)
	defer cancel()
	writers := make([]*writer, len(msgs))
	for i, m := range msgs {
		var err error
		if writers[i], err = b.writer(ctx, m.Topic); err != nil {
			return nil, fmt.Errorf("pulsar: prepare: open %s: %w", m.Topic, b.cause(err))
		}
	}
	return b.send(ctx, writers, msgs)
}

// sent is what became of one message.
type sent struct {
	at  int
	id  pulsar.MessageID
	err error
}

func (b *Broker) send(ctx context.Context, writers []*writer, msgs []broker.Message) ([]broker.Prepared, error) {
	began := time.Now()
	results := make(chan sent, len(msgs))
	for i, m := range msgs {
		writers[i].producer.send(ctx, b.message(m), func(id pulsar.MessageID, err error) { results <- sent{i, id, err} })
	}
	out := make([]broker.Prepared, len(msgs))
	for n := range msgs {
		var r sent
		select {
		case r = <-results:
		case <-ctx.Done():
			go b.left(results, len(msgs)-n, b.options.Timeout-time.Since(began), writers, msgs)
			return nil, fmt.Errorf("pulsar: prepare: %w", b.cause(ctx.Err()))
		}
		if r.err != nil {
			if ctx.Err() == nil {
				b.failed(msgs[r.at].Topic, writers[r.at], r.err)
			}
			return nil, fmt.Errorf("pulsar: prepare %s: %w", msgs[r.at].Topic, b.cause(r.err))
		}
		out[r.at] = broker.Prepared{Ref: placeOf(writers[r.at].epoch, r.id).reference()}
	}
	return out, nil
}

// failed judges the producer by what became of a message.
func (b *Broker) failed(t broker.Topic, w *writer, err error) {
	if err = b.cause(err); !errors.Is(err, broker.ErrTooLarge) {
		b.drop(t, w, err)
	}
}

// left judges the producers by what becomes of messages whose caller has gone. That
// it has says nothing of them: others use them too. One that does not answer within
// the timeout may be lost in a reconnect; the next call opens another.
func (b *Broker) left(results <-chan sent, n int, patience time.Duration, writers []*writer, msgs []broker.Message) {
	timer := time.NewTimer(max(patience, 0))
	defer timer.Stop()
	for range n {
		select {
		case r := <-results:
			if r.err != nil && !errors.Is(r.err, context.Canceled) && !errors.Is(r.err, context.DeadlineExceeded) {
				b.failed(msgs[r.at].Topic, writers[r.at], r.err)
			}
		case <-timer.C:
			for i, m := range msgs {
				b.drop(m.Topic, writers[i], nil)
			}
			return
		}
	}
}

// Names of the properties that come with a payload. Others are the caller's.
const (
	taskProperty = "isobar-task"
	hashProperty = "isobar-sha256"
	cellProperty = "isobar-cell"
)

func (b *Broker) message(m broker.Message) *pulsar.ProducerMessage {
	properties := make(map[string]string, len(m.Properties)+3)
	maps.Copy(properties, m.Properties)
	properties[taskProperty], properties[cellProperty] = string(m.TaskID), b.options.Cell
	properties[hashProperty] = fmt.Sprintf("%x", m.SHA256)
	payload := m.Payload
	if payload == nil {
		payload = []byte{} // nil is a message without a value
	}
	return &pulsar.ProducerMessage{Payload: payload, Key: string(m.TaskID), Properties: properties}
}

// TopicName is the topic's name in Pulsar. An error with broker.ErrLost says that
// the cell has never written to this cluster.
func (b *Broker) TopicName(ctx context.Context, t broker.Topic) (string, error) {
	ctx, cancel := b.call(ctx)
	defer cancel()
	epoch, err := b.epoch(ctx, false)
	if errors.Is(err, errNoEpoch) {
		err = fmt.Errorf("%w: %w", broker.ErrLost, err)
	}
	if err != nil {
		return "", fmt.Errorf("pulsar: name %s: %w", t, b.cause(err))
	}
	return topicOf(b.options.Cell, epoch, t).String(), nil
}
