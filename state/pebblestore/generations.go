package pebblestore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	currentFile      = "current"
	generationPrefix = "gen-"
)

func generationName(n uint64) string { return fmt.Sprintf("%s%08d", generationPrefix, n) }

func generationNumber(name string) (uint64, error) {
	digits, ok := strings.CutPrefix(name, generationPrefix)
	if !ok {
		return 0, fmt.Errorf("%q is not a generation", name)
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a generation: %w", name, err)
	}
	return n, nil
}

// readCurrent returns the generation in use, or "" for a new directory.
func readCurrent(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, currentFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	name := strings.TrimSpace(string(b))
	if _, err := generationNumber(name); err != nil {
		return "", fmt.Errorf("read %s: %w", currentFile, err)
	}
	return name, nil
}

// writeCurrent points at the generation, atomically and durably.
func writeCurrent(dir, name string) error {
	tmp := filepath.Join(dir, currentFile+".tmp")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(name + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, currentFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// removeOthers removes every generation but the one in use: what is left of an
// install, before or after its switch.
func removeOthers(dir, current string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != current && (strings.HasPrefix(e.Name(), generationPrefix) || e.Name() == currentFile+".tmp") {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// linkTree fills a new directory with the files of from, one level deep.
// Tables never change and are hard-linked; the rest, which Pebble may append
// to, is copied.
func linkTree(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s in a checkpoint is not a file", e.Name())
		}
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if ext := filepath.Ext(e.Name()); ext == ".sst" || ext == ".blob" {
			if os.Link(src, dst) == nil {
				continue
			}
		}
		if err := copyFile(src, dst); err != nil {
			return err
		}
	}
	return syncDir(to)
}

func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // opened for reading
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
