package mesh

import (
	"fmt"
	"strings"
)

// MaxCost bounds each amount of a Cost: sums of all that a cell may hold stay
// far from overflow.
const MaxCost = 1 << 40

// Cost is what work takes of a worker beside cores, memory and whole
// accelerators. The same type bounds it: there 0 is no bound.
type Cost struct {
	Tokens         int64 // of a model
	Bytes          int64 // the payload among them
	AcceleratorMiB int64 // memory of accelerators that attempts share
}

// Plus returns the sum.
func (c Cost) Plus(o Cost) Cost {
	return Cost{c.Tokens + o.Tokens, c.Bytes + o.Bytes, c.AcceleratorMiB + o.AcceleratorMiB}
}

// Times returns n times c.
func (c Cost) Times(n int64) Cost { return Cost{n * c.Tokens, n * c.Bytes, n * c.AcceleratorMiB} }

// Over is what of c would pass the bounds, were it added to what is held; all
// else is 0. What c takes nothing of is never over.
func (c Cost) Over(held, most Cost) Cost {
	over := func(c, held, most int64) int64 {
		if c > 0 && most > 0 && held+c > most {
			return c
		}
		return 0
	}
	return Cost{over(c.Tokens, held.Tokens, most.Tokens), over(c.Bytes, held.Bytes, most.Bytes), over(c.AcceleratorMiB, held.AcceleratorMiB, most.AcceleratorMiB)}
}

// Where keeps the amounts of c that are not zero in which.
func (c Cost) Where(which Cost) Cost {
	keep := func(n, of int64) int64 {
		if of == 0 {
			return 0
		}
		return n
	}
	return Cost{keep(c.Tokens, which.Tokens), keep(c.Bytes, which.Bytes), keep(c.AcceleratorMiB, which.AcceleratorMiB)}
}

// String names the amounts that are not zero: "8000 tokens, 512 MiB of accelerators".
func (c Cost) String() string {
	var parts []string
	for i, unit := range [...]string{"tokens", "bytes", "MiB of accelerators"} {
		if n := [...]int64{c.Tokens, c.Bytes, c.AcceleratorMiB}[i]; n != 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, unit))
		}
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// bound pairs one amount of a bound with what is held of it.
type bound struct{ most, held int64 }

func (c *Capacity) bounds() [3]bound {
	return [...]bound{
		{c.Most.Tokens, c.Held.Tokens}, {c.Most.Bytes, c.Held.Bytes}, {c.Most.AcceleratorMiB, c.Held.AcceleratorMiB},
	}
}

func (c Capacity) bound(b [3]bound) Capacity {
	c.Most = Cost{b[0].most, b[1].most, b[2].most}
	c.Held = Cost{b[0].held, b[1].held, b[2].held}
	return c
}

// runs reports whether anything can run in c: the bounds of what cannot say
// nothing.
func (c *Capacity) runs() bool { return c.CPUMilli > 0 || c.MemoryMiB > 0 }

// join makes the bounds of c those of both: by amount, as pick says. A place
// where nothing can run brings none.
func (c Capacity) join(o Capacity, pick func(a, b bound) bound) Capacity {
	switch {
	case !o.runs():
		return c
	case !c.runs():
		return c.bound(o.bounds())
	}
	a, b := c.bounds(), o.bounds()
	for i := range a {
		a[i] = pick(a[i], b[i])
	}
	return c.bound(a)
}

// summed is the bound of two places together: none when one has none.
func summed(a, b bound) bound {
	if a.most == 0 || b.most == 0 {
		return bound{}
	}
	return bound{a.most + b.most, a.held + b.held}
}

// wider is the bound of the place that has more room.
func wider(a, b bound) bound {
	if a.most == 0 || b.most != 0 && a.most-a.held >= b.most-b.held {
		return a
	}
	return b
}

// Widest takes the larger of each amount: what no single place may have, but
// nothing larger fits into any of the two. Neither is changed.
func (c Capacity) Widest(o Capacity) Capacity {
	out := c.join(o, wider)
	out.CPUMilli, out.MemoryMiB = max(c.CPUMilli, o.CPUMilli), max(c.MemoryMiB, o.MemoryMiB)
	for _, g := range o.GPUs {
		if have := c.GPU(g.Model); g.Count > have {
			out = out.add(Demand{GPUs: g.Count - have, GPUModel: g.Model}, 1)
		}
	}
	return out
}
