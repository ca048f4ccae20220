package fairness

import "time"

// Pacing is how fast a function's attempts may start: additive increase,
// multiplicative decrease (Chiu and Jain, 1989), by what became of them.
type Pacing struct {
	Most, Start, Least float64 // attempts a second
	Errors             float64 // share that is acceptable, 0..1
	Window             time.Duration
}

const (
	// steps is how many windows the rate takes from nothing to the most.
	steps = 20
	// enough attempts must have ended in a window before a share is one.
	enough = 5
)

// Rate is the rate at a time, of one that was from at since: a step more for
// each window that has passed.
func (p Pacing) Rate(from float64, since, now time.Time) float64 {
	if p.Window > 0 && now.After(since) {
		from += float64(now.Sub(since)/p.Window) * p.Most / steps
	}
	return min(max(from, p.Least), p.Most)
}

// Slower is the rate after so many halvings, never below the least.
func (p Pacing) Slower(rate float64, halvings int64) float64 {
	for ; halvings > 0 && rate > p.Least; halvings-- {
		rate /= 2
	}
	return max(rate, p.Least)
}

// Pace is what is remembered of one function's attempts: a bucket that fills at
// the rate, and how those of the present window ended. The zero value has seen
// none. It is not safe for concurrent use.
type Pace struct {
	filled time.Time
	starts float64
	began  time.Time
	ended  int64
	errors int64
	judged bool // the window has lowered the rate
}

// Wait is how long the next attempt must wait at that rate; 0 or less for not at
// all. What was not used is kept for half a second, at least for one attempt.
func (s *Pace) Wait(rate float64, now time.Time) time.Duration {
	depth := max(rate/2, 1)
	if s.filled.IsZero() {
		s.starts = 1
	} else if d := now.Sub(s.filled).Seconds(); d > 0 {
		s.starts += d * rate
	}
	s.starts = min(s.starts, depth)
	s.filled = now
	const whole = 1 - 1e-9 // sums of parts
	if s.starts >= whole {
		return 0
	}
	if rate <= 0 {
		return time.Hour
	}
	return min(time.Duration((1-s.starts)/rate*float64(time.Second))+1, time.Hour)
}

// Took counts an attempt that starts.
func (s *Pace) Took() { s.starts-- }

// Ended counts attempts that ended, and those of them, or of earlier ones, that
// were errors. It reports whether their share passes what is acceptable; that is
// said once a window.
func (s *Pace) Ended(p Pacing, ended, errors int64, now time.Time) bool {
	if now.Sub(s.began) >= p.Window || now.Before(s.began) {
		s.began, s.ended, s.errors, s.judged = now, 0, 0, false
	}
	s.ended += ended
	s.errors += errors
	all := max(s.ended, s.errors)
	if s.judged || all < enough || float64(s.errors) <= p.Errors*float64(all) {
		return false
	}
	s.judged = true
	return true
}

// Share is what part of the window's attempts were errors.
func (s *Pace) Share() (errors, ended int64) { return s.errors, max(s.ended, s.errors) }
