package placement

import (
	"fmt"
	"strconv"
)

// Summary says in one sentence why the chosen candidate won:
//
//	eu-north-1/small: $0.000012, of it carbon 8 %; next us-east-1/small costs 1.4x, mostly for latency
//
// or, when nothing was allowed, what would make it possible.
func (d *Decision) Summary() string {
	if d.Chosen == nil {
		if d.Hint == "" {
			return "nowhere to run"
		}
		return "nowhere to run: " + d.Hint
	}
	c := d.Chosen
	s := fmt.Sprintf("%s/%s: %s", c.Cell, c.Variant, usd(c.Score))
	if c.Score > 0 {
		s += fmt.Sprintf(", of it carbon %.0f %%", 100*c.Terms.Carbon/c.Score)
	}
	if c.Put > 0 {
		s += fmt.Sprintf("; put off until %s: %s", clock(d.At, c.Start), d.whyThen())
	}
	if len(d.Candidates) < 2 {
		return s + "; nothing else is allowed"
	}
	next := &d.Candidates[1]
	name := fmt.Sprintf("%s/%s", next.Cell, next.Variant)
	switch {
	case next.Score < c.Score:
		// Only a cell to avoid ranks behind a dearer one.
		return s + fmt.Sprintf("; %s would cost %s, but refused or lost this task just now", name, usd(next.Score))
	case next.Score == c.Score:
		return s + fmt.Sprintf("; next %s costs the same", name)
	case c.Score <= 0 || next.Score >= 1000*c.Score:
		s += fmt.Sprintf("; next %s costs %s", name, usd(next.Score))
	default:
		s += fmt.Sprintf("; next %s costs %sx", name, ratio(next.Score/c.Score))
	}
	return s + ", mostly for " + widest(c.Terms, next.Terms)
}

// ratio prints a factor above one with as many digits as set it apart from one.
func ratio(x float64) string {
	for digits := 1; digits < 6; digits++ {
		if s := strconv.FormatFloat(x, 'f', digits, 64); s != strconv.FormatFloat(1, 'f', digits, 64) {
			return s
		}
	}
	return "1.00001"
}

// widest names the term that sets b above a most.
func widest(a, b Terms) string {
	name, most := "compute", b.Compute-a.Compute
	for _, t := range [...]struct {
		name string
		more float64
	}{
		{"egress", b.Egress - a.Egress},
		{"inputs", b.Data - a.Data},
		{"carbon", b.Carbon - a.Carbon},
		{"latency", b.Latency - a.Latency},
		{"cold start", b.Cold - a.Cold},
		{"quality", b.Quality - a.Quality},
		{"scarcity", b.Scarcity - a.Scarcity},
	} {
		if t.more > most {
			name, most = t.name, t.more
		}
	}
	return name
}
