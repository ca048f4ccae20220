package mesh

import (
	"cmp"
	"slices"
)

// Demand is what one attempt needs while it runs.
type Demand struct {
	CPUMilli  int64 // thousandths of a core
	MemoryMiB int64
	GPUs      int64  // whole accelerators
	GPUModel  string // "" takes any one model
	Cost      Cost
}

// Accelerators counts accelerators of one model.
type Accelerators struct {
	Model string
	Count int64
}

// Capacity is what a worker or a cell has, in total or free. What asks of it
// takes pointers: both it and a demand are copied too often to be copied at each
// question.
type Capacity struct {
	CPUMilli  int64
	MemoryMiB int64
	GPUs      []Accelerators // sorted by model, one entry a model
	// Most bounds what may be held at once, 0 is no bound; Held is what is.
	Most, Held Cost
}

// GPU returns how many accelerators of the model there are.
func (c *Capacity) GPU(model string) int64 {
	for i := range c.GPUs {
		if g := &c.GPUs[i]; g.Model == model {
			return g.Count
		}
	}
	return 0
}

// model picks the accelerator model a demand would take from c: the one asked
// for, or the first with enough. ok is false when none has enough.
func (c *Capacity) model(d *Demand) (model string, ok bool) {
	if d.GPUs == 0 {
		return "", true
	}
	for i := range c.GPUs {
		if g := &c.GPUs[i]; (d.GPUModel == "" || d.GPUModel == g.Model) && g.Count >= d.GPUs {
			return g.Model, true
		}
	}
	return "", false
}

// Fits reports whether one attempt of d fits in c.
func (c *Capacity) Fits(d *Demand) bool {
	if c.CPUMilli < d.CPUMilli || c.MemoryMiB < d.MemoryMiB || d.Cost != (Cost{}) && d.Cost.Over(c.Held, c.Most) != (Cost{}) {
		return false
	}
	_, ok := c.model(d)
	return ok
}

// Count says how many attempts of d fit in c at once, at most limit.
func (c *Capacity) Count(d *Demand, limit int64) int64 {
	n := limit
	if d.CPUMilli > 0 {
		n = min(n, c.CPUMilli/d.CPUMilli)
	}
	if d.MemoryMiB > 0 {
		n = min(n, c.MemoryMiB/d.MemoryMiB)
	}
	if d.GPUs > 0 {
		var g int64
		for i := range c.GPUs {
			if a := &c.GPUs[i]; d.GPUModel == "" || d.GPUModel == a.Model {
				g += a.Count / d.GPUs
			}
		}
		n = min(n, g)
	}
	if d.Cost != (Cost{}) && c.Most != (Cost{}) {
		for i, b := range c.bounds() {
			if one := [...]int64{d.Cost.Tokens, d.Cost.Bytes, d.Cost.AcceleratorMiB}[i]; one > 0 && b.most > 0 {
				n = min(n, (b.most-b.held)/one)
			}
		}
	}
	return max(n, 0)
}

// Take returns c less d. A demand without a model is pinned to the model it
// took: give the returned demand to Give, so that the same is handed back.
// c is not changed. Counts may go below zero when d does not fit.
func (c Capacity) Take(d Demand) (Capacity, Demand) {
	if d.GPUs > 0 && d.GPUModel == "" {
		if m, ok := c.model(&d); ok {
			d.GPUModel = m
		}
	}
	return c.add(d, -1), d
}

// Give returns c with d handed back. c is not changed.
func (c Capacity) Give(d Demand) Capacity { return c.add(d, 1) }

func (c Capacity) add(d Demand, sign int64) Capacity {
	c.CPUMilli += sign * d.CPUMilli
	c.MemoryMiB += sign * d.MemoryMiB
	c.Held = c.Held.Plus(d.Cost.Times(-sign)) // what is taken is held
	if d.GPUs == 0 {
		return c
	}
	c.GPUs = slices.Clone(c.GPUs)
	for i := range c.GPUs {
		if c.GPUs[i].Model == d.GPUModel {
			c.GPUs[i].Count += sign * d.GPUs
			return c
		}
	}
	c.GPUs = append(c.GPUs, Accelerators{Model: d.GPUModel, Count: sign * d.GPUs})
	slices.SortFunc(c.GPUs, func(a, b Accelerators) int { return cmp.Compare(a.Model, b.Model) })
	return c
}

// Plus returns the sum of two capacities; neither is changed.
func (c Capacity) Plus(o Capacity) Capacity {
	c = c.join(o, summed)
	c.CPUMilli += o.CPUMilli
	c.MemoryMiB += o.MemoryMiB
	for _, g := range o.GPUs {
		c = c.add(Demand{GPUs: g.Count, GPUModel: g.Model}, 1)
	}
	return c
}
