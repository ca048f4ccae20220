package carbon

import (
	"fmt"
	"slices"
	"time"
)

// Joined answers from several feeds, each for its own zones.
type Joined struct {
	kind  Kind
	feeds []Feed
	zones []string
	owner []int // in feeds, by position in zones
}

// Join makes one feed of several that answer for different zones. Feeds of
// different kinds are refused with ErrMixedKinds, a zone that two of them
// answer for with ErrSharedZone. Without feeds the result answers for no zone.
func Join(feeds ...Feed) (*Joined, error) {
	j := &Joined{kind: Average, feeds: slices.Clone(feeds)}
	type owned struct {
		zone string
		feed int
	}
	var all []owned
	for i, f := range feeds {
		if err := f.Kind().validate(); err != nil {
			return nil, err
		}
		if i > 0 && f.Kind() != j.kind {
			return nil, fmt.Errorf("carbon: join a feed of kind %s and one of kind %s: %w", j.kind, f.Kind(), ErrMixedKinds)
		}
		j.kind = f.Kind()
		for _, zone := range f.Zones() {
			all = append(all, owned{zone, i})
		}
	}
	slices.SortStableFunc(all, func(a, b owned) int {
		switch {
		case a.zone < b.zone:
			return -1
		case a.zone > b.zone:
			return 1
		}
		return 0
	})
	for i, o := range all {
		if i > 0 && all[i-1].zone == o.zone {
			return nil, fmt.Errorf("carbon: join feeds at zone %s: %w", o.zone, ErrSharedZone)
		}
		j.zones = append(j.zones, o.zone)
		j.owner = append(j.owner, o.feed)
	}
	return j, nil
}

// Kind is the kind of all joined feeds.
func (j *Joined) Kind() Kind { return j.kind }

// Zones lists the zones of all joined feeds, sorted.
func (j *Joined) Zones() []string { return slices.Clone(j.zones) }

// At asks the zone's feed.
func (j *Joined) At(zone string, wall time.Time) (Reading, error) {
	f, err := j.feed(zone)
	if err != nil {
		return Reading{}, err
	}
	return f.At(zone, wall)
}

// Ahead asks the zone's feed.
func (j *Joined) Ahead(zone string, wall time.Time, hours int) ([]Reading, error) {
	f, err := j.feed(zone)
	if err != nil {
		return nil, err
	}
	return f.Ahead(zone, wall, hours)
}

// Hour is the first feed's: feeds that are joined share a clock.
func (j *Joined) Hour(wall time.Time) (from time.Time, lasts time.Duration) {
	if len(j.feeds) == 0 {
		return Clock{}.Hour(wall)
	}
	return j.feeds[0].Hour(wall)
}

func (j *Joined) feed(zone string) (Feed, error) {
	i, ok := slices.BinarySearch(j.zones, zone)
	if !ok {
		return nil, fmt.Errorf("carbon: read zone %q of the joined feeds: %w", zone, ErrUnknownZone)
	}
	return j.feeds[j.owner[i]], nil
}
