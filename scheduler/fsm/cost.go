package fsm

import (
	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// CostOf is what work costs that declares c, with a payload of so many bytes.
func CostOf(c *isobarv1.Cost, payload uint64) mesh.Cost {
	return mesh.Cost{Tokens: c.GetTokens(), Bytes: c.GetBytes() + int64(payload), AcceleratorMiB: c.GetAcceleratorMib()}
}

// CostMessage writes a cost; nil for nothing.
func CostMessage(c mesh.Cost) *isobarv1.Cost {
	if c == (mesh.Cost{}) {
		return nil
	}
	return &isobarv1.Cost{Tokens: c.Tokens, Bytes: c.Bytes, AcceleratorMib: c.AcceleratorMiB}
}

// costs counts a task that enters those of its queue that have not ended (1), or
// leaves them (-1).
func (a *apply) costs(rec *meshv1.TaskRecord, sign int64) {
	if c := CostOf(rec.Cost, rec.PayloadBytes); c != (mesh.Cost{}) {
		a.queueAdd(QueueOf(rec), func(r *meshv1.QueueRecord) { r.Cost = CostMessage(CostOf(r.Cost, 0).Plus(c.Times(sign))) })
	}
}

// costable reports whether each amount can be summed up.
func costable(c *isobarv1.Cost) bool {
	for _, n := range []int64{c.GetTokens(), c.GetBytes(), c.GetAcceleratorMib()} {
		if n < 0 || n > mesh.MaxCost {
			return false
		}
	}
	return true
}

// room reports whether one task more may be in its queue, with so many bytes more
// to keep. One that finds nothing of an amount there may always enter, or a task
// above its bound never could.
func (a *apply) room(rec *meshv1.TaskRecord, limit *meshv1.QueueCap, more uint64) error {
	q := QueueOf(rec)
	counts := a.queue(q)
	full := &QueueFullError{Queue: q, Count: counts.Ready + counts.Deferred + counts.Leased, Bytes: counts.Bytes, Held: CostOf(counts.Cost, 0), Cap: limit}
	takes, most := CostOf(rec.Cost, rec.PayloadBytes), CostOf(limit.GetCost(), 0)
	full.Over = takes.Over(full.Held, most).Where(full.Held)
	switch {
	case limit.GetCount() > 0 && full.Count >= limit.Count:
		full.By = "count"
	case limit.GetBytes() > 0 && more > 0 && counts.Bytes+more > limit.Bytes:
		full.By = "bytes"
	case full.Over.Tokens > 0:
		full.By = "cost.tokens"
	case full.Over.Bytes > 0:
		full.By = "cost.bytes"
	case full.Over.AcceleratorMiB > 0:
		full.By = "cost.accelerator_mib"
	default:
		return nil
	}
	return full
}
