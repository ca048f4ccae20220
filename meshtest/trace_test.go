package meshtest_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	trace "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/isobar-mesh/isobar/client"
	"github.com/isobar-mesh/isobar/internal/telemetry"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// gpuMesh has an accelerator in one region only, so that work which needs one
// is handed there whatever it costs. Each region has two cores.
const gpuMesh = `
regions:
  eu-north: {zone: SE-SE1, jurisdictions: [eu, se], cpu: 2, usd_per_cpu_hour: 0.051, watts_per_cpu: 3.5, pue: 1.11}
  us-east: {zone: US-MIDA-PJM, jurisdictions: [us], cpu: 2, usd_per_cpu_hour: 0.048, watts_per_cpu: 3.5, pue: 1.11}
  ap-south:
    zone: IN-MH
    jurisdictions: [in]
    cpu: 2
    gpus: {t4: 2}
    usd_per_cpu_hour: 0.0505
    usd_per_gpu_hour: {t4: 0.35}
    watts_per_cpu: 3.5
    watts_per_gpu: {t4: 70}
    pue: 1.11
rtt_ms:
  eu-north: {us-east: 112, ap-south: 131}
  us-east: {ap-south: 186}
`

// onGPU makes a function need the accelerator of gpuMesh.
func onGPU(spec *isobarv1.FunctionSpec) *isobarv1.FunctionSpec {
	spec.Variants[0].Resources.Gpus, spec.Variants[0].Resources.GpuModel = 1, "t4"
	return spec
}

// One trace leads from the client's Submit over the home, its decision and the
// hand-off to the attempt on another region's worker.
func TestTrace(t *testing.T) {
	whole(t)
	rec := newReceiver(t)
	m := start(t, options{mesh: gpuMesh, otlp: rec.url, env: exportFast})
	m.deploy(t, "eu-north", onGPU(execSpec("upper", "tr a-z A-Z")))

	tel, err := telemetry.New(t.Context(), telemetry.Options{Service: "meshtest", Endpoint: rec.url})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New([]string{m.server("eu-north", "s1").api()}, client.WithTracer(tel.TracerProvider()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, root := tel.TracerProvider().Tracer("meshtest").Start(t.Context(), "test")
	res, err := c.Submit(ctx, &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{{
		Function: "upper", Input: &isobarv1.TaskSpec_Text{Text: "hello"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	root.End()
	id := res.GetResults()[0].GetTaskId()
	task := m.await(t, id)
	if got := task.GetResultText(); got != "HELLO" {
		t.Errorf("the result is %q", got)
	}
	if a := task.GetAttempts(); len(a) != 1 || a[0].GetCell() != cellOf("ap-south") {
		t.Errorf("the attempts are %v", a)
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}

	const submit = "isobar.v1.TaskService/Submit"
	chain := []wanted{
		{name: "test", service: "meshtest"},
		{name: submit, service: "meshtest", kind: trace.Span_SPAN_KIND_CLIENT},
		{name: submit, service: "isobar-server", kind: trace.Span_SPAN_KIND_SERVER, region: "eu-north"},
		{name: "isobar.lease", service: "isobar-server", region: "eu-north", task: id},
		{name: "isobar.guest", service: "isobar-server", region: "ap-south", task: id},
		{name: "isobar.attempt", service: "isobar-worker", task: id},
	}
	traceID := root.SpanContext().TraceID().String()
	var spans []span
	eventually(t, 30*time.Second, "trace", func(context.Context) error {
		spans = rec.of(traceID)
		for _, w := range chain {
			if w.find(spans) == nil {
				return fmt.Errorf("no %s of %s among %s", w.name, w.service, names(spans))
			}
		}
		return nil
	})
	for i, w := range chain[1:] {
		s, above := w.find(spans), chain[i].find(spans)
		if s.parent() != above.id() {
			t.Errorf("the parent of %s of %s is %s, not %s of %s", w.name, w.service, s.parent(), chain[i].name, chain[i].service)
		}
	}
	checkDecision(t, chain[3].find(spans))
	if links := chain[3].find(spans).GetLinks(); len(links) != 1 || fmt.Sprintf("%x", links[0].GetSpanId()) != chain[2].find(spans).id() {
		t.Errorf("the lease links to %v, not to the Submit that made the task", links)
	}
	checkWhole(t, spans)
}

// wanted describes a span.
type wanted struct {
	name, service, region, task string
	kind                        trace.Span_SpanKind
}

func (w wanted) find(spans []span) *span {
	for i, s := range spans {
		if s.GetName() == w.name && s.service == w.service && (w.region == "" || s.region == w.region) &&
			(w.kind == 0 || s.GetKind() == w.kind) && (w.task == "" || s.attribute("isobar.task.id") == w.task) {
			return &spans[i]
		}
	}
	return nil
}

func names(spans []span) string {
	var out []string
	for _, s := range spans {
		out = append(out, s.GetName()+" of "+s.service+" "+s.region)
	}
	return strings.Join(out, ", ")
}

// checkDecision holds the decision's event against what must have happened: the
// accelerator rules two cells out.
func checkDecision(t *testing.T, lease *span) {
	t.Helper()
	event := lease.event("isobar.decision")
	if event == nil {
		t.Error("the lease's span has no decision")
		return
	}
	var candidates []string
	ruledOut := int64(0)
	for _, kv := range event.GetAttributes() {
		switch kv.GetKey() {
		case "isobar.decision.candidates":
			for _, v := range kv.GetValue().GetArrayValue().GetValues() {
				candidates = append(candidates, v.GetStringValue())
			}
		case "isobar.decision.ruled_out.accelerator":
			ruledOut = kv.GetValue().GetIntValue()
		}
	}
	if want := []string{cellOf("ap-south") + "/default"}; !slices.Equal(candidates, want) || ruledOut != 2 {
		t.Errorf("the decision had candidates %v and ruled %d out for their accelerator", candidates, ruledOut)
	}
	if s := value(event.GetAttributes(), "isobar.decision.summary"); !strings.Contains(s, "ap-south") {
		t.Errorf("the decision says %q", s)
	}
}

// checkWhole holds that a trace is one tree: one root, no span above that is
// missing, and no link that leads out of it.
func checkWhole(t *testing.T, spans []span) {
	t.Helper()
	ids := map[string]bool{}
	for _, s := range spans {
		ids[s.id()] = true
	}
	var roots []string
	for _, s := range spans {
		if len(s.GetParentSpanId()) == 0 {
			roots = append(roots, s.GetName())
		} else if !ids[s.parent()] {
			t.Errorf("the span above %s of %s is missing", s.GetName(), s.service)
		}
		for _, l := range s.GetLinks() {
			if fmt.Sprintf("%x", l.GetTraceId()) != s.trace() || !ids[fmt.Sprintf("%x", l.GetSpanId())] {
				t.Errorf("a link of %s leads out of the trace", s.GetName())
			}
		}
	}
	if len(roots) != 1 {
		t.Errorf("the trace has roots %v", roots)
	}
}
