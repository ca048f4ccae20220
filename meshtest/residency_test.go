package meshtest_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isobar-mesh/isobar/broker/pulsar/pulsartest"
	"github.com/isobar-mesh/isobar/broker/pulsar/standalone"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// 64 random bytes that may lie in the EU only, as payload, result and key of a
// task submitted in us-east, are found in eu-north's directories and nowhere
// else: no file, no log line, no span. Without a residency they are found in
// us-east, which shows that the search would find them.
func TestResidency(t *testing.T) {
	whole(t)
	checkResidency(t, nil)
}

// The same with a real Pulsar in each region: their data are searched, too.
func TestResidencyOnPulsar(t *testing.T) {
	whole(t)
	brokers := map[string]*standalone.Instance{}
	for _, region := range []string{"eu-north", "us-east", "ap-south"} {
		// One after the other: each takes all of two cores while it starts.
		brokers[region] = pulsartest.OwnWith(t, standalone.Options{MemoryMiB: 512})
	}
	checkResidency(t, brokers)
}

func checkResidency(t *testing.T, brokers map[string]*standalone.Instance) {
	t.Helper()
	rec := newReceiver(t)
	o := options{otlp: rec.url, env: exportFast}
	for region, b := range brokers {
		o.args = append(o.args, "--broker", region+"="+b.Service+","+b.Admin)
	}
	m := start(t, o)
	m.deploy(t, "us-east", execSpec("echo", "cat"))

	n := newNeedle()
	refusal := m.submitOverHTTP(t, "us-east", n)
	if refusal.status != http.StatusBadRequest || refusal.Code != "failed_precondition" {
		t.Errorf("the API answers %d, %s: %s", refusal.status, refusal.Code, refusal.Message)
	}
	d := refusal.detail(t)
	if d.GetReason() != "residency" || d.GetCell() != cellOf("eu-north") || d.GetAddress() != m.server("eu-north", "s1").api() || d.GetOutcome() != "not_accepted" {
		t.Errorf("the detail is %v", d)
	}

	out, stderr := m.command(t, n.bytes, "submit", "echo", "-", "--residency", "eu", "--key", n.key(), "--wait",
		"--server", m.server("us-east", "s1").api())
	if !bytes.Equal(out, n.bytes) {
		t.Errorf("the CLI wrote %x", out)
	}
	if want := "points to cell " + cellOf("eu-north"); !strings.Contains(stderr, want) {
		t.Errorf("the CLI says %q, not %q", stderr, want)
	}
	m.checkTellsNothing(t, "us-east", "eu-north")
	awaitExport(t, m, rec)
	inEU := 0
	for file, form := range n.files(t, m.dir) {
		if strings.HasPrefix(file, "eu-north"+string(filepath.Separator)) {
			t.Logf("found in %s (%s)", file, form)
			inEU++
		} else {
			t.Errorf("the bytes are in %s (%s)", file, form)
		}
	}
	if inEU == 0 {
		t.Error("the bytes are not in eu-north: the search finds nothing")
	}
	for region, b := range brokers {
		if region == "eu-north" {
			awaitInPulsar(t, n, b)
		} else if found := n.files(t, b.Dir()); len(found) > 0 {
			t.Errorf("the bytes are in the Pulsar of %s: %v", region, found)
		}
	}
	for i, body := range rec.bodies() {
		if form := n.in(body); form != "" {
			t.Errorf("the bytes are in exported message %d (%s)", i, form)
		}
	}
	m.checkControl(t, brokers)
}

// awaitInPulsar waits until the bytes are in a standalone's data, which shows
// that the search would find them in another's.
func awaitInPulsar(t *testing.T, n *needle, b *standalone.Instance) {
	t.Helper()
	eventually(t, 90*time.Second, "bytes in Pulsar's data", func(context.Context) error {
		found := n.files(t, b.Dir())
		if len(found) == 0 {
			return errors.New("no file has them")
		}
		t.Logf("found in Pulsar's %v", found)
		return nil
	})
}

// checkControl does the same without a residency, with a key whose home is
// us-east.
func (m *mesh) checkControl(t *testing.T, brokers map[string]*standalone.Instance) {
	t.Helper()
	c := m.client(t, "us-east")
	for range 64 {
		n := newNeedle()
		res, err := c.Submit(t.Context(), &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{{
			Function: "echo", IdempotencyKey: n.key(), Input: &isobarv1.TaskSpec_Payload{Payload: n.bytes},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		id := res.GetResults()[0].GetTaskId()
		if homeRegion(id) != "us-east" {
			continue
		}
		task := m.await(t, id)
		if !bytes.Equal(task.GetResult(), n.bytes) {
			t.Errorf("the result is %x", task.GetResult())
		}
		if b := brokers["us-east"]; b != nil {
			awaitInPulsar(t, n, b)
		}
		for file := range n.files(t, m.dir) {
			if strings.HasPrefix(file, "us-east"+string(filepath.Separator)) {
				return
			}
		}
		t.Error("the bytes of a task without residency are not in us-east")
		return
	}
	t.Error("no key has its home in us-east")
}

// await waits until a task has completed.
func (m *mesh) await(t *testing.T, id string) *isobarv1.Task {
	t.Helper()
	task, ended, err := m.client(t, homeRegion(id)).Wait(t.Context(), id, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if !ended || task.GetState() != isobarv1.TaskState_TASK_STATE_COMPLETED {
		t.Fatalf("task %s is %v: %s", id, task.GetState(), task.GetReason())
	}
	return task
}

// execSpec is a function of one small shell command.
func execSpec(name, command string) *isobarv1.FunctionSpec {
	return &isobarv1.FunctionSpec{
		Name: name, Timeout: durationpb.New(time.Minute),
		Variants: []*isobarv1.Variant{{
			Name: "default", Runtime: "exec", Command: []string{"sh", "-c", command}, Quality: 1,
			Resources: &isobarv1.Resources{Cpu: 0.1, MemoryMib: 32},
		}},
	}
}

// command runs the CLI and returns what it wrote to both outputs.
func (m *mesh) command(t *testing.T, stdin []byte, args ...string) (stdout []byte, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, isobar, args...)
	cmd.Env = append(os.Environ(), m.env...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if m.otlp != "" {
		cmd.Env = append(cmd.Env, "OTEL_EXPORTER_OTLP_ENDPOINT="+m.otlp)
	}
	if err := cmd.Run(); err != nil {
		t.Errorf("isobar %s: %v: %s", args[0], err, errs.String())
	}
	return out.Bytes(), errs.String()
}

// httpError is a refusal as plain HTTP shows it.
type httpError struct {
	status  int
	Code    string `json:"code"`
	Message string `json:"message"`
	Details []struct {
		Type  string `json:"type"`
		Value string `json:"value"` // the message, base64 without padding
	} `json:"details"`
}

// detail is the typed detail of the refusal.
func (e httpError) detail(t *testing.T) *isobarv1.TaskError {
	t.Helper()
	for _, d := range e.Details {
		raw, err := base64.RawStdEncoding.DecodeString(d.Value)
		if err != nil || d.Type != "isobar.v1.TaskError" {
			continue
		}
		var detail isobarv1.TaskError
		if err := proto.Unmarshal(raw, &detail); err != nil {
			t.Fatal(err)
		}
		return &detail
	}
	t.Fatalf("no typed detail in %+v", e)
	return nil
}

// checkTellsNothing asks a region of the one task of another, which may not be told
// outside.
func (m *mesh) checkTellsNothing(t *testing.T, region, home string) {
	t.Helper()
	tasks, err := m.list(t.Context(), m.leader(t, home), isobarv1.TaskState_TASK_STATE_COMPLETED)
	if err != nil || len(tasks) != 1 {
		t.Fatalf("%d tasks in %s: %v", len(tasks), home, err)
	}
	for _, call := range []string{"TaskService/Get", "TaskService/Wait", "PlacementService/Explain"} {
		got, _ := m.refusedOverHTTP(t, region, call, fmt.Sprintf(`{"taskId":%q}`, tasks[0].Id))
		if d := got.detail(t); d.GetReason() != "residency" || d.GetCell() != cellOf(home) {
			t.Errorf("%s in %s answers %d, %s: %s; the detail is %v", call, region, got.status, got.Code, got.Message, d)
		}
	}
}

// submitOverHTTP submits the needle with a residency and returns the refusal.
func (m *mesh) submitOverHTTP(t *testing.T, region string, n *needle) httpError {
	t.Helper()
	out, answer := m.refusedOverHTTP(t, region, "TaskService/Submit",
		fmt.Sprintf(`{"tasks":[{"function":"echo","payload":%q,"idempotencyKey":%q,"residency":{"allowed":["eu"]}}]}`, base64.StdEncoding.EncodeToString(n.bytes), n.key()))
	if n.in(answer) != "" {
		t.Errorf("the refusal quotes the bytes: %s", answer)
	}
	return out
}

// refusedOverHTTP makes a call with nothing but HTTP and JSON.
func (m *mesh) refusedOverHTTP(t *testing.T, region, call, body string) (httpError, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	url := m.serversOf(region)[0].api() + "/isobar.v1." + call
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := httpError{status: res.StatusCode}
	if err := json.Unmarshal(answer, &out); err != nil {
		t.Fatalf("%s: %v", answer, err)
	}
	return out, answer
}

// awaitExport waits until the attempt has been exported, and of every server
// something that is newer than the call: what it exported before has come too.
func awaitExport(t *testing.T, m *mesh, rec *receiver) {
	t.Helper()
	mark := uint64(time.Now().UnixNano())
	for _, region := range m.regions() {
		c := m.client(t, region)
		eventually(t, 30*time.Second, "spans of "+region, func(ctx context.Context) error {
			// A call makes the server's next span.
			if _, err := c.Cells(ctx); err != nil {
				return err
			}
			attempt, after := false, false
			rec.mu.Lock()
			defer rec.mu.Unlock()
			for _, s := range rec.spans {
				attempt = attempt || s.GetName() == "isobar.attempt"
				after = after || s.region == region && s.GetStartTimeUnixNano() > mark
			}
			if !attempt || !after {
				return fmt.Errorf("attempt seen: %v, later span seen: %v", attempt, after)
			}
			return nil
		})
	}
}
