package embedded

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/state"
)

// The keys of streams, beside those of Machine:
//
//	S partition              partitionRecord
//	m partition position     mark of a message: time, size
//	v partition position     the message
//	i partition SHA-256(ID)  position of the message with that ID
//	w partition position     SHA-256(ID) of the message there
const (
	keyPartition = 'S'
	keyMark      = 'm'
	keyValue     = 'v'
	keyID        = 'i'
	keyWindow    = 'w'
)

func partitionKey(p broker.Partition) []byte { return appendPartition([]byte{keyPartition}, p) }

func positionKey(kind byte, p broker.Partition, at broker.Position) []byte {
	return binary.BigEndian.AppendUint64(appendPartition([]byte{kind}, p), at)
}

func idKey(p broker.Partition, sum []byte) []byte {
	return append(appendPartition([]byte{keyID}, p), sum...)
}

func loadPartition(r state.Reader, p broker.Partition) (partitionRecord, error) {
	v, ok := r.Get(partitionKey(p))
	if !ok {
		return partitionRecord{}, nil
	}
	return decodePartitionRecord(v)
}

func loadMark(r state.Reader, p broker.Partition, at broker.Position) (mark, error) {
	v, ok := r.Get(positionKey(keyMark, p, at))
	if !ok {
		return mark{}, fmt.Errorf("message %d: %w", at, ErrMalformed)
	}
	return decodeMark(v)
}

// applyStreamAppend gives the message the next position of its partition.
func applyStreamAppend(tx state.Tx, c streamAppendCommand) (broker.StreamAppended, error) {
	m := c.message
	if len(m.Payload) > mesh.MaxPayload {
		return broker.StreamAppended{}, broker.ErrTooLarge
	}
	rec := must(loadPartition(tx, m.Partition))
	if rec.dropping {
		return broker.StreamAppended{}, fmt.Errorf("partition is being dropped: %w", broker.ErrUnavailable)
	}
	sum := sha256.Sum256([]byte(m.ID))
	if at, ok := tx.Get(idKey(m.Partition, sum[:])); ok {
		return broker.StreamAppended{Position: binary.BigEndian.Uint64(at), Duplicate: true}, nil
	}
	size := uint64(len(m.Payload))
	total := must(loadTotal(tx))
	if c.limit > 0 && (total.Bytes > c.limit || size > c.limit-total.Bytes) {
		return broker.StreamAppended{}, broker.ErrFull
	}
	at := rec.end
	rec.lastMs = max(rec.lastMs, c.ms)
	tx.Set(positionKey(keyMark, m.Partition, at), mark{ms: rec.lastMs, before: rec.bytes, size: size}.encode())
	tx.Set(positionKey(keyValue, m.Partition, at), append(appendEnvelope(nil, m, rec.lastMs), m.Payload...))
	tx.Set(idKey(m.Partition, sum[:]), binary.BigEndian.AppendUint64(nil, at))
	tx.Set(positionKey(keyWindow, m.Partition, at), sum[:])
	rec.end++
	rec.bytes += size
	forgetID(tx, m.Partition, &rec, broker.DedupWindow)
	total.Messages++
	total.Bytes += size
	tx.Set(partitionKey(m.Partition), rec.encode())
	tx.Set(totalKey(), total.encode())
	return broker.StreamAppended{Position: at}, nil
}

// forgetID drops the oldest ID when more than keep are known.
func forgetID(tx state.Tx, p broker.Partition, rec *partitionRecord, keep uint64) bool {
	if rec.end-rec.window <= keep {
		return false
	}
	wkey := positionKey(keyWindow, p, rec.window)
	if sum, ok := tx.Get(wkey); ok {
		tx.Delete(idKey(p, sum))
		tx.Delete(wkey)
	}
	rec.window++
	return true
}

// applyStreamTrim hides what lies below at once and deletes a batch of it.
func applyStreamTrim(tx state.Tx, c streamTrimCommand) Trimmed {
	p := c.partition
	rec := must(loadPartition(tx, p))
	below := min(c.below, rec.end)
	if c.drop {
		below, rec.dropping = rec.end, true
	}
	if below > rec.first {
		rec.first, rec.trimmedBytes = below, rec.bytes
		if below < rec.end {
			rec.trimmedBytes = must(loadMark(tx, p, below)).before
		}
	}
	var res Trimmed
	for ; rec.dropped < rec.first && res.Dropped.Messages < trimBatch; rec.dropped++ {
		res.Dropped.Bytes += must(loadMark(tx, p, rec.dropped)).size
		res.Dropped.Messages++
		tx.Delete(positionKey(keyMark, p, rec.dropped))
		tx.Delete(positionKey(keyValue, p, rec.dropped))
	}
	res.More = rec.dropped < rec.first
	if c.drop && !res.More {
		n := 0
		for ; n < trimBatch && forgetID(tx, p, &rec, 0); n++ {
		}
		res.More = rec.window < rec.end
	}
	total := must(loadTotal(tx))
	total.Messages -= res.Dropped.Messages
	total.Bytes -= res.Dropped.Bytes
	tx.Set(totalKey(), total.encode())
	if c.drop && !res.More {
		tx.Delete(partitionKey(p))
	} else if rec.end > 0 || rec.dropping {
		tx.Set(partitionKey(p), rec.encode())
	}
	return res
}
