package pulsar

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/isobar-mesh/isobar/broker"
)

// subscription is the name of each topic's durable subscription.
const subscription = "isobar"

// root is the Pulsar tenant of what belongs to no tenant of the mesh, and the
// beginning of the others' names.
const root = "isobar"

// ErrName: a name cannot be a part of a Pulsar topic's.
var ErrName = errors.New("name cannot be a Pulsar topic's")

// namespace of Pulsar.
type namespace struct{ tenant, name string }

func (n namespace) String() string { return n.tenant + "/" + n.name }
func (n namespace) path() string   { return url.PathEscape(n.tenant) + "/" + url.PathEscape(n.name) }

// topicName is a topic of Pulsar.
type topicName struct {
	namespace namespace
	local     string
}

func (t topicName) String() string {
	return "persistent://" + t.namespace.String() + "/" + t.local
}

func (t topicName) path() string {
	return "/persistent/" + t.namespace.path() + "/" + url.PathEscape(t.local)
}

// topicOf names the topic in the cell's cluster of the epoch.
func topicOf(cell string, epoch uint64, t broker.Topic) topicName {
	return topicName{
		namespace: namespace{root + "-" + t.Tenant, cell + "." + strconv.FormatUint(epoch, 10)},
		// "-partition-" has a meaning in Pulsar's names; a colon is in none of ours.
		local: strings.ReplaceAll(t.Function, "partition", "partition:") + "." + t.Lane.String(),
	}
}

// markOf names the namespace that marks a cluster as the cell's. It has no
// topics.
func markOf(cell, incarnation string) namespace {
	if incarnation == "" {
		return namespace{root, cell}
	}
	return namespace{root, cell + "." + incarnation}
}

// checkTopic reports whether the topic's names can be a Pulsar topic's: then
// different ones stay different.
func checkTopic(t broker.Topic) error {
	for _, name := range []string{t.Tenant, t.Function} {
		for _, r := range name {
			if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", r) {
				return fmt.Errorf("%q has %q: %w", name, r, ErrName)
			}
		}
	}
	return nil
}
