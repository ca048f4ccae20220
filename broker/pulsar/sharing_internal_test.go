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
	mu  sync.Mutex
	all map[string]map[string]string
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

// A leader finds the other regions whose cells use its cluster: those that were
// here of late and are another region's, with an alarm for those not declared.
func TestSharers(t *testing.T) {
	t.Parallel()
	mark := func(region, jurisdictions string, ago time.Duration) map[string]string {
		return map[string]string{epochProperty: "5", regionProperty: region, jurisdictionsProperty: jurisdictions, seenProperty: strconv.FormatInt(time.Now().Add(-ago).UnixMilli(), 10)}
	}
	m := &marks{all: map[string]map[string]string{
		"eu-1.k3f9ab": mark("eu", "eu,se", time.Hour), // our own
		"eu-2.zzzzzz": mark("eu", "eu,fi", 0),
		"us-1.aaaaaa": mark("us", "us", time.Minute),
		"us-2.aaaaab": mark("us", "us,mx", time.Minute),
		"ap-1.bbbbbb": mark("ap", "in", 0),
		"sa-1.cccccc": mark("sa", "br", time.Hour),
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
	got := b.Sharers()
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
	if got := b.Sharers(); len(got) != 1 || !slices.Equal(got["us"], []string{"us"}) {
		t.Errorf("sharers %v without a mark of our own, want us", got)
	}
	m.mu.Lock()
	m.all["us-1.aaaaaa"]["secret"] = "yes"
	m.mu.Unlock()
	b.recognise()
	if got := b.Sharers(); len(got) != 1 || !slices.Equal(got["us"], []string{"us"}) {
		t.Errorf("sharers %v once the mark of us may not be read, want us still", got)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if text := lines.String(); strings.Count(text, "alarm=true") != 1 || !strings.Contains(text, "regions=us") {
		t.Errorf("want one alarm, for us:\n%s", text)
	}
}
