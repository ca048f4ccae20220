package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/config"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

func newGet(a *app) *cobra.Command {
	var raw bool
	c := &cobra.Command{Use: "get TASK", Short: "Show a task, as its home knows it", Args: args(1, 1)}
	c.Flags().BoolVar(&raw, "result", false, "print only the result, as the function wrote it")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Get(ctx, &isobarv1.GetRequest{TaskId: args[0]})
			switch {
			case err != nil:
				return err
			case raw:
				return a.printResult(res.GetTask())
			case a.json():
				return a.printJSON(res)
			}
			a.printTask(res.GetTask())
			return nil
		})
	}
	return c
}

func newWait(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "wait TASK", Short: "Wait until a task has ended and print its result",
		Long: "Waits until a task has ended, at most --timeout, and prints its result. The exit code tells\nhow it ended: 0 completed, 1 not, 4 still running.",
		Args: args(1, 1),
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout+answerSlack, func(ctx context.Context, c *client.Client) error {
			return a.wait(ctx, c, args[0], a.timeout)
		})
	}
	return c
}

// wait waits for a task's end and prints how it was.
func (a *app) wait(ctx context.Context, c *client.Client, id string, timeout time.Duration) error {
	task, done, err := c.Wait(ctx, id, timeout)
	if err != nil && task == nil {
		return err
	}
	return a.printEnd(task, done, timeout)
}

// printEnd prints how a task was at the end of a wait.
func (a *app) printEnd(task *isobarv1.Task, done bool, waited time.Duration) error {
	if !done {
		// An error after the task was seen is a home that stopped answering; the
		// task itself goes on.
		return hinted(exitRunning, fmt.Errorf("task %s is %s after %s", task.GetId(), state(task.GetState()), ms(waited)),
			"it goes on by itself; `isobar wait "+task.GetId()+"` waits again")
	}
	if a.json() {
		if err := a.printJSON(&isobarv1.WaitResponse{Task: task, Ended: true}); err != nil {
			return err
		}
		return endError(task)
	}
	return a.printResult(task)
}

// printResult prints what the function wrote, and a line about the run.
func (a *app) printResult(task *isobarv1.Task) error {
	if err := endError(task); err != nil {
		return err
	}
	if n := len(task.GetAttempts()); n > 0 {
		last := task.GetAttempts()[n-1]
		fmt.Fprintf(a.stderr, "%s by %s in %s, %s, attempt %d\n", last.GetVariant(), last.GetWorker(), last.GetCell(),
			duration(last.GetRunTime()), last.GetNumber())
	}
	_, err := a.stdout.Write(task.GetResult())
	return err
}

// endError is the error of a task that did not complete.
func endError(task *isobarv1.Task) error {
	switch {
	case task.GetState() == isobarv1.TaskState_TASK_STATE_COMPLETED:
		return nil
	case !ended(task.GetState()):
		return hinted(exitRunning, fmt.Errorf("task %s is %s: %s", task.GetId(), state(task.GetState()), cmp.Or(task.GetReason(), "it has no result yet")),
			"`isobar wait "+task.GetId()+"` waits for its end")
	default:
		return failed("see what it did: `isobar logs "+task.GetId()+"`", "task %s is %s: %s",
			task.GetId(), state(task.GetState()), cmp.Or(task.GetReason(), "no reason is known"))
	}
}

func (a *app) printTask(t *isobarv1.Task) {
	result, isText := safeText(t.GetResult())
	switch {
	case len(t.GetResult()) == 0:
		result = ""
	case !isText:
		result = bytesText(uint64(len(t.GetResult()))) + " that are no text; `isobar get " + t.GetId() + " --result` prints them"
	}
	residency := strings.Join(t.GetResidency().GetAllowed(), ",")
	if denied := t.GetResidency().GetDenied(); len(denied) > 0 {
		residency = strings.TrimSpace(residency + " not " + strings.Join(denied, ","))
	}
	quality := ""
	if t.GetMinQuality() > 0 {
		quality = number(t.GetMinQuality())
	}
	fields(a.stdout,
		"task", t.GetId(), "state", state(t.GetState()), "reason", t.GetReason(), "tenant", t.GetTenant(), "function", t.GetFunction(),
		"version", t.GetVersion(), "lane", t.GetLane(), "home", t.GetHome(), "key", t.GetIdempotencyKey(), "ordering key", t.GetOrderingKey(), "waits behind", waitsBehind(t),
		"correlation id", t.GetCorrelationId(), "residency", residency, "min quality", quality, "submitted", timestamp(t.GetSubmitted()),
		"not before", timestamp(t.GetNotBefore()), "start by", timestamp(t.GetStartBy()), "max rtt", optional(t.GetMaxRtt()), "inputs", inputsText(t.GetInputs()), "cost", costText(t.GetCost()), "next try", timestamp(t.GetNext()), "deadline", timestamp(t.GetDeadline()),
		"ended", timestamp(t.GetEnded()), "payload", bytesText(t.GetPayloadBytes()))
	if p := t.GetPlan(); p != nil {
		fmt.Fprintf(a.stdout, "\n%s\n", planWords(p))
	}
	if len(t.GetAttempts()) > 0 {
		fmt.Fprintln(a.stdout)
		table(a.stdout, attemptRows(t))
	}
	if result != "" {
		fmt.Fprintf(a.stdout, "\nresult:\n%s\n", strings.TrimSuffix(result, "\n"))
	}
}

// waitsBehind names the task that holds this one up by its ordering key.
func waitsBehind(t *isobarv1.Task) string {
	switch t.GetAhead() {
	case 0:
		return ""
	case 1:
		return t.GetWaitsBehind()
	default:
		return fmt.Sprintf("%s, the first of %d before it", t.GetWaitsBehind(), t.GetAhead())
	}
}

// planWords says when and where a start that was put off is planned, or was.
func planWords(p *isobarv1.Plan) string {
	if p.GetWaits() {
		return p.GetReason()
	}
	return "was put off: " + strings.Replace(p.GetReason(), "starts", "to start", 1)
}

// inputsText lists inputs as --input takes them.
func inputsText(inputs []*isobarv1.Input) string {
	words := make([]string, len(inputs))
	for i, in := range inputs {
		words[i] = fmt.Sprintf("%s=%s@%s", in.GetName(), config.Size(in.GetBytes()), strings.Join(in.GetPlaces(), ","))
	}
	return strings.Join(words, " ")
}

// optional is a duration, or nothing.
func optional(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return duration(d)
}

func attemptRows(t *isobarv1.Task) [][]string {
	rows := [][]string{{"ATTEMPT", "CELL", "WORKER", "VARIANT", "OUTCOME", "RUN", "MESSAGE"}}
	for _, at := range t.GetAttempts() {
		message, _ := safeText([]byte(at.GetMessage()))
		rows = append(rows, []string{
			fmt.Sprint(at.GetNumber()), at.GetCell(), at.GetWorker(), at.GetVariant(), at.GetOutcome(), duration(at.GetRunTime()),
			strings.ReplaceAll(message, "\n", " "),
		})
	}
	return rows
}

// states are the words that --state takes.
func states() []string {
	var out []string
	for n := range isobarv1.TaskState_name {
		if n != 0 {
			out = append(out, state(isobarv1.TaskState(n)))
		}
	}
	slices.Sort(out)
	return out
}

func newList(a *app) *cobra.Command {
	var function, inState, page string
	var limit int32
	c := &cobra.Command{Use: "list", Short: "List the tasks of the asked cell, oldest first; it may be stale", Args: args(0, 0)}
	flags := c.Flags()
	flags.StringVar(&function, "function", "", "only tasks of this function")
	flags.StringVar(&inState, "state", "", "only tasks in this state: "+strings.Join(states(), ", "))
	flags.Int32Var(&limit, "limit", 100, "at most this many, up to 1000")
	flags.StringVar(&page, "page", "", "go on where an earlier list ended")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		req := &isobarv1.ListRequest{Tenant: a.tenant, Function: function, Limit: limit, PageToken: page}
		if inState != "" {
			n, ok := isobarv1.TaskState_value["TASK_STATE_"+strings.ToUpper(inState)]
			if !ok || n == 0 {
				return usage(fmt.Sprintf("unknown state %q", inState), "use one of "+strings.Join(states(), ", "))
			}
			req.State = isobarv1.TaskState(n)
		}
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.List(ctx, req)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			a.printList(res)
			return nil
		})
	}
	return c
}

func (a *app) printList(res *isobarv1.ListResponse) {
	rows := [][]string{{"TASK", "STATE", "FUNCTION", "LANE", "ATTEMPTS", "SUBMITTED", "REASON"}}
	for _, t := range res.GetTasks() {
		rows = append(rows, []string{
			t.GetId(), state(t.GetState()), t.GetFunction(), t.GetLane(), fmt.Sprint(t.GetAttempt()), timestamp(t.GetSubmitted()), t.GetReason(),
		})
	}
	table(a.stdout, rows)
	stale := ""
	if res.GetStale() {
		stale = ", may be stale"
	}
	fmt.Fprintf(a.stderr, "%d tasks of %s%s\n", len(res.GetTasks()), res.GetCell(), stale)
	if next := res.GetNextPageToken(); next != "" {
		fmt.Fprintf(a.stderr, "more with: --page %s\n", next)
	}
}

func newCancel(a *app) *cobra.Command {
	var reason string
	c := &cobra.Command{Use: "cancel TASK", Short: "End a task", Args: args(1, 1)}
	c.Flags().StringVar(&reason, "reason", "", "kept with the task")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Cancel(ctx, &isobarv1.CancelRequest{TaskId: args[0], Reason: reason})
			if err != nil {
				return err
			}
			if a.json() {
				if err := a.printJSON(res); err != nil {
					return err
				}
			}
			// A repeat after a lost answer finds the task cancelled: that is done.
			if s := res.GetTask().GetState(); !res.GetCancelled() && s != isobarv1.TaskState_TASK_STATE_CANCELLED {
				return failed("what ended first stays; see `isobar get "+args[0]+"`", "task %s was %s already", args[0], state(s))
			}
			fmt.Fprintf(a.stderr, "task %s is cancelled\n", args[0])
			return nil
		})
	}
	return c
}

func newLogs(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "logs TASK", Short: "Show a task's attempts with the end of what they wrote to stderr", Args: args(1, 1),
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.call(cmd, a.timeout, func(ctx context.Context, c *client.Client) error {
			res, err := c.Get(ctx, &isobarv1.GetRequest{TaskId: args[0], OmitResult: true})
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			a.printLogs(res.GetTask())
			return nil
		})
	}
	return c
}

func (a *app) printLogs(t *isobarv1.Task) {
	fmt.Fprintf(a.stdout, "task %s is %s", t.GetId(), state(t.GetState()))
	if t.GetReason() != "" {
		fmt.Fprintf(a.stdout, ": %s", t.GetReason())
	}
	fmt.Fprintln(a.stdout)
	if kept := uint64(len(t.GetAttempts())); t.GetAttempt() > kept {
		fmt.Fprintf(a.stdout, "(%d earlier attempts are not kept)\n", t.GetAttempt()-kept)
	}
	for _, at := range t.GetAttempts() {
		words := []string{at.GetOutcome()}
		switch at.GetOutcome() {
		case "done", "retry", "failed":
			words = append(words, fmt.Sprintf("exit %d", at.GetExitCode()))
		}
		if at.GetRunTime() != nil {
			words = append(words, duration(at.GetRunTime()))
		}
		if at.GetCold() {
			words = append(words, "cold")
		}
		if !at.GetCounted() && at.GetEnded() != nil {
			words = append(words, "not counted")
		}
		fmt.Fprintf(a.stdout, "\nattempt %d, %s, %s on %s, variant %s: %s\n", at.GetNumber(), timestamp(at.GetLeased()), at.GetCell(),
			at.GetWorker(), at.GetVariant(), strings.Join(words, ", "))
		if at.GetDecision() != "" {
			fmt.Fprintf(a.stdout, "  why there: %s\n", at.GetDecision())
		}
		if message, _ := safeText([]byte(at.GetMessage())); message != "" {
			fmt.Fprintf(a.stdout, "  %s\n", message)
		}
		a.printStderr(at.GetStderrTail())
	}
}

func (a *app) printStderr(tail []byte) {
	if len(tail) == 0 {
		return
	}
	// A tail cut inside a character is text all the same.
	text, _ := safeText([]byte(strings.ToValidUTF8(string(tail), "\uFFFD")))
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintf(a.stdout, "  | %s\n", line)
	}
}
