package worker

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	"github.com/isobar-mesh/isobar/registry/code"
	"github.com/isobar-mesh/isobar/registry/digest"
	"github.com/isobar-mesh/isobar/worker/attempt"
)

// library is a cell that gives the same bytes for each digest.
type library struct {
	server
	asked atomic.Int64
}

func newLibrary(books map[string][]byte) *library {
	l := &library{}
	l.code = func(d string, send func([]byte) error) error {
		l.asked.Add(1)
		b, ok := books[d]
		if !ok {
			return connect.NewError(connect.CodeNotFound, "no such code")
		}
		for len(b) > 0 {
			n := min(len(b), 1000)
			if err := send(b[:n]); err != nil {
				return err
			}
			b = b[n:]
		}
		return nil
	}
	return l
}

func newCode(t *testing.T, dir string, libraries map[string]*library, change func(*CodeOptions)) *Code {
	t.Helper()
	opts := CodeOptions{Dir: dir, Transport: func(a string) connect.Transport {
		if l := libraries[a]; l != nil {
			return connectinprocess.New(l.connect())
		}
		return deadEnd{}
	}}
	for _, a := range []string{"http://a", "http://b", "http://c"} {
		if libraries[a] != nil || a == "http://a" {
			opts.Addresses = append(opts.Addresses, a)
		}
	}
	if change != nil {
		change(&opts)
	}
	c, err := NewCode(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestCodeIsFetchedOnceAndKept(t *testing.T) {
	t.Parallel()
	module := bytes.Repeat([]byte("code"), 5000)
	lib := newLibrary(map[string][]byte{digest.Of(module): module})
	dir := filepath.Join(t.TempDir(), "new")
	c := newCode(t, dir, map[string]*library{"http://a": lib}, nil)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if b, err := c.Open(t.Context(), digest.Of(module)); err != nil || !bytes.Equal(b, module) {
				t.Errorf("open: %d bytes, %v", len(b), err)
			}
		})
	}
	all.Wait()
	// Another process finds it on disk, without any server.
	again := newCode(t, dir, nil, nil)
	if b, err := again.Open(t.Context(), digest.Of(module)); err != nil || !bytes.Equal(b, module) {
		t.Errorf("open again: %d bytes, %v", len(b), err)
	}
	if n := lib.asked.Load(); n < 1 || n > 8 {
		t.Errorf("asked %d times", n)
	}
}

func TestDamagedCodeIsRepaired(t *testing.T) {
	t.Parallel()
	module := []byte("the module")
	lib := newLibrary(map[string][]byte{digest.Of(module): module})
	dir := t.TempDir()
	c := newCode(t, dir, map[string]*library{"http://a": lib}, nil)
	path := filepath.Join(dir, strings.TrimPrefix(digest.Of(module), "sha256:"))
	for _, damage := range []string{"the modulf", "", "the module and more"} {
		if err := os.WriteFile(path, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := c.Open(t.Context(), digest.Of(module)); err != nil || !bytes.Equal(b, module) {
			t.Errorf("open after %q: %q, %v", damage, b, err)
		}
		if b, _ := os.ReadFile(path); !bytes.Equal(b, module) {
			t.Errorf("on disk after %q: %q", damage, b)
		}
	}
	if n := lib.asked.Load(); n != 3 {
		t.Errorf("asked %d times", n)
	}
}

func TestCodeFromAServerThatHasIt(t *testing.T) {
	t.Parallel()
	module := []byte("the module")
	c := newCode(t, t.TempDir(), map[string]*library{
		// a is down, b lies, c has it.
		"http://b": newLibrary(map[string][]byte{digest.Of(module): []byte("another")}),
		"http://c": newLibrary(map[string][]byte{digest.Of(module): module}),
	}, nil)
	if b, err := c.Open(t.Context(), digest.Of(module)); err != nil || !bytes.Equal(b, module) {
		t.Errorf("open: %q, %v", b, err)
	}
	_, err := c.Open(t.Context(), digest.Of([]byte("unknown")))
	if !errors.Is(err, code.ErrMissing) || !strings.Contains(err.Error(), "http://b") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("open unknown: %v", err)
	}
}

func TestCodeBoundsAndDigests(t *testing.T) {
	t.Parallel()
	lib := newLibrary(nil)
	dir := t.TempDir()
	c := newCode(t, dir, map[string]*library{"http://a": lib}, nil)
	good := digest.Of([]byte("x"))
	for _, d := range []string{
		"", "sha256:", "x", good[7:], strings.ToUpper(good[:7]) + good[7:], "sha256:" + strings.ToUpper(good[7:]),
		good[:len(good)-1], good + "0", "sha256:../../../../etc/passwd", "md5:" + good[7:],
	} {
		if _, err := c.Open(t.Context(), d); !errors.Is(err, digest.ErrMalformed) {
			t.Errorf("open %q: %v", d, err)
		}
	}
	if n := lib.asked.Load(); n != 0 {
		t.Errorf("asked %d times for what is no digest", n)
	}
	// A server without end is cut off.
	lib.code = func(_ string, send func([]byte) error) error {
		chunk := make([]byte, 4<<20)
		for {
			if err := send(chunk); err != nil {
				return err
			}
		}
	}
	if _, err := c.Open(t.Context(), good); !errors.Is(err, code.ErrMissing) || !strings.Contains(err.Error(), "too large") {
		t.Errorf("open endless: %v", err)
	}
	// A caller that gives up does not wait for the fetch.
	hang := make(chan struct{})
	lib.code = func(string, func([]byte) error) error { <-hang; return nil }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Open(ctx, good); !errors.Is(err, context.Canceled) {
		t.Errorf("open cancelled: %v", err)
	}
	close(hang)
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("%d files were kept", len(entries))
	}
}

func TestCodeUsedLongestAgoGoesFirst(t *testing.T) {
	t.Parallel()
	books := map[string][]byte{}
	var modules [][]byte
	for i := range 4 {
		m := bytes.Repeat([]byte{byte(i)}, 100)
		modules = append(modules, m)
		books[digest.Of(m)] = m
	}
	dir := t.TempDir()
	c := newCode(t, dir, map[string]*library{"http://a": newLibrary(books)}, func(o *CodeOptions) { o.MaxBytes = 250 })
	has := func(i int) bool {
		_, err := os.Stat(filepath.Join(dir, digest.Of(modules[i])[7:]))
		return err == nil
	}
	age := func(i int, by time.Duration) {
		at := time.Now().Add(-by)
		if err := os.Chtimes(filepath.Join(dir, digest.Of(modules[i])[7:]), at, at); err != nil {
			t.Fatal(err)
		}
	}
	open := func(i int) {
		if _, err := c.Open(t.Context(), digest.Of(modules[i])); err != nil {
			t.Fatal(err)
		}
	}
	open(0)
	age(0, 3*time.Hour)
	open(1)
	age(1, 2*time.Hour)
	open(0) // used again: now 1 is the oldest
	age(0, time.Hour)
	open(2)
	if !has(0) || has(1) || !has(2) {
		t.Errorf("kept: %v %v %v", has(0), has(1), has(2))
	}
	open(1) // and back again
	if has(0) || !has(1) || !has(2) {
		t.Errorf("kept: %v %v %v", has(0), has(1), has(2))
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	good := func() Options {
		r := Options{Name: "w", Addresses: []string{"127.0.0.1:7101"}}
		r.Capacity.CPUMilli, r.Capacity.MemoryMiB = 1, 1
		r.Runtimes = map[attempt.Kind]attempt.Runtime{attempt.Exec: newScript()}
		return r
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Options){
		"no name":       func(o *Options) { o.Name = "" },
		"no address":    func(o *Options) { o.Addresses = nil },
		"bad address":   func(o *Options) { o.Addresses = []string{"ftp://x"} },
		"worse address": func(o *Options) { o.Addresses = []string{"http://a b"} },
		"no runtime":    func(o *Options) { o.Runtimes = nil },
		"no CPU":        func(o *Options) { o.Capacity.CPUMilli = 0 },
		"no memory":     func(o *Options) { o.Capacity.MemoryMiB = -1 },
	} {
		o := good()
		spoil(&o)
		if _, err := New(o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewCode(CodeOptions{Addresses: []string{"a"}}); !errors.Is(err, ErrOptions) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := NewCode(CodeOptions{Dir: t.TempDir()}); !errors.Is(err, ErrOptions) {
		t.Errorf("no address: %v", err)
	}
}
