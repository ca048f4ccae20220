package pulsar

import (
	"fmt"
	"strings"
)

// policies of a namespace, as the admin API writes them: those that decide
// whether payloads stay where they are until they are trimmed. A pointer that is
// nil leaves the broker's default in force.
type policies struct {
	Clusters   []string          `json:"replication_clusters,omitempty"`
	TTL        *int              `json:"message_ttl_in_seconds,omitempty"`
	Quotas     map[string]quota  `json:"backlog_quota_map,omitempty"`
	Dedup      *bool             `json:"deduplicationEnabled,omitempty"`
	AutoTopic  *autoTopic        `json:"autoTopicCreationOverride,omitempty"`
	AutoSub    *autoSub          `json:"autoSubscriptionCreationOverride,omitempty"`
	Expiration *int              `json:"subscription_expiration_time_minutes,omitempty"`
	Inactive   *inactive         `json:"inactive_topic_policies,omitempty"`
	Compaction *int64            `json:"compaction_threshold,omitempty"`
	Encryption bool              `json:"encryption_required,omitempty"`
	Properties map[string]string `json:"properties,omitempty"`
}

type quota struct {
	LimitSize int64  `json:"limitSize"`
	LimitTime int64  `json:"limitTime"`
	Policy    string `json:"policy"`
}

type autoTopic struct {
	Allow bool `json:"allowAutoTopicCreation"`
}

type autoSub struct {
	Allow bool `json:"allowAutoSubscriptionCreation"`
}

type inactive struct {
	Mode  string `json:"inactiveTopicDeleteMode"`
	After int    `json:"maxInactiveDurationSeconds"`
	While bool   `json:"deleteWhileInactive"`
}

// storage is the quota on what a topic keeps; the other is on its age.
const storage = "destination_storage"

// refuseAppends is the quota's policy that answers an append with an exception.
// The default holds the append, and the third drops the oldest payloads.
const refuseAppends = "producer_exception"

// wanted are the policies our namespaces are made with.
func wanted(quotaBytes int64) policies {
	return policies{
		TTL:        new(0),
		Quotas:     map[string]quota{storage: {LimitSize: quotaBytes, LimitTime: -1, Policy: refuseAppends}},
		Dedup:      new(false),
		AutoTopic:  &autoTopic{},
		AutoSub:    &autoSub{},
		Expiration: new(0),
		Inactive:   &inactive{Mode: "delete_when_no_subscriptions", After: 60},
	}
}

// changed says in words what of the policies could lose payloads, hold an append
// for ever or carry payloads elsewhere. The size of the quota is the operator's
// to change.
func (p *policies) changed() []string {
	var out []string
	bad := func(is bool, format string, args ...any) {
		if is {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	bad(p.TTL == nil || *p.TTL != 0, "message_ttl_in_seconds is %s, not 0: messages are dropped by age", show(p.TTL))
	for kind, q := range p.Quotas {
		bad(q.Policy != refuseAppends, "backlog quota %s has the policy %s, not %s", kind, q.Policy, refuseAppends)
	}
	_, has := p.Quotas[storage]
	bad(!has, "there is no backlog quota %s: the broker's default may hold appends or drop messages", storage)
	bad(p.Dedup == nil || *p.Dedup, "deduplicationEnabled is %s, not false", show(p.Dedup))
	bad(p.AutoTopic == nil || p.AutoTopic.Allow, "autoTopicCreation is not switched off: a deleted topic comes back without its subscription")
	bad(p.Expiration == nil || *p.Expiration != 0, "subscription_expiration_time_minutes is %s, not 0: subscriptions without a consumer are dropped", show(p.Expiration))
	bad(p.Inactive == nil || p.Inactive.While, "inactive topics are deleted")
	bad(p.Compaction != nil && *p.Compaction > 0, "compaction_threshold is %s", show(p.Compaction))
	bad(p.Encryption, "encryption_required is set, and payloads are sent as they are")
	bad(len(p.Clusters) != 1, "payloads are replicated to [%s]", strings.Join(p.Clusters, ", "))
	return out
}

func show[T any](v *T) string {
	if v == nil {
		return "unset"
	}
	return fmt.Sprint(*v)
}
