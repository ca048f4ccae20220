package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/isobar-mesh/isobar/consensus"
)

const (
	// entryVersion is the first byte of an entry. A new layout gets a new
	// number, and is written only once every server of the cell reads it.
	entryVersion = 1
	// packBytes is where packing of groups into one entry stops; raft wants
	// entries under 512 KiB. A larger group is an entry alone.
	packBytes = 512<<10 - 64
)

var errCorruptEntry = errors.New("corrupt entry")

// entrySize is what a group takes of an entry.
func entrySize(group []byte) int {
	n := len(group)
	width := 1
	for v := uint64(n); v >= 0x80; v >>= 7 {
		width++
	}
	return n + width
}

// encodeEntry is the one encoding of an entry: a version byte, then for each
// group its length as a uvarint, and its bytes.
func encodeEntry(groups [][]byte) []byte {
	size := 1
	for _, g := range groups {
		size += entrySize(g)
	}
	b := append(make([]byte, 0, size), entryVersion)
	for _, g := range groups {
		b = binary.AppendUvarint(b, uint64(len(g)))
		b = append(b, g...)
	}
	return b
}

// decodeEntry decodes what encodeEntry made; the groups share memory with b.
func decodeEntry(b []byte) ([][]byte, error) {
	if len(b) == 0 || b[0] != entryVersion {
		return nil, fmt.Errorf("version: %w", errCorruptEntry)
	}
	var groups [][]byte
	for rest := b[1:]; len(rest) > 0; {
		n, width := binary.Uvarint(rest)
		if width <= 0 || n > consensus.MaxGroup || uint64(len(rest)-width) < n {
			return nil, fmt.Errorf("group %d: length: %w", len(groups), errCorruptEntry)
		}
		end := width + int(n)
		groups = append(groups, rest[width:end:end])
		rest = rest[end:]
	}
	return groups, nil
}
