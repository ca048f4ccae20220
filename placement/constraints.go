package placement

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// rule is the place of a constraint in the order of checks.
type rule uint8

const (
	ruleResidency rule = iota
	ruleExcluded
	ruleHealth
	ruleNoWorker
	ruleMinQuality
	ruleRuntime
	ruleAccelerator
	ruleResources
	ruleCost
	ruleRoundTrip
	ruleDeadline
	ruleCount
)

// constraint is the rule's public name.
func (r rule) constraint() Constraint {
	return [ruleCount]Constraint{
		Residency, Excluded, Health, NoWorker, MinQuality, Runtime, Accelerator, Resources, Cost, RoundTrip, DeadlineOver,
	}[r]
}

// rules is a set of rules that something breaks.
type rules uint16

func (s rules) has(r rule) bool { return s&(1<<r) != 0 }

func (s rules) count() int { return bits.OnesCount16(uint16(s)) }

// first is the rule that is named as the reason; the set is not empty.
func (s rules) first() rule { return rule(bits.TrailingZeros16(uint16(s))) }

func when(r rule, broken bool) rules {
	if broken {
		return 1 << r
	}
	return 0
}

// stateBreaks is what a cell breaks whatever is asked.
func stateBreaks(c *Cell) rules {
	name, _ := unusableFigure(c)
	return when(ruleHealth, c.Unhealthy != "" || name != "") | when(ruleNoWorker, !hasWorker(c))
}

// cellBreaks is what a cell breaks besides, for every variant alike.
func (q *question) cellBreaks(c *Cell) rules {
	var s rules
	if q.bound {
		s |= when(ruleResidency, !c.Verified || !c.Within(q.task.Residency))
	}
	if len(q.excluded) > 0 {
		s |= when(ruleExcluded, slices.Contains(q.excluded, c.Region))
	}
	return s | when(ruleRoundTrip, q.task.MaxRTT > 0 && c.RTT > q.task.MaxRTT)
}

func hasWorker(c *Cell) bool {
	return len(c.Runtimes) > 0 || c.Total.CPUMilli > 0 || c.Total.MemoryMiB > 0 || len(c.Total.GPUs) > 0
}

// variantBreaks is what a variant breaks at every cell alike. The endpoint of
// an http variant must itself lie within a residency; one that declares no
// jurisdiction may be anywhere.
func (q *question) variantBreaks(v *Variant) rules {
	s := when(ruleMinQuality, !(fraction(v.Quality) >= q.minQuality))
	if q.bound && (v.Runtime == "http" || len(v.EndpointJurisdictions) > 0) {
		endpoint := mesh.Cell{Jurisdictions: v.EndpointJurisdictions}
		s |= when(ruleResidency, len(v.EndpointJurisdictions) == 0 || !endpoint.Within(q.task.Residency))
	}
	return s
}

// pairBreaks is what a variant breaks at this cell, but for the deadline.
func pairBreaks(c *Cell, v *variantFacts) rules {
	s := when(ruleRuntime, !slices.Contains(c.Runtimes, v.Runtime))
	if v.demand.GPUs > 0 {
		s |= when(ruleAccelerator, !offersGPU(&c.Total, &v.demand))
	}
	if v.demand.Cost != (mesh.Cost{}) {
		s |= when(ruleCost, v.demand.Cost.Over(mesh.Cost{}, c.Total.Most) != mesh.Cost{})
	}
	return s | when(ruleResources, c.Total.CPUMilli < v.demand.CPUMilli || c.Total.MemoryMiB < v.demand.MemoryMiB)
}

func offersGPU(total *mesh.Capacity, d *mesh.Demand) bool {
	for i := range total.GPUs {
		if g := &total.GPUs[i]; g.Count >= d.GPUs && (d.GPUModel == "" || d.GPUModel == g.Model) {
			return true
		}
	}
	return false
}

// late is by how much an attempt misses the deadline, or the latest start that
// was asked for; zero or less when it is in time, to the instant.
func (q *question) late(t *timing) time.Duration {
	return max(q.lateEnd(t), q.lateStart(t))
}

// lateEnd is by how much it ends after the deadline.
func (q *question) lateEnd(t *timing) time.Duration {
	if !q.deadline {
		return -always
	}
	return t.total() - q.left
}

// lateStart is by how much it starts after StartBy.
func (q *question) lateStart(t *timing) time.Duration {
	if !q.puttable {
		return -always
	}
	return q.way(t) + t.wait - q.startBy
}

// detail says in words how (cell, variant) breaks the rule.
func (q *question) detail(r rule, c *Cell, v *variantFacts, t *timing) string {
	switch r {
	case ruleResidency:
		return q.residencyDetail(c, v)
	case ruleExcluded:
		return fmt.Sprintf("the question leaves region %s out", c.Region)
	case ruleHealth:
		if c.Unhealthy != "" {
			return fmt.Sprintf("%s takes no work: %s", c.ID, c.Unhealthy)
		}
		name, value := unusableFigure(c)
		return fmt.Sprintf("%s reports a %s of %g, which cannot be", c.ID, name, value)
	case ruleNoWorker:
		return fmt.Sprintf("%s has no worker", c.ID)
	case ruleMinQuality:
		return fmt.Sprintf("quality %g is below the minimum of %g", fraction(v.Quality), q.minQuality)
	case ruleRuntime:
		return fmt.Sprintf("needs runtime %s, %s offers %s", v.Runtime, c.ID, orNone(strings.Join(c.Runtimes, ", ")))
	case ruleAccelerator:
		return fmt.Sprintf("needs %s, %s has %s", gpuWords(v.demand), c.ID, gpusOf(c.Total, v.demand.GPUModel))
	case ruleResources:
		return fmt.Sprintf("needs %s, %s has %s in all", demandWords(v.demand), c.ID, capacityWords(c.Total))
	case ruleCost:
		over := v.demand.Cost.Over(mesh.Cost{}, c.Total.Most)
		return fmt.Sprintf("costs %s, a worker of %s holds %s at once", over, c.ID, c.Total.Most.Where(over))
	case ruleRoundTrip:
		return fmt.Sprintf("%s is %s away and back, %s are allowed", c.ID, short(c.RTT), short(q.task.MaxRTT))
	default:
		if q.left < 0 {
			return fmt.Sprintf("the deadline passed %s ago", short(-q.left))
		}
		if q.lateEnd(t) <= 0 && q.lateStart(t) > 0 {
			return fmt.Sprintf("could start after %s, which is %s too late", short(q.way(t)+t.wait), short(q.lateStart(t)))
		}
		return fmt.Sprintf("would take %s and end %s after the deadline", short(t.total()), short(max(q.lateEnd(t), 0)))
	}
}

func (q *question) residencyDetail(c *Cell, v *variantFacts) string {
	switch {
	case c.Within(q.task.Residency) && !c.Verified:
		return fmt.Sprintf("%s: the jurisdictions of %s are not proven by its certificate", residencyWords(q.task.Residency), c.ID)
	case !c.Within(q.task.Residency):
		return fmt.Sprintf("%s: %s lies in %s", residencyWords(q.task.Residency), c.ID, list(c.Jurisdictions))
	case len(v.EndpointJurisdictions) == 0:
		return fmt.Sprintf("%s: the endpoint of %s declares no jurisdiction", residencyWords(q.task.Residency), v.Name)
	default:
		return fmt.Sprintf("%s: the endpoint of %s lies in %s", residencyWords(q.task.Residency), v.Name, list(v.EndpointJurisdictions))
	}
}
