package worker

import (
	"errors"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

const (
	dialTimeout = 3 * time.Second
	// A connection that says nothing for this long is asked, and given up when
	// it does not answer in the same time.
	pingAfter = 5 * time.Second
	// An assignment is at most a payload and its frame; a chunk of code may be
	// larger.
	maxMessage = 8 << 20
)

// dialer returns the default transport: HTTP/2, in clear text for http
// addresses, all over one connection an address. Messages are not compressed:
// worker and cell share a region.
func dialer() (transport func(address string) connect.Transport, closeIdle func()) {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	rt := &http.Transport{
		Protocols:   protocols,
		DialContext: (&net.Dialer{Timeout: dialTimeout, KeepAlive: pingAfter}).DialContext,
		HTTP2:       &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
	}
	httpClient := &http.Client{Transport: rt}
	return func(address string) connect.Transport {
		return connecthttp.NewTransport(httpClient, address,
			connecthttp.WithReadMaxBytes(maxMessage),
			connecthttp.WithCompressors(),
		)
	}, rt.CloseIdleConnections
}

// taskError finds the typed detail of a call's error; nil when it has none.
func taskError(err error) *isobarv1.TaskError {
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return nil
	}
	for _, d := range ce.Details() {
		msg, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			continue
		}
		if te, ok := msg.(*isobarv1.TaskError); ok {
			return te
		}
	}
	return nil
}

// leaderOf reads whom a server that does not lead points to; "" when the error
// is another, or names no usable address.
func leaderOf(err error) string {
	te := taskError(err)
	if te == nil || te.GetReason() != "not_leader" || te.GetAddress() == "" {
		return ""
	}
	address, err := baseURL(te.GetAddress())
	if err != nil {
		return ""
	}
	return address
}
