package client

import (
	"context"
	"errors"
	"time"
)

// safety says which repeats of a call are safe, and how long a server may take.
type safety uint8

const (
	// anytime: the call comes to the same however often it is made.
	anytime safety = iota
	// question: anytime, and answered at once from what a server knows. Not what
	// waits for a broker or brings payloads: it may take longer.
	question
	// poll: anytime, and kept by a server for longestPoll at most.
	poll
	// unaccepted: only when the server has certainly not taken it.
	unaccepted
)

// within is after how long a server that says nothing (it hangs, or its machine
// does) is left for the next; 0 is never.
func (s safety) within() time.Duration {
	switch s {
	case question:
		return readTimeout
	case poll:
		return longestPoll + pollSlack
	default:
		return 0
	}
}

// call makes one call of a service, with the repeats and the one redirect that
// are safe.
func call[Service, Req, Res any](
	ctx context.Context, c *Client, op string, s safety,
	of func(*server) Service, method func(Service, context.Context, Req) (Res, error), req Req,
) (Res, error) {
	var none Res
	var to *server // the target of a redirect
	pause := newPause()
	unheard, patience := 0, time.Now().Add(c.patience)
	for {
		at := to
		if at == nil {
			at = c.current()
		}
		res, silent, err := try(ctx, s.within(), of(at), method, req)
		if err == nil {
			return res, nil
		}
		e := newError(op, at.address, err)
		switch {
		case ctx.Err() != nil:
			return none, e
		case silent:
			to = nil // one that it was sent to may have been told of by an old leader
			c.advance(at)
			if time.Now().After(patience) {
				return none, e
			}
			continue
		case e.unsent:
			unheard++
			if to != nil || unheard >= len(c.addresses) {
				return none, e.unreachable()
			}
			c.advance(at)
			continue
		case e.pointer() != "" && to == nil:
			to = c.follow(op, at, e)
			continue
		case !s.mayRepeat(e) || time.Now().After(patience):
			return none, e
		}
		unheard = 0
		if to == nil {
			c.advance(at)
		}
		c.log.Debug("repeat", "op", op, "address", at.address, "error", e)
		if !sleep(ctx, max(pause.NextBackOff(), min(e.RetryAfter, maxPause))) {
			return none, e
		}
	}
}

// readTimeout is how long one server may take to answer a question: far above
// what a leader that has to be asked in another region takes.
const readTimeout = 5 * time.Second

// try makes the call once. silent says that the server was given up.
func try[Service, Req, Res any](
	ctx context.Context, within time.Duration, service Service, method func(Service, context.Context, Req) (Res, error), req Req,
) (res Res, silent bool, err error) {
	if within == 0 {
		res, err = method(service, ctx, req)
		return res, false, err
	}
	one, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	res, err = method(service, one, req)
	return res, err != nil && one.Err() != nil && ctx.Err() == nil, err
}

func (s safety) mayRepeat(e *Error) bool {
	if s != unaccepted {
		return e.unavailable() || e.broken()
	}
	return e.unavailable() && e.Outcome == NotAccepted
}

// follow tells of a redirect and returns its target.
func (c *Client) follow(op string, from *server, e *Error) *server {
	r := Redirect{Op: op, From: from.address, To: e.CellAddress, Cell: e.Cell, Reason: e.Reason}
	c.log.Info("redirected", "op", op, "from", r.From, "to", r.To, "cell", r.Cell, "reason", r.Reason)
	c.redirect(r)
	return c.server(r.To)
}

// sleep reports false when the context ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// asError finds the *Error in what call returns; it is always there.
func asError(err error) *Error {
	e, _ := errors.AsType[*Error](err)
	return e
}
