package carbon

import (
	"slices"
	"sync"
	"time"
)

// The names of forecasts, as readings and simulations give them.
const (
	ByPersistence = "persistence"
	ByModel       = "model"
)

// history is how many rows a zone needs before the present hour to be foretold
// by its Model: a week that the features look at, and another to learn from.
const history = 2 * week

// Learner is the feed of a running cell over a Table with a past: the present
// hour as it is, and the hours ahead by the zone's Model, which has learned from
// the rows up to the present hour and no other. Where the table holds less than
// two weeks before the present hour, or has run out, it answers as Persistence
// does. A Reading says which it was.
//
// The first question about a zone takes as long as learning its past: some 10
// microseconds a row.
type Learner struct {
	*Persistence
	table  *Table
	mu     sync.Mutex
	models map[string]*Model
	at     map[string]int // the row up to which a zone's model has learned
}

// NewLearner returns the feed of the table as its clock runs, with the errors of
// NewPersistence.
func NewLearner(table *Table, clock Clock, wall time.Time) (*Learner, error) {
	p, err := NewPersistence(table, clock, wall)
	if err != nil {
		return nil, err
	}
	return &Learner{Persistence: p, table: table, models: map[string]*Model{}, at: map[string]int{}}, nil
}

// Ahead implements Feed.
func (l *Learner) Ahead(zone string, wall time.Time, hours int) ([]Reading, error) {
	column, ok := slices.BinarySearch(l.table.zones, zone)
	present := l.clock.At(wall).Truncate(time.Hour)
	row := int(present.Sub(l.table.start) / time.Hour)
	if hours <= 0 || !ok || row < history || row >= l.table.rows() {
		return l.Persistence.Ahead(zone, wall, hours)
	}
	now, err := l.At(zone, wall)
	if err != nil {
		return nil, err
	}
	out := make([]Reading, 1, hours)
	out[0] = now
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.models[zone]
	if m == nil || l.at[zone] > row { // of a clock that was set back it must not know what came
		m = NewModel(l.table.hours[column])
		l.models[zone] = m
	}
	m.Advance(row)
	l.at[zone] = row
	for k := 1; k < hours; k++ {
		out = append(out, Reading{
			Zone: zone, Hour: present.Add(time.Duration(k) * time.Hour), Intensity: m.Ahead(k), Kind: now.Kind,
			Source: now.Source + ", foretold from its past rows", Forecast: ByModel,
		})
	}
	return out, nil
}
