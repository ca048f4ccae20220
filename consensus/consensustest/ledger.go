package consensustest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/isobar-mesh/isobar/consensus"
)

// Ledger is a Machine in memory: groups are payloads, results are ordinals.
// The zero value is empty. A new one is what a crash leaves of it.
type Ledger struct {
	mu   sync.Mutex
	kept ledgerState
}

type ledgerState struct {
	At       consensus.Position
	Payloads [][]byte
}

var _ Machine = (*Ledger)(nil)

const ledgerFile = "ledger.json"

// Encode returns the payload.
func (l *Ledger) Encode(payload []byte) []byte { return payload }

// Ordinal reads a result of Apply.
func (l *Ledger) Ordinal(result any) (int, error) {
	n, ok := result.(int)
	if !ok {
		return 0, fmt.Errorf("consensustest: result is %T, want int", result)
	}
	return n, nil
}

// Payloads returns what was applied.
func (l *Ledger) Payloads() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([][]byte(nil), l.kept.Payloads...)
}

// Apply appends the groups.
func (l *Ledger) Apply(at consensus.Position, groups [][]byte) []any {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.Index <= l.kept.At.Index {
		return nil
	}
	results := make([]any, len(groups))
	for i, g := range groups {
		l.kept.Payloads = append(l.kept.Payloads, append([]byte(nil), g...))
		results[i] = len(l.kept.Payloads)
	}
	l.kept.At = at
	return results
}

// Applied is the position of the last entry.
func (l *Ledger) Applied() consensus.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept.At
}

// Checkpoint writes one file into dir.
func (l *Ledger) Checkpoint(dir string) (consensus.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := json.Marshal(l.kept)
	if err != nil {
		return consensus.Position{}, err
	}
	err = errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, ledgerFile), b, 0o644))
	return l.kept.At, err
}

// Install reads the file back.
func (l *Ledger) Install(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, ledgerFile))
	if err != nil {
		return err
	}
	var kept ledgerState
	if err := json.Unmarshal(b, &kept); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = kept
	return nil
}
