package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"golang.org/x/sync/errgroup"

	"github.com/isobar-mesh/isobar/broker"
	brokerpulsar "github.com/isobar-mesh/isobar/broker/pulsar"
	"github.com/isobar-mesh/isobar/broker/pulsar/standalone"
	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/config"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// Aims of what a region's Pulsar serves, as shares of what its own client does
// with the same messages in the same run.
const (
	streamAim = 0.7
	taskAim   = 0.25
)

// partitions of the topic and of the stream.
const partitions = 4

// benchPulsar measures Pulsar's own client, and streams and durable tasks on the
// region's Pulsar and on the embedded broker, with the same messages.
func benchPulsar(ctx context.Context, o options, r *report) error {
	service, admin, err := findPulsar(ctx)
	if err != nil {
		fmt.Fprintf(o.status, "bench: pulsar: left out: %v\n", err)
		return nil
	}
	raw, err := openRaw(ctx, service, admin)
	if err != nil {
		return err
	}
	defer raw.close(ctx)
	if _, err := raw.pipelined(ctx, o.span); err != nil { // Pulsar compiles as it runs
		return err
	}
	rawRate, err := raw.pipelined(ctx, o.span)
	if err != nil {
		return err
	}
	r.add("pulsar", "raw client: produce and consume", rawRate, "messages/s", fmt.Sprintf("%d bytes, pipelined, %d partitions, one producer, one consumer", payloadBytes, partitions))
	rawLoop, err := raw.closedLoop(ctx, o.span, o.inFlight)
	if err != nil {
		return err
	}
	r.add("pulsar", "raw client: closed loop", rawLoop, "messages/s", fmt.Sprintf("%d in flight, each sent alone and waited for at the consumer", o.inFlight))
	seam, err := seamRate(ctx, service, admin, o)
	if err != nil {
		return fmt.Errorf("seam: %w", err)
	}
	onPulsar := func(c *config.Server) { c.Broker.Kind, c.Broker.Service, c.Broker.Admin = "pulsar", service, admin }
	streams, tasks, err := onBroker(ctx, o, onPulsar)
	if err != nil {
		return fmt.Errorf("broker pulsar: %w", err)
	}
	embeddedStreams, embeddedTasks, err := onBroker(ctx, o, nil)
	if err != nil {
		return fmt.Errorf("broker embedded: %w", err)
	}
	r.add("pulsar", "broker.Streams on Pulsar", seam, "messages/s", fmt.Sprintf("%.2f of raw: append and read, without groups, log and API", seam/rawRate))
	r.add("pulsar", "streams on Pulsar", streams, "messages/s", fmt.Sprintf("%d a Publish, %d publishers and %d consumers over the API", publishBatch, publishers, partitions))
	r.atLeast("pulsar", "streams on Pulsar / raw", streams/rawRate, streamAim, "", "of produce and consume")
	r.add("pulsar", "streams embedded", embeddedStreams, "messages/s", fmt.Sprintf("%.2f of raw, %.2f of those on Pulsar", embeddedStreams/rawRate, embeddedStreams/streams))
	r.add("pulsar", "durable tasks on Pulsar", tasks, "tasks/s", fmt.Sprintf("submit to result, %d in flight, fake worker", o.inFlight))
	r.atLeast("pulsar", "durable tasks on Pulsar / raw", tasks/rawLoop, taskAim, "", fmt.Sprintf("of the closed loop; %.3f of produce and consume", tasks/rawRate))
	r.add("pulsar", "durable tasks embedded", embeddedTasks, "tasks/s", fmt.Sprintf("%.2f of those on Pulsar", embeddedTasks/tasks))
	return nil
}

// findPulsar is the Pulsar of ISOBAR_TEST_PULSAR, as tests read it, or the shared
// one of this machine.
func findPulsar(ctx context.Context) (service, admin string, err error) {
	if v := os.Getenv("ISOBAR_TEST_PULSAR"); v != "" {
		service, admin, ok := strings.Cut(v, ",")
		if !ok {
			admin = "http://" + strings.Split(strings.TrimPrefix(service, "pulsar://"), ":")[0] + ":8080"
		}
		return service, admin, nil
	}
	s, err := standalone.Shared(ctx)
	if err != nil {
		return "", "", err
	}
	return s.Service, s.Admin, nil
}

// raw is Pulsar's own client with one producer and one consumer, and the settings
// of batches that Isobar has.
type raw struct {
	topic    string // its address in the admin API
	client   pulsar.Client
	producer pulsar.Producer
	consumer pulsar.Consumer
}

func openRaw(ctx context.Context, service, admin string) (*raw, error) {
	c, err := pulsar.NewClient(pulsar.ClientOptions{URL: service, Logger: log.DefaultNopLogger(), MetricsCardinality: pulsar.MetricsCardinalityNone})
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("public/default/isobar-bench-%d", time.Now().UnixNano())
	r := &raw{client: c, topic: admin + "/admin/v2/persistent/" + name + "/partitions"}
	if err = r.admin(ctx, http.MethodPut, fmt.Sprint(partitions)); err == nil {
		r.consumer, err = c.Subscribe(pulsar.ConsumerOptions{Topic: "persistent://" + name, SubscriptionName: "bench", Type: pulsar.Exclusive})
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
	if r.consumer != nil {
		r.consumer.Close()
	}
	r.client.Close()
	_ = r.admin(ctx, http.MethodDelete, "") // a topic left over is small
}

// pipelined sends for the span as fast as the client takes it, and returns how many
// a second had been consumed and acknowledged when the last one was.
func (r *raw) pipelined(ctx context.Context, span time.Duration) (float64, error) {
	var sent atomic.Int64
	var failed atomic.Pointer[error]
	done := make(chan struct{})
	start := time.Now()
	go func() {
		defer close(done)
		payload := make([]byte, payloadBytes)
		for i := 0; time.Since(start) < span && failed.Load() == nil; i++ {
			sent.Add(1)
			r.producer.SendAsync(ctx, &pulsar.ProducerMessage{Payload: payload, Key: fmt.Sprint(i % 1000)}, func(_ pulsar.MessageID, _ *pulsar.ProducerMessage, err error) {
				if err != nil {
					failed.Store(&err)
				}
			})
		}
	}()
	var got int64
	for {
		m, err := r.consumer.Receive(ctx)
		if err == nil {
			err = r.consumer.Ack(m)
		}
		if p := failed.Load(); err == nil && p != nil {
			err = *p
		}
		if err != nil {
			return 0, err
		}
		got++
		select {
		case <-done:
			if got == sent.Load() {
				return float64(got) / time.Since(start).Seconds(), nil
			}
		default:
		}
	}
}

// closedLoop keeps n messages on their way to the consumer.
func (r *raw) closedLoop(ctx context.Context, span time.Duration, n int) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var waiting sync.Map // key to channel
	go func() {
		for {
			m, err := r.consumer.Receive(ctx)
			if err != nil {
				return
			}
			_ = r.consumer.Ack(m) // the loop waits for what was received
			if ch, ok := waiting.LoadAndDelete(m.Key()); ok {
				close(ch.(chan struct{}))
			}
		}
	}()
	var serial atomic.Int64
	payload := make([]byte, payloadBytes)
	rate, _, err := repeat(ctx, func(ctx context.Context) error {
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
	return rate, err
}

// seamRate is produce and consume through broker.Streams alone.
func seamRate(ctx context.Context, service, admin string, o options) (rate float64, err error) {
	b, err := brokerpulsar.Open(brokerpulsar.Options{
		Service: service, Admin: admin, Cell: fmt.Sprintf("bench-%d", time.Now().UnixNano()), Server: "s1", Timeout: 30 * time.Second, Logger: o.log,
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := b.Lead(1); err != nil {
		return 0, err
	}
	if err := b.Streams().Open(ctx, "default", "bench", partitions); err != nil {
		return 0, err
	}
	for range 2 { // the first warms up
		if rate, err = seamRun(ctx, b.Streams(), o.span); err != nil {
			return 0, err
		}
	}
	for n := range uint32(partitions) {
		if _, err := b.Streams().Drop(ctx, broker.Partition{Tenant: "default", Stream: "bench", Number: n}); err != nil {
			return 0, err
		}
	}
	return rate, nil
}

func seamRun(ctx context.Context, s broker.Streams, span time.Duration) (float64, error) {
	var ends [partitions]broker.Position
	for n := range ends {
		ext, err := s.Extent(ctx, broker.Partition{Tenant: "default", Stream: "bench", Number: uint32(n)})
		if err != nil {
			return 0, err
		}
		ends[n] = ext.End
	}
	start := time.Now()
	var sent, got atomic.Int64
	var appending, all errgroup.Group
	payload := make([]byte, payloadBytes)
	for p := range publishers {
		appending.Go(func() error {
			for n := 0; time.Since(start) < span; n++ {
				msgs := make([]broker.StreamMessage, publishBatch)
				for i := range msgs {
					msgs[i] = broker.StreamMessage{
						Partition: broker.Partition{Tenant: "default", Stream: "bench", Number: uint32(i % partitions)}, ID: fmt.Sprintf("%d/%d-%d/%d", start.UnixNano(), p, n, i),
						Key: fmt.Sprint(i % 1000), Payload: payload, Published: time.Now(),
					}
				}
				if _, err := s.Append(ctx, msgs); err != nil {
					return err
				}
				sent.Add(publishBatch)
			}
			return nil
		})
	}
	done := make(chan struct{})
	all.Go(func() error { defer close(done); return appending.Wait() })
	for n := range uint32(partitions) {
		all.Go(func() error {
			p := broker.Partition{Tenant: "default", Stream: "bench", Number: n}
			var err error
			for at, last := ends[n], false; err == nil && !last; {
				select {
				case <-done: // nothing comes behind the next read
					last = true
				default:
				}
				before := at
				for m, readErr := range s.Read(ctx, p, at) {
					if err = readErr; err != nil {
						break
					}
					at = m.Position + 1
					got.Add(1)
				}
				if err == nil && at == before {
					err = pause(ctx, time.Millisecond)
				}
			}
			return err
		})
	}
	err := all.Wait()
	if err == nil && got.Load() != sent.Load() {
		err = fmt.Errorf("%d read of %d: %w", got.Load(), sent.Load(), errNotDone)
	}
	return float64(got.Load()) / time.Since(start).Seconds(), err
}

// onBroker measures streams and durable tasks of a cell of one server.
func onBroker(ctx context.Context, o options, change func(*config.Server)) (streams, tasks float64, err error) {
	c, err := startCell(ctx, o, 1, change)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	for range 2 { // the first warms up
		if streams, err = streamRate(ctx, c.client, o.span); err != nil {
			return 0, 0, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	welcomed, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- runFake(ctx, c.leader, welcomed) }()
	defer func() { cancel(); err = errors.Join(err, <-ended) }()
	select {
	case <-welcomed:
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
	}
	if _, _, err = closedLoop(ctx, c.client, o.span/2, o.inFlight); err != nil {
		return 0, 0, err
	}
	tasks, _, err = closedLoop(ctx, c.client, o.span, o.inFlight)
	return streams, tasks, err
}

const (
	publishBatch = 500
	publishers   = 8
)

// streamRate publishes to a new stream for the span and returns how many messages
// a second had been consumed and acknowledged when the last one was.
func streamRate(ctx context.Context, c *client.Client, span time.Duration) (float64, error) {
	name := fmt.Sprintf("bench-%d", time.Now().UnixNano())
	spec := &isobarv1.StreamSpec{Tenant: "default", Name: name, Partitions: partitions, Order: "strict"}
	if _, err := c.CreateStream(ctx, &isobarv1.StreamServiceCreateRequest{Spec: spec}); err != nil {
		return 0, err
	}
	var sent, got atomic.Int64
	published := make(chan struct{})
	ctx, finish := context.WithCancel(ctx)
	defer finish()
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(published)
		return publish(ctx, c, name, start, span, &sent)
	})
	var end atomic.Pointer[time.Time]
	for i := range partitions {
		group.Go(func() error {
			return consume(ctx, c, name, fmt.Sprint("session-", i), func(n int) {
				total := got.Add(int64(n))
				select {
				case <-published:
					if total == sent.Load() {
						now := time.Now()
						end.Store(&now)
						finish()
					}
				default:
				}
			})
		})
	}
	err := group.Wait()
	if at := end.Load(); at != nil {
		return float64(got.Load()) / at.Sub(start).Seconds(), nil
	}
	return 0, errors.Join(err, context.Cause(ctx))
}

// publish keeps the publishers busy for the span.
func publish(ctx context.Context, c *client.Client, name string, start time.Time, span time.Duration, sent *atomic.Int64) error {
	group, ctx := errgroup.WithContext(ctx)
	payload := make([]byte, payloadBytes)
	for p := range publishers {
		group.Go(func() error {
			for n := 0; time.Since(start) < span; n++ {
				req := &isobarv1.PublishRequest{Tenant: "default", Stream: name, RequestId: fmt.Sprintf("%d-%d", p, n)}
				for i := range publishBatch {
					req.Messages = append(req.Messages, &isobarv1.StreamMessage{Key: fmt.Sprint((n*publishBatch + i) % 1000), Input: &isobarv1.StreamMessage_Payload{Payload: payload}})
				}
				res, err := c.Publish(ctx, req)
				if err != nil {
					return err
				}
				for _, x := range res.Results {
					if x.Error != nil {
						return fmt.Errorf("publish: %s", x.Error.Message)
					}
				}
				sent.Add(publishBatch)
			}
			return nil
		})
	}
	return group.Wait()
}

// consume acknowledges what it is given, batch by batch, until the context ends.
func consume(ctx context.Context, c *client.Client, name, session string, note func(n int)) error {
	req := &isobarv1.ConsumeRequest{Tenant: "default", Stream: name, Group: "bench", Session: session, MaxInFlight: 1000}
	err := c.Consume(ctx, req, func(res *isobarv1.ConsumeResponse) error {
		last := map[uint32]*isobarv1.AckItem{}
		for _, m := range res.Messages {
			last[m.Partition] = &isobarv1.AckItem{Partition: m.Partition, Position: m.Position, Delivery: m.Delivery, Cumulative: true}
		}
		if len(last) == 0 {
			return nil
		}
		ack := &isobarv1.AckRequest{Tenant: "default", Stream: name, Group: "bench", Session: session}
		for _, item := range last { // any order: partitions are apart
			ack.Items = append(ack.Items, item)
		}
		done, err := c.Ack(ctx, ack)
		if err != nil {
			return err
		}
		for _, x := range done.Results {
			if x.Verdict != "accepted" && x.Verdict != "done" { // done: a repeat of the call
				return fmt.Errorf("ack: %s", x.Verdict)
			}
		}
		note(len(res.Messages))
		return nil
	})
	if ctx.Err() == nil {
		return err
	}
	return nil // the last message came, and ended it
}
