package placement

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func list(items []string) string { return "[" + strings.Join(items, ", ") + "]" }

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func residencyWords(r mesh.Residency) string {
	switch {
	case len(r.Denied) == 0:
		return "residency " + list(r.Allowed)
	case len(r.Allowed) == 0:
		return "residency outside " + list(r.Denied)
	default:
		return "residency " + list(r.Allowed) + " outside " + list(r.Denied)
	}
}

func gpuWords(d mesh.Demand) string {
	if d.GPUModel != "" {
		return fmt.Sprintf("%d %s", d.GPUs, d.GPUModel)
	}
	if d.GPUs == 1 {
		return "an accelerator"
	}
	return fmt.Sprintf("%d accelerators of one model", d.GPUs)
}

func gpusOf(c mesh.Capacity, model string) string {
	if model != "" {
		return strconv.FormatInt(c.GPU(model), 10)
	}
	parts := make([]string, 0, len(c.GPUs))
	for _, g := range c.GPUs {
		parts = append(parts, fmt.Sprintf("%d %s", g.Count, g.Model))
	}
	return orNone(strings.Join(parts, ", "))
}

func demandWords(d mesh.Demand) string {
	return fmt.Sprintf("%s and %d MiB", cores(d.CPUMilli), d.MemoryMiB)
}

func capacityWords(c mesh.Capacity) string {
	return fmt.Sprintf("%s and %d MiB", cores(c.CPUMilli), c.MemoryMiB)
}

func cores(milli int64) string {
	s := strconv.FormatFloat(float64(milli)/1000, 'f', -1, 64)
	if milli == 1000 {
		return s + " core"
	}
	return s + " cores"
}

// short rounds a duration up to what a person reads, never to zero.
func short(d time.Duration) string {
	unit := time.Microsecond
	switch {
	case d >= time.Hour:
		unit = time.Second
	case d >= time.Second:
		unit = 10 * time.Millisecond
	case d >= time.Millisecond:
		unit = time.Millisecond
	}
	return ((d + unit - 1) / unit * unit).String()
}

// usd prints an amount with two significant digits below a dollar and with
// cents above.
func usd(x float64) string {
	if x >= 1 || x == 0 {
		return "$" + strconv.FormatFloat(x, 'f', 2, 64)
	}
	rounded, err := strconv.ParseFloat(strconv.FormatFloat(x, 'e', 1, 64), 64)
	if err != nil {
		rounded = x
	}
	return "$" + strconv.FormatFloat(rounded, 'f', -1, 64)
}
