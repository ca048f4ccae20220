package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"golang.org/x/sync/errgroup"
)

// raw is Pulsar's own client with one producer, and one consumer or one a
// partition, and the settings of batches that Isobar has. Its consumers acknowledge each
// message; the client sends acknowledgements together and waits for no answer, and
// Pulsar keeps the place in memory and writes it down once a second.
type raw struct {
	topic     string // its address in the admin API
	client    pulsar.Client
	producer  pulsar.Producer
	consumers []pulsar.Consumer
}

func openRaw(ctx context.Context, service, admin string, consumers int) (*raw, error) {
	c, err := pulsar.NewClient(pulsar.ClientOptions{URL: service, Logger: log.DefaultNopLogger(), MetricsCardinality: pulsar.MetricsCardinalityNone})
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("public/default/isobar-bench-%d", time.Now().UnixNano())
	r := &raw{client: c, topic: admin + "/admin/v2/persistent/" + name + "/partitions"}
	err = r.admin(ctx, http.MethodPut, fmt.Sprint(partitions))
	for n := range consumers {
		topic := "persistent://" + name
		if consumers > 1 {
			topic = fmt.Sprintf("%s-partition-%d", topic, n)
		}
		if err == nil {
			err = r.consume(topic)
		}
	}
	if err == nil {
		r.producer, err = c.CreateProducer(pulsar.ProducerOptions{
			Topic: "persistent://" + name, BatchingMaxPublishDelay: time.Millisecond, BatchingMaxMessages: 1000, BatchingMaxSize: 512 << 10, MaxPendingMessages: 4096,
		})
	}
	if err != nil {
		r.close(ctx)
		return nil, err
	}
	return r, nil
}

func (r *raw) consume(topic string) error {
	c, err := r.client.Subscribe(pulsar.ConsumerOptions{Topic: topic, SubscriptionName: "bench", Type: pulsar.Exclusive})
	if err == nil {
		r.consumers = append(r.consumers, c)
	}
	return err
}

// admin makes or deletes the topic.
func (r *raw) admin(ctx context.Context, method, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, r.topic+"?force=true", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := res.Body.Close(); err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %w: %s", method, r.topic, errAdmin, res.Status)
	}
	return nil
}

var errAdmin = errors.New("admin API of Pulsar")

func (r *raw) close(ctx context.Context) {
	if r.producer != nil {
		r.producer.Close()
	}
	for _, c := range r.consumers {
		c.Close()
	}
	r.client.Close()
	_ = r.admin(ctx, http.MethodDelete, "") // a topic left over is small
}

// errUnread: a message that was sent did not come.
var errUnread = errors.New("not all came")

// pipelined sends for the span as fast as the client takes it, and returns how many
// were consumed and acknowledged, and when the last one was.
func (r *raw) pipelined(ctx context.Context, span time.Duration) (int64, time.Duration, error) {
	return r.flow(ctx, func(ctx context.Context, start time.Time, sent *atomic.Int64) error {
		var failed atomic.Pointer[error]
		payload := make([]byte, payloadBytes)
		for i := 0; time.Since(start) < span && failed.Load() == nil; i++ {
			sent.Add(1)
			r.producer.SendAsync(ctx, &pulsar.ProducerMessage{Payload: payload, Key: fmt.Sprint(i % 1000)}, func(_ pulsar.MessageID, _ *pulsar.ProducerMessage, err error) {
				if err != nil {
					failed.Store(&err)
				}
			})
		}
		if p := failed.Load(); p != nil {
			return *p
		}
		return nil
	})
}

// publishers do as those of streams: each sends a batch and waits until all of it
// is stored.
func (r *raw) publishers(ctx context.Context, span time.Duration) (int64, time.Duration, error) {
	return r.flow(ctx, func(ctx context.Context, start time.Time, sent *atomic.Int64) error {
		payload := make([]byte, payloadBytes)
		var all errgroup.Group
		for range publishers {
			all.Go(func() error {
				for n := 0; time.Since(start) < span; n++ {
					stored := make(chan error, publishBatch)
					for i := range publishBatch {
						r.producer.SendAsync(ctx, &pulsar.ProducerMessage{Payload: payload, Key: fmt.Sprint((n*publishBatch + i) % 1000)}, func(_ pulsar.MessageID, _ *pulsar.ProducerMessage, err error) {
							stored <- err
						})
					}
					for range publishBatch {
						if err := <-stored; err != nil {
							return err
						}
					}
					sent.Add(publishBatch)
				}
				return nil
			})
		}
		return all.Wait()
	})
}

// flow consumes and acknowledges what send sends, to the last.
func (r *raw) flow(ctx context.Context, send func(context.Context, time.Time, *atomic.Int64) error) (int64, time.Duration, error) {
	ctx, finish := context.WithCancel(ctx)
	defer finish()
	var sent, got atomic.Int64
	var end atomic.Pointer[time.Time]
	done := make(chan struct{})
	start := time.Now()
	var all errgroup.Group
	all.Go(func() error {
		defer close(done)
		return send(ctx, start, &sent)
	})
	for _, c := range r.consumers {
		all.Go(func() error {
			for {
				m, err := c.Receive(ctx)
				if err != nil {
					return nil //nolint:nilerr // finished; what lacks is counted
				}
				if err := c.Ack(m); err != nil {
					return err
				}
				n := got.Add(1)
				select {
				case <-done:
					if n == sent.Load() {
						now := time.Now()
						end.Store(&now)
						finish()
					}
				default:
				}
			}
		})
	}
	if err := all.Wait(); err != nil {
		return 0, 0, err
	}
	at := end.Load()
	if at == nil {
		return 0, 0, fmt.Errorf("%d received of %d: %w", got.Load(), sent.Load(), errUnread)
	}
	return got.Load(), at.Sub(start), nil
}

// closedLoop keeps n messages on their way to the consumer.
func (r *raw) closedLoop(ctx context.Context, span time.Duration, n int) (int64, time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var waiting sync.Map // key to channel
	go func() {
		for {
			m, err := r.consumers[0].Receive(ctx)
			if err != nil {
				return
			}
			_ = r.consumers[0].Ack(m) // the loop waits for what was received
			if ch, ok := waiting.LoadAndDelete(m.Key()); ok {
				close(ch.(chan struct{}))
			}
		}
	}()
	var serial atomic.Int64
	payload := make([]byte, payloadBytes)
	_, lat, err := repeat(ctx, func(ctx context.Context) error {
		key, ch := fmt.Sprint("loop-", serial.Add(1)), make(chan struct{})
		waiting.Store(key, ch)
		if _, err := r.producer.Send(ctx, &pulsar.ProducerMessage{Payload: payload, Key: key}); err != nil {
			return err
		}
		select {
		case <-ch:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}, span, n)
	if err != nil {
		return 0, 0, err
	}
	return int64(lat.Count()), time.Since(start), nil
}
