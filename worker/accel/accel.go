// Package accel finds what a worker can offer: processors and memory of the
// host, bounded by the control group it runs in, and accelerators from an
// inventory that the operator writes, as no portable way finds them.
//
// The inventory is YAML:
//
//	accelerators:
//	  - {model: H100, count: 2, memory_gib: 80}
//
// The package reads once and keeps nothing; it never checks that an
// accelerator is there or works.
package accel

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/strictyaml"
)

// Inventory is what the operator says a worker has.
type Inventory struct {
	// Accelerators, one entry a model; sorted by model after Parse.
	Accelerators []Accelerator `yaml:"accelerators"`
}

// Accelerator is one model of accelerator and how many there are.
type Accelerator struct {
	// Model is the name that functions ask for: up to 64 letters, digits,
	// dots, dashes and underscores. Capitals count.
	Model string `yaml:"model"`
	// Count is 1 to 1024.
	Count int64 `yaml:"count"`
	// MemoryGiB of each, 1 to 65536.
	MemoryGiB int64 `yaml:"memory_gib"`
}

// EntryError says which entry of an inventory is wrong.
type EntryError struct {
	Index   int // from 0
	Field   string
	Problem string
}

func (e *EntryError) Error() string {
	return fmt.Sprintf("accel: check inventory: accelerators[%d].%s %s", e.Index, e.Field, e.Problem)
}

// Load reads the inventory in a file; see Parse.
func Load(path string) (Inventory, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Inventory{}, fmt.Errorf("accel: read inventory: %w", err)
	}
	return Parse(text)
}

// Parse reads an inventory. Unknown and repeated fields are errors, as are
// values out of range, which are *EntryErrors. An empty text is an empty
// inventory.
func Parse(text []byte) (Inventory, error) {
	var inv Inventory
	if _, err := strictyaml.Decode("inventory", text, &inv); err != nil {
		return Inventory{}, fmt.Errorf("accel: parse inventory: %w", err)
	}
	model := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	for i, a := range inv.Accelerators {
		switch {
		case !model.MatchString(a.Model):
			return Inventory{}, &EntryError{i, "model", fmt.Sprintf("%.80q is not a name of up to 64 letters, digits, dots, dashes and underscores", a.Model)}
		case a.Count < 1 || a.Count > 1024:
			return Inventory{}, &EntryError{i, "count", fmt.Sprintf("is %d, not 1 to 1024", a.Count)}
		case a.MemoryGiB < 1 || a.MemoryGiB > 65536:
			return Inventory{}, &EntryError{i, "memory_gib", fmt.Sprintf("is %d, not 1 to 65536", a.MemoryGiB)}
		case slices.ContainsFunc(inv.Accelerators[:i], func(b Accelerator) bool { return b.Model == a.Model }):
			return Inventory{}, &EntryError{i, "model", a.Model + " is given twice"}
		}
	}
	slices.SortFunc(inv.Accelerators, func(a, b Accelerator) int { return cmp.Compare(a.Model, b.Model) })
	return inv, nil
}

// Capacity adds the accelerators of the inventory to those of a host.
func (inv Inventory) Capacity(host mesh.Capacity) mesh.Capacity {
	var own mesh.Capacity
	for _, a := range inv.Accelerators {
		own.GPUs = append(own.GPUs, mesh.Accelerators{Model: a.Model, Count: a.Count})
	}
	return host.Plus(own)
}
