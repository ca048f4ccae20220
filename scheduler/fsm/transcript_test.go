package fsm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// TestTranscripts runs testdata/*.txt: each file is one cell's story, a verb a
// command. Run with -rewrite to see what a change does to the stories.
//
// Moments are told from the story's start: wall +5s is the calendar, lease +5s
// the lease clock. Every command but those that only look is followed by an
// audit of the whole state.
func TestTranscripts(t *testing.T) {
	t.Parallel()
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if !strings.HasSuffix(path, ".txt") {
			return
		}
		s := &story{bench: newBench(t)}
		if !strings.HasSuffix(path, "bootstrap.txt") {
			s.must(&meshv1.Bootstrap{Cell: "eu-north-1", Incarnation: "k3f9ab"})
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			verb, ok := verbs()[d.Cmd]
			if !ok {
				d.Fatalf(t, "unknown verb %s", d.Cmd)
			}
			s.t = t
			return verb(s, args{t, d})
		})
	})
}

// story is one transcript under way.
type story struct{ *bench }

// verbs maps each verb of a transcript to what it does.
func verbs() map[string]func(*story, args) string {
	return map[string]func(*story, args) string{
		"bootstrap": (*story).bootstrap, "clock": (*story).clock, "tick": (*story).ticked,
		"submit": (*story).submit, "cancel": (*story).cancel, "defer": (*story).putOff, "block": (*story).block,
		"trim": (*story).trim, "told": (*story).told, "tell": (*story).tell, "moved": (*story).moved,
		"grant": (*story).grant, "extend": (*story).extend, "complete": (*story).complete, "fail": (*story).fail,
		"guest-accept": (*story).guestAccept, "guest-start": (*story).guestStart,
		"guest-end": (*story).guestEnd, "guest-forget": (*story).guestForget,
		"dump": (*story).dump, "queues": (*story).queues, "leases": (*story).leases, "guests": (*story).guests,
		"redrive": (*story).redrive, "slow": (*story).slow, "forget-pace": (*story).forgetPace, "pause": (*story).pause, "resume": (*story).resume, "purge": (*story).purge, "letters": (*story).letters,
		"task": (*story).show, "refuse": (*story).refuse,
	}
}

// args reads a verb's arguments; one that does not parse ends the test.
type args struct {
	t *testing.T
	d *datadriven.TestData
}

func (a args) str(key, fallback string) string {
	for _, arg := range a.d.CmdArgs {
		if arg.Key == key && len(arg.Vals) > 0 {
			return arg.Vals[0]
		}
	}
	return fallback
}

func (a args) has(key string) bool {
	for _, arg := range a.d.CmdArgs {
		if arg.Key == key {
			return true
		}
	}
	return false
}

// first is the verb's subject: "cancel t1".
func (a args) first() string {
	if len(a.d.CmdArgs) == 0 || len(a.d.CmdArgs[0].Vals) > 0 {
		a.d.Fatalf(a.t, "%s needs a subject", a.d.Cmd)
	}
	return a.d.CmdArgs[0].Key
}

// attempt splits "t1/2" into the task and the attempt.
func (a args) attempt() (string, uint64) {
	id, n, ok := strings.Cut(a.first(), "/")
	number, err := strconv.ParseUint(n, 10, 64)
	if !ok || err != nil {
		a.d.Fatalf(a.t, "%s needs task/attempt", a.d.Cmd)
	}
	return id, number
}

func (a args) span(key, fallback string) int64 {
	d, err := time.ParseDuration(a.str(key, fallback))
	if err != nil {
		a.d.Fatalf(a.t, "%s: %v", key, err)
	}
	return d.Milliseconds()
}

// moment is a wall time told from the story's start; 0 when not given.
func (a args) moment(key string) int64 {
	if !a.has(key) {
		return 0
	}
	return wallBase + a.span(key, "")
}

func (a args) number(key, fallback string) uint64 {
	n, err := strconv.ParseUint(a.str(key, fallback), 10, 64)
	if err != nil {
		a.d.Fatalf(a.t, "%s: %v", key, err)
	}
	return n
}

func (a args) ref(key string) []byte {
	if s := a.str(key, ""); s != "" {
		return []byte(s)
	}
	return nil
}

// run applies a command and tells what came of it.
func (s *story) run(command proto.Message) string {
	res, err := s.do(command)
	if err != nil {
		return told(err) + "\n"
	}
	var b strings.Builder
	if res.Verdict != "" {
		fmt.Fprintf(&b, "%s", res.Verdict)
	}
	if res.Task != nil {
		fmt.Fprintf(&b, ": %s", s.taskLine(res.Task))
	} else if res.Guest != nil {
		fmt.Fprintf(&b, ": %s", guestLine(res.Guest))
	}
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	for _, item := range res.Items {
		fmt.Fprintf(&b, "%s", item.Verdict)
		if item.TTL > 0 {
			fmt.Fprintf(&b, " for %s", span(item.TTL))
		}
		b.WriteByte('\n')
	}
	for _, e := range res.Effects {
		fmt.Fprintf(&b, "  → %s\n", effectLine(e))
	}
	if res.More {
		b.WriteString("more is due\n")
	}
	if b.Len() == 0 {
		return "ok\n"
	}
	return strings.TrimPrefix(b.String(), ": ")
}

// told shortens an error to what a reader needs, and says how a caller
// recognises it.
func told(err error) string {
	if dup, ok := errors.AsType[*DuplicateError](err); ok {
		how := "request id"
		if dup.ByKey {
			how = "key"
		}
		return fmt.Sprintf("refused: duplicate of %s by %s", dup.ID, how)
	}
	return "refused: " + strings.TrimPrefix(err.Error(), "fsm: ")
}

func span(ms int64) string { return (time.Duration(ms) * time.Millisecond).String() }

func wallTime(ms int64) string {
	if ms < wallBase {
		return strconv.FormatInt(ms, 10)
	}
	return "+" + span(ms-wallBase)
}

func stateName(s isobarv1.TaskState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "TASK_STATE_"))
}

func (s *story) taskLine(rec *meshv1.TaskRecord) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", rec.Id, stateName(State(rec)))
	if rec.Attempt > 0 {
		fmt.Fprintf(&b, " attempt=%d counted=%d", rec.Attempt, rec.Counted)
	}
	if rec.NextMs != 0 {
		fmt.Fprintf(&b, " next=%s", wallTime(rec.NextMs))
	}
	if id, n := Ahead(s.reader(), rec); n > 0 {
		fmt.Fprintf(&b, " held behind %s, %d ahead", id, n)
	}
	if rec.PutOff {
		b.WriteString(" put off")
	}
	if rec.Plans > 0 {
		fmt.Fprintf(&b, " plans=%d", rec.Plans)
	}
	if l := rec.Lease; l != nil {
		fmt.Fprintf(&b, " holder=%s until=+%s limit=+%s", holderName(l.Holder), span(l.UntilLeaseMs), span(l.LimitLeaseMs))
		if l.Started {
			b.WriteString(" started")
		}
		if l.Holder.Cell != "" && l.Worker != "" {
			fmt.Fprintf(&b, " on=%s", l.Worker)
		}
	}
	if rec.FinalAttempt != 0 {
		fmt.Fprintf(&b, " by=%d", rec.FinalAttempt)
	}
	if rec.Blocked != "" {
		fmt.Fprintf(&b, " blocked=%s", rec.Blocked)
	}
	if rec.Reason != "" {
		fmt.Fprintf(&b, " (%s)", rec.Reason)
	}
	return b.String()
}

func guestLine(g *meshv1.GuestRecord) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s/%d of %s", g.TaskId, g.Attempt, g.Home)
	switch {
	case g.Ended != nil:
		fmt.Fprintf(&b, " ended %s", g.Ended.Status)
		if g.Ended.Started {
			b.WriteString(" after its start")
		}
	case g.Started:
		fmt.Fprintf(&b, " started on %s", g.Worker)
	default:
		fmt.Fprintf(&b, " waits, to start by +%s", span(g.StartByLeaseMs))
	}
	return b.String()
}

func holderName(h *meshv1.Holder) string {
	if h.GetCell() != "" {
		return h.Cell
	}
	return h.GetWorker() + "(" + h.GetSession() + ")"
}

func effectLine(e Effect) string {
	who := e.TaskID
	if e.Attempt > 0 {
		who += "/" + strconv.FormatUint(e.Attempt, 10)
	}
	switch e.Kind {
	case TaskReady:
		return who + " enters " + e.Queue.String()
	case TaskUnready:
		return who + " leaves " + e.Queue.String()
	case TaskEnded:
		return who + " ended " + stateName(e.State)
	case LeaseGone:
		return who + " is no longer " + holderName(e.Holder) + "'s"
	case GuestReady:
		return who + " waits for a worker in " + e.Queue.String()
	case GuestEnded:
		return who + " is to be reported"
	case GuestGone:
		return who + " is dropped"
	case QueuePaused:
		return e.Queue.String() + " is paused"
	case QueueResumed:
		return e.Queue.String() + " goes on"
	default:
		return fmt.Sprintf("effect %d of %s", e.Kind, who)
	}
}

func (a args) lane() uint32 {
	lane, err := mesh.ParseLane(a.str("lane", ""))
	if err != nil {
		a.d.Fatalf(a.t, "%v", err)
	}
	return uint32(lane)
}
