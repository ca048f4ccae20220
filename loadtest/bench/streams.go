package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isobar-mesh/isobar/broker"
	brokerpulsar "github.com/isobar-mesh/isobar/broker/pulsar"
	"github.com/isobar-mesh/isobar/client"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// seam is broker.Streams on Pulsar by itself.
type seam struct {
	broker  *brokerpulsar.Broker
	streams broker.Streams
}

func openSeam(ctx context.Context, service, admin string, o options) (*seam, error) {
	b, err := brokerpulsar.Open(brokerpulsar.Options{
		Service: service, Admin: admin, Cell: fmt.Sprintf("bench-%d", time.Now().UnixNano()), Server: "s1", Timeout: 30 * time.Second, Logger: o.log,
	})
	if err != nil {
		return nil, err
	}
	x := &seam{broker: b, streams: b.Streams()}
	if err = b.Lead(1); err == nil {
		_, err = x.streams.Open(ctx, "default", "bench", partitions)
	}
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return x, nil
}

func (x *seam) close(ctx context.Context) error {
	var err error
	for n := range uint32(partitions) {
		_, dropped := x.streams.Drop(ctx, broker.Partition{Tenant: "default", Stream: "bench", Number: n})
		err = errors.Join(err, dropped)
	}
	return errors.Join(err, x.broker.Close())
}

// run is produce and consume.
func (x *seam) run(ctx context.Context, span time.Duration) (int64, time.Duration, error) {
	var ends [partitions]broker.Position
	for n := range ends {
		ext, err := x.streams.Extent(ctx, broker.Partition{Tenant: "default", Stream: "bench", Number: uint32(n)}, 0)
		if err != nil {
			return 0, 0, err
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
				if _, err := x.streams.Append(ctx, msgs); err != nil {
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
				for m, readErr := range x.streams.Read(ctx, p, at) {
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
	return got.Load(), time.Since(start), err
}

// streamLoad is a stream with its consumers.
type streamLoad struct {
	client *client.Client
	name   string
	turn   int
}

func newStreamLoad(ctx context.Context, c *client.Client, order string) (*streamLoad, error) {
	l := &streamLoad{client: c, name: fmt.Sprintf("bench-%s-%d", order, time.Now().UnixNano())}
	spec := &isobarv1.StreamSpec{Tenant: "default", Name: l.name, Partitions: partitions, Order: order}
	_, err := c.CreateStream(ctx, &isobarv1.StreamServiceCreateRequest{Spec: spec})
	return l, err
}

// run publishes for the span and returns how many messages were consumed and
// acknowledged, and when the last one was.
func (l *streamLoad) run(ctx context.Context, span time.Duration) (int64, time.Duration, error) {
	l.turn++
	var sent, got atomic.Int64
	published := make(chan struct{})
	ctx, finish := context.WithCancel(ctx)
	defer finish()
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(published)
		return l.publish(ctx, start, span, &sent)
	})
	var end atomic.Pointer[time.Time]
	for i := range partitions {
		group.Go(func() error {
			return l.consume(ctx, fmt.Sprint("session-", i), func(n int) {
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
		return got.Load(), at.Sub(start), nil
	}
	return 0, 0, errors.Join(err, context.Cause(ctx))
}

// publish keeps the publishers busy for the span.
func (l *streamLoad) publish(ctx context.Context, start time.Time, span time.Duration, sent *atomic.Int64) error {
	group, ctx := errgroup.WithContext(ctx)
	payload := make([]byte, payloadBytes)
	for p := range publishers {
		group.Go(func() error {
			for n := 0; time.Since(start) < span; n++ {
				req := &isobarv1.PublishRequest{Tenant: "default", Stream: l.name, RequestId: fmt.Sprintf("%d-%d-%d", l.turn, p, n)}
				for i := range publishBatch {
					req.Messages = append(req.Messages, &isobarv1.StreamMessage{Key: fmt.Sprint((n*publishBatch + i) % 1000), Input: &isobarv1.StreamMessage_Payload{Payload: payload}})
				}
				res, err := l.client.Publish(ctx, req)
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

// consume acknowledges what it is given until the context ends: all that came
// meanwhile together, beside the receiving, as Pulsar's client does. But it waits
// for the answer before it counts.
func (l *streamLoad) consume(ctx context.Context, session string, note func(n int)) error {
	group, ctx := errgroup.WithContext(ctx)
	given := make(chan *isobarv1.ConsumeResponse, 64)
	group.Go(func() error { return l.acknowledge(ctx, session, given, note) })
	group.Go(func() error {
		req := &isobarv1.ConsumeRequest{Tenant: "default", Stream: l.name, Group: "bench", Session: session, MaxInFlight: 1000}
		return l.client.Consume(ctx, req, func(res *isobarv1.ConsumeResponse) error {
			select {
			case given <- res:
			case <-ctx.Done():
			}
			return nil
		})
	})
	return group.Wait()
}

func (l *streamLoad) acknowledge(ctx context.Context, session string, given <-chan *isobarv1.ConsumeResponse, note func(n int)) error {
	for {
		last, n := map[uint32]*isobarv1.AckItem{}, 0
		take := func(res *isobarv1.ConsumeResponse) {
			n += len(res.Messages)
			for _, m := range res.Messages {
				last[m.Partition] = &isobarv1.AckItem{Partition: m.Partition, Position: m.Position, Delivery: m.Delivery, Cumulative: true}
			}
		}
		select {
		case res := <-given:
			take(res)
		case <-ctx.Done():
			return nil
		}
		for more := true; more; {
			select {
			case res := <-given:
				take(res)
			default:
				more = false
			}
		}
		if n == 0 {
			continue
		}
		ack := &isobarv1.AckRequest{Tenant: "default", Stream: l.name, Group: "bench", Session: session}
		for _, item := range last { // any order: partitions are apart
			ack.Items = append(ack.Items, item)
		}
		done, err := l.client.Ack(ctx, ack)
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the last message came, and ended it
			}
			return err
		}
		for _, x := range done.Results {
			if x.Verdict != "accepted" && x.Verdict != "done" { // done: a repeat of the call
				return fmt.Errorf("ack: %s: %w", x.Verdict, errNotDone)
			}
		}
		note(n)
	}
}
