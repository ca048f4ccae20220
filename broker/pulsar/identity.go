package pulsar

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/isobar-mesh/isobar/broker"
)

// Log is what the cell's log says of its payloads. It is asked of the leader
// only, behind its barrier, and is safe for concurrent use.
type Log interface {
	// Incarnation of the cell, minted when it was bootstrapped.
	Incarnation() string
	// Needed names something that lies in a cluster whose references and marks are
	// not in [low, high): the payload of a task that has not ended, or a stream.
	// It is "" for nothing.
	Needed(low, high broker.Reference) (what string)
}

type noLog struct{}

func (noLog) Incarnation() string                 { return "" }
func (noLog) Needed(_, _ broker.Reference) string { return "" }

// Properties of the namespace isobar/CELL.INCARNATION, which is the mark of the
// cell in the cluster.
const (
	epochProperty       = "isobar-epoch"
	incarnationProperty = "isobar-incarnation"
)

// errNoEpoch: this cell has never written to the cluster, and needs nothing of
// another one.
var errNoEpoch = errors.New("the cell has never written to this cluster")

// epoch reads the cluster's epoch, and mints it if mint is set and there is none.
// A cluster that is not the one that holds payloads still needed is refused: a
// wrong URL, or an empty cluster in the place of another, must end no task.
func (b *Broker) epoch(ctx context.Context, mint bool) (uint64, error) {
	incarnation := b.options.Log.Incarnation()
	n := markOf(b.options.Cell, incarnation)
	p, err := b.admin.policies(ctx, n)
	if hasStatus(err, http.StatusNotFound) {
		if what := b.options.Log.Needed(nil, nil); what != "" {
			return 0, b.refuse(fmt.Sprintf("it has no namespace %s, and %s lies in one that has", n, what))
		}
		b.accept()
		if !mint {
			return 0, errNoEpoch
		}
		// Whoever creates the namespace mints; the others read what was minted.
		w := wanted(b.options.Quota)
		w.Properties = b.markProperties(incarnation)
		p, err = b.admin.ensureNamespace(ctx, n, b.options.Cluster, w)
	}
	if err != nil {
		return 0, err
	}
	e, err := strconv.ParseUint(p.Properties[epochProperty], 10, 63)
	if err != nil {
		return 0, fmt.Errorf("namespace %s has no property %s: it was not made by Isobar: %w", n, epochProperty, err)
	}
	low, high := ofEpoch(e)
	if what := b.options.Log.Needed(low, high); what != "" {
		return 0, b.refuse(fmt.Sprintf("its epoch is %d, and %s lies in one of another", e, what))
	}
	b.accept()
	return e, nil
}

// ofEpoch is the range of the epoch's references.
func ofEpoch(e uint64) (low, high broker.Reference) {
	return binary.BigEndian.AppendUint64(nil, e), binary.BigEndian.AppendUint64(nil, e+1)
}

// refuse notes that the cluster is not ours, with an alarm when that is new.
func (b *Broker) refuse(why string) error {
	b.mu.Lock()
	is := b.strange == ""
	b.strange = why
	b.mu.Unlock()
	if is {
		b.options.Logger.Error("this is not the Pulsar that holds the cell's payloads and streams; nothing is accepted, run or ended until it is",
			"alarm", true, "service", b.options.Service, "admin", b.options.Admin, "because", why,
			"hint", "correct broker.service and broker.admin; if the cluster was replaced, see \"Replacing a region's Pulsar\" in docs/pulsar.md")
	}
	return fmt.Errorf("%s: %s: %w: %w", b.options.Service, why, broker.ErrReplaced, broker.ErrUnavailable)
}

func (b *Broker) accept() {
	b.mu.Lock()
	was := b.strange
	b.strange = ""
	b.mu.Unlock()
	if was != "" {
		b.options.Logger.Info("the Pulsar is one that may hold the cell's payloads again", "service", b.options.Service)
	}
}

// recognise looks whether the cluster is ours while this server leads, and who
// else uses it. What it finds is noted; without an answer nothing is known. It
// returns false when it is to be asked again soon.
func (b *Broker) recognise() bool {
	b.mu.Lock()
	leading := b.leading
	b.mu.Unlock()
	if !leading {
		return true
	}
	ctx, cancel := b.call(b.ctx)
	_, err := b.epoch(ctx, false)
	cancel()
	marked := err == nil
	if !marked && !errors.Is(err, errNoEpoch) {
		_, known := b.Sharers()
		return known // what is wrong is noted, and found again by who needs it
	}
	if err := b.lookAround(marked); err != nil {
		_, known := b.Sharers()
		b.options.Logger.Warn("not all who use this Pulsar are known", "error", err, "residency_refused", !known)
		return known
	}
	return true
}

// noTopic is why a topic that is not in the cluster is not there: errNoTopic if
// the cluster is ours, and so what lay in the topic is lost; else that it is not,
// or that it does not say.
func (b *Broker) noTopic(ctx context.Context) error {
	if _, err := b.epoch(ctx, false); err != nil && !errors.Is(err, errNoEpoch) {
		return err
	}
	return errNoTopic
}
