package pulsar

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// marks is an admin API with the properties of namespaces of isobar.
type marks struct {
	mu   sync.Mutex
	all  map[string]map[string]string
	down bool
	asks int // for the mark of eu-1, which each look begins with
}

// change changes what there is.
func (m *marks) change(f func(m *marks)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m)
}

func (m *marks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	answer := func(v any) {
		text, err := json.Marshal(v)
		if err != nil {
			text = []byte(err.Error())
		}
		_, _ = w.Write(text) // a broken answer fails the test
	}
	if strings.Contains(r.URL.Path, "/eu-1.") {
		m.asks++
	}
	if m.down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	words := strings.Split(strings.TrimPrefix(r.URL.Path, "/admin/v2/namespaces/isobar"), "/")
	if len(words) == 1 {
		var names []string
		for _, name := range slices.Sorted(maps.Keys(m.all)) {
			names = append(names, "isobar/"+name)
		}
		answer(names)
		return
	}
	p := m.all[words[1]]
	switch {
	case p == nil:
		w.WriteHeader(http.StatusNotFound)
	case p["secret"] != "":
		w.WriteHeader(http.StatusForbidden)
	case len(words) == 2:
		answer(policies{Properties: p})
	case words[2] == "properties":
		answer(p)
	case r.Method == http.MethodPut && words[2] == "property":
		p[words[3]] = words[4]
	default:
		w.WriteHeader(http.StatusTeapot)
	}
}

// markedBy is what a cell of the region says that was here so long ago.
func markedBy(region, jurisdictions string, ago time.Duration) map[string]string {
	return map[string]string{epochProperty: "5", regionProperty: region, jurisdictionsProperty: jurisdictions, seenProperty: strconv.FormatInt(time.Now().Add(-ago).UnixMilli(), 10)}
}

// A leader finds the other regions whose cells use its cluster: those that were
// here of late and are another region's, with an alarm for those not declared.
func TestSharers(t *testing.T) {
	t.Parallel()
	m := &marks{all: map[string]map[string]string{
		"eu-1.k3f9ab": markedBy("eu", "eu,se", time.Hour), // our own
		"eu-2.zzzzzz": markedBy("eu", "eu,fi", 0),
		"us-1.aaaaaa": markedBy("us", "us", time.Minute),
		"us-2.aaaaab": markedBy("us", "us,mx", time.Minute),
		"ap-1.bbbbbb": markedBy("ap", "in", 0),
		"sa-1.cccccc": markedBy("sa", "br", time.Hour),
		"something":   {},
		"a-1.dddddd":  {"secret": "yes"}, // hides no other
	}}
	admin := httptest.NewServer(m)
	t.Cleanup(admin.Close)
	log := &oneTask{}
	log.need(nil)
	var lines bytes.Buffer
	b, err := Open(Options{
		Service: "pulsar://127.0.0.1:1", Admin: admin.URL, Cell: "eu-1", Server: "s1", Timeout: 2 * time.Second, CheckEvery: time.Hour, Log: log,
		Region: "eu", Jurisdictions: []string{"eu", "se"}, SharedWith: map[string][]string{"ap": {"in"}},
		Logger: slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.leading, b.term = true, 1 // Lead would look by itself
	b.mu.Unlock()
	for range 2 {
		b.recognise()
	}
	got, _ := b.Sharers()
	if len(got) != 2 || !slices.Equal(got["us"], []string{"us", "mx"}) || !slices.Equal(got["ap"], []string{"in"}) {
		t.Errorf("sharers %v, want us in us and mx, ap in in", got)
	}
	m.mu.Lock()
	seen, err := strconv.ParseInt(m.all["eu-1.k3f9ab"][seenProperty], 10, 64)
	m.all = map[string]map[string]string{"us-1.aaaaaa": m.all["us-1.aaaaaa"]} // our own is gone, too
	m.mu.Unlock()
	if err != nil || time.Since(time.UnixMilli(seen)) > time.Minute {
		t.Errorf("our own mark was seen at %d, %v", seen, err)
	}
	b.recognise()
	if got, _ := b.Sharers(); len(got) != 1 || !slices.Equal(got["us"], []string{"us"}) {
		t.Errorf("sharers %v without a mark of our own, want us", got)
	}
	m.mu.Lock()
	m.all["us-1.aaaaaa"]["secret"] = "yes"
	m.mu.Unlock()
	b.recognise()
	if got, _ := b.Sharers(); len(got) != 1 || !slices.Equal(got["us"], []string{"us"}) {
		t.Errorf("sharers %v once the mark of us may not be read, want us still", got)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if text := lines.String(); strings.Count(text, "alarm=true") != 1 || !strings.Contains(text, "regions=us") {
		t.Errorf("want one alarm, for us:\n%s", text)
	}
}

// Who shares the cluster is not known before a look has found all; a leader looks
// again until then, and not only when its policies are due.
func TestSharersAreNotKnownAtFirst(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		marks  *marks
		shared map[string][]string // declared
		known  bool                // before anything is mended
		mend   func(m *marks)
		want   []string
	}{
		{name: "nobody else is here", marks: &marks{}, known: true},
		{
			name: "Pulsar is down at the start", marks: &marks{down: true, all: map[string]map[string]string{"us-1.aaaaaa": markedBy("us", "us", 0)}},
			mend: func(m *marks) { m.down = false }, want: []string{"us"},
		},
		{name: "Pulsar is down, and sharers are declared", marks: &marks{down: true}, shared: map[string][]string{"us": {"us"}}, known: true},
		{
			name: "a mark may not be read", marks: &marks{all: map[string]map[string]string{"ap-1.bbbbbb": {"secret": "yes"}, "us-1.aaaaaa": markedBy("us", "us", 0)}},
			mend: func(m *marks) { m.all["ap-1.bbbbbb"] = markedBy("ap", "in", 0) }, want: []string{"ap", "us"},
		},
		{
			name: "more marks than are read", marks: &marks{all: manyMarks(maxMarks + 1)},
			mend: func(m *marks) { delete(m.all, "b-0.aaaaaa") }, want: []string{"us"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			admin := httptest.NewServer(tt.marks)
			t.Cleanup(admin.Close)
			log := &oneTask{}
			log.need(nil)
			b, err := Open(Options{
				Service: "pulsar://127.0.0.1:1", Admin: admin.URL, Cell: "eu-1", Server: "s1", Timeout: 5 * time.Second, CheckEvery: time.Hour, Log: log,
				Region: "eu", Jurisdictions: []string{"eu"}, SharedWith: tt.shared, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
			if _, known := b.Sharers(); known != (tt.shared != nil) {
				t.Errorf("known %t before any look", known)
			}
			b.mu.Lock()
			b.leading = true
			b.mu.Unlock()
			if again := !b.recognise(); again == tt.known {
				t.Errorf("asks for another look: %t", again)
			}
			if _, known := b.Sharers(); known != tt.known {
				t.Errorf("known %t after a look", known)
			}
			if tt.mend == nil {
				return
			}
			if err := b.Lead(1); err != nil { // from here on it looks by itself
				t.Fatal(err)
			}
			await := func(what string, ok func() bool) {
				t.Helper()
				for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("%s: not within a minute", what)
					}
				}
			}
			await("another look", func() (again bool) {
				tt.marks.change(func(m *marks) { again = m.asks >= 3 })
				return again
			})
			tt.marks.change(tt.mend)
			await("all are known", func() bool { _, known := b.Sharers(); return known })
			got, _ := b.Sharers()
			if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, tt.want) {
				t.Errorf("sharers %v, want %v", names, tt.want)
			}
		})
	}
}

// manyMarks are marks of n cells of one other region.
func manyMarks(n int) map[string]map[string]string {
	all := map[string]map[string]string{}
	for i := range n {
		all["b-"+strconv.Itoa(i)+".aaaaaa"] = markedBy("us", "us", 0)
	}
	return all
}
