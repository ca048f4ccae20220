package state

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/google/btree"
)

// A checkpoint of a Memory is the file memoryFile: memoryMagic, the number of
// keys, then key and value of each with their lengths, all lengths uvarints,
// and at the end the CRC-32C of all before it, big endian.
const (
	memoryFile  = "memory"
	memoryMagic = "isobar-memory-1\n"
	// maxMemoryItem guards Install against a damaged length, in bytes.
	maxMemoryItem = 64 << 20
)

// ErrCorruptCheckpoint is the error of installing a damaged checkpoint.
var ErrCorruptCheckpoint = errors.New("corrupt checkpoint")

// Checkpoint writes the state into one file of dir, and syncs both.
func (m *Memory) Checkpoint(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("state: checkpoint memory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, memoryFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("state: checkpoint memory: %w", err)
	}
	err = errors.Join(m.freeze().writeTo(f), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("state: checkpoint memory: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("state: checkpoint memory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("state: checkpoint memory: %w", err)
	}
	return nil
}

func (f frozen) writeTo(out io.Writer) error {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	w := bufio.NewWriterSize(io.MultiWriter(out, sum), 256<<10)
	var length []byte
	put := func(b []byte) bool {
		length = binary.AppendUvarint(length[:0], uint64(len(b)))
		_, err1 := w.Write(length)
		_, err2 := w.Write(b)
		return err1 == nil && err2 == nil
	}
	_, _ = w.WriteString(memoryMagic) // bufio keeps the first error for Flush
	_, _ = w.Write(binary.AppendUvarint(nil, uint64(f.tree.Len())))
	f.tree.Ascend(func(i Write) bool { return put(i.Key) && put(i.Value) })
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := out.Write(binary.BigEndian.AppendUint32(nil, sum.Sum32()))
	return err
}

// Install replaces the state by a checkpoint. Errors wrap ErrCorruptCheckpoint
// or come from reading the file; the old state then stays.
func (m *Memory) Install(dir string) error {
	f, err := os.Open(filepath.Join(dir, memoryFile))
	if err != nil {
		return fmt.Errorf("state: install memory: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	tree, err := readMemory(f)
	if err != nil {
		return fmt.Errorf("state: install memory: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live, m.frozen = tree, nil
	return nil
}

// summed feeds what is read through it to a checksum, byte reads too.
type summed struct {
	r   *bufio.Reader
	sum interface{ Write([]byte) (int, error) }
}

func (s summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	_, _ = s.sum.Write(p[:n])
	return n, err
}

func (s summed) ReadByte() (byte, error) {
	b, err := s.r.ReadByte()
	if err == nil {
		_, _ = s.sum.Write([]byte{b})
	}
	return b, err
}

func readMemory(in io.Reader) (*btree.BTreeG[Write], error) {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	r := summed{bufio.NewReaderSize(in, 256<<10), sum}
	magic := make([]byte, len(memoryMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != memoryMagic {
		return nil, fmt.Errorf("bad header: %w", ErrCorruptCheckpoint)
	}
	item := func() ([]byte, error) {
		n, err := binary.ReadUvarint(r)
		if err != nil || n > maxMemoryItem {
			return nil, fmt.Errorf("bad length: %w", ErrCorruptCheckpoint)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, fmt.Errorf("short: %w", ErrCorruptCheckpoint)
		}
		return b, nil
	}
	count, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, fmt.Errorf("bad count: %w", ErrCorruptCheckpoint)
	}
	tree := btree.NewG(32, byKey)
	for range count {
		k, err := item()
		if err != nil {
			return nil, err
		}
		v, err := item()
		if err != nil {
			return nil, err
		}
		tree.ReplaceOrInsert(Write{Key: k, Value: v})
	}
	want := sum.Sum32()
	var tail [4]byte
	if _, err := io.ReadFull(r.r, tail[:]); err != nil || binary.BigEndian.Uint32(tail[:]) != want {
		return nil, fmt.Errorf("bad checksum: %w", ErrCorruptCheckpoint)
	}
	return tree, nil
}
