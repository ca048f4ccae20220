package raftlog

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isobar-mesh/isobar/consensus"
)

const (
	metaFile       = "meta.json"
	dataDir        = "data"
	unfinished     = "tmp-"
	metaFormat     = 1
	snapshotIDForm = "%020d-%020d-%d"
)

// snapshot is meta.json: raft's description, and what raft does not know.
type snapshot struct {
	Format int // of this file
	raft.SnapshotMeta
	// Machine is the position of the last entry in the data. It may be before
	// SnapshotMeta.Index: elections and changes of members take entries too.
	Machine consensus.Position
	TakenAt time.Time
}

// snapshotStore is a raft.SnapshotStore that keeps directories. A snapshot has
// its final name only once it is whole and synced.
type snapshotStore struct {
	dir  string
	keep int

	mu   sync.Mutex
	list []*snapshot    // newest first
	open map[string]int // readers, by id: these are not reaped
	made uint64
}

var _ raft.SnapshotStore = (*snapshotStore)(nil)

// openSnapshotStore reads the snapshots kept in dir, and removes what a crash
// left unfinished.
func openSnapshotStore(dir string, keep int) (*snapshotStore, error) {
	s := &snapshotStore{dir: dir, keep: keep, open: make(map[string]int)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), metaFile))
		if err != nil {
			return nil, err
		}
		snap := new(snapshot)
		if err := json.Unmarshal(b, snap); err != nil || snap.Format != metaFormat || snap.ID != e.Name() {
			return nil, fmt.Errorf("read %s of %s: format %d: %w", metaFile, e.Name(), snap.Format, errors.Join(errBadMeta, err))
		}
		s.list = append(s.list, snap)
	}
	s.sort()
	return s, s.reap()
}

var errBadMeta = errors.New("bad snapshot meta")

func (s *snapshotStore) sort() {
	slices.SortFunc(s.list, func(a, b *snapshot) int {
		return cmp.Or(cmp.Compare(b.Index, a.Index), cmp.Compare(b.Term, a.Term), strings.Compare(b.ID, a.ID))
	})
}

func (s *snapshotStore) data(id string) string { return filepath.Join(s.dir, id, dataDir) }

// newest returns the newest snapshot, or nil.
func (s *snapshotStore) newest() *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return nil
	}
	return s.list[0]
}

// reap removes all but the newest ones that nobody reads. Callers hold mu.
func (s *snapshotStore) reap() error {
	var errs []error
	kept := s.list[:0:0]
	for i, snap := range s.list {
		if i < s.keep || s.open[snap.ID] > 0 {
			kept = append(kept, snap)
			continue
		}
		// Renamed first: a crash in the middle must not leave half of one
		// under its name.
		doomed := filepath.Join(s.dir, unfinished+snap.ID)
		err := os.Rename(filepath.Join(s.dir, snap.ID), doomed)
		if err == nil {
			err = os.RemoveAll(doomed)
		}
		errs = append(errs, err)
	}
	s.list = kept
	return errors.Join(errs...)
}

// List lists the snapshots, newest first.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	metas := make([]*raft.SnapshotMeta, len(s.list))
	for i, snap := range s.list {
		m := snap.SnapshotMeta
		metas[i] = &m
	}
	return metas, nil
}

// Open returns a reader of the snapshot as an archive. Nothing is read from
// the disk until it is.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.list, func(snap *snapshot) bool { return snap.ID == id })
	if i < 0 {
		return nil, nil, fmt.Errorf("raftlog: open snapshot %s: %w", id, os.ErrNotExist)
	}
	s.open[id]++
	meta := s.list[i].SnapshotMeta
	return &meta, &snapshotReader{store: s, snap: s.list[i]}, nil
}

func (s *snapshotStore) closed(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[id]--; s.open[id] > 0 {
		return nil
	}
	delete(s.open, id)
	return s.reap()
}

// snapshotReader streams a snapshot to a follower.
type snapshotReader struct {
	store  *snapshotStore
	snap   *snapshot
	packer *packer // nil until the first Read
	once   sync.Once
}

func (r *snapshotReader) Read(b []byte) (int, error) {
	if r.packer == nil {
		dir := r.store.data(r.snap.ID)
		files, size, err := listFiles(dir)
		if err != nil {
			return 0, err
		}
		if size != r.snap.Size {
			return 0, fmt.Errorf("raftlog: read snapshot %s: %d bytes, was %d when written", r.snap.ID, size, r.snap.Size)
		}
		r.packer = newPacker(dir, r.snap.Machine, files)
	}
	return r.packer.Read(b)
}

func (r *snapshotReader) Close() error {
	var err error
	r.once.Do(func() {
		if r.packer != nil {
			err = r.packer.Close()
		}
		err = errors.Join(err, r.store.closed(r.snap.ID))
	})
	return err
}

// Create begins a snapshot: of this server, by adopt, or received from the
// leader, by Write.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	now := time.Now()
	s.mu.Lock()
	s.made++
	dir := filepath.Join(s.dir, fmt.Sprintf("%s%d", unfinished, s.made))
	s.mu.Unlock()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("raftlog: create snapshot: %w", err)
	}
	return &snapshotSink{store: s, dir: dir, meta: snapshot{
		Format: metaFormat,
		SnapshotMeta: raft.SnapshotMeta{
			Version:            version,
			ID:                 fmt.Sprintf(snapshotIDForm, term, index, now.UnixNano()),
			Index:              index,
			Term:               term,
			Configuration:      configuration,
			ConfigurationIndex: configurationIndex,
		},
		TakenAt: now.UTC(),
	}}, nil
}

// snapshotSink is a snapshot being made. Raft uses it from one goroutine.
type snapshotSink struct {
	store *snapshotStore
	meta  snapshot
	dir   string
	ended bool
	// While bytes are received, unpack reads them from the other end of pipe
	// in a goroutine that ends with the pipe.
	pipe     *io.PipeWriter
	unpacked chan error
}

func (k *snapshotSink) ID() string { return k.meta.ID }

// adopt takes over a checkpoint's directory.
func (k *snapshotSink) adopt(dir string, at consensus.Position) error {
	k.meta.Machine = at
	if err := os.Rename(dir, filepath.Join(k.dir, dataDir)); err != nil {
		return fmt.Errorf("raftlog: adopt checkpoint: %w", err)
	}
	return nil
}

// Write takes the next bytes of an archive.
func (k *snapshotSink) Write(b []byte) (int, error) {
	if k.pipe == nil {
		var r *io.PipeReader
		r, k.pipe = io.Pipe()
		k.unpacked = make(chan error, 1)
		go func() {
			at, err := unpack(r, filepath.Join(k.dir, dataDir))
			k.meta.Machine = at
			_ = r.CloseWithError(err) // fails the Writes that follow
			k.unpacked <- err
		}()
	}
	return k.pipe.Write(b)
}

// Close ends the snapshot: it is in the store, or there is an error.
func (k *snapshotSink) Close() error {
	if k.ended {
		return nil
	}
	k.ended = true
	err := k.finish()
	if err != nil {
		return fmt.Errorf("raftlog: finish snapshot %s: %w", k.meta.ID, errors.Join(err, os.RemoveAll(k.dir)))
	}
	return nil
}

func (k *snapshotSink) finish() error {
	if k.pipe != nil {
		_ = k.pipe.Close() // never fails
		if err := <-k.unpacked; err != nil {
			return err
		}
	}
	var err error
	if _, k.meta.Size, err = listFiles(filepath.Join(k.dir, dataDir)); err != nil {
		return err
	}
	b, err := json.MarshalIndent(&k.meta, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(k.dir, metaFile), b); err != nil {
		return err
	}
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(k.dir, filepath.Join(s.dir, k.meta.ID)); err != nil {
		return err
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	s.list = append(s.list, &k.meta)
	s.sort()
	return s.reap()
}

// Cancel drops the snapshot.
func (k *snapshotSink) Cancel() error {
	if k.ended {
		return nil
	}
	k.ended = true
	if k.pipe != nil {
		_ = k.pipe.CloseWithError(errors.New("canceled")) // never fails
		<-k.unpacked                                      //nolint:errcheck // the stream was given up
	}
	return os.RemoveAll(k.dir)
}
