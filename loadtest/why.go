package loadtest

import (
	"fmt"
	"time"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// AtHome is the cheapest candidate at the task's home, by score: where the task
// would have run had it not been allowed to move. It is nil when the decision
// has none, because home was ruled out or fell off the stored candidates.
func AtHome(d *isobarv1.Decision) *isobarv1.Candidate {
	var best *isobarv1.Candidate
	for _, c := range d.GetCandidates() {
		if c.GetCell() == d.GetHome() && (best == nil || c.GetScore() < best.GetScore()) {
			best = c
		}
	}
	return best
}

// Why says in words why a decision chose what it chose: its place, and its
// variant, which is empty where there was one only. Equal reasons have equal
// words, so they can be counted.
func Why(d *isobarv1.Decision) (place, variant string) {
	if len(d.GetCandidates()) == 0 {
		return "nowhere to run", ""
	}
	return whyPlace(d), whyVariant(d)
}

// Expected is the time that a candidate was expected to take: the way there and
// back, the wait, the cold start and the run.
func Expected(c *isobarv1.Candidate) time.Duration {
	return c.GetRtt().AsDuration() + c.GetWait().AsDuration() + c.GetCold().AsDuration() + c.GetRun().AsDuration()
}

func whyPlace(d *isobarv1.Decision) string {
	chosen := d.GetCandidates()[0]
	if chosen.GetCell() != d.GetHome() {
		home := sameVariant(d, chosen, func(c *isobarv1.Candidate) bool { return c.GetCell() == d.GetHome() })
		if home == nil {
			return "moved: home could not run it" + ruledOut(d, "residency", "min_quality")
		}
		return "moved: " + movedWords(chosen, home)
	}
	next := sameVariant(d, chosen, func(c *isobarv1.Candidate) bool { return c.GetCell() != d.GetHome() })
	switch {
	case next != nil:
		return "home: " + stayedWords(chosen, next)
	case count(d, "residency") > 0:
		return "home: residency allows no other region"
	default:
		return "home: no other region could run it" + ruledOut(d, "min_quality")
	}
}

// sameVariant is the best candidate that fits and has the variant of one, else
// the best that fits.
func sameVariant(d *isobarv1.Decision, one *isobarv1.Candidate, fits func(*isobarv1.Candidate) bool) *isobarv1.Candidate {
	var other *isobarv1.Candidate
	for _, c := range d.GetCandidates() {
		switch {
		case !fits(c):
		case c.GetVariant() == one.GetVariant():
			return c
		case other == nil:
			other = c
		}
	}
	return other
}

// movedWords says what home would have cost more.
func movedWords(chosen, home *isobarv1.Candidate) string {
	if home.GetScore() < chosen.GetScore() {
		return "home had just refused or lost it"
	}
	switch widest(chosen, home) {
	case termLatency:
		if home.GetWait().AsDuration() > chosen.GetWait().AsDuration() {
			return "home was busy, waiting there costs more"
		}
		return "an answer from there comes sooner"
	case termCold:
		return "warm there, cold at home"
	case termCarbon:
		return "cleaner electricity than at home"
	case termCompute:
		return "cheaper computing than at home"
	case termQuality:
		return "a better variant than home had"
	default:
		return "cheaper in sum than home"
	}
}

// stayedWords says what the next best place would have cost more.
func stayedWords(chosen, next *isobarv1.Candidate) string {
	if next.GetScore() < chosen.GetScore() {
		return "the cheaper place had just refused or lost it"
	}
	switch widest(chosen, next) {
	case termLatency:
		if next.GetWait().AsDuration() > chosen.GetWait().AsDuration() {
			return "elsewhere is busy or too far for what it saves"
		}
		return "elsewhere is too far for what it saves"
	case termEgress:
		return "sending the bytes costs more than it saves"
	case termCold:
		return "elsewhere is cold"
	case termCarbon:
		return "elsewhere has dirtier electricity"
	case termCompute:
		return "elsewhere has dearer computing"
	default:
		return "cheapest in sum"
	}
}

// whyVariant compares the chosen variant with the others at the same cell.
func whyVariant(d *isobarv1.Decision) string {
	chosen := d.GetCandidates()[0]
	var other *isobarv1.Candidate
	for _, c := range d.GetCandidates()[1:] {
		if c.GetCell() == chosen.GetCell() && c.GetVariant() != chosen.GetVariant() {
			other = c
			break
		}
	}
	switch {
	case other == nil && count(d, "min_quality") > 0:
		return chosen.GetVariant() + ": the task's minimum quality"
	case other == nil && count(d, "deadline") > 0:
		return chosen.GetVariant() + ": the task's deadline"
	case other == nil:
		return ""
	}
	most := widest(chosen, other)
	switch {
	case most == termCold:
		return fmt.Sprintf("%s: it is warm, %s would start cold", chosen.GetVariant(), other.GetVariant())
	case most == termQuality:
		return chosen.GetVariant() + ": its quality is worth its price"
	case chosen.GetQuality() < other.GetQuality():
		return chosen.GetVariant() + ": good enough, and cheaper in " + most
	default:
		return chosen.GetVariant() + ": cheaper in " + most
	}
}

// Names of the terms of a score, as a person reads them.
const (
	termCompute = "computing"
	termEgress  = "egress"
	termCarbon  = "carbon"
	termLatency = "time"
	termCold    = "cold start"
	termQuality = "quality"
)

// widest names the term that sets b above a most.
func widest(a, b *isobarv1.Candidate) string {
	name, most := termCompute, b.GetCompute()-a.GetCompute()
	for _, t := range [...]struct {
		name string
		more float64
	}{
		{termEgress, b.GetEgress() - a.GetEgress()},
		{termCarbon, b.GetCarbon() - a.GetCarbon()},
		{termLatency, b.GetLatency() - a.GetLatency()},
		{termCold, b.GetColdStart() - a.GetColdStart()},
		{termQuality, b.GetQualityLost() - a.GetQualityLost()},
	} {
		if t.more > most {
			name, most = t.name, t.more
		}
	}
	return name
}

func count(d *isobarv1.Decision, constraint string) uint32 {
	for _, c := range d.GetCounts() {
		if c.GetConstraint() == constraint {
			return c.GetCount()
		}
	}
	return 0
}

// ruledOut names the constraint that ruled out most, those aside that rule out
// by design and explain nothing here.
func ruledOut(d *isobarv1.Decision, aside ...string) string {
	var most *isobarv1.ConstraintCount
next:
	for _, c := range d.GetCounts() {
		for _, a := range aside {
			if c.GetConstraint() == a {
				continue next
			}
		}
		if c.GetCount() > most.GetCount() {
			most = c
		}
	}
	if most == nil {
		return ""
	}
	return fmt.Sprintf(" (%s)", most.GetConstraint())
}
