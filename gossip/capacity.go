package gossip

import (
	"cmp"
	"slices"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// Capacities are a cell's resources as a digest tells them.
type Capacities struct {
	Total mesh.Capacity
	Free  mesh.Capacity
	// Widest is, per resource, the most that is free on one worker.
	Widest mesh.Capacity
}

// SetCapacities writes c into d, with counts below zero as zero. Accelerator
// models are those of Total, sorted; their prices and power, where d has them
// already, are kept, so set d.Gpus before when they are known.
func SetCapacities(d *meshv1.Digest, c Capacities) {
	known := d.Gpus
	d.Gpus = nil
	for _, g := range c.Total.GPUs {
		m := &meshv1.ModelDigest{Model: g.Model}
		for _, k := range known {
			if k.GetModel() == g.Model {
				m = k
			}
		}
		d.Gpus = append(d.Gpus, m)
	}
	slices.SortFunc(d.Gpus, func(a, b *meshv1.ModelDigest) int { return cmp.Compare(a.Model, b.Model) })
	d.Total = toDigest(c.Total, d.Gpus)
	d.Free = toDigest(c.Free, d.Gpus)
	d.Widest = toDigest(c.Widest, d.Gpus)
	bounds(d.Total, c.Total)
	bounds(d.Free, c.Free)
}

// CapacitiesOf reads the capacities out of d. Counts that the digest leaves out
// are zero.
func CapacitiesOf(d *meshv1.Digest) Capacities {
	return Capacities{
		Total:  fromDigest(d.GetTotal(), d.GetGpus()),
		Free:   fromDigest(d.GetFree(), d.GetGpus()),
		Widest: fromDigest(d.GetWidest(), d.GetGpus()),
	}
}

func toDigest(c mesh.Capacity, models []*meshv1.ModelDigest) *meshv1.CapacityDigest {
	out := &meshv1.CapacityDigest{CpuMilli: max(c.CPUMilli, 0), MemoryMib: max(c.MemoryMiB, 0)}
	for _, m := range models {
		out.Gpus = append(out.Gpus, max(c.GPU(m.Model), 0))
	}
	return out
}

// bounds adds what is bounded at once and what is held of it, where anything is.
func bounds(out *meshv1.CapacityDigest, c mesh.Capacity) {
	if c.Most != (mesh.Cost{}) {
		out.Most = amounts(c.Most)
	}
	if len(out.Most) > 0 && c.Held != (mesh.Cost{}) {
		out.Held = amounts(c.Held)
	}
}

// amounts writes a cost, with amounts below zero as zero.
func amounts(c mesh.Cost) []int64 {
	return []int64{max(c.Tokens, 0), max(c.Bytes, 0), max(c.AcceleratorMiB, 0)}
}

// costOf reads it; what is left out is zero.
func costOf(list []int64) mesh.Cost {
	var three [3]int64
	copy(three[:], list)
	return mesh.Cost{Tokens: three[0], Bytes: three[1], AcceleratorMiB: three[2]}
}

// fromDigest returns accelerators sorted by model, as mesh.Capacity wants them,
// in whatever order the digest names them.
func fromDigest(c *meshv1.CapacityDigest, models []*meshv1.ModelDigest) mesh.Capacity {
	out := mesh.Capacity{CPUMilli: c.GetCpuMilli(), MemoryMiB: c.GetMemoryMib(), Most: costOf(c.GetMost()), Held: costOf(c.GetHeld())}
	for i, m := range models {
		out.GPUs = append(out.GPUs, mesh.Accelerators{Model: m.GetModel(), Count: gpuAt(c, i)})
	}
	slices.SortFunc(out.GPUs, func(a, b mesh.Accelerators) int { return cmp.Compare(a.Model, b.Model) })
	return out
}

func gpuAt(c *meshv1.CapacityDigest, i int) int64 {
	if g := c.GetGpus(); i < len(g) {
		return g[i]
	}
	return 0
}

// WaitOf returns the expected wait by lane, critical first; a lane the digest
// leaves out waits for nothing.
func WaitOf(d *meshv1.Digest) [4]time.Duration {
	var out [4]time.Duration
	for i, ms := range d.GetWaitMs() {
		if i < len(out) {
			// A wait above the largest duration is as good as for ever.
			const most = uint64(1<<63-1) / uint64(time.Millisecond)
			out[i] = time.Duration(min(ms, most)) * time.Millisecond
		}
	}
	return out
}
