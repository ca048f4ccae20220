// Package pulsartest gives tests a real Apache Pulsar: the machine's shared one,
// which `make pulsar` starts, or one of their own that they may kill.
//
// Where there is none a test is skipped, and says so; with CI=true it fails.
package pulsartest

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker/pulsar/standalone"
)

// Cluster is a Pulsar that a test may use: its service and admin URLs.
type Cluster struct{ Service, Admin string }

// Shared returns the Pulsar of ISOBAR_TEST_PULSAR ("pulsar://host:6650" alone or
// "pulsar://host:6650,http://host:8080"), or else the shared one of this
// machine. Tests leave it running and use names of their own in it.
func Shared(t testing.TB) Cluster {
	t.Helper()
	if v := os.Getenv("ISOBAR_TEST_PULSAR"); v != "" {
		service, admin, ok := strings.Cut(v, ",")
		if !ok {
			admin = "http://" + strings.Split(strings.TrimPrefix(service, "pulsar://"), ":")[0] + ":8080"
		}
		return Cluster{service, admin}
	}
	r, err := standalone.Shared(t.Context())
	if err != nil {
		missing(t, err)
	}
	return Cluster{r.Service, r.Admin}
}

// Own starts a standalone of the test's own, with settings of Pulsar's
// configuration besides those it has, and ends it with the test. It takes half a
// minute, a gigabyte and most of two cores: ask for few, one at a time.
func Own(t testing.TB, config map[string]string) *standalone.Instance {
	t.Helper()
	return OwnWith(t, standalone.Options{Config: config})
}

// OwnWith is Own with all of a standalone's options; without Dir it gets one that
// goes with the test. It may be called from several goroutines at once.
func OwnWith(t testing.TB, o standalone.Options) *standalone.Instance {
	t.Helper()
	if testing.Short() {
		t.Skip("starts an Apache Pulsar, which -short leaves out")
	}
	d, err := standalone.Find()
	if err != nil {
		missing(t, err)
	}
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	i, err := d.Start(ctx, o)
	if err != nil {
		t.Fatalf("start a standalone: %v", err)
	}
	t.Cleanup(func() {
		i.Resume()
		i.Kill()
	})
	return i
}

func missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI requires a real Apache Pulsar: %v", err)
	}
	t.Skipf("Apache Pulsar: %v", err)
}

// Admin calls the cluster's admin API and returns the status, 0 without an
// answer; out, when not nil, takes the JSON of a success.
func Admin(ctx context.Context, c Cluster, method, path, body string, out any) int {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.Admin+"/admin/v2"+path, strings.NewReader(body))
	if err != nil {
		return 0
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer func() { _ = res.Body.Close() }() // only read
	if out != nil && res.StatusCode == http.StatusOK && json.NewDecoder(res.Body).Decode(out) != nil {
		return 0
	}
	return res.StatusCode
}
