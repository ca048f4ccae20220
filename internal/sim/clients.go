package sim

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"

	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// client submits one task and asks again, with the same request id, until it
// has an answer. Some cancel later, also until they have an answer.
type client struct {
	w       *world
	rng     *rand.Rand
	n       int
	home    *cell
	key     string
	tries   int
	id      string // once accepted
	settled bool
}

// poison is a function that never ends.
const poison = "poison"

func (w *world) startClients(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	for n := range w.cfg.Tasks {
		c := &client{w: w, rng: rng, n: n, home: w.cells[rng.IntN(len(w.cells))]}
		if n%6 == 5 && !w.cfg.Poison {
			// Every second of these is another's submit of the same work: a key's
			// home is the same for both.
			c.key = fmt.Sprintf("k%d", n/12)
			c.home = w.cells[(n/12)%len(w.cells)]
		}
		w.after(between(rng, 0, w.cfg.FaultsMs*3/4), func() {
			w.every(between(rng, 700, 2_000), func() bool { c.submit(); return !c.settled })
		})
	}
}

// queueTokens is what the tasks of a queue may cost together: a few of them.
const queueTokens = 500

func queueCap() *meshv1.QueueCap {
	return &meshv1.QueueCap{Count: 1_000, Cost: &isobarv1.Cost{Tokens: queueTokens}}
}

// mint makes an id as its home does: new for each try, sortable by time.
func (c *client) mint() string {
	return fmt.Sprintf("%026d-%s-i", (c.w.now*1_000+int64(c.n))*10+1, c.home.id)
}

func (c *client) submit() {
	if c.settled {
		return
	}
	c.tries++
	sum := sha256.Sum256([]byte(c.key))
	rec := &meshv1.TaskRecord{
		Tenant: "default", Function: fmt.Sprintf("f%d", c.n%3), Lane: uint32(c.n % 4), RequestId: fmt.Sprintf("r%d", c.n),
		LifetimeMs: wallBase + lifetime, RetentionMs: retention, TimeoutMs: runTimeout, MaxAttempts: uint32(2 + c.n%5),
		BackoffMs: between(c.rng, 200, 3_000), MaxBackoffMs: 4_000, PayloadBytes: uint64(c.n),
		Cost: &isobarv1.Cost{Tokens: int64(c.n%3) * 100},
	}
	if c.key != "" {
		rec.IdempotencyKey, rec.IdempotencyHash = c.key, sum[:]
		rec.Function, rec.Lane = "f0", 0
	}
	if c.n%4 == 1 && c.key == "" && !c.w.cfg.Poison {
		// Few keys, so that their lines are long; at another home it is another line.
		rec.Function, rec.OrderingKey = "f1", fmt.Sprintf("o%d", c.n/4%2)
		rec.OrderRelaxed = c.n/4%2 == 1
	}
	if c.n%5 == 0 {
		rec.NotBeforeMs = wallBase + c.w.now + between(c.rng, 100, 5_000)
	}
	if c.w.cfg.Poison {
		rec.MaxAttempts = 100
		if c.n%10 == 7 {
			rec.Function, rec.MaxAttempts = poison, 3
		}
	} else if c.n%9 == 0 {
		rec.DeadlineMs = wallBase + c.w.now + between(c.rng, 1_000, 20_000)
	}
	c.w.near(c.home, func() {
		if l := c.home.leader; l != nil {
			rec.Id = c.mint()
			l.submit(rec, c.answer)
		}
	})
}

// answer carries the outcome back to the client; it may be lost too.
func (c *client) answer(id string, err error) {
	c.w.near(c.home, func() {
		var dup *fsm.DuplicateError
		var full *fsm.QueueFullError
		switch {
		case c.settled:
		case err == nil:
			c.accepted(id)
		case errors.As(err, &dup):
			if c.tries > 1 && !dup.ByKey {
				c.w.saw(SawUnknown)
			}
			c.accepted(dup.ID)
		case errors.Is(err, fsm.ErrDeadlinePast):
			c.settled = true
		case errors.As(err, &full):
			c.w.saw(SawFull) // it comes again
		default:
			c.w.violate("submit %d: %v", c.n, err)
		}
	})
}

func (c *client) accepted(id string) {
	c.settled, c.id = true, id
	c.w.note("client %d has %s", c.n, name(id))
	c.w.promised(id, c.home, c.key)
	if c.n%8 != 3 || c.w.cfg.Poison {
		return
	}
	told := false
	c.w.after(between(c.rng, 0, 3_000), func() {
		c.w.every(1_000, func() bool {
			if told {
				return false
			}
			c.w.near(c.home, func() {
				if l := c.home.leader; l != nil {
					l.cancel(id, func(s isobarv1.TaskState) { told = told || fsm.Ended(s) })
				}
			})
			return true
		})
	})
}
