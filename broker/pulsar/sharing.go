package pulsar

import (
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

// Bounds of the pause before the next look, while not all sharers are known.
const (
	lookAgainFirst = 250 * time.Millisecond
	lookAgainMost  = 10 * time.Second
)

// maxMarks bounds how many marks are read at a look. Where there are more, who
// shares the cluster is not known.
const maxMarks = 1024

// markProperties is what a new mark says.
func (b *Broker) markProperties(incarnation string) map[string]string {
	now := strconv.FormatInt(time.Now().UnixMilli(), 10)
	return map[string]string{
		epochProperty: now, incarnationProperty: incarnation, seenProperty: now,
		regionProperty: b.options.Region, jurisdictionsProperty: strings.Join(b.options.Jurisdictions, ","),
	}
}

// Sharers are the other regions whose cells use the cluster, as of the last look
// at their marks, with their jurisdictions. Not known: no look has found all of
// them yet, and none are declared.
func (b *Broker) Sharers() (regions map[string][]string, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sharers, !b.looked.IsZero() || len(b.options.SharedWith) > 0 // the map is replaced as a whole
}

// lookAround says in the cell's mark, if it has one, that it is here, and reads
// the others'.
func (b *Broker) lookAround(marked bool) error {
	own := markOf(b.options.Cell, b.options.Log.Incarnation())
	now := time.Now()
	if marked {
		path := "/namespaces/" + own.path() + "/property/" + seenProperty + "/" + strconv.FormatInt(now.UnixMilli(), 10)
		if err := b.ask(http.MethodPut, path, nil); err != nil {
			return fmt.Errorf("say that %s is here: %w", own, err)
		}
	}
	var all []string
	err := b.ask(http.MethodGet, "/namespaces/"+url.PathEscape(root), &all)
	if err != nil && !hasStatus(err, http.StatusNotFound) { // 404: no cell was ever here
		return fmt.Errorf("list the cells' marks: %w", err)
	}
	sharers := map[string][]string{}
	unread := b.readMarks(all, own, now, sharers)
	if unread != nil { // whose they were may be known from before
		before, _ := b.Sharers()
		for region, jurisdictions := range before {
			if sharers[region] == nil {
				sharers[region] = jurisdictions
			}
		}
	}
	b.noteSharers(sharers, unread == nil)
	return unread
}

// readMarks reads the marks of all cells but our own. One that may not be read
// hides no other; once the cluster does not answer, none is.
func (b *Broker) readMarks(all []string, own namespace, now time.Time, sharers map[string][]string) (unread error) {
	if len(all) > maxMarks {
		unread = fmt.Errorf("%d cells have marks, and %d are read: delete the namespaces %s/CELL.INCARNATION of cells that are gone", len(all), maxMarks, root)
		all = all[:maxMarks]
	}
	for _, full := range all {
		_, name, _ := strings.Cut(full, "/")
		n := namespace{root, name}
		if n == own {
			continue
		}
		if err := b.readMark(n, now, sharers); err != nil {
			unread = errors.Join(unread, err)
			if status := (*statusError)(nil); !errors.As(err, &status) {
				return unread
			}
		}
	}
	return unread
}

// ask is a call of the admin API with a time of its own: of many, each may take it.
func (b *Broker) ask(method, path string, out any) error {
	ctx, cancel := b.call(b.ctx)
	defer cancel()
	return b.admin.call(ctx, method, path, nil, out)
}

// readMark adds the region of another cell's mark, if that is another region and
// the cell was here of late.
func (b *Broker) readMark(n namespace, now time.Time, sharers map[string][]string) error {
	var p map[string]string
	err := b.ask(http.MethodGet, "/namespaces/"+n.path()+"/properties", &p)
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
func (b *Broker) noteSharers(sharers map[string][]string, complete bool) {
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
	if complete {
		b.looked = time.Now()
	}
	b.mu.Unlock()
	if now := undeclared(sharers); len(now) > 0 && !slices.Equal(now, before) {
		b.options.Logger.Error("cells of other regions use this Pulsar, and broker.shared_with does not name them; tasks whose residency leaves them out are refused",
			"alarm", true, "regions", strings.Join(now, ", "), "service", b.options.Service)
	}
}
