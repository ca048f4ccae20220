package client

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect/v2"
)

// silence is how long a server's stream may go without a message: far above what
// a quiet one sends to show that it is there.
const silence = 20 * time.Second

// receiver is the client's side of a server stream.
type receiver[Res any] interface {
	Receive() (Res, error)
	Close() error
}

// listen hands each message of a server stream to f, in one goroutine, until ctx
// ends (then the error is nil), f fails (then it is f's), or no server has gone on
// for Patience. A stream that breaks, or falls silent, is opened again, at the next
// server.
func listen[Service, Req, Res any, Stream receiver[Res]](
	ctx context.Context, c *Client, op string, of func(*server) Service,
	open func(Service, context.Context, Req) (Stream, error), req Req, f func(Res) error,
) error {
	pause := newPause()
	heard, hung := time.Now(), 0
	var to *server // the target of a redirect
	for {
		at := to
		if at == nil {
			at = c.current()
		}
		got, own, err := listenOnce(ctx, of(at), open, req, f)
		if own != nil || ctx.Err() != nil {
			return own
		}
		if got {
			heard, hung = time.Now(), 0
			pause.Reset()
		}
		if errors.Is(err, errSilent) {
			// Its silence alone is longer than Patience: the others get theirs.
			if hung++; hung <= len(c.addresses) {
				heard = time.Now()
			}
		}
		e := newError(op, at.address, err)
		switch {
		case e.pointer() != "" && to == nil:
			to = c.follow(op, at, e)
			continue
		case !e.unsent && !anytime.mayRepeat(e), time.Since(heard) > c.patience:
			return e
		}
		to = nil
		c.advance(at)
		c.log.Debug("repeat", "op", op, "address", at.address, "error", e)
		if !sleep(ctx, max(pause.NextBackOff(), min(e.RetryAfter, maxPause))) {
			return nil
		}
	}
}

// listenOnce follows one stream. got: it gave something; own is f's error.
func listenOnce[Service, Req, Res any, Stream receiver[Res]](
	ctx context.Context, service Service, open func(Service, context.Context, Req) (Stream, error), req Req, f func(Res) error,
) (got bool, own, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()
	in, err := open(service, ctx, req)
	if err != nil {
		return false, nil, orSilent(ctx, err)
	}
	defer func() { _ = in.Close() }() // the error that counts is Receive's
	for {
		res, err := in.Receive()
		if errors.Is(err, io.EOF) {
			return got, nil, connect.NewError(connect.CodeUnavailable, "the server ended the stream")
		}
		if err != nil {
			return got, nil, orSilent(ctx, err)
		}
		got = true
		quiet.Stop() // f takes its time
		if err := f(res); err != nil {
			return got, err, nil
		}
		quiet.Reset(silence)
	}
}

var errSilent = connect.NewError(connect.CodeUnavailable, "the server said nothing for "+silence.String())

// orSilent is why the stream was left.
func orSilent(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}
