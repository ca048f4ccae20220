package server

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/internal/telemetry"
	"github.com/isobar-mesh/isobar/scheduler"
)

// TestAnEmptiedServerDoesNotMakeItsCellAgain: a cell's first server whose
// directory was emptied is told to bootstrap, while the others hold the cell.
func TestAnEmptiedServerDoesNotMakeItsCellAgain(t *testing.T) {
	t.Parallel()
	cell := startCell(t, 2, time.Hour)
	cfg := cell[0].cfg
	cfg.Data = filepath.Join(t.TempDir(), "emptied")
	ports := freePorts(t, 4)
	cfg.API.Address, cfg.Peer.Address, cfg.Raft.Address, cfg.Gossip.Address = ports[0], ports[1], ports[2], ports[3]
	cfg.Gossip.Join = []string{cell[1].cfg.Gossip.Address}
	tel, err := telemetry.New(t.Context(), telemetry.Options{Service: "isobar-server", Instance: cfg.Name})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{cfg: cfg, log: slog.New(slog.DiscardHandler), tel: tel, clock: clockWatch{wall: time.Now, every: time.Hour}}
	defer s.close()
	err = s.open()
	if err == nil {
		t.Fatalf("a second cell %s was made beside %s", cfg.Cell, cell[0].sched.Incarnation())
	}
	for _, part := range []string{"r-1 lives as " + cell[0].sched.Incarnation(), "replace bootstrap by join"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("refused with %q, want %q in it", err, part)
		}
	}
}

// A cell that gossip has forgotten is still one whose word a tombstone waits for.
func TestCellsThatAreAwayForLongAreMembers(t *testing.T) {
	t.Parallel()
	got := cellsOf("b-1", []mesh.CellID{"a-1", "b-1", "c-1"}, []scheduler.Neighbour{{Cell: mesh.Cell{ID: "d-1"}}, {Cell: mesh.Cell{ID: "a-1"}}})
	if want := []mesh.CellID{"a-1", "b-1", "c-1", "d-1"}; !slices.Equal(got, want) {
		t.Errorf("members are %v, want %v", got, want)
	}
}
