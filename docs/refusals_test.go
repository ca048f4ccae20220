package docs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/worker/attempt/attempttest"
)

// post calls a method of a region's API with JSON.
func (m *devMesh) post(ctx context.Context, region, method, body string, header ...string) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.servers[region].url()+"/isobar.v1."+method, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	answer, err = io.ReadAll(res.Body)
	return res.StatusCode, answer, errors.Join(err, res.Body.Close())
}

// must calls a method that has to succeed and returns the answer's fields.
func (m *devMesh) must(t *testing.T, method, body string) map[string]any {
	t.Helper()
	status, answer, err := m.post(t.Context(), "eu-north", method, body)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%s %.300s: %d %s %v", method, body, status, answer, err)
	}
	var out map[string]any
	if err := json.Unmarshal(answer, &out); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return out
}

// deploy makes a function run everywhere. The variant is JSON, without name.
func (m *devMesh) deploy(t *testing.T, name, variant, more string) {
	t.Helper()
	m.must(t, "FunctionService/Deploy", `{"spec": {"name": "`+name+`", "variants": [{"name": "v1", `+variant+`}]`+more+`}}`)
	m.deployed(t, name)
}

func (m *devMesh) deployed(t *testing.T, name string) {
	t.Helper()
	eventually(t, name+" runs everywhere", func(ctx context.Context) error {
		_, answer, err := m.post(ctx, "eu-north", "FunctionService/Get", `{"name": "`+name+`"}`)
		if err == nil && bytes.Count(answer, []byte(`"ready":true`)) != len(m.servers) {
			err = fmt.Errorf("it does not yet: %s", answer)
		}
		return err
	})
}

func (m *devMesh) submit(t *testing.T, task string) string {
	t.Helper()
	results, _ := m.must(t, "TaskService/Submit", `{"tasks": [`+task+`]}`)["results"].([]any)
	first, _ := results[0].(map[string]any)
	id, _ := first["taskId"].(string)
	if id == "" {
		t.Fatalf("submit %s: no id in %v", task, results)
	}
	return id
}

func (m *devMesh) wait(t *testing.T, id string) {
	t.Helper()
	if out := m.must(t, "TaskService/Wait", `{"taskId": "`+id+`", "timeout": "20s"}`); out["ended"] != true {
		t.Fatalf("%s has not ended: %v", id, out)
	}
}

// refused is a row of the table: something bad, and what it gets.
type refused struct {
	name   string
	region string // which is asked; eu-north
	call   string
	body   string // $TASK is what before returned
	header []string
	before func(t *testing.T) string
	// Of an error: the code and the detail. Patterns, in which … is anything.
	code, reason, message, hint string
	field, outcome              string
	cell, address, task         string
	retryAfter                  bool
	// Of an answer that is no error, because the bad thing is the function's or
	// an old attempt's: JSON that the answer must show.
	answer string
}

// TestBadInput holds what bad input gets: a row for each kind, asked of a real
// mesh, with code, reason, message and hint.
func TestBadInput(t *testing.T) {
	m := testMesh(t)
	probe := attempttest.Command(t)
	exec := func(more string, command ...string) string {
		c, _ := json.Marshal(command) //nolint:errchkjson // strings
		return `"runtime": "exec", "command": ` + string(c) + `, "resources": {"cpu": 0.1, "memoryMib": 64` + more + `}`
	}
	once := `, "retry": {"maxAttempts": 1}`
	m.deploy(t, "echo", exec("", "cat"), "")
	m.deploy(t, "gpu", exec(`, "gpus": 1, "gpuModel": "H100"`, "cat"), "")
	m.deploy(t, "tpu", exec(`, "gpus": 1, "gpuModel": "TPU"`, "cat"), "")
	m.deploy(t, "second", exec("", "sh", "-c", `test "$ISOBAR_ATTEMPT" -ge 2 || exit 75; cat`), `, "retry": {"backoff": "0s"}`)
	m.deploy(t, "crash", exec("", probe), once+`, "env": {"MODE": "panic"}`)
	m.deploy(t, "hang", exec("", probe), once+`, "env": {"MODE": "sleep"}, "timeout": "1s"`)
	m.deploy(t, "flood", exec("", probe), once+`, "env": {"MODE": "flood"}`)
	m.deploy(t, "eat", exec("", probe), once+`, "env": {"MODE": "eat 8"}`)
	m.deployWasm(t, "wasm-trap", 0x00)                         // unreachable
	m.deployWasm(t, "wasm-hang", 0x03, 0x40, 0x0c, 0x00, 0x0b) // loop br 0 end
	m.deployWasm(t, "wasm-eat",                                // loop: memory.grow by 16 MiB, unreachable when it is refused
		0x03, 0x40, 0x41, 0x80, 0x02, 0x40, 0x00, 0x41, 0x7f, 0x46, 0x04, 0x40, 0x00, 0x0b, 0x0c, 0x00, 0x0b)

	for _, row := range append(inputs(m), misbehaviour(t, m)...) {
		t.Run(row.name, func(t *testing.T) { row.check(t, m) })
	}
}

// inputs are bad requests.
func inputs(m *devMesh) []refused {
	large := strings.Repeat("x", mesh.MaxPayload+1)
	keyed := func(t *testing.T) string {
		t.Helper()
		return m.submit(t, `{"function": "echo", "text": "a", "idempotencyKey": "bad-input"}`)
	}
	homed := func(t *testing.T) string {
		t.Helper()
		return m.submit(t, `{"function": "echo", "text": "a"}`) // without a key, the asked cell is its home
	}
	return []refused{
		{
			name: "unknown function", call: "TaskService/Submit", body: `{"tasks": [{"function": "ecko"}]}`,
			code: "not_found", reason: "unknown_function", message: `tenant default has no function "ecko"`, hint: "did you mean echo?", field: "tasks[0].function",
		},
		{
			name: "unknown tenant", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "tenant": "acme"}]}`,
			code: "not_found", reason: "unknown_tenant", message: `there is no tenant "acme"`, hint: "leave it out for the tenant default", field: "tasks[0].tenant",
		},
		{
			name: "unknown lane", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "lane": "fast"}]}`,
			code: "invalid_argument", reason: "unknown_lane", message: `there is no lane "fast"`, hint: "use critical, interactive, standard or batch", field: "tasks[0].lane",
		},
		{
			name: "unknown region", call: "PlacementService/Explain", body: `{"task": {"function": "echo"}, "withoutRegions": ["mars"]}`,
			code: "invalid_argument", reason: "unknown_region", message: "no region mars is known", hint: "isobar mesh lists the regions", field: "withoutRegions",
		},
		{
			name: "unknown field", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "colour": "red"}]}`,
			code: "invalid_argument", reason: "bad_request", message: `…unknown field "colour"`, hint: "docs/api.md shows the calls…",
		},
		{
			name: "not JSON", call: "TaskService/Submit", body: `{"tasks": [`,
			code: "invalid_argument", reason: "bad_request", message: "unmarshal message…", hint: "docs/api.md shows the calls…",
		},
		{
			name: "queue of no function", call: "QueueService/Pause", body: `{"function": "ecko"}`,
			code: "not_found", reason: "unknown_queue", message: `tenant default has no function "ecko" and no task of one here`,
			hint: "isobar queue list shows the queues of a cell", field: "function",
		},
		{
			name: "queue without a function", call: "QueueService/Purge", body: `{}`,
			code: "invalid_argument", reason: "bad_request", message: "no function is named", hint: "a queue is a function's tasks in one lane", field: "function",
		},
		{
			name: "queue in no lane", call: "QueueService/Resume", body: `{"function": "echo", "lane": "fast"}`,
			code: "invalid_argument", reason: "unknown_lane", message: `there is no lane "fast"`, hint: "use critical, interactive, standard or batch…", field: "lane",
		},
		{
			name: "queue paused twice", call: "QueueService/Pause", body: `{"function": "paused", "lane": "batch", "reason": "second"}`,
			before: func(t *testing.T) string {
				t.Helper()
				m.deploy(t, "paused", `"runtime": "exec", "command": ["cat"]`, "")
				m.must(t, "QueueService/Pause", `{"function": "paused", "lane": "batch", "reason": "first"}`)
				return ""
			},
			answer: `{"queues": [{"function": "paused", "lane": "batch", "pause": {"reason": "first"}}]}`, // nothing changed
		},
		{
			name: "peek of too many", call: "QueueService/Peek", body: `{"function": "echo", "limit": 101}`,
			code: "invalid_argument", reason: "bad_request", message: "a limit of 101 is not between 1 and 100", hint: "page with nextPageToken", field: "limit",
		},
		{
			name: "token of no purge", call: "QueueService/Purge", body: `{"function": "echo", "token": "x"}`,
			code: "invalid_argument", reason: "bad_request", message: "not the token of a purge", hint: "leave it out to begin one", field: "token",
		},
		{
			name: "redrive of a task that is not dead", call: "DeadLetterService/Redrive", body: `{"taskIds": ["$TASK"]}`, before: func(t *testing.T) string {
				t.Helper()
				id := homed(t)
				m.wait(t, id)
				return id
			},
			code: "failed_precondition", reason: "not_dead", message: "the task is completed, and only a dead one can be redriven",
			hint: "isobar dlq list shows those that are", task: "$TASK",
		},
		{
			name: "redrive of an unknown task", call: "DeadLetterService/Redrive", body: `{"taskIds": ["x"]}`,
			code: "invalid_argument", reason: "bad_request", message: `"x" is not a task id`, hint: "an id looks like…", field: "taskId",
		},
		{
			name: "redrive of nothing", call: "DeadLetterService/Redrive", body: `{}`,
			code: "invalid_argument", reason: "bad_request", message: "neither task ids nor a filter", hint: `an empty filter, {"filter": {}}, means all`, field: "taskIds",
		},
		{
			name: "redrive by ids and filter", call: "DeadLetterService/Redrive", body: `{"taskIds": ["x"], "filter": {}}`,
			code: "invalid_argument", reason: "bad_request", message: "both task ids and a filter", hint: "give one of them", field: "filter",
		},
		{
			name: "retry policy out of bounds", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "retry": {"maxAttempts": 101}}]}`,
			code: "invalid_argument", reason: "bad_request", message: "retry.max_attempts must be 1 to 100, not 101", hint: "leave it out for the function's own policy",
			field: "tasks[0].retry.max_attempts",
		},
		{
			name: "payload too large", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "text": "` + large + `"}]}`,
			code: "invalid_argument", reason: "payload_too_large", message: "a payload of 1048577 bytes is above 1048576", hint: "put large inputs where the function can read them…",
			field: "tasks[0].payload",
		},
		{
			name: "payload too large to invoke", call: "TaskService/Invoke", body: `{"function": "echo", "text": "` + large + `"}`,
			code: "invalid_argument", reason: "payload_too_large", message: "a payload of 1048577 bytes is above 1048576", hint: "put large inputs where the function can read them…",
			field: "payload",
		},
		{
			name: "residency elsewhere", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "residency": {"allowed": ["us"]}}]}`,
			code: "failed_precondition", reason: "residency", message: "eu-north-1 lies in [eu se], which the residency leaves out", hint: "submit it to us-east-1",
			field: "tasks[0].residency", cell: "us-east-1", address: m.servers["us-east"].url(),
		},
		{
			name: "impossible residency", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "residency": {"allowed": ["mars"]}}]}`,
			code: "failed_precondition", reason: "residency", message: "eu-north-1 lies in [eu se], which the residency leaves out",
			hint: "no known cell lies within it; allow more, or start a cell there", field: "tasks[0].residency",
		},
		{
			name: "accelerator not within the residency", call: "TaskService/Submit", body: `{"tasks": [{"function": "gpu", "residency": {"allowed": ["eu"]}}]}`,
			code: "failed_precondition", reason: "infeasible", message: "no cell can run it: …", hint: "no region allowed by residency [eu] offers accelerator H100; us-east does",
		},
		{
			name: "impossible accelerator", call: "TaskService/Submit", body: `{"tasks": [{"function": "tpu"}]}`,
			code: "failed_precondition", reason: "infeasible", message: "no cell can run it: needs 1 TPU, ap-south-1 has 0",
			hint: "no region offers 1 TPU; add it to ap-south-1: v1 could then run at ap-south-1",
		},
		{
			name: "quality nobody offers", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "minQuality": 1.5}]}`,
			code: "invalid_argument", reason: "bad_request", message: "1.5 is not between 0 and 1", hint: "quality is a share: 0.8", field: "tasks[0].minQuality",
		},
		{
			name: "a start put off by less than nothing", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "maxDelay": "-1s"}]}`,
			code: "invalid_argument", reason: "bad_request", message: "a start is put off by 0 s or more",
			hint: "6h, say; leave it out for a start as soon as it can", field: "tasks[0].maxDelay",
		},
		{
			name: "a start put off beyond the lifetime", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "maxDelay": "604800s"}]}`,
			code: "invalid_argument", reason: "bad_request", message: "a start put off by 168h0m0s is beyond the lifetime of a task, 168h0m0s",
			hint: "a shorter delay", field: "tasks[0].maxDelay",
		},
		{
			name: "a start put off past the deadline", call: "TaskService/Submit",
			body: `{"tasks": [{"function": "echo", "maxDelay": "7200s", "deadline": "` + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `"}]}`,
			code: "invalid_argument", reason: "bad_request", message: "a start put off by 2h0m0s is not before the deadline",
			hint: "leave time to run in: a shorter delay, or a later deadline", field: "tasks[0].maxDelay",
		},
		{
			name: "a round trip below zero", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "maxRtt": "-0.1s"}]}`,
			code: "invalid_argument", reason: "bad_request", message: "a round trip is 0 s or more", hint: "0.05s, say; leave it out for any distance", field: "tasks[0].maxRtt",
		},
		{
			name: "an input without a size", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "inputs": [{"name": "weights", "places": ["us-east"]}]}]}`,
			code: "invalid_argument", reason: "bad_request", message: "a size of 0 bytes is not 1 byte to 1 PiB", hint: "leave out what takes no room", field: "tasks[0].inputs[0].bytes",
		},
		{
			name: "an input without a place", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "inputs": [{"name": "weights", "bytes": "1"}]}]}`,
			code: "invalid_argument", reason: "bad_request", message: "an input lies in 1 to 64 regions, not in 0", hint: "name those it can be read from", field: "tasks[0].inputs[0].places",
		},
		{
			name: "an input in no region", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "inputs": [{"name": "weights", "bytes": "1", "places": ["mars"]}]}]}`,
			code: "invalid_argument", reason: "unknown_region", message: "no region mars is known", hint: "isobar mesh lists the regions; a place is one of them, or one of the server's rtt_ms", field: "tasks[0].inputs[0].places[0]",
		},
		{
			name: "two inputs of one name", call: "TaskService/Submit",
			body: `{"tasks": [{"function": "echo", "inputs": [{"name": "w", "bytes": "1", "places": ["us-east"]}, {"name": "w", "bytes": "1", "places": ["us-east"]}]}]}`,
			code: "invalid_argument", reason: "bad_request", message: "there are two inputs w", hint: "name all places of an input in its places", field: "tasks[0].inputs[1].name",
		},
		{
			name: "deadline in the past", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "deadline": "2020-01-01T00:00:00Z"}]}`,
			code: "invalid_argument", reason: "deadline_past", message: "the deadline 2020-01-01T00:00:00Z has passed", hint: "leave it out, or set a later one", field: "tasks[0].deadline",
		},
		{
			name: "bad WASM module", call: "FunctionService/Deploy", body: wasmFunction("bad", []byte("#!/bin/sh\n"), ""),
			code: "invalid_argument", reason: "bad_module", message: "…it is not WebAssembly…", hint: "build for WASI preview 1: GOOS=wasip1 GOARCH=wasm go build",
			field: "variants[0].module",
		},
		{
			name: "bad function", call: "FunctionService/Deploy", body: `{"spec": {"name": "Bad Name", "variants": [{"name": "v1", "runtime": "exec", "command": ["cat"]}]}}`,
			code: "invalid_argument", reason: "bad_function", message: `name: must be 1 to 63 lower-case letters, digits and dashes…`, hint: "docs/functions.md describes a manifest", field: "name",
		},
		{
			name: "no task id", call: "TaskService/Get", body: `{"taskId": "upper"}`,
			code: "invalid_argument", reason: "bad_request", message: `"upper" is not a task id`, hint: "an id looks like 01jd…-eu-north-1-k3f9ab; Submit returns it", field: "taskId",
		},
		{
			name: "unknown task", call: "TaskService/Get", body: `{"taskId": "01jd9x6m2e8k6v8w1b4c5d6e7f-eu-north-1-zzzzzz"}`,
			code: "not_found", reason: "unknown_task", message: "the id is of incarnation zzzzzz of eu-north-1, which is gone; it is … now",
			hint: "its tasks went with its data; submit again what is still wanted", task: "01jd9x6m2e8k6v8w1b4c5d6e7f-eu-north-1-zzzzzz",
		},
		{
			name: "a cell asked for another's task", region: "us-east", call: "TaskService/Get", body: `{"taskId": "$TASK"}`, before: homed,
			header: []string{"Isobar-Forwarded", "1"}, // as a server would, that passed it on already
			code:   "failed_precondition", reason: "wrong_cell", message: "this is us-east-1, not eu-north-1", hint: "ask eu-north-1",
			cell: "eu-north-1", address: m.servers["eu-north"].url(),
		},
		{
			name: "a cost below nothing", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "cost": {"tokens": "-1"}}]}`,
			code: "invalid_argument", reason: "bad_request", message: "cost.tokens is not 0 to 1099511627776", hint: "leave it out for none", field: "tasks[0].cost.tokens",
		},
		{
			name: "a call's cost beyond any worker", call: "TaskService/Invoke", body: `{"function": "echo", "cost": {"bytes": "1099511627777"}}`,
			code: "invalid_argument", reason: "bad_request", message: "cost.bytes is not 0 to 1099511627776", hint: "leave it out for none", field: "cost.bytes",
		},
		{
			name: "ordering key too long", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "orderingKey": "` + strings.Repeat("k", 257) + `"}]}`,
			code: "invalid_argument", reason: "bad_request", message: "an ordering key is at most 256 bytes, none of them zero", hint: "hash longer ones", field: "tasks[0].orderingKey",
		},
		{
			name: "an ordering of no such mode", call: "FunctionService/Deploy",
			body: `{"spec": {"name": "x", "ordering": {"mode": "loose"}, "variants": [{"name": "v1", "runtime": "exec", "command": ["cat"]}]}}`,
			code: "invalid_argument", reason: "bad_function", message: "…ordering.mode…must be strict or relaxed…", hint: "…", field: "…",
		},
		{
			name: "same key, same payload", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "text": "a", "idempotencyKey": "bad-input"}]}`, before: keyed,
			answer: `{"results": [{"taskId": "$TASK", "duplicate": true}]}`,
		},
		{
			name: "same key, same payload, in another region", region: "us-east", call: "TaskService/Submit",
			body:   `{"tasks": [{"function": "echo", "text": "a", "idempotencyKey": "bad-input"}]}`,
			before: keyed,
			answer: `{"results": [{"taskId": "$TASK", "duplicate": true}]}`,
		},
		{
			name: "a key from a server with other homes", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "text": "a", "idempotencyKey": "bad-input"}]}`,
			header: []string{"Isobar-Forwarded", "1", "Isobar-Homes", "0"},
			code:   "failed_precondition", reason: "homes_differ", message: "the servers of the mesh disagree about the list of home cells", hint: "give every server the same `homes`",
		},
		{
			name: "same key, another payload", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "text": "b", "idempotencyKey": "bad-input"}]}`, before: keyed,
			code: "already_exists", reason: "idempotency_key_reused", message: "the idempotency key belongs to $TASK, whose content differs",
			hint: "use another key for another task, or repeat the first one unchanged", field: "tasks[0].idempotencyKey", task: "$TASK",
		},
	}
}

// misbehaviour is what functions and workers do wrong.
func misbehaviour(t *testing.T, m *devMesh) []refused {
	t.Helper()
	var rows []refused
	for _, f := range []struct{ function, outcome, message, code, reason, hint string }{
		{"crash", "failed", "exit code 2", "aborted", "function_failed", "its last words: panic: as asked…"},
		{"hang", "timeout", "…", "…", "…", "…"},
		{"flood", "failed", "result too large: more than 262144 bytes", "aborted", "function_failed", "the function wrote nothing to standard error"},
		{"eat", "memory", "used … MiB of memory, more than its limit of 64 MiB", "aborted", "function_failed", "give the variant more memory_mib"},
		{"wasm-trap", "failed", "…unreachable…", "aborted", "function_failed", "the function wrote nothing to standard error"},
		{"wasm-hang", "timeout", "…", "…", "…", "…"},
		{"wasm-eat", "memory", "…memory…", "aborted", "function_failed", "give the variant more memory_mib"},
	} {
		invoked := refused{
			name: f.function + ", invoked", call: "TaskService/Invoke", body: `{"function": "` + f.function + `", "text": "x"}`,
			code: f.code, reason: f.reason, message: f.function + " ended as " + f.outcome + ": " + f.message, hint: f.hint, outcome: "outcome_unknown",
		}
		if f.outcome == "timeout" {
			// The call's own time ends with the function's, whichever is told first.
			invoked.message = f.function + "…"
		}
		rows = append(rows, invoked, refused{
			name: f.function + ", submitted", call: "TaskService/Get", body: `{"taskId": "$TASK"}`,
			before: func(t *testing.T) string {
				t.Helper()
				id := m.submit(t, `{"function": "`+f.function+`", "text": "x"}`)
				m.wait(t, id)
				return id
			},
			answer: `{"task": {"id": "$TASK", "state": "TASK_STATE_DEAD", "reason": "…", "attempts": [{"outcome": "` + f.outcome + `", "message": "` + f.message + `", "counted": true}]}}`,
		})
	}
	second := func(t *testing.T) string {
		t.Helper()
		id := m.submit(t, `{"function": "second", "text": "x"}`)
		m.wait(t, id)
		return id
	}
	result := base64.StdEncoding.EncodeToString(make([]byte, mesh.MaxResult+1))
	lease := `"worker": "ada", "session": "s", "lease": {"taskId": "$TASK", "attempt": 1}, "outcome": `
	return append(rows,
		refused{
			name: "a stale attempt completing", call: "WorkerService/Complete", body: `{` + lease + `{"status": "done", "result": "b2xk"}}`, before: second,
			answer: `{"lease": {"taskId": "$TASK", "attempt": "1"}, "verdict": "fenced"}`,
		},
		refused{
			name: "a stale attempt failing", call: "WorkerService/Fail", body: `{` + lease + `{"status": "failed"}}`, before: second,
			answer: `{"lease": {"taskId": "$TASK", "attempt": "1"}, "verdict": "fenced"}`,
		},
		refused{
			name: "a stale attempt extending", call: "WorkerService/Extend", before: second,
			body:   `{"worker": "ada", "session": "s", "leases": [{"taskId": "$TASK", "attempt": 1}]}`,
			answer: `{"results": [{"lease": {"taskId": "$TASK", "attempt": "1"}, "reason": "…"}]}`,
		},
		refused{
			name: "a result too large", call: "WorkerService/Complete", body: `{` + lease + `{"status": "done", "result": "` + result + `"}}`, before: second,
			code: "invalid_argument", reason: "result_too_large", message: "a result of 262145 bytes is above 262144", hint: "…", field: "outcome.result", task: "$TASK",
		},
	)
}

func (row refused) check(t *testing.T, m *devMesh) {
	id := ""
	if row.before != nil {
		id = row.before(t)
	}
	fill := func(s string) string { return strings.ReplaceAll(s, "$TASK", id) }
	region := row.region
	if region == "" {
		region = "eu-north"
	}
	status, got, err := m.post(t.Context(), region, row.call, fill(row.body), row.header...)
	if err != nil {
		t.Fatal(err)
	}
	if row.answer != "" {
		if status != http.StatusOK {
			t.Fatalf("%d %s", status, got)
		}
		if err := answers(&block{info: "json", text: fill(row.answer)}, got); err != nil {
			t.Errorf("%v\nin %s", err, got)
		}
		return
	}
	var e struct {
		Code    string
		Message string
		Details []struct {
			Type  string
			Debug struct {
				Code, Reason, Message, Hint, Field, Outcome, Cell, Address, TaskID, RetryAfter string
			}
		}
	}
	if err := json.Unmarshal(got, &e); err != nil || len(e.Details) != 1 || e.Details[0].Type != "isobar.v1.TaskError" {
		t.Fatalf("no error with a TaskError: %v\n%s", err, got)
	}
	d := e.Details[0].Debug
	if d.Code != e.Code || d.Message != e.Message || d.Reason == "" || d.Message == "" || d.Hint == "" {
		t.Errorf("a reason, message and hint are owed, and the same in both places:\n%s", got)
	}
	outcome := row.outcome
	if outcome == "" {
		outcome = "not_accepted"
	}
	for _, f := range []struct{ name, want, got string }{
		{"code", row.code, d.Code}, {"reason", row.reason, d.Reason}, {"message", row.message, d.Message}, {"hint", row.hint, d.Hint},
		{"field", row.field, d.Field}, {"outcome", outcome, d.Outcome}, {"cell", row.cell, d.Cell}, {"address", row.address, d.Address}, {"task", row.task, d.TaskID},
	} {
		if !matches(fill(f.want), f.got) {
			t.Errorf("%s is %q, want %q", f.name, f.got, fill(f.want))
		}
	}
	if (d.RetryAfter != "") != row.retryAfter {
		t.Errorf("retryAfter is %q", d.RetryAfter)
	}
}

// deployWasm deploys a module whose _start is the code.
func (m *devMesh) deployWasm(t *testing.T, name string, code ...byte) {
	t.Helper()
	body := append([]byte{0}, append(code, 0x0b)...) // no locals … end
	module := []byte("\x00asm\x01\x00\x00\x00" +
		"\x01\x04\x01\x60\x00\x00" + // type: func()
		"\x03\x02\x01\x00" + // one function of it
		"\x05\x03\x01\x00\x01" + // one page of memory
		"\x07\x13\x02\x06memory\x02\x00\x06_start\x00\x00")
	module = append(module, 0x0a, byte(len(body)+2), 1, byte(len(body)))
	m.must(t, "FunctionService/Deploy", wasmFunction(name, append(module, body...), `, "timeout": "1s", "retry": {"maxAttempts": 1}`))
	m.deployed(t, name)
}

func wasmFunction(name string, module []byte, more string) string {
	sum := sha256.Sum256(module)
	return fmt.Sprintf(`{"spec": {"name": %q, "variants": [{"name": "v1", "runtime": "wasm", "module": "sha256:%s", "resources": {"cpu": 0.1, "memoryMib": 64}}]%s}, "modules": [%q]}`,
		name, hex.EncodeToString(sum[:]), more, base64.StdEncoding.EncodeToString(module))
}

// TestBadBroker holds the rows of regions that keep payloads in a Pulsar which
// cannot be reached, and which two of them share.
func TestBadBroker(t *testing.T) {
	if testing.Short() {
		t.Skip("a mesh of processes is not started with -short")
	}
	var own started
	nowhere := "pulsar://127.0.0.1:1,http://127.0.0.1:1"
	m, err := own.start("--broker", "us-east="+nowhere, "--broker", "ap-south="+nowhere)
	if err != nil {
		t.Fatal(err)
	}
	own.mesh = m
	t.Cleanup(func() {
		if err := own.stop(); err != nil {
			t.Error(err)
		}
	})
	m.deploy(t, "echo", `"runtime": "exec", "command": ["cat"], "resources": {"cpu": 0.1, "memoryMib": 64}`, "")
	for _, row := range []refused{
		{
			name: "residency on a shared broker", region: "us-east", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "text": "a", "residency": {"allowed": ["us"]}}]}`,
			code: "failed_precondition", reason: "broker_shared", message: "us-east-1 shares its broker with ap-south, which lies in [in], and the residency leaves that out",
			hint: "use a cell whose broker is its own, or give this region one", field: "tasks[0].residency",
		},
		{
			name: "broker that cannot be reached", region: "us-east", call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "text": "a"}]}`,
			code: "unavailable", reason: "unavailable", message: "the task was not accepted", hint: "try again", retryAfter: true,
		},
	} {
		t.Run(row.name, func(t *testing.T) { row.check(t, m) })
	}
	// The others do their work.
	m.wait(t, m.submit(t, `{"function": "echo", "text": "a", "residency": {"allowed": ["eu"]}}`))
}

// TestQueueAtItsCap is the row that needs a server of its own, whose cap is
// small: another function, or another lane, is another queue.
func TestQueueAtItsCap(t *testing.T) {
	m := testMesh(t).lone(t, "ISOBAR_QUEUE_COUNT=3")
	for _, name := range []string{"echo", "other"} {
		m.must(t, "FunctionService/Deploy", `{"spec": {"name": "`+name+`", "variants": [{"name": "v1", "runtime": "exec", "command": ["cat"]}]}}`)
	}
	ids := []string{}
	for range 3 {
		ids = append(ids, m.submit(t, `{"function": "echo", "text": "a"}`))
	}
	full := refused{
		call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "text": "a"}]}`,
		code: "resource_exhausted", reason: "queue_full", message: "queue default/echo/standard is full: 3 tasks of 3, 3 bytes of 1073741824",
		hint: "wait and try again, add workers, or raise queue.count", retryAfter: true,
	}
	full.check(t, m)
	m.submit(t, `{"function": "echo", "text": "a", "lane": "batch"}`)
	m.submit(t, `{"function": "other", "text": "a"}`)
	full.check(t, m)
	m.must(t, "TaskService/Cancel", `{"taskId": "`+ids[0]+`"}`)
	m.submit(t, `{"function": "echo", "text": "a"}`)
	full.check(t, m)
	if text := m.metrics(t); !strings.Contains(text, `isobar_queue_full_total{bound="count"} `) || strings.Contains(text, `isobar_queue_full_total{bound="count"} 0`) {
		t.Errorf("what was refused is not counted:\n%s", text)
	}
}

// TestFullDisk: at 80 % of its disk a cell accepts no more, and keeps the rest
// for what it has accepted, which can still be leased, completed and cancelled.
func TestFullDisk(t *testing.T) {
	m := testMesh(t).lone(t, "ISOBAR_DISK_BYTES=64MiB")
	m.must(t, "FunctionService/Deploy", `{"spec": {"name": "echo", "variants": [{"name": "v1", "runtime": "exec", "command": ["cat"]}]}}`)
	payload := strings.Repeat("x", mesh.MaxPayload)
	first := m.submit(t, `{"function": "echo", "text": "a"}`)
	accepted := 0
	eventually(t, "the disk is full", func(ctx context.Context) error {
		status, answer, err := m.post(ctx, "eu-north", "TaskService/Submit", `{"tasks": [{"function": "echo", "text": "`+payload+`"}]}`)
		if err == nil && status == http.StatusOK {
			accepted++
			err = fmt.Errorf("%d MiB accepted, and no end", accepted)
		} else if err == nil && !bytes.Contains(answer, []byte(`"disk_full"`)) {
			t.Fatalf("%d %s", status, answer)
		}
		return err
	})
	if accepted > 64 {
		t.Errorf("%d MiB accepted with 64 MiB of disk", accepted)
	}
	refused{
		call: "TaskService/Submit", body: `{"tasks": [{"function": "echo", "text": "a"}]}`,
		code: "resource_exhausted", reason: "disk_full", message: "the disk of eu-north-1 is past its cap; the rest is kept for work already accepted",
		hint: "free space, raise disk.bytes, or submit to another region", retryAfter: true,
	}.check(t, m)

	worker := `{"worker": "ada", "session": "s", `
	m.must(t, "WorkerService/Lease", worker+`"requestId": "r", "wait": "10s", "offer": {"cpu": 1, "memoryMib": 128, "runtimes": ["exec"]}}`)
	lease := `{"taskId": "` + first + `", "attempt": 1}`
	m.must(t, "WorkerService/Extend", worker+`"leases": [`+lease+`]}`)
	if out := m.must(t, "WorkerService/Complete", worker+`"lease": `+lease+`, "outcome": {"status": "done", "result": "YQ=="}}`); out["verdict"] != "accepted" {
		t.Errorf("a completion on a full disk: %v", out)
	}
	m.wait(t, first)
}

// metric reads one number of eu-north's /metrics.
func (m *devMesh) metric(t *testing.T, name string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.home()+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			var v float64
			if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' '):], &v); err == nil {
				return v
			}
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
