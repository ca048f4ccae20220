package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/config"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// taskFlags describe a task, for submit and for explain.
type taskFlags struct {
	lane, key, order, correlation, request string
	contentType                            string
	deadline, notBefore                    string
	maxDelay, maxRTT                       time.Duration
	residency, notIn, inputs               []string
	minQuality                             float64
	cost                                   []string
	maxAttempts                            uint32
	asJSON                                 bool
}

// place adds the flags that bear on where a task may run.
func (f *taskFlags) place(c *cobra.Command) {
	flags := c.Flags()
	flags.StringSliceVar(&f.residency, "residency", nil, "jurisdictions its bytes may be in, any of them: eu,uk (default anywhere)")
	flags.StringSliceVar(&f.notIn, "not-in", nil, "jurisdictions its bytes may not be in")
	flags.Float64Var(&f.minQuality, "min-quality", 0, "only variants of at least this quality, 0 to 1")
	flags.StringSliceVar(&f.cost, "cost", nil, "what it takes of a worker beside the variant's resources: tokens=N,bytes=SIZE,accelerator-mib=N (default nothing)")
	flags.StringVar(&f.contentType, "content-type", "", "media type of the payload")
	flags.BoolVar(&f.asJSON, "json", false, "the payload is JSON, handed to the function in one line")
}

// schedule adds the flags of a durable task.
func (f *taskFlags) schedule(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.lane, "lane", "", "critical, interactive, standard or batch (default standard)")
	flags.StringVar(&f.deadline, "deadline", "", "worthless after this time, or this long from now: 2026-01-02T15:04:05Z or 10m")
	flags.StringVar(&f.notBefore, "not-before", "", "start no earlier than this time, or this long from now")
	flags.DurationVar(&f.maxDelay, "max-delay", 0, "the start may be put off this long to when it is cheaper or cleaner (default it starts as soon as it can)")
	flags.StringArrayVar(&f.inputs, "input", nil, "data it reads where it runs, and the regions in which it lies: NAME=SIZE@REGION[,REGION], as weights=40GiB@us-east; may be repeated")
	flags.DurationVar(&f.maxRTT, "max-rtt", 0, "longest round trip from home to where it runs: 50ms (default any)")
}

func (f *taskFlags) residencyOf() *isobarv1.Residency {
	if len(f.residency) == 0 && len(f.notIn) == 0 {
		return nil
	}
	return &isobarv1.Residency{Allowed: f.residency, Denied: f.notIn}
}

func (f *taskFlags) spec(a *app, function, arg string) (*isobarv1.TaskSpec, error) {
	in, err := a.readPayload(arg, f.asJSON)
	if err != nil {
		return nil, err
	}
	spec := &isobarv1.TaskSpec{
		Tenant: a.tenant, Function: function, ContentType: f.contentType, Lane: f.lane, IdempotencyKey: f.key, OrderingKey: f.order,
		RequestId: f.request, CorrelationId: f.correlation, Residency: f.residencyOf(), MinQuality: f.minQuality,
	}
	if f.maxAttempts > 0 {
		spec.Retry = &isobarv1.RetryPolicy{MaxAttempts: f.maxAttempts}
	}
	if f.maxDelay != 0 {
		spec.MaxDelay = durationpb.New(f.maxDelay)
	}
	if f.maxRTT != 0 {
		spec.MaxRtt = durationpb.New(f.maxRTT)
	}
	if spec.Inputs, err = inputsOf(f.inputs); err != nil {
		return nil, err
	}
	if spec.Cost, err = costOf(f.cost); err != nil {
		return nil, err
	}
	switch {
	case in.json != nil:
		spec.Input = &isobarv1.TaskSpec_Json{Json: in.json}
	case in.text != nil:
		spec.Input = &isobarv1.TaskSpec_Text{Text: *in.text}
	default:
		spec.Input = &isobarv1.TaskSpec_Payload{Payload: in.bytes}
	}
	if spec.Deadline, err = moment("--deadline", f.deadline); err != nil {
		return nil, err
	}
	spec.NotBefore, err = moment("--not-before", f.notBefore)
	return spec, err
}

// inputsOf reads NAME=SIZE@REGION[,REGION].
func inputsOf(flags []string) ([]*isobarv1.Input, error) {
	var out []*isobarv1.Input
	for _, text := range flags {
		name, rest, ok := strings.Cut(text, "=")
		size, places, at := strings.Cut(rest, "@")
		var bytes config.Size
		if err := bytes.UnmarshalText([]byte(size)); !ok || !at || name == "" || places == "" || err != nil {
			return nil, usage(fmt.Sprintf("--input %q is not NAME=SIZE@REGION[,REGION]", text), "for instance --input weights=40GiB@us-east,eu-west")
		}
		out = append(out, &isobarv1.Input{Name: name, Bytes: int64(bytes), Places: strings.Split(places, ",")})
	}
	return out, nil
}

// costOf reads tokens=N, bytes=SIZE and accelerator-mib=N.
func costOf(flags []string) (*isobarv1.Cost, error) {
	if len(flags) == 0 {
		return nil, nil
	}
	c := &isobarv1.Cost{}
	fields := map[string]*int64{"tokens": &c.Tokens, "bytes": &c.Bytes, "accelerator-mib": &c.AcceleratorMib}
	for _, text := range flags {
		name, amount, _ := strings.Cut(text, "=")
		field := fields[name]
		var n config.Size // plain numbers, and for bytes with a unit
		if err := n.UnmarshalText([]byte(amount)); field == nil || err != nil || name != "bytes" && strings.HasSuffix(amount, "B") {
			return nil, usage(fmt.Sprintf("--cost %q is not tokens=N, bytes=SIZE or accelerator-mib=N", text), "for instance --cost tokens=4096,accelerator-mib=2048")
		}
		if *field != 0 {
			return nil, usage("--cost names "+name+" twice", "give their sum")
		}
		*field = int64(n)
	}
	return c, nil
}

// costText writes a cost as --cost takes it.
func costText(c *isobarv1.Cost) string {
	var words []string
	if n := c.GetTokens(); n != 0 {
		words = append(words, fmt.Sprintf("tokens=%d", n))
	}
	if n := c.GetBytes(); n != 0 {
		words = append(words, "bytes="+config.Size(n).String())
	}
	if n := c.GetAcceleratorMib(); n != 0 {
		words = append(words, fmt.Sprintf("accelerator-mib=%d", n))
	}
	return strings.Join(words, ",")
}

// moment reads a time, or a duration from now.
func moment(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return timestamppb.New(time.Now().Add(d)), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usage(fmt.Sprintf("%s %q is neither a time nor a duration", flag, text), "write 2026-01-02T15:04:05Z, or 10m for ten minutes from now")
	}
	return timestamppb.New(t), nil
}

func newSubmit(a *app) *cobra.Command {
	var f taskFlags
	var wait bool
	c := &cobra.Command{
		Use:   "submit FUNCTION [PAYLOAD | @FILE | -]",
		Short: "Submit a durable task; prints its id",
		Long: `Submits a durable task and prints its id. Once the id is printed, the task survives
the loss of any minority of its home cell's servers.

With --wait the result is printed instead, and the exit code tells how the task ended:
0 completed, 1 not, 4 still running when --timeout passed.`,
		Example: `  isobar submit upper 'hello'
  isobar submit thumbnail @photo.jpg --wait > small.jpg
  isobar submit report --residency eu --deadline 2h --lane batch
  isobar submit train @data.json --max-delay 8h --deadline 12h`,
		Args: args(1, 2),
	}
	f.place(c)
	f.schedule(c)
	flags := c.Flags()
	flags.StringVar(&f.key, "key", "", "idempotency key: tasks of one function with one key are one task")
	flags.StringVar(&f.order, "ordering-key", "", "tasks of one function with one ordering key run in the order of their submits, one at a time")
	flags.StringVar(&f.correlation, "correlation-id", "", "free text carried to the trace and to get")
	flags.StringVar(&f.request, "request-id", "", "repeats a submit whose answer was lost (default new)")
	flags.Uint32Var(&f.maxAttempts, "max-attempts", 0, "started attempts at most, 1 to 100 (default the function's)")
	flags.BoolVar(&wait, "wait", false, "until the task has ended, and print its result")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if f.request == "" {
			f.request = uuid.NewString()
		}
		spec, err := f.spec(a, args[0], argument(args, 1))
		if err != nil {
			return err
		}
		// Waiting has the whole timeout; a little more lets the last answer in.
		timeout := a.timeout
		if wait {
			timeout += answerSlack
		}
		return a.call(cmd, timeout, func(ctx context.Context, c *client.Client) error {
			if wait {
				task, done, err := c.SubmitAndWait(ctx, spec, a.timeout)
				if err != nil && task == nil {
					return err
				}
				return a.printEnd(task, done, a.timeout)
			}
			res, err := c.Submit(ctx, &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{spec}})
			if err != nil {
				return err
			}
			return a.printSubmitted(res)
		})
	}
	return c
}

// answerSlack is how much longer than its wait a call may take.
const answerSlack = 5 * time.Second

func argument(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

func (a *app) printSubmitted(res *isobarv1.SubmitResponse) error {
	if a.json() {
		return a.printJSON(res)
	}
	r := res.GetResults()[0]
	fmt.Fprintln(a.stdout, r.GetTaskId())
	switch {
	case r.GetDuplicate():
		fmt.Fprintf(a.stderr, "known already: %s\n", state(r.GetState()))
	case r.GetWhy() != "":
		fmt.Fprintf(a.stderr, "for now: %s\n", r.GetWhy())
	}
	return nil
}

func newInvoke(a *app) *cobra.Command {
	var f taskFlags
	c := &cobra.Command{
		Use:   "invoke FUNCTION [PAYLOAD | @FILE | -]",
		Short: "Run a function now and print its result; not durable, no retry",
		Example: `  isobar invoke upper 'hello'
  isobar invoke count --json '{"text": "a b c"}'`,
		Args: args(1, 2),
	}
	f.place(c)
	c.Flags().StringVar(&f.correlation, "correlation-id", "", "free text carried to the trace")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		in, err := a.readPayload(argument(args, 1), f.asJSON)
		if err != nil {
			return err
		}
		req := &isobarv1.InvokeRequest{
			Tenant: a.tenant, Function: args[0], ContentType: f.contentType, Residency: f.residencyOf(), MinQuality: f.minQuality,
			CorrelationId: f.correlation, Timeout: durationpb.New(a.timeout),
		}
		if req.Cost, err = costOf(f.cost); err != nil {
			return err
		}
		switch {
		case in.json != nil:
			req.Input = &isobarv1.InvokeRequest_Json{Json: in.json}
		case in.text != nil:
			req.Input = &isobarv1.InvokeRequest_Text{Text: *in.text}
		default:
			req.Input = &isobarv1.InvokeRequest_Payload{Payload: in.bytes}
		}
		return a.call(cmd, a.timeout+answerSlack, func(ctx context.Context, c *client.Client) error {
			res, err := c.Invoke(ctx, req)
			if err != nil || a.json() {
				return cmpPrint(err, func() error { return a.printJSON(res) })
			}
			words := []string{fmt.Sprintf("%s by %s in %s", res.GetVariant(), res.GetWorker(), res.GetCell()), duration(res.GetRunTime())}
			if res.GetCold() {
				words = append(words, "cold")
			}
			if res.GetWhy() != "" {
				words = append(words, res.GetWhy())
			}
			fmt.Fprintln(a.stderr, strings.Join(words, ", "))
			_, err = a.stdout.Write(res.GetResult())
			return err
		})
	}
	return c
}
