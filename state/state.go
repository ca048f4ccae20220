// Package state is a cell's replicated state: one ordered key-value store and
// the few state machines mounted on it.
//
// A group of the cell's log is a list of commands, each for one machine. All
// commands of a group take effect or none does; groups are independent. One
// entry of the log is one atomic write of the store, which also keeps the
// entry's position, so a restart never applies an entry twice.
//
// Replica is the consensus.Machine that does this over a Store. The package
// knows no machine; cmd wires them. Stores: Memory here, for transcripts and
// simulation, and Pebble in state/pebblestore.
package state

import (
	"iter"
)

// Reader reads the state, or one machine's part of it. Slices handed out are
// the caller's to keep; they must not be changed. Slices handed in are not
// kept.
type Reader interface {
	// Get returns the value of the key.
	Get(key []byte) (value []byte, ok bool)
	// Scan yields the keys in [from, to) in ascending order; a nil to means
	// the end. A Tx must not be written while one of its scans goes on. Any
	// other Reader's scan sees the state as of its start, whatever is
	// committed meanwhile.
	Scan(from, to []byte) iter.Seq2[[]byte, []byte]
}

// Tx is the state as one command sees it while it is applied: its own writes
// and those of the commands before it in the entry.
type Tx interface {
	Reader
	// Set writes the key. Neither slice is kept.
	Set(key, value []byte)
	// Delete removes the key; removing one that is not there is no error.
	Delete(key []byte)
}

// Machine is one pure state machine: no clock, no I/O, no randomness. Equal
// commands on equal states have equal results on every server.
type Machine interface {
	// Apply applies one command. An error rejects the whole group: nothing of
	// it takes effect. The result, on success, is for whoever proposed it.
	// The command is not the machine's to change; parts of it that outlive the
	// call, in the result, must be copied. Tx is valid during the call only.
	Apply(tx Tx, command []byte) (result any, err error)
}

// MachineID names a machine: it is the first byte of every command for it, and
// of every key of it in the store. A machine and its readers see their own
// keys only, without that byte. The numbers are stored; do not reuse one. Zero
// is the Replica's own.
type MachineID byte

// The machines of a cell.
const (
	SchedulerMachine MachineID = 's'
	BrokerMachine    MachineID = 'b'
	RegistryMachine  MachineID = 'r'
	StreamMachine    MachineID = 't'
)

// Command is one command of a group.
type Command struct {
	Machine MachineID
	Body    []byte
}

// GroupResult is what a group's proposer gets. Err is the error of the command
// that rejected the group; Results, when Err is nil, are in command order.
type GroupResult struct {
	Results []any
	Err     error
}
