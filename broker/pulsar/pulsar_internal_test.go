package pulsar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/internal/mesh"
)

// References compare as the places they name, and a position above a reference
// lies between it and the next.
func TestReferencesCompareAsPlaces(t *testing.T) {
	t.Parallel()
	anyPlace := rapid.Custom(func(t *rapid.T) place {
		return place{
			epoch:  rapid.Uint64Range(0, 1<<62).Draw(t, "epoch"),
			ledger: rapid.Int64Min(0).Draw(t, "ledger"), entry: rapid.Int64Min(0).Draw(t, "entry"), batch: rapid.Int32Min(0).Draw(t, "batch"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyPlace.Draw(t, "a"), anyPlace.Draw(t, "b")
		if got, ok := parse(a.reference()); !ok || got != a {
			t.Fatalf("%+v comes back as %+v, %t", a, got, ok)
		}
		if (bytes.Compare(a.reference(), b.reference()) < 0) != a.less(b) {
			t.Fatalf("%+v and %+v do not compare as their references", a, b)
		}
		above := append(a.reference(), 0)
		if a.less(b) && bytes.Compare(above, b.reference()) >= 0 {
			t.Fatalf("the position above %+v is not below %+v", a, b)
		}
	})
	for _, bad := range []broker.Reference{nil, {1}, bytes.Repeat([]byte{0xff}, refLen)} {
		if _, ok := parse(bad); ok {
			t.Errorf("%x is taken for a reference", []byte(bad))
		}
	}
}

// Different topics have different names in Pulsar, also those whose names mean
// something there.
func TestTopicNames(t *testing.T) {
	t.Parallel()
	seen := map[string]broker.Topic{}
	for _, tenant := range []string{"", "a", "a-b"} {
		for _, function := range []string{"f", "f-partition-0", "partition-partition-1", "f-partition-", "a.b"} {
			for _, lane := range mesh.Lanes() {
				topic := broker.Topic{Tenant: tenant, Function: function, Lane: lane}
				if err := checkTopic(topic); err != nil {
					t.Error(err)
				}
				name := topicOf("eu-1", 7, topic).String()
				if other, twice := seen[name]; twice {
					t.Errorf("%s and %s are both %s", topic, other, name)
				}
				if seen[name] = topic; strings.Contains(name, "-partition-") {
					t.Errorf("%s looks like a partition of another topic", name)
				}
			}
		}
	}
	for _, bad := range []string{"a/b", "a b", "ä", "a\x00", "a:b"} {
		if err := checkTopic(broker.Topic{Function: bad}); !errors.Is(err, ErrName) {
			t.Errorf("function %q has error %v, want ErrName", bad, err)
		}
	}
}

// What would lose payloads, hold an append or carry payloads away is found.
func TestChangedPolicies(t *testing.T) {
	t.Parallel()
	good := func() policies {
		p := wanted(1 << 30)
		p.Clusters = []string{"eu"}
		return p
	}
	if p := good(); len(p.changed()) != 0 {
		t.Errorf("our own policies are found changed: %v", p.changed())
	}
	for word, change := range map[string]func(*policies){
		"message_ttl_in_seconds is 60":              func(p *policies) { p.TTL = new(60) },
		"message_ttl_in_seconds is unset":           func(p *policies) { p.TTL = nil },
		"has the policy consumer_backlog_eviction":  func(p *policies) { p.Quotas = map[string]quota{storage: {Policy: "consumer_backlog_eviction"}} },
		"there is no backlog quota":                 func(p *policies) { p.Quotas = nil },
		"deduplicationEnabled is true":              func(p *policies) { p.Dedup = new(true) },
		"autoTopicCreation":                         func(p *policies) { p.AutoTopic = &autoTopic{Allow: true} },
		"subscription_expiration_time_minutes is 5": func(p *policies) { p.Expiration = new(5) },
		"inactive topics are deleted":               func(p *policies) { p.Inactive = nil },
		"compaction_threshold is 100":               func(p *policies) { p.Compaction = new(int64(100)) },
		"encryption_required":                       func(p *policies) { p.Encryption = true },
		"payloads are replicated to [eu, us]":       func(p *policies) { p.Clusters = []string{"eu", "us"} },
	} {
		p := good()
		change(&p)
		if got := strings.Join(p.changed(), "; "); !strings.Contains(got, word) {
			t.Errorf("changed policies %q, want %q", got, word)
		}
	}
}

// Full jitter: pauses spread from nothing to a bound that doubles.
func TestPause(t *testing.T) {
	t.Parallel()
	p := &pause{}
	for range 50 {
		p.Next()
	}
	if !p.IsMaxBackoffReached() {
		t.Error("the bound does not grow")
	}
	low, high := pauseMost, time.Duration(0)
	for range 500 {
		d := p.Next()
		low, high = min(low, d), max(high, d)
	}
	if low > pauseMost/20 || high < pauseMost*19/20 || high > pauseMost {
		t.Errorf("pauses from %v to %v, want them over all of 0 to %v", low, high, pauseMost)
	}
	if p.Reset(); !p.IsMaxBackoffReached() {
		t.Error("a connection that came and went takes the pause back")
	}
}

// cluster is an admin API that answers each call the same way.
func cluster(t *testing.T, status int, body string) Options {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") && r.Header.Get("Authorization") != "Bearer right" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return Options{Service: "pulsar://127.0.0.1:1", Admin: s.URL, Cell: "eu-1", Server: "s1", Timeout: 2 * time.Second, Logger: slog.New(slog.DiscardHandler)}
}

// A cluster that cannot be reached or refuses us is unavailable, in time, and
// what it said is in the error; after a failure calls are answered at once.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	epoch, err := json.Marshal(policies{Properties: map[string]string{epochProperty: "5"}})
	if err != nil {
		t.Fatal(err)
	}
	nowhere := Options{Service: "pulsar://127.0.0.1:1", Admin: "http://127.0.0.1:1", Cell: "eu-1", Server: "s1", Timeout: 2 * time.Second, Logger: slog.New(slog.DiscardHandler)}
	wrong := cluster(t, http.StatusOK, string(epoch))
	wrong.Auth.Token = "wrong"
	for name, tc := range map[string]struct {
		options Options
		says    string
	}{
		"nowhere":        {nowhere, "refused"},
		"no right":       {cluster(t, http.StatusForbidden, `{"reason":"not allowed"}`), "403 Forbidden: not allowed"},
		"wrong token":    {wrong, "401 Unauthorized"},
		"another's cell": {cluster(t, http.StatusOK, `{}`), "it was not made by Isobar"},
		"only the admin": {cluster(t, http.StatusOK, string(epoch)), ""},
		"broken admin":   {cluster(t, http.StatusInternalServerError, "oops"), "500 Internal Server Error: oops"},
		"no JSON":        {cluster(t, http.StatusOK, "<html>"), "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := Open(tc.options)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}()
			if err := b.Lead(1); err != nil {
				t.Fatal(err)
			}
			msg := []broker.Message{{Topic: broker.Topic{Tenant: "default", Function: "f"}, TaskID: "t"}}
			start := time.Now()
			_, err = b.Prepare(t.Context(), msg)
			if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Prepare has error %v, want ErrUnavailable with %q", err, tc.says)
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("Prepare took %v with a timeout of %v", took, tc.options.Timeout)
			}
			if _, err := b.Fetch(t.Context(), msg[0].Topic, place{epoch: 5}.reference()); !errors.Is(err, broker.ErrUnavailable) {
				t.Errorf("Fetch has error %v, want ErrUnavailable: what is not reached is not lost", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			for range 20 { // the pause has full jitter: some of these fall into it
				if _, err := b.Prepare(ctx, msg); err == nil {
					t.Error("Prepare has no error")
				}
			}
		})
	}
}

// Options that cannot work are refused when they are read.
func TestOptions(t *testing.T) {
	t.Parallel()
	good := Options{Service: "pulsar://127.0.0.1:1", Admin: "http://127.0.0.1:1", Cell: "eu-1", Server: "s1", Logger: slog.New(slog.DiscardHandler)}
	for name, change := range map[string]func(*Options){
		"no service":     func(o *Options) { o.Service = "" },
		"no cell":        func(o *Options) { o.Cell = "" },
		"two identities": func(o *Options) { o.Auth = Auth{Token: "a", TokenFile: "b"} },
		"no key file":    func(o *Options) { o.Auth = Auth{OAuth2: OAuth2{Issuer: "http://127.0.0.1:1", KeyFile: "none.json"}} },
		"no issuer":      func(o *Options) { o.Auth = Auth{OAuth2: OAuth2{KeyFile: "none.json"}} },
		"no CA":          func(o *Options) { o.TLS.CA = "none.pem" },
		"no certificate": func(o *Options) { o.TLS.Cert, o.TLS.Key = "none.pem", "none.pem" },
		"no scheme":      func(o *Options) { o.Service = "127.0.0.1:6650" },
	} {
		o := good
		change(&o)
		if b, err := Open(o); err == nil {
			t.Errorf("%s: opened", name)
			_ = b.Close()
		}
	}
}
