package raftlog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/isobar-mesh/isobar/consensus"
)

// A snapshot crosses the network as an archive whose size is known before it
// is read, all numbers big endian:
//
//	magic, index uint64, term uint64, count uint32
//	count × { name length uint16, name, size uint64, bytes, CRC-32C uint32 of name and bytes }
//
// Names are relative, with slashes. Index and term are the machine's position.
const (
	archiveMagic  = "ISOSNAP1"
	archiveHeader = len(archiveMagic) + 8 + 8 + 4
	fileOverhead  = 2 + 8 + 4
)

var errCorruptArchive = errors.New("corrupt snapshot archive")

func newCRC() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// archivedFile is one file of a snapshot.
type archivedFile struct {
	name string
	size int64
}

// listFiles lists the files below dir, by name, and the archive's exact size.
func listFiles(dir string) (files []archivedFile, size int64, err error) {
	size = int64(archiveHeader)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a file", rel)
		}
		f := archivedFile{name: filepath.ToSlash(rel), size: info.Size()}
		files = append(files, f)
		size += int64(fileOverhead+len(f.name)) + f.size
		return nil
	})
	slices.SortFunc(files, func(a, b archivedFile) int { return strings.Compare(a.name, b.name) })
	return files, size, err
}

// packer reads a directory as an archive.
type packer struct {
	dir     string
	files   []archivedFile // not begun yet
	pending []byte         // to hand out before anything else
	file    *os.File       // being read, or nil
	left    int64          // of file
	sum     hash.Hash32    // of file
}

func newPacker(dir string, at consensus.Position, files []archivedFile) *packer {
	h := append(make([]byte, 0, archiveHeader), archiveMagic...)
	h = binary.BigEndian.AppendUint64(h, at.Index)
	h = binary.BigEndian.AppendUint64(h, at.Term)
	h = binary.BigEndian.AppendUint32(h, uint32(len(files)))
	return &packer{dir: dir, files: files, pending: h, sum: newCRC()}
}

func (p *packer) Read(b []byte) (int, error) {
	if len(p.pending) == 0 {
		if err := p.advance(); err != nil {
			return 0, err
		}
	}
	if len(p.pending) > 0 {
		n := copy(b, p.pending)
		p.pending = p.pending[n:]
		return n, nil
	}
	n, err := p.file.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	p.sum.Write(b[:n])
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the file shrank
	}
	return n, err
}

// advance ends a file that was read whole and begins the next.
func (p *packer) advance() error {
	if p.file != nil {
		if p.left > 0 {
			return nil
		}
		p.pending = binary.BigEndian.AppendUint32(nil, p.sum.Sum32())
		err := p.file.Close()
		p.file = nil
		return err
	}
	if len(p.files) == 0 {
		return io.EOF
	}
	f := p.files[0]
	p.files = p.files[1:]
	file, err := os.Open(filepath.Join(p.dir, filepath.FromSlash(f.name)))
	if err != nil {
		return err
	}
	p.file, p.left = file, f.size
	p.sum.Reset()
	p.sum.Write([]byte(f.name))
	h := binary.BigEndian.AppendUint16(nil, uint16(len(f.name)))
	h = append(h, f.name...)
	p.pending = binary.BigEndian.AppendUint64(h, uint64(f.size))
	return nil
}

func (p *packer) Close() error {
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}

// unpack writes an archive into dir, which it makes, and syncs it. It trusts
// no name and no length, and wants the archive to end where it says.
func unpack(r io.Reader, dir string) (consensus.Position, error) {
	var at consensus.Position
	in := bufio.NewReaderSize(r, 256<<10)
	header := make([]byte, archiveHeader)
	if _, err := io.ReadFull(in, header); err != nil || string(header[:len(archiveMagic)]) != archiveMagic {
		return at, fmt.Errorf("header: %w", errors.Join(errCorruptArchive, err))
	}
	numbers := header[len(archiveMagic):]
	at.Index = binary.BigEndian.Uint64(numbers)
	at.Term = binary.BigEndian.Uint64(numbers[8:])
	count := binary.BigEndian.Uint32(numbers[16:])
	if err := os.Mkdir(dir, 0o755); err != nil {
		return at, err
	}
	for i := range count {
		if err := unpackFile(in, dir); err != nil {
			return at, fmt.Errorf("file %d of %d: %w", i+1, count, err)
		}
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return at, fmt.Errorf("bytes behind the end: %w", errors.Join(errCorruptArchive, err))
	}
	return at, syncTree(dir)
}

func unpackFile(in *bufio.Reader, dir string) error {
	var width [2]byte
	if _, err := io.ReadFull(in, width[:]); err != nil {
		return errors.Join(errCorruptArchive, err)
	}
	head := make([]byte, int(binary.BigEndian.Uint16(width[:]))+8)
	if _, err := io.ReadFull(in, head); err != nil {
		return errors.Join(errCorruptArchive, err)
	}
	name, size := string(head[:len(head)-8]), int64(binary.BigEndian.Uint64(head[len(head)-8:]))
	local := filepath.FromSlash(name)
	if !filepath.IsLocal(local) || filepath.Clean(local) != local || local == "." || size < 0 {
		return fmt.Errorf("name %q, size %d: %w", name, size, errCorruptArchive)
	}
	path := filepath.Join(dir, local)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	sum := newCRC()
	sum.Write([]byte(name))
	_, err = io.CopyN(io.MultiWriter(f, sum), in, size)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s ends early: %w", name, errCorruptArchive)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	var want [4]byte
	if _, err := io.ReadFull(in, want[:]); err != nil || binary.BigEndian.Uint32(want[:]) != sum.Sum32() {
		return fmt.Errorf("checksum of %s: %w", name, errors.Join(errCorruptArchive, err))
	}
	return nil
}

// syncTree makes the names below dir durable; the files are already.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return syncDir(path)
	})
}
