// Package delay makes a local network look far away: connections and queues on
// which everything arrives a fixed time later. It emulates the distance between
// regions for a mesh that runs on one machine; figures measured over it are
// emulated ones and must be labelled so.
//
// It delays and never drops, reorders or limits: bandwidth is bounded only by
// the 32 MiB that may be under way in each direction (320 MB/s at 100 ms). It
// knows nothing of regions; callers say how far away an address is.
package delay

import (
	"context"
	"fmt"
	"net"
	"time"
)

// DialFunc is the shape of (*net.Dialer).DialContext.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Dialer wraps dial so that each connection is as far away as oneWay says for
// its address: the dial takes a round trip longer, as a TCP handshake does,
// and what it returns is wrapped by Conn. Only the dialing side wraps; wrapping
// the accepted side too would delay twice.
func Dialer(dial DialFunc, oneWay func(address string) time.Duration) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		d := oneWay(address)
		if err := Wait(ctx, 2*d); err != nil {
			return nil, fmt.Errorf("delay: dial %s: %w", address, err)
		}
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return Conn(c, d), nil
	}
}

// Wait returns after d, or with the context's error as soon as it is done.
func Wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
