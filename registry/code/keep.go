package code

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/isobar-mesh/isobar/registry/digest"
)

// List returns the digests of all modules here, sorted.
func (s *Store) List() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("code: list modules: %w", err)
	}
	var out []string
	for _, e := range entries {
		if d := digest.Prefix + e.Name(); digest.Valid(d) {
			out = append(out, d)
		}
	}
	return out, nil
}

// Keep removes every module that is not in the set and was stored before the
// given time, and says how many. The time protects what was stored for a
// version that is not committed yet. A module that is open stays readable.
func (s *Store) Keep(set map[string]struct{}, before time.Time) (removed int, err error) {
	all, err := s.List()
	if err != nil {
		return 0, err
	}
	for _, d := range all {
		if _, ok := set[d]; ok {
			continue
		}
		gone, err := s.removeOlder(d, before)
		if err != nil {
			return removed, fmt.Errorf("code: remove %s: %w", d, err)
		}
		if gone {
			removed++
		}
	}
	return removed, nil
}

func (s *Store) removeOlder(d string, before time.Time) (gone bool, err error) {
	path, err := s.path(d)
	if err != nil {
		return false, err
	}
	s.files.Lock()
	defer s.files.Unlock()
	info, err := os.Stat(path)
	if err != nil || !info.ModTime().Before(before) {
		return false, ignoreMissing(err)
	}
	s.forget(d)
	return true, ignoreMissing(os.Remove(path))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
