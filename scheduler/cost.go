package scheduler

import (
	"fmt"

	"github.com/isobar-mesh/isobar/internal/mesh"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// costed is work that says what it takes of a worker: a task's record or a guest's.
type costed interface {
	GetCost() *isobarv1.Cost
	GetPayloadBytes() uint64
}

// costOf is what the work takes, its payload counted in bytes.
func costOf(work costed) mesh.Cost { return fsm.CostOf(work.GetCost(), work.GetPayloadBytes()) }

// CostOf reads a cost.
func CostOf(c *isobarv1.Cost) mesh.Cost { return fsm.CostOf(c, 0) }

// demandFor is what one attempt of the variant takes for that work.
func demandFor(v *isobarv1.Variant, work costed) mesh.Demand {
	d := demand(v)
	d.Cost = costOf(work)
	return d
}

// lesser is the stricter of two bounds; 0 is none.
func lesser(a, b mesh.Cost) mesh.Cost {
	pick := func(a, b int64) int64 {
		if a == 0 || b != 0 && b < a {
			return b
		}
		return a
	}
	return mesh.Cost{
		Tokens: pick(a.Tokens, b.Tokens), Bytes: pick(a.Bytes, b.Bytes), AcceleratorMiB: pick(a.AcceleratorMiB, b.AcceleratorMiB),
	}
}

// badCost names the first amount that no cost has; "" for none.
func badCost(c *isobarv1.Cost) string {
	for _, a := range []struct {
		field string
		n     int64
	}{{"tokens", c.GetTokens()}, {"bytes", c.GetBytes()}, {"acceleratorMib", c.GetAcceleratorMib()}} {
		if a.n < 0 || a.n > mesh.MaxCost {
			return a.field
		}
	}
	return ""
}

// CheckCost refuses a cost that cannot be; field is the path to it.
func CheckCost(field string, c *isobarv1.Cost) error {
	bad := badCost(c)
	if bad == "" {
		return nil
	}
	field += "." + bad
	return &Refusal{
		Reason: BadRequest, Field: field, Message: fmt.Sprintf("%s is not 0 to %d", field, int64(mesh.MaxCost)),
		Hint: "leave it out for none",
	}
}
