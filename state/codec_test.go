package state_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/isobar-mesh/isobar/state"
)

func FuzzDecodeGroup(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1})
	f.Add(state.EncodeGroup([]state.Command{{Machine: 's', Body: []byte("one")}, {Machine: 'b'}}))
	f.Add([]byte{1, 's', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{1, 's', 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		commands, err := state.DecodeGroup(b)
		if err != nil {
			if !errors.Is(err, state.ErrCorruptGroup) || commands != nil {
				t.Fatalf("got %v and %d commands", err, len(commands))
			}
			return
		}
		again := state.EncodeGroup(commands)
		twice, err := state.DecodeGroup(again)
		if err != nil || len(twice) != len(commands) || len(again) > len(b) {
			t.Fatalf("encoded again: %d commands, %v", len(twice), err)
		}
		for i := range commands {
			if commands[i].Machine != twice[i].Machine || !bytes.Equal(commands[i].Body, twice[i].Body) {
				t.Fatalf("command %d differs", i)
			}
		}
	})
}

func TestGroupRoundTrip(t *testing.T) {
	t.Parallel()
	want := []state.Command{{Machine: 's', Body: bytes.Repeat([]byte("x"), 300)}, {Machine: 'b', Body: []byte{}}, {Machine: 'r', Body: []byte{0}}}
	b := state.EncodeGroup(want)
	got, err := state.DecodeGroup(b)
	if err != nil || len(got) != 3 {
		t.Fatalf("got %d commands, %v", len(got), err)
	}
	for i := range want {
		if got[i].Machine != want[i].Machine || !bytes.Equal(got[i].Body, want[i].Body) {
			t.Errorf("command %d is %v", i, got[i])
		}
	}
	// A group cut between two commands is a shorter group; the entry's own
	// lengths guard against that. Any other cut is found.
	for cut := range b {
		if _, err := state.DecodeGroup(b[:cut]); err == nil && cut != 1 && cut != 304 && cut != 306 {
			t.Errorf("cut at %d was not found", cut)
		}
	}
}

// TestDamagedMemoryCheckpoint flips every byte of one.
func TestDamagedMemoryCheckpoint(t *testing.T) {
	t.Parallel()
	m := state.NewMemory()
	if err := m.Commit([]state.Write{{Key: []byte("k1"), Value: []byte("v1")}, {Key: []byte("k2"), Value: nil}}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "c")
	if err := m.Checkpoint(dir); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	path := filepath.Join(dir, files[0].Name())
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x41
		for _, b := range [][]byte{bad, good[:i]} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			target := state.NewMemory()
			if err := target.Install(dir); !errors.Is(err, state.ErrCorruptCheckpoint) || target.Len() != 0 {
				t.Fatalf("damage at %d: got %v, %d keys", i, err, target.Len())
			}
		}
	}
}

func TestMemoryClone(t *testing.T) {
	t.Parallel()
	m := state.NewMemory()
	set := func(m *state.Memory, v string) {
		if err := m.Commit([]state.Write{{Key: []byte("k"), Value: []byte(v)}}); err != nil {
			t.Fatal(err)
		}
	}
	set(m, "1")
	c := m.Clone()
	set(m, "2")
	if v, _ := c.Get([]byte("k")); string(v) != "1" {
		t.Errorf("the clone changed to %s", v)
	}
	set(c, "3")
	if v, _ := m.Get([]byte("k")); string(v) != "2" {
		t.Errorf("the original changed to %s", v)
	}
}
