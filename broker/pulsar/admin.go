package pulsar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// admin speaks the part of Pulsar's admin API that is needed here. The client's
// own package for it has interfaces of hundreds of methods and takes no context.
type admin struct {
	base string // http://host:port/admin/v2
	http *http.Client
	// asked is told what became of each request, with nil for an answer that says
	// who we are to Pulsar. It may be nil.
	asked func(error)
}

// statusError is an answer that is not a success.
type statusError struct {
	status int
	reason string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("admin API: %d %s: %s", e.status, http.StatusText(e.status), e.reason)
}

// hasStatus reports whether the admin API answered with the status.
func hasStatus(err error, status int) bool {
	var s *statusError
	return errors.As(err, &s) && s.status == status
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 4 << 20

// call sends a request; in and out, when not nil, are JSON.
func (a *admin) call(ctx context.Context, method, path string, in, out any) error {
	err := a.send(ctx, method, path, in, out)
	if a.asked != nil {
		a.asked(err)
	}
	return err
}

func (a *admin) send(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // only read
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return &statusError{res.StatusCode, reason(answer)}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

// reason is what an error's body says.
func reason(body []byte) string {
	var r struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(body, &r) == nil && r.Reason != "" {
		return r.Reason
	}
	return strings.TrimSpace(string(body[:min(len(body), 200)]))
}

// create makes something that may be there already.
func (a *admin) create(ctx context.Context, path string, in any) error {
	err := a.call(ctx, http.MethodPut, path, in, nil)
	if hasStatus(err, http.StatusConflict) {
		return nil
	}
	return err
}

// cluster is the name of the cluster: the configured one, or the only one.
func (a *admin) cluster(ctx context.Context, configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	var all []string
	if err := a.call(ctx, http.MethodGet, "/clusters", nil, &all); err != nil {
		return "", err
	}
	var names []string
	for _, c := range all {
		if c != "global" {
			names = append(names, c)
		}
	}
	if len(names) != 1 {
		return "", fmt.Errorf("Pulsar knows the clusters %v: say which is the region's", names) //nolint:staticcheck // a name
	}
	return names[0], nil
}

type tenantInfo struct {
	AdminRoles      []string `json:"adminRoles,omitempty"`
	AllowedClusters []string `json:"allowedClusters"`
}

// ensureNamespace makes the namespace, and its tenant, with the policies, unless
// it is there; and returns the policies it has.
func (a *admin) ensureNamespace(ctx context.Context, n namespace, cluster string, p policies) (*policies, error) {
	have, err := a.policies(ctx, n)
	if err == nil || !hasStatus(err, http.StatusNotFound) {
		return have, err
	}
	if cluster, err = a.cluster(ctx, cluster); err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", n, err)
	}
	if err := a.create(ctx, "/tenants/"+url.PathEscape(n.tenant), tenantInfo{AllowedClusters: []string{cluster}}); err != nil {
		return nil, fmt.Errorf("make tenant %s: %w", n.tenant, err)
	}
	p.Clusters = []string{cluster}
	if err := a.create(ctx, "/namespaces/"+n.path(), p); err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", n, err)
	}
	return a.policies(ctx, n)
}

func (a *admin) policies(ctx context.Context, n namespace) (*policies, error) {
	var p policies
	if err := a.call(ctx, http.MethodGet, "/namespaces/"+n.path(), nil, &p); err != nil {
		return nil, fmt.Errorf("read policies of %s: %w", n, err)
	}
	return &p, nil
}

// messageID names an entry; -1:-1 lies before every message.
type messageID struct {
	Ledger    int64 `json:"ledgerId"`
	Entry     int64 `json:"entryId"`
	Partition int   `json:"partitionIndex"`
}

// ensureTopic makes the topic and the subscription that keeps its messages, in
// this order before the first message.
func (a *admin) ensureTopic(ctx context.Context, t topicName) error {
	if err := a.create(ctx, t.path(), nil); err != nil {
		return fmt.Errorf("make topic %s: %w", t, err)
	}
	if err := a.create(ctx, t.path()+"/subscription/"+subscription, messageID{-1, -1, -1}); err != nil {
		return fmt.Errorf("make subscription of %s: %w", t, err)
	}
	return nil
}

// trimProperty of the subscription is the trim position, in hexadecimal.
const trimProperty = "isobar-trim"

// subscriptionProperties of a topic; an error with status 404 when the topic, or
// its subscription, is not there.
func (a *admin) subscriptionProperties(ctx context.Context, t topicName) (map[string]string, error) {
	var p map[string]string
	if err := a.call(ctx, http.MethodGet, t.path()+"/subscription/"+subscription+"/properties", nil, &p); err != nil {
		return nil, fmt.Errorf("read subscription of %s: %w", t, err)
	}
	return p, nil
}

// trim notes the position, then moves the cursor to its entry, which stays.
func (a *admin) trim(ctx context.Context, t topicName, position string, to messageID) error {
	path := t.path() + "/subscription/" + subscription
	if err := a.call(ctx, http.MethodPut, path+"/properties", map[string]string{trimProperty: position}, nil); err != nil {
		return fmt.Errorf("note trim of %s: %w", t, err)
	}
	if err := a.call(ctx, http.MethodPost, path+"/resetcursor", to, nil); err != nil {
		return fmt.Errorf("move cursor of %s: %w", t, err)
	}
	return nil
}
