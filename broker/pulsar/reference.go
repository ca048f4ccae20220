package pulsar

import (
	"cmp"
	"encoding/binary"

	"github.com/apache/pulsar-client-go/pulsar"

	"github.com/isobar-mesh/isobar/broker"
)

// refLen is the length of a reference: epoch, ledger, entry, batch index.
const refLen = 8 + 8 + 8 + 4

// place is a reference taken apart.
type place struct {
	epoch         uint64
	ledger, entry int64
	batch         int32
}

func placeOf(epoch uint64, id pulsar.MessageID) place {
	// A message outside a batch has the index -1, or 0.
	return place{epoch: epoch, ledger: id.LedgerID(), entry: id.EntryID(), batch: max(id.BatchIdx(), 0)}
}

func (p place) reference() broker.Reference {
	b := make([]byte, 0, refLen)
	b = binary.BigEndian.AppendUint64(b, p.epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(p.ledger))
	b = binary.BigEndian.AppendUint64(b, uint64(p.entry))
	return binary.BigEndian.AppendUint32(b, uint32(p.batch))
}

// parse takes a position apart: a reference, or one with bytes behind it, which
// lies above it. ok is false for anything else.
func parse(r broker.Reference) (p place, ok bool) {
	if len(r) < refLen {
		return place{}, false
	}
	p = place{
		epoch:  binary.BigEndian.Uint64(r),
		ledger: int64(binary.BigEndian.Uint64(r[8:])),
		entry:  int64(binary.BigEndian.Uint64(r[16:])),
		batch:  int32(binary.BigEndian.Uint32(r[24:])),
	}
	return p, p.ledger >= 0 && p.entry >= 0 && p.batch >= 0
}

// id is the place as the client names it.
func (p place) id() pulsar.MessageID { return pulsar.NewMessageID(p.ledger, p.entry, p.batch, -1) }

// less orders places as their references are.
func (p place) less(q place) bool {
	return cmp.Or(cmp.Compare(p.epoch, q.epoch), cmp.Compare(p.ledger, q.ledger), cmp.Compare(p.entry, q.entry), cmp.Compare(p.batch, q.batch)) < 0
}
