package server

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/internal/telemetry"
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
