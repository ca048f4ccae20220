package pulsar

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/broker"
)

// streamTopic is a stream's partitioned topic in the cell's cluster of the epoch.
func streamTopic(cell string, epoch uint64, tenant, stream string) topicName {
	return topicName{
		namespace: namespace{root + "-" + tenant, cell + "." + strconv.FormatUint(epoch, 10) + ".streams"},
		local:     strings.ReplaceAll(stream, "partition", "partition:"), // see topicOf
	}
}

// partition is one partition of the topic, by Pulsar's own naming.
func (t topicName) partition(n uint32) topicName {
	t.local += "-partition-" + strconv.FormatUint(uint64(n), 10)
	return t
}

// A position is a message's place packed into 64 bits: 32 for the ledger, 20 for
// the entry in it and 12 for the index in its batch.
//
// Ledgers are counted from the stream's creation, and the count starts at what
// grows with the calendar. So the positions of a topic that was deleted under
// us, or of a replaced cluster, lie above all that were given out before, as long
// as a cluster makes no more than ledgersPerSecond in the mean. 32 bits last until
// 2060.
const (
	entryBits        = 20
	batchBits        = 12
	ledgersPerSecond = 4
)

// positionsSince is when the count of ledgers is 0.
func positionsSince() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// base is what is added to Pulsar's ledger ids.
type base int64

func newBase(now time.Time, firstLedger int64) base {
	return base(ledgersPerSecond*int64(now.Sub(positionsSince())/time.Second) - firstLedger)
}

// errUnnamed: the message's place does not fit a position.
var errUnnamed = fmt.Errorf("place has no position: a ledger holds more than %d entries, or an entry more than %d messages", 1<<entryBits, 1<<batchBits)

func (b base) position(p place) (broker.Position, error) {
	ledger := int64(b) + p.ledger
	if ledger < 0 || ledger >= 1<<32 || p.entry < 0 || p.entry >= 1<<entryBits || p.batch >= 1<<batchBits {
		return 0, fmt.Errorf("%d:%d:%d: %w", p.ledger, p.entry, p.batch, errUnnamed)
	}
	return uint64(ledger)<<(entryBits+batchBits) | uint64(p.entry)<<batchBits | uint64(p.batch), nil
}

// place is the inverse of position. Positions of before the stream was created
// have negative ledgers.
func (b base) place(at broker.Position) place {
	return place{
		ledger: int64(at>>(entryBits+batchBits)) - int64(b),
		entry:  int64(at >> batchBits & (1<<entryBits - 1)), batch: int32(at & (1<<batchBits - 1)),
	}
}

// Properties of a partition's subscription.
const (
	baseProperty = "isobar-base" // of positions
	// What lies below is hidden. The same name as of tasks, in decimal.
	streamTrimProperty = trimProperty
	// The oldest message that must be read to know the repeats; the cursor's place.
	fromProperty = "isobar-from"
)

// streamState is what a partition's subscription says of it.
type streamState struct {
	base          base
	trimmed, from broker.Position
}

func (s streamState) properties() map[string]string {
	return map[string]string{
		baseProperty: strconv.FormatInt(int64(s.base), 10), streamTrimProperty: strconv.FormatUint(s.trimmed, 10), fromProperty: strconv.FormatUint(s.from, 10),
	}
}

// streamState reads a partition's properties; an error with status 404 when the
// topic or its subscription is not there.
func (a *admin) streamState(ctx context.Context, t topicName) (streamState, error) {
	p, err := a.subscriptionProperties(ctx, t)
	if err != nil {
		return streamState{}, err
	}
	// Pulsar does not copy properties to partitions that are added.
	number := func(name string) (n uint64) {
		if v := p[name]; v != "" && err == nil {
			n, err = strconv.ParseUint(v, 10, 64)
		}
		return n
	}
	s := streamState{trimmed: number(streamTrimProperty), from: number(fromProperty)}
	if v := p[baseProperty]; v != "" && err == nil {
		var n int64
		n, err = strconv.ParseInt(v, 10, 64)
		s.base = base(n)
	}
	if err != nil {
		return streamState{}, fmt.Errorf("properties of %s: %w", t, err)
	}
	return s, nil
}

// streamSubscription is the body of a request that makes a subscription.
type streamSubscription struct {
	messageID
	Properties map[string]string `json:"properties"`
}

// ensureStream makes the stream's topic with at least n partitions, and the
// subscriptions that keep its messages. The first to make that of partition 0
// says what positions are counted from.
func (a *admin) ensureStream(ctx context.Context, t topicName, n uint32) (base, error) {
	if err := a.ensurePartitions(ctx, t, n); err != nil {
		return 0, err
	}
	first := t.partition(0)
	have, err := a.streamState(ctx, first)
	if hasStatus(err, http.StatusNotFound) {
		var ledger int64
		if ledger, err = a.firstLedger(ctx, t); err == nil {
			err = a.subscribe(ctx, first, newBase(time.Now(), ledger))
		}
		if err == nil {
			have, err = a.streamState(ctx, first)
		}
	}
	if err == nil {
		err = a.subscribe(ctx, t, have.base) // all partitions, but for those that have it
	}
	if err != nil {
		return 0, fmt.Errorf("make stream %s: %w", t, err)
	}
	return have.base, nil
}

func (a *admin) subscribe(ctx context.Context, t topicName, b base) error {
	return a.create(ctx, t.path()+"/subscription/"+subscription, streamSubscription{messageID{-1, -1, -1}, streamState{base: b}.properties()})
}

// ensurePartitions makes the partitioned topic, or adds partitions to it.
func (a *admin) ensurePartitions(ctx context.Context, t topicName, n uint32) error {
	have, err := a.partitions(ctx, t)
	if err == nil && have == 0 {
		if err = a.create(ctx, t.path()+"/partitions", n); err == nil {
			have, err = a.partitions(ctx, t) // another may have made fewer
		}
	}
	if err == nil && have < n {
		err = a.call(ctx, http.MethodPost, t.path()+"/partitions", n, nil)
	}
	if err != nil {
		return fmt.Errorf("make %d partitions of %s: %w", n, t, err)
	}
	return nil
}

// partitions of the topic, 0 when it is not there.
func (a *admin) partitions(ctx context.Context, t topicName) (uint32, error) {
	var meta struct {
		Partitions uint32 `json:"partitions"`
	}
	err := a.call(ctx, http.MethodGet, t.path()+"/partitions", nil, &meta)
	if hasStatus(err, http.StatusNotFound) {
		return 0, nil
	}
	return meta.Partitions, err
}

// firstLedger is the lowest ledger id that a message of the stream can have.
func (a *admin) firstLedger(ctx context.Context, t topicName) (int64, error) {
	for {
		var stats struct {
			Ledgers []struct {
				ID int64 `json:"ledgerId"`
			} `json:"ledgers"`
		}
		err := a.call(ctx, http.MethodGet, t.partition(0).path()+"/internalStats", nil, &stats)
		if err == nil && len(stats.Ledgers) > 0 {
			return stats.Ledgers[0].ID, nil
		}
		if err != nil && !hasStatus(err, http.StatusNotFound) {
			return 0, err
		}
		// A partition may have been deleted, or not be there yet.
		if err := a.call(ctx, http.MethodPost, t.path()+"/createMissedPartitions", nil, nil); err != nil {
			return 0, err
		}
		select {
		case <-ctx.Done():
			return 0, errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// saveStream notes how far a partition is trimmed and moves its cursor.
func (a *admin) saveStream(ctx context.Context, t topicName, s streamState) error {
	path := t.path() + "/subscription/" + subscription
	if err := a.call(ctx, http.MethodPut, path+"/properties", s.properties(), nil); err != nil {
		return fmt.Errorf("note trim of %s: %w", t, err)
	}
	p := s.base.place(s.from)
	if p.ledger < 0 {
		return nil
	}
	if err := a.call(ctx, http.MethodPost, path+"/resetcursor", messageID{p.ledger, p.entry, -1}, nil); err != nil {
		return fmt.Errorf("move cursor of %s: %w", t, err)
	}
	return nil
}

// dropPartition deletes one partition, and the topic with the last one.
func (a *admin) dropPartition(ctx context.Context, t topicName, n uint32) error {
	have, err := a.partitions(ctx, t)
	if err != nil {
		return err
	}
	path := t.partition(n).path() + "?force=true"
	if n+1 == have {
		path = t.path() + "/partitions?force=true"
	}
	if err := a.call(ctx, http.MethodDelete, path, nil, nil); err != nil && !hasStatus(err, http.StatusNotFound) {
		return fmt.Errorf("delete partition %d of %s: %w", n, t, err)
	}
	return nil
}

// wantedOfStreams are the policies of namespaces of streams. Pulsar's own
// consumers make their subscriptions there, and more is kept than the quota: the
// messages that repeats are known by.
func wantedOfStreams(quotaBytes int64) policies {
	p := wanted(quotaBytes + windowBytes)
	p.AutoSub = nil
	return p
}
