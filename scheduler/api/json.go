package api

import (
	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
)

// StrictJSON is the JSON codec of this API. Unlike Connect's own it refuses
// fields it does not know: a misspelt residency must not be ignored.
func StrictJSON() connect.Codec {
	c := connectproto.NewJSONCodec()
	c.UnmarshalOptions.DiscardUnknown = false
	return c
}
