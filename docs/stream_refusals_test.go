package docs_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// TestBadStreams: what bad requests about streams get.
func TestBadStreams(t *testing.T) {
	m := testMesh(t)
	m.must(t, "StreamService/Create", `{"spec": {"name": "bad", "partitions": 2}}`)
	m.must(t, "StreamService/Create", `{"spec": {"name": "one"}}`)
	m.must(t, "StreamService/Publish", `{"stream": "one", "messages": [{"text": "a"}]}`)
	if status, answer, err := m.post(t.Context(), "us-east", "StreamService/Create", `{"spec": {"name": "american", "residency": {"allowed": ["us"]}}}`); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s %v", status, answer, err)
	}
	for _, row := range append(badStreams(m), movedStreams(m)...) {
		t.Run(row.name, func(t *testing.T) { row.check(t, m) })
	}
}

func badStreams(m *devMesh) []refused {
	large := strings.Repeat("x", mesh.MaxPayload+1)
	return []refused{
		{
			name: "unknown stream", call: "StreamService/Publish", body: `{"stream": "bat", "messages": [{}]}`,
			code: "not_found", reason: "unknown_stream", message: "no cell that answers has a stream of that name", hint: "create it first: isobar stream create", field: "stream",
		},
		{
			name: "a stream of a cell that is not there", call: "StreamService/Publish", body: `{"stream": "bad", "cell": "mars-1", "messages": [{}]}`,
			code: "unavailable", reason: "home_unavailable", message: "no server of mars-1 answers for it", hint: "try again; …", cell: "mars-1", retryAfter: true,
		},
		{
			name: "a forwarded request for a stream of another cell", region: "us-east", call: "StreamService/Publish", body: `{"stream": "bad", "messages": [{}]}`,
			header: []string{"Isobar-Forwarded", "1"},
			code:   "not_found", reason: "unknown_stream", message: "no cell that answers has a stream of that name", hint: "…", field: "stream",
		},
		{
			name: "no stream's name", call: "StreamService/Publish", body: `{"stream": "Bad Name", "messages": [{}]}`,
			code: "invalid_argument", reason: "bad_request", message: `"default/Bad Name" does not name a stream`, hint: "1 to 63 lower-case letters, digits and dashes", field: "stream",
		},
		{
			name: "partition out of range", call: "StreamService/Publish", body: `{"stream": "bad", "messages": [{"partition": 2}]}`,
			code: "invalid_argument", reason: "unknown_partition", message: "the stream has no such partition", hint: "they are counted from 0; isobar stream describe shows them", field: "partition",
		},
		{
			name: "no messages", call: "StreamService/Publish", body: `{"stream": "bad"}`,
			code: "invalid_argument", reason: "bad_request", message: "0 messages; one call takes 1 to 1000", hint: "send …", field: "messages",
		},
		{
			name: "message too large", call: "StreamService/Publish", body: `{"stream": "bad", "messages": [{"text": "` + large + `"}]}`,
			code: "invalid_argument", reason: "payload_too_large", message: "a payload of 1048577 bytes is above 1048576", hint: "put large data where consumers can read it and publish the place", field: "messages[0].payload",
		},
		{
			name: "same name, other settings", call: "StreamService/Create", body: `{"spec": {"name": "bad", "partitions": 3}}`,
			code: "already_exists", reason: "stream_exists", message: "stream bad exists with other settings", hint: "isobar stream describe bad shows them; use another name, or delete it first", field: "spec",
		},
		{
			name: "same name, same settings", call: "StreamService/Create", body: `{"spec": {"name": "bad", "partitions": 2}}`,
			answer: `{"stream": {"home": "eu-north-1"}, "existed": true}`,
		},
		{
			name: "unknown order", call: "StreamService/Create", body: `{"spec": {"name": "worse", "order": "loose"}}`,
			code: "invalid_argument", reason: "bad_request", message: `there is no order "loose"`, hint: "strict or relaxed", field: "spec.order",
		},
		{
			name: "too many partitions", call: "StreamService/Create", body: `{"spec": {"name": "worse", "partitions": 257}}`,
			code: "invalid_argument", reason: "bad_request", message: "257 partitions are above 256", hint: "as many as consumers that work side by side", field: "spec.partitions",
		},
		{
			name: "created outside its residency", call: "StreamService/Create", body: `{"spec": {"name": "worse", "residency": {"allowed": ["us"]}}}`,
			code: "failed_precondition", reason: "residency", message: "eu-north-1 lies in [eu se], which the residency leaves out", hint: "submit it to us-east-1",
			field: "residency", cell: "us-east-1", address: m.servers["us-east"].url(),
		},
		{
			name: "created with a residency that names no jurisdiction", call: "StreamService/Create", body: `{"spec": {"name": "worse", "residency": {"denied": ["US "]}}}`,
			code: "invalid_argument", reason: "bad_request", message: `"US " does not name a jurisdiction`, hint: "letters, digits and dashes, one jurisdiction a name: eu", field: "residency.denied",
		},
		{
			name: "created outside its residency in capitals", call: "StreamService/Create", body: `{"spec": {"name": "worse", "residency": {"allowed": ["US"]}}}`,
			code: "failed_precondition", reason: "residency", message: "eu-north-1 lies in [eu se], which the residency leaves out", hint: "submit it to us-east-1",
			field: "residency", cell: "us-east-1", address: m.servers["us-east"].url(),
		},
		{
			name: "published outside its residency", call: "StreamService/Publish", body: `{"stream": "american", "messages": [{"text": "a"}]}`,
			code: "failed_precondition", reason: "residency", message: "the stream's messages may not be in [eu se], where eu-north-1 lies", hint: "ask us-east-1",
			field: "stream", cell: "us-east-1", address: m.servers["us-east"].url(),
		},
		{
			name: "published to in another region", region: "us-east", call: "StreamService/Publish", body: `{"stream": "one", "requestId": "x", "messages": [{"text": "a"}]}`,
			answer: `{"results": [{"position": "…"}]}`,
		},
		{
			name: "seek behind the end", call: "StreamService/Seek", body: `{"stream": "one", "group": "g", "position": "99"}`,
			code: "out_of_range", reason: "behind_end", message: "…it lies behind the end of partition 0, …", hint: "seek to the end, and wait for what comes", field: "to",
		},
		{
			name: "seek before retention", call: "StreamService/Seek", body: `{"stream": "one", "group": "g", "time": "2020-01-01T00:00:00Z"}`,
			code: "out_of_range", reason: "before_retention", message: "…it lies before retention: the earliest position of partition 0 is 0", hint: "seek to position 0, or to the start", field: "to",
		},
		{
			name: "seek without a partition", call: "StreamService/Seek", body: `{"stream": "bad", "group": "g", "position": "0"}`,
			code: "invalid_argument", reason: "bad_request", message: "a position is of one partition", hint: "name the partition, or seek by time", field: "partition",
		},
		{
			name: "unknown group", call: "StreamService/Seek", body: `{"stream": "one", "group": "nobody", "start": true}`,
			code: "not_found", reason: "unknown_group", message: "the stream has no group of that name", hint: "a group begins with its first Consume or Fetch", field: "group",
		},
		{
			name: "fetch without a session", call: "StreamService/Fetch", body: `{"stream": "one", "group": "g"}`,
			code: "invalid_argument", reason: "bad_request", message: "a session is named by 1 to 256 bytes", hint: "make a UUID, and keep it for as long as the consumer runs", field: "session",
		},
		{
			name: "unknown action", call: "StreamService/Ack", body: `{"stream": "one", "group": "g", "session": "s", "items": [{"action": "eat"}]}`,
			code: "invalid_argument", reason: "bad_request", message: `there is no action "eat"`, hint: "ack, retry or extend", field: "items[0].action",
		},
	}
}

// movedStreams are acknowledgements that come too late, and members too many.
func movedStreams(m *devMesh) []refused {
	held := func(t *testing.T) string {
		t.Helper()
		m.must(t, "StreamService/Fetch", `{"stream": "one", "group": "late", "session": "s-1", "wait": "5s"}`)
		m.must(t, "StreamService/Seek", `{"stream": "one", "group": "late", "start": true}`)
		m.must(t, "StreamService/Fetch", `{"stream": "one", "group": "late", "session": "s-1", "wait": "5s"}`)
		return ""
	}
	return []refused{
		{
			name: "an acknowledgement for a lease that moved on", call: "StreamService/Ack", before: held,
			body: `{"stream": "one", "group": "late", "session": "s-1", "items": [{"position": "0", "delivery": "1"}]}`,
			code: "failed_precondition", reason: "delivery_moved", message: "delivery 1 of message 0 in partition 0 is not the newest, or not this session's", hint: "its time passed…",
			field: "items[0].delivery",
		},
		{
			name: "an acknowledgement by another session", call: "StreamService/Ack",
			body:   `{"stream": "one", "group": "late", "session": "s-2", "items": [{"position": "0", "delivery": "3"}, {"position": "0", "delivery": "1"}]}`,
			answer: `{"results": [{"verdict": "moved", "error": {"reason": "delivery_moved"}}, {"verdict": "moved"}]}`,
		},
		{
			name: "more members than partitions", call: "StreamService/Fetch", body: `{"stream": "one", "group": "late", "session": "s-3"}`,
			answer: `{"assignment": {"session": "s-3", "members": 2, "waiting": true}, "lease": "10s"}`,
		},
	}
}
