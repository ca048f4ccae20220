package raftlog

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/isobar-mesh/isobar/consensus"
	"github.com/isobar-mesh/isobar/consensus/consensustest"
)

func FuzzDecodeEntry(f *testing.F) {
	f.Add([]byte{})
	f.Add(encodeEntry(nil))
	f.Add(encodeEntry([][]byte{[]byte("one"), {}, bytes.Repeat([]byte{1}, 300)}))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		groups, err := decodeEntry(b)
		if err != nil {
			if !errors.Is(err, errCorruptEntry) {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeEntry(encodeEntry(groups))
		if err != nil || len(again) != len(groups) {
			t.Fatalf("encoded again: %d groups, %v", len(again), err)
		}
		size := 1
		for i := range groups {
			size += entrySize(groups[i])
			if !bytes.Equal(groups[i], again[i]) {
				t.Fatalf("group %d differs", i)
			}
		}
		if size != len(encodeEntry(groups)) {
			t.Fatalf("entrySize says %d, it is %d", size, len(encodeEntry(groups)))
		}
	})
}

// tree makes a directory to archive.
func tree(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	for name, content := range map[string][]byte{
		"a": []byte("hello"), "empty": nil, "sub/b": bytes.Repeat([]byte("0123456789"), 1000),
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func archive(t testing.TB, dir string, at consensus.Position) []byte {
	t.Helper()
	files, size, err := listFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(newPacker(dir, at, files))
	if err != nil || int64(len(b)) != size {
		t.Fatalf("archive of %d bytes, announced %d, %v", len(b), size, err)
	}
	return b
}

func TestArchiveRoundTrip(t *testing.T) {
	t.Parallel()
	at := consensus.Position{Index: 7, Term: 3}
	b := archive(t, tree(t), at)
	out := filepath.Join(t.TempDir(), "out")
	got, err := unpack(bytes.NewReader(b), out)
	if err != nil || got != at {
		t.Fatalf("unpacked at %v, %v", got, err)
	}
	if !bytes.Equal(archive(t, out, at), b) {
		t.Error("archived again it differs")
	}
}

func TestDamagedArchiveIsRefused(t *testing.T) {
	t.Parallel()
	good := archive(t, tree(t), consensus.Position{Index: 7, Term: 3})
	dir := t.TempDir()
	try := func(what string, i int, b []byte) {
		out := filepath.Join(dir, "out")
		if _, err := unpack(bytes.NewReader(b), out); err == nil {
			t.Errorf("%s at %d was not found", what, i)
		}
		if err := os.RemoveAll(out); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < len(good); i += 1 + len(good)/100 {
		try("a cut", i, good[:i])
		if i >= len(archiveMagic) && i < len(archiveMagic)+16 {
			continue // the position: checked by the machine once installed
		}
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		try("a flip", i, bad)
	}
	try("a byte too many", len(good), append(bytes.Clone(good), 0))
	for _, name := range []string{"../x", "/etc/x", "a/../../x", "", "."} {
		b := append([]byte(archiveMagic), make([]byte, 16)...)
		b = append(b, 0, 0, 0, 1, 0, byte(len(name)))
		b = append(b, name...)
		b = append(b, make([]byte, 12)...)
		try("the name "+name, 0, b)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, tree(f), consensus.Position{Index: 7, Term: 3}))
	f.Add([]byte(archiveMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		root := t.TempDir()
		_, _ = unpack(bytes.NewReader(b), filepath.Join(root, "out"))
		entries, err := os.ReadDir(root)
		if err != nil || len(entries) > 1 {
			t.Fatalf("wrote outside: %v, %v", entries, err)
		}
	})
}

func TestEntryStoreCountsBytes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *entryStore {
		w, err := wal.Open(dir, wal.WithSegmentSize(64<<10))
		if err != nil {
			t.Fatal(err)
		}
		return newEntryStore(w)
	}
	s := open()
	for i := uint64(1); i <= 100; i++ {
		if err := s.StoreLog(&raft.Log{Index: i, Term: 1, Data: make([]byte, 10<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	const each = 10<<10 + entryOverhead
	if got := s.bytes(); got != 100*each {
		t.Errorf("%d bytes, want %d", got, 100*each)
	}
	if got := s.since(50); got < 50*each || got > 50*each+2*chunkBytes {
		t.Errorf("%d bytes since 50, want about %d", got, 50*each)
	}
	if got := s.trailing(80 * each); got < 70 || got > 80 {
		t.Errorf("%d trailing entries, want about 80", got)
	}
	if got := s.trailing(1); got != minTrailing {
		t.Errorf("%d trailing entries, want %d", got, minTrailing)
	}
	if err := errors.Join(s.DeleteRange(1, 30), s.DeleteRange(91, 100)); err != nil {
		t.Fatal(err)
	}
	if got := s.bytes(); got < 59*each || got > 61*each {
		t.Errorf("%d bytes after trimming both ends, want %d", got, 60*each)
	}
	if err := s.GetLog(30, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("a trimmed entry: got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := open()
	if err := again.load(); err != nil || again.bytes() != 60*each {
		t.Errorf("loaded: %d bytes, want %d, %v", again.bytes(), 60*each, err)
	}
	if !again.IsMonotonic() {
		t.Error("the store must say that it takes no gaps")
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// What is kept of the newest entries is what the disk has: a tail that was dropped
// and written anew is read as it is now.
func TestEntryStoreRemembersTheNewest(t *testing.T) {
	t.Parallel()
	w, err := wal.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := newEntryStore(w)
	defer func() { _ = s.Close() }()
	write := func(from, to, term uint64) {
		t.Helper()
		for i := from; i <= to; i++ {
			size := 10
			if i%50 == 0 {
				size = recentBytes + 1
			}
			if err := s.StoreLog(&raft.Log{Index: i, Term: term, Data: bytes.Repeat([]byte{byte(i), byte(term)}, size)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	const last = 2 * recentEntries
	write(1, last, 1)
	if err := s.DeleteRange(last-99, last); err != nil {
		t.Fatal(err)
	}
	var got, disk raft.Log
	if err := s.GetLog(last-99, &got); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("a dropped entry: %v, %v", got, err)
	}
	write(last-99, last-50, 2)
	memory := 0
	for i := uint64(1); i <= last-50; i++ {
		if s.remembers(i, &got) {
			memory++
		}
		if err := errors.Join(s.GetLog(i, &got), s.WAL.GetLog(i, &disk)); err != nil || got.Index != i || got.Term != disk.Term || !bytes.Equal(got.Data, disk.Data) {
			t.Fatalf("entry %d is %d of term %d, on disk of term %d, %v", i, got.Index, got.Term, disk.Term, err)
		}
	}
	if want := recentEntries - 50 - 5; memory < want || memory > want+2 { // less the dropped and the large
		t.Errorf("%d entries are in memory, want about %d", memory, want)
	}
}

// TestCrashBetweenSnapshotAndTrim is a follower that has received a snapshot
// and not yet dropped its log, which ends before it.
func TestCrashBetweenSnapshotAndTrim(t *testing.T) {
	t.Parallel()
	o := single(t, t.TempDir())
	o.Bootstrap = true
	m := new(consensustest.Ledger)
	l := mustOpen(t, o, m)
	consensustest.AwaitLeader(t, l)
	if _, err := l.Propose(ctxFor(t), []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	ahead := new(consensustest.Ledger)
	ahead.Apply(consensus.Position{Index: 500, Term: 1}, [][]byte{[]byte("one"), []byte("two")})
	dir := filepath.Join(t.TempDir(), "checkpoint")
	at, err := ahead.Checkpoint(dir)
	if err != nil {
		t.Fatal(err)
	}
	store, err := openSnapshotStore(filepath.Join(o.Dir, snapshotDir), 2)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := store.Create(1, 510, 1, raft.Configuration{Servers: []raft.Server{{
		ID: raft.ServerID(o.ServerID), Address: "127.0.0.1:1",
	}}}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, _, err := listFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(sink, newPacker(dir, at, files)); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}

	l = mustOpen(t, o, m)
	consensustest.AwaitLeader(t, l)
	if _, err := l.Propose(ctxFor(t), []byte("three")); err != nil {
		t.Fatal(err)
	}
	if got := bytes.Join(m.Payloads(), []byte(",")); string(got) != "one,two,three" {
		t.Errorf("applied %s", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotStore wants a cancelled or damaged snapshot to leave nothing,
// and one that is read not to be reaped.
func TestSnapshotStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	store, err := openSnapshotStore(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	create := func(index uint64) raft.SnapshotSink {
		sink, err := store.Create(1, index, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		return sink
	}
	good := archive(t, tree(t), consensus.Position{Index: 1, Term: 1})
	write := func(sink raft.SnapshotSink, b []byte) {
		if _, err := sink.Write(b); err != nil {
			t.Fatal(err)
		}
	}

	sink := create(1)
	write(sink, good[:100])
	if err := errors.Join(sink.Cancel(), sink.Cancel(), sink.Close()); err != nil {
		t.Fatal(err)
	}
	sink = create(1)
	write(sink, good[:100])
	if err := sink.Close(); !errors.Is(err, errCorruptArchive) {
		t.Errorf("half an archive: got %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%d left, %v", len(left), err)
	}

	first := create(1)
	write(first, good)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	meta, reader, err := store.Open(first.ID())
	if err != nil {
		t.Fatal(err)
	}
	second := create(2)
	write(second, good)
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(reader)
	if err != nil || int64(len(b)) != meta.Size || !bytes.Equal(b, good) {
		t.Errorf("read %d bytes, want %d, %v", len(b), meta.Size, err)
	}
	if metas, _ := store.List(); len(metas) != 2 || metas[0].Index != 2 {
		t.Errorf("while it is read: %v", metas)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if metas, _ := store.List(); len(metas) != 1 || metas[0].ID != second.ID() {
		t.Errorf("after it was read: %v", metas)
	}
	again, err := openSnapshotStore(dir, 1)
	if err != nil || again.newest().ID != second.ID() || again.newest().Machine.Index != 1 {
		t.Errorf("opened again: %+v, %v", again.newest(), err)
	}
}
