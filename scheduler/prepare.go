package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/isobar-mesh/isobar/broker"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// A broker outside the log loses a connection now and then, and has it again
// after a moment. A Submit waits that out; an outage it does not: those who come
// once it has lasted this long are answered at once, and clients repeat with a
// pause of their own.
const (
	brokerPatience = 2 * time.Second
	brokerPause    = 50 * time.Millisecond // the first, with jitter; it doubles
	brokerPauseMax = 500 * time.Millisecond
)

// prepare stores the payload of a task that is being accepted. What a failed try
// has stored all the same is an orphan.
func (l *leader) prepare(ctx context.Context, q fsm.Queue, rec *meshv1.TaskRecord, payload []byte) (broker.Prepared, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval, pause.Multiplier = brokerPause, brokerPauseMax, 2
	messages := []broker.Message{message(q, rec, payload)}
	for began := time.Now(); ; {
		prepared, err := l.Broker.Prepare(ctx, messages)
		if err == nil {
			l.brokerOut.Store(nil)
			return prepared[0], nil
		}
		now := time.Now()
		if !passing(err) || l.inTerm() != nil {
			return broker.Prepared{}, err
		}
		l.brokerOut.CompareAndSwap(nil, &now)
		wait := pause.NextBackOff()
		if out := l.brokerOut.Load(); now.Add(wait).Sub(began) > brokerPatience || out != nil && now.Sub(*out) > brokerPatience {
			return broker.Prepared{}, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return broker.Prepared{}, err
		case <-l.ctx.Done():
			return broker.Prepared{}, err
		}
	}
}

// passing reports whether a broker that fails so may do better in a moment: it
// is away, and for no cause that somebody has to remove.
func passing(err error) bool {
	return errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrReplaced) && !errors.Is(err, broker.ErrDenied) && !errors.Is(err, broker.ErrNoToken)
}
