package simulate

import "time"

// expectation is what is thought of a run time before variants change it.
type expectation struct{ seconds float64 }

func (e expectation) scaled(x float64) time.Duration { return fromSeconds(e.seconds * x) }

func (e expectation) of(o *option) time.Duration { return e.scaled(o.durX) }

// learner knows run times, or learns them from the tasks that have ended: the
// mean of the tenant's function, else of the function, else of all.
type learner struct {
	all   bool // every duration is known
	means map[learned]*tally
}

type learned struct{ tenant, function string }

type tally struct {
	n   int
	sum float64
}

func newLearner(known bool) learner { return learner{all: known, means: map[learned]*tally{}} }

// keys from the nearest to the widest.
func (l *learner) keys(j *job) [3]learned {
	return [...]learned{{"t" + j.Tenant, "f" + j.Function}, {"", "f" + j.Function}, {}}
}

// sure reports whether anything is known of run times.
func (l *learner) sure() bool { return l.all || l.means[learned{}] != nil }

func (l *learner) expect(j *job) expectation {
	if l.all {
		return expectation{j.DurationS}
	}
	for _, k := range l.keys(j) {
		if t := l.means[k]; t != nil {
			return expectation{t.sum / float64(t.n)}
		}
	}
	return expectation{}
}

func (l *learner) ended(j *job) {
	if l.all {
		return
	}
	for _, k := range l.keys(j) {
		t := l.means[k]
		if t == nil {
			t = &tally{}
			l.means[k] = t
		}
		t.n++
		t.sum += j.DurationS
	}
}
