package pulsar

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker"
)

// oneTask is the log of a cell with one task; an empty reference needs nothing.
type oneTask struct {
	ref atomic.Pointer[broker.Reference]
}

func (*oneTask) Incarnation() string { return "k3f9ab" }

func (l *oneTask) need(r broker.Reference) { l.ref.Store(&r) }

func (l *oneTask) Needed(low, high broker.Reference) string {
	r := *l.ref.Load()
	if len(r) > 0 && (bytes.Compare(r, low) < 0 || bytes.Compare(r, high) >= 0) {
		return "the payload of t1, of default/f/standard,"
	}
	return ""
}

// marked is an admin API of a cluster without topics, in which the cell has an
// epoch; 0 is none.
func marked(t *testing.T, epoch string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if epoch == "" || r.URL.Path != "/admin/v2/namespaces/isobar/eu-1.k3f9ab" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(policies{Properties: map[string]string{epochProperty: epoch}}) // a broken answer fails the test
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// A cluster that is not the one that holds payloads still needed loses nothing,
// takes nothing, and is an alarm; one with nothing to lose is as good as new.
func TestAnotherCluster(t *testing.T) {
	t.Parallel()
	ref := place{epoch: 5, ledger: 7}.reference()
	for name, tc := range map[string]struct {
		epoch   string
		needed  broker.Reference
		strange bool
		says    string
	}{
		"empty":                     {"", ref, true, "it has no namespace isobar/eu-1.k3f9ab, and the payload of t1, of default/f/standard, lies in one that has"},
		"older":                     {"4", ref, true, "its epoch is 4"},
		"newer":                     {"6", ref, true, "its epoch is 6"},
		"ours":                      {"5", ref, false, ""},
		"empty, with nothing to do": {"", nil, false, ""},
		"newer, with nothing to do": {"6", nil, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &oneTask{}
			log.need(tc.needed)
			var lines bytes.Buffer
			b, err := Open(Options{
				Service: "pulsar://127.0.0.1:1", Admin: marked(t, tc.epoch), Cell: "eu-1", Server: "s1", Timeout: 2 * time.Second,
				Log: log, Logger: slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelError})), CheckEvery: time.Hour,
			})
			if err != nil {
				t.Fatal(err)
			}
			b.mu.Lock()
			b.leading, b.term = true, 1 // Lead would look by itself
			b.mu.Unlock()
			topic := broker.Topic{Tenant: "default", Function: "f"}
			_, prepare := b.Prepare(t.Context(), []broker.Message{{Topic: topic, TaskID: "t"}})
			_, fetch := b.Fetch(t.Context(), topic, ref)
			trim := b.Trimmed(t.Context(), topic, ref)
			var read error
			for _, err := range b.Read(t.Context(), topic, ref) {
				read = err
			}
			for what, err := range map[string]error{"Prepare": prepare, "Fetch": fetch, "Read": read, "Trimmed": trim} {
				if errors.Is(err, broker.ErrReplaced) != tc.strange || tc.strange && (!errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), tc.says)) {
					t.Errorf("%s has error %v; want ErrReplaced: %v, with %q", what, err, tc.strange, tc.says)
				}
			}
			if errors.Is(fetch, broker.ErrLost) == tc.strange {
				t.Errorf("Fetch has error %v: only what our own cluster lacks is lost", fetch)
			}
			if b.Stats().Strange != tc.strange {
				t.Errorf("Strange is %v", b.Stats().Strange)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			if n := strings.Count(lines.String(), "alarm=true"); n != map[bool]int{true: 1}[tc.strange] {
				t.Errorf("%d alarms:\n%s", n, &lines)
			}
		})
	}
}

// A new leader looks without being asked, and again once nothing is needed.
func TestALeaderRecognisesItsCluster(t *testing.T) {
	t.Parallel()
	log := &oneTask{}
	log.need(place{epoch: 5}.reference())
	b, err := Open(Options{
		Service: "pulsar://127.0.0.1:1", Admin: marked(t, ""), Cell: "eu-1", Server: "s1", Timeout: 2 * time.Second,
		Log: log, Logger: slog.New(slog.DiscardHandler), CheckEvery: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	await := func(strange bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); b.Stats().Strange != strange; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("Strange is not %v", strange)
			}
		}
	}
	if b.Stats().Strange {
		t.Error("a server that does not lead judges")
	}
	if err := b.Lead(1); err != nil {
		t.Fatal(err)
	}
	await(true)
	log.need(nil)
	await(false)
}
