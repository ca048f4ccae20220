package pulsar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Properties of a cell's mark that tell other cells who uses the cluster.
const (
	regionProperty        = "isobar-region"
	jurisdictionsProperty = "isobar-jurisdictions"
	// seenProperty is when the cell's leader last looked, in milliseconds.
	seenProperty = "isobar-seen"
)

// seenWithin is how long a cell counts as a user of the cluster after its leader
// looked last: many looks, and clocks that differ.
const seenWithin = 15 * time.Minute

// maxOthers bounds whose marks are read at a look.
const maxOthers = 256

// markProperties is what a new mark says.
func (b *Broker) markProperties(incarnation string) map[string]string {
	now := strconv.FormatInt(time.Now().UnixMilli(), 10)
	return map[string]string{
		epochProperty: now, incarnationProperty: incarnation, seenProperty: now,
		regionProperty: b.options.Region, jurisdictionsProperty: strings.Join(b.options.Jurisdictions, ","),
	}
}

// Sharers are the other regions whose cells use the cluster, as of the last look
// at their marks, with their jurisdictions.
func (b *Broker) Sharers() map[string][]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sharers // replaced as a whole
}

// lookAround says in the cell's mark, if it has one, that it is here, and reads
// the others'.
func (b *Broker) lookAround(ctx context.Context, marked bool) error {
	own := markOf(b.options.Cell, b.options.Log.Incarnation())
	now := time.Now()
	if marked {
		path := "/namespaces/" + own.path() + "/property/" + seenProperty + "/" + strconv.FormatInt(now.UnixMilli(), 10)
		if err := b.admin.call(ctx, http.MethodPut, path, nil, nil); err != nil {
			return fmt.Errorf("say that %s is here: %w", own, err)
		}
	}
	var all []string
	err := b.admin.call(ctx, http.MethodGet, "/namespaces/"+url.PathEscape(root), nil, &all)
	if err != nil && !hasStatus(err, http.StatusNotFound) { // 404: no cell was ever here
		return fmt.Errorf("list the cells' marks: %w", err)
	}
	sharers := map[string][]string{}
	var unread error // one mark that may not be read hides no other
	for _, full := range all[:min(len(all), maxOthers)] {
		_, name, _ := strings.Cut(full, "/")
		if n := (namespace{root, name}); n != own {
			unread = errors.Join(unread, b.readMark(ctx, n, now, sharers))
		}
	}
	if unread != nil { // whose it was may be known from before
		for region, jurisdictions := range b.Sharers() {
			if sharers[region] == nil {
				sharers[region] = jurisdictions
			}
		}
	}
	b.noteSharers(sharers)
	return unread
}

// readMark adds the region of another cell's mark, if that is another region and
// the cell was here of late.
func (b *Broker) readMark(ctx context.Context, n namespace, now time.Time, sharers map[string][]string) error {
	var p map[string]string
	err := b.admin.call(ctx, http.MethodGet, "/namespaces/"+n.path()+"/properties", nil, &p)
	if hasStatus(err, http.StatusNotFound) {
		return nil // deleted since it was listed
	}
	if err != nil {
		return fmt.Errorf("read the mark %s: %w", n, err)
	}
	region := p[regionProperty]
	if region == "" || region == b.options.Region || !lately(p[seenProperty], now) {
		return nil
	}
	for j := range strings.SplitSeq(p[jurisdictionsProperty], ",") {
		if !slices.Contains(sharers[region], j) {
			sharers[region] = append(sharers[region], j)
		}
	}
	return nil
}

func lately(seen string, now time.Time) bool {
	ms, err := strconv.ParseInt(seen, 10, 64)
	return err == nil && now.Sub(time.UnixMilli(ms)) <= seenWithin
}

// noteSharers raises an alarm for regions that share the cluster and were not
// declared, once for each change.
func (b *Broker) noteSharers(sharers map[string][]string) {
	undeclared := func(all map[string][]string) (out []string) {
		for _, region := range slices.Sorted(maps.Keys(all)) {
			if _, ok := b.options.SharedWith[region]; !ok {
				out = append(out, region)
			}
		}
		return out
	}
	b.mu.Lock()
	before := undeclared(b.sharers)
	b.sharers = sharers
	b.mu.Unlock()
	if now := undeclared(sharers); len(now) > 0 && !slices.Equal(now, before) {
		b.options.Logger.Error("cells of other regions use this Pulsar, and broker.shared_with does not name them; tasks whose residency leaves them out are refused",
			"alarm", true, "regions", strings.Join(now, ", "), "service", b.options.Service)
	}
}
