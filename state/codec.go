package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// groupVersion is the first byte of an encoded group. A new layout gets a new
// number and is written only once every server of the cell reads it.
const groupVersion = 1

// ErrCorruptGroup is the error of bytes that EncodeGroup cannot have made, or
// that a later version made.
var ErrCorruptGroup = errors.New("corrupt group")

// EncodeGroup encodes the commands as one group of the log: a version byte,
// then for each command its machine, the length of its body as a uvarint, and
// the body. Equal commands give equal bytes.
func EncodeGroup(commands []Command) []byte {
	size := 1
	for _, c := range commands {
		size += 1 + binary.MaxVarintLen32 + len(c.Body)
	}
	b := append(make([]byte, 0, size), groupVersion)
	for _, c := range commands {
		b = append(b, byte(c.Machine))
		b = binary.AppendUvarint(b, uint64(len(c.Body)))
		b = append(b, c.Body...)
	}
	return b
}

// DecodeGroup decodes what EncodeGroup made. The bodies share memory with
// group. The error wraps ErrCorruptGroup. It takes any bytes.
func DecodeGroup(group []byte) ([]Command, error) {
	if len(group) == 0 {
		return nil, fmt.Errorf("state: decode group: empty: %w", ErrCorruptGroup)
	}
	if group[0] != groupVersion {
		return nil, fmt.Errorf("state: decode group: version %d, want %d: %w", group[0], groupVersion, ErrCorruptGroup)
	}
	var commands []Command
	for rest := group[1:]; len(rest) > 0; {
		id := MachineID(rest[0])
		n, width := binary.Uvarint(rest[1:])
		if width <= 0 || n > math.MaxInt32 || uint64(len(rest)-1-width) < n {
			return nil, fmt.Errorf("state: decode group: command %d: bad length: %w", len(commands), ErrCorruptGroup)
		}
		start, end := 1+width, 1+width+int(n)
		commands = append(commands, Command{Machine: id, Body: rest[start:end:end]})
		rest = rest[end:]
	}
	return commands, nil
}
