package mesh_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func drawCost(t *rapid.T, what string) mesh.Cost {
	n := func(s string) int64 { return rapid.Int64Range(0, 40).Draw(t, what+s) }
	return mesh.Cost{Tokens: n(" tokens"), Bytes: n(" bytes"), AcceleratorMiB: n(" MiB")}
}

// TestCountOfCosts: as many as Count says fit one after the other, and one more does
// not; given back, all is as before.
func TestCountOfCosts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := mesh.Capacity{CPUMilli: rapid.Int64Range(0, 9000).Draw(t, "cpu"), MemoryMiB: 9000, Most: drawCost(t, "most")}
		d := mesh.Demand{CPUMilli: 500, MemoryMiB: 1, Cost: drawCost(t, "cost")}
		n := int64(0)
		at := c
		for ; at.Fits(&d); n++ {
			at, _ = at.Take(d)
			for _, b := range [][2]int64{{at.Held.Tokens, c.Most.Tokens}, {at.Held.Bytes, c.Most.Bytes}, {at.Held.AcceleratorMiB, c.Most.AcceleratorMiB}} {
				if b[1] > 0 && b[0] > b[1] {
					t.Fatalf("%d held, the bound is %d", b[0], b[1])
				}
			}
		}
		if got := c.Count(&d, 1000); got != n {
			t.Fatalf("Count is %d, %d fit", got, n)
		}
		for range n {
			at = at.Give(d)
		}
		if at.Held != c.Held || at.CPUMilli != c.CPUMilli {
			t.Fatalf("%+v after all was given back, was %+v", at, c)
		}
	})
}

// TestWidest: what fits into one of two places fits into the widest of both, in
// either order; where nothing runs bounds nothing.
func TestWidest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		place := func(s string) mesh.Capacity {
			c := mesh.Capacity{CPUMilli: rapid.Int64Range(1, 9).Draw(t, s), MemoryMiB: 9, Most: drawCost(t, s+" most")}
			c.Held = drawCost(t, s+" held")
			return c
		}
		a, b, d := place("a"), place("b"), mesh.Demand{CPUMilli: 2, Cost: drawCost(t, "cost")}
		ab, ba := a.Widest(b), b.Widest(a)
		if ab.Fits(&d) != ba.Fits(&d) || (a.Fits(&d) || b.Fits(&d)) && !ab.Fits(&d) {
			t.Fatalf("%v fits a %v, b %v, both %v and %v", d, a.Fits(&d), b.Fits(&d), ab.Fits(&d), ba.Fits(&d))
		}
		for _, same := range []mesh.Capacity{(mesh.Capacity{}).Widest(a), a.Widest(mesh.Capacity{}), (mesh.Capacity{}).Plus(a), a.Plus(mesh.Capacity{})} {
			if same.Most != a.Most || same.Held != a.Held {
				t.Fatalf("with nothing: %+v, want %+v", same, a)
			}
		}
		if sum := a.Plus(b); a.Most.Tokens > 0 && b.Most.Tokens > 0 && sum.Most.Tokens != a.Most.Tokens+b.Most.Tokens || a.Most.Tokens == 0 && sum.Most.Tokens != 0 {
			t.Fatalf("the sum of %d and %d is %d", a.Most.Tokens, b.Most.Tokens, sum.Most.Tokens)
		}
	})
}

func TestCostWords(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]mesh.Cost{
		"nothing": {}, "8000 tokens": {Tokens: 8000}, "1 bytes, 512 MiB of accelerators": {Bytes: 1, AcceleratorMiB: 512},
	} {
		if got := c.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
