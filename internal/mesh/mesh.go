// Package mesh holds the words that two rooms or more share: cells, task ids,
// lanes, resources. It holds no logic beyond parsing and arithmetic, has no
// clock and does no I/O; everything in it may be used by the pure rooms.
package mesh

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits that are part of the contract with users (docs/guarantees.md).
const (
	// MaxPayload is the largest task payload, in bytes.
	MaxPayload = 1 << 20
	// MaxResult is the largest result kept with a task, in bytes.
	MaxResult = 256 << 10
	// MaxStderrTail is what is kept of an attempt's standard error, in bytes.
	MaxStderrTail = 4 << 10
)

// CellID names one cell, the Raft group of a region: "eu-north-1" is the first
// cell of region eu-north. It is unique in the mesh.
type CellID string

// Cell is the identity a cell proves with its certificate. Gossip never
// changes it.
type Cell struct {
	ID     CellID
	Region string
	// Jurisdictions the cell lies in, lower case, sorted: "eu", "se".
	Jurisdictions []string
}

// Within reports whether the cell may hold work bound to the residency: one of
// its jurisdictions is allowed (an empty list allows all) and none is denied. A
// cell without jurisdictions holds only work that is not bound.
func (c Cell) Within(r Residency) bool {
	if len(c.Jurisdictions) == 0 {
		return !r.Bound()
	}
	for _, j := range c.Jurisdictions {
		if slices.Contains(r.Denied, j) {
			return false
		}
	}
	if len(r.Allowed) == 0 {
		return true
	}
	for _, j := range c.Jurisdictions {
		if slices.Contains(r.Allowed, j) {
			return true
		}
	}
	return false
}

// Residency bounds where a task's bytes may be. Jurisdictions are lower case
// and sorted.
type Residency struct {
	Allowed []string
	Denied  []string
}

// Bound reports whether the residency forbids anything.
func (r Residency) Bound() bool { return len(r.Allowed) > 0 || len(r.Denied) > 0 }

// Lane is a priority class inside a queue.
type Lane uint8

// The lanes, most urgent first. The numbers are stored; do not reorder.
const (
	Critical Lane = iota
	Interactive
	Standard
	Batch
)

// Lanes lists every lane, most urgent first.
func Lanes() [4]Lane { return [...]Lane{Critical, Interactive, Standard, Batch} }

// Weight is the lane's share of dispatch when every lane has work waiting:
// each lane is served in proportion to it, so none starves.
func (l Lane) Weight() int {
	switch l {
	case Critical:
		return 64
	case Interactive:
		return 16
	case Standard:
		return 4
	default:
		return 1
	}
}

func (l Lane) String() string {
	switch l {
	case Critical:
		return "critical"
	case Interactive:
		return "interactive"
	case Standard:
		return "standard"
	case Batch:
		return "batch"
	default:
		return fmt.Sprintf("lane(%d)", uint8(l))
	}
}

// ErrUnknownLane is returned by ParseLane.
var ErrUnknownLane = errors.New("unknown lane")

// ParseLane reads a lane's name; the empty string is Standard.
func ParseLane(s string) (Lane, error) {
	if s == "" {
		return Standard, nil
	}
	for _, l := range Lanes() {
		if l.String() == s {
			return l, nil
		}
	}
	return 0, fmt.Errorf("mesh: parse lane %q: %w", s, ErrUnknownLane)
}

// TaskID names a task for its whole life. It sorts by the time of accept and
// carries the home cell and that cell's incarnation:
//
//	01jd9x6m2e8k6v8w1b4c5d6e7f-eu-north-1-k3f9ab
//
// that is a lower-case ULID, the cell, and the incarnation.
type TaskID string

const ulidLen = 26

// NewTaskID joins the parts of an id. The ulid is 26 characters.
func NewTaskID(ulid string, home CellID, incarnation string) TaskID {
	return TaskID(strings.ToLower(ulid) + "-" + string(home) + "-" + incarnation)
}

// ErrBadTaskID is returned for an id that no cell can have made.
var ErrBadTaskID = errors.New("not a task id")

// Home splits the id into the cell that owns the task and the incarnation that
// accepted it.
func (id TaskID) Home() (cell CellID, incarnation string, err error) {
	s := string(id)
	last := strings.LastIndexByte(s, '-')
	if len(s) < ulidLen+4 || s[ulidLen] != '-' || last <= ulidLen+1 || last == len(s)-1 {
		return "", "", fmt.Errorf("mesh: parse task id %q: %w", s, ErrBadTaskID)
	}
	for i := range ulidLen {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return "", "", fmt.Errorf("mesh: parse task id %q: %w", s, ErrBadTaskID)
		}
	}
	return CellID(s[ulidLen+1 : last]), s[last+1:], nil
}
