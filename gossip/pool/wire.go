package pool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/isobar-mesh/isobar/gossip"
)

// kindDigest is the first byte of a gossip message that holds a digest. A
// message of another kind is dropped and counted.
const kindDigest = 1

// The exchange of all digests is a version byte, then for each digest its age in
// milliseconds and its length, both as varints, and its bytes. The age keeps a
// digest that is passed on from looking new.
const (
	stateVersion = 1
	// maxState bounds the bytes of an exchange, sent or read: over 3,000 cells.
	maxState = 4 << 20
	// maxAge bounds an age that is believed.
	maxAge = 30 * 24 * time.Hour
)

var errState = errors.New("malformed exchange of digests")

// aged is a digest and how long ago it was first heard of.
type aged struct {
	age     time.Duration
	encoded []byte
}

// encodeState writes digests as long as they fit.
func encodeState(s gossip.Snapshot, now time.Time) []byte {
	b := []byte{stateVersion}
	for _, list := range [][]gossip.Entry{s.Cells, s.Held} {
		for _, e := range list {
			if len(b)+len(e.Encoded)+2*binary.MaxVarintLen64 > maxState {
				return b
			}
			b = binary.AppendUvarint(b, uint64(e.Age(now).Milliseconds()))
			b = binary.AppendUvarint(b, uint64(len(e.Encoded)))
			b = append(b, e.Encoded...)
		}
	}
	return b
}

// decodeState reads what encodeState wrote, whole or not at all. The digests
// share b and are not decoded yet.
func decodeState(b []byte) ([]aged, error) {
	if len(b) == 0 || len(b) > maxState || b[0] != stateVersion {
		return nil, fmt.Errorf("%w: version or size", errState)
	}
	var out []aged
	for b = b[1:]; len(b) > 0; {
		ms, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, fmt.Errorf("%w: age", errState)
		}
		size, m := binary.Uvarint(b[n:])
		if m <= 0 || size > gossip.MaxEncoded || size > uint64(len(b)-n-m) {
			return nil, fmt.Errorf("%w: size", errState)
		}
		body := b[n+m:]
		age := time.Duration(min(ms, uint64(maxAge.Milliseconds()))) * time.Millisecond
		out = append(out, aged{age, body[:size]})
		b = body[size:]
	}
	return out, nil
}

// broadcast is a digest on its way to others. A newer one of the same cell and
// incarnation takes its place in the queue.
type broadcast struct {
	name    string
	message []byte
}
