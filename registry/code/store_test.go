package code_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/isobar-mesh/isobar/registry/code"
	"github.com/isobar-mesh/isobar/registry/digest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var module = bytes.Repeat([]byte("a module of some length "), 1000)

func newStore(t *testing.T, o code.Options) (*code.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "code")
	s, err := code.New(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, dir
}

// sources are tried in order; calls counts the fetches of all.
func sources(calls *atomic.Int32, fetch ...code.Fetcher) func() []code.Source {
	var out []code.Source
	for i, f := range fetch {
		out = append(out, code.Source{Name: fmt.Sprint("peer-", i), Fetch: func(ctx context.Context, d string) (io.ReadCloser, error) {
			calls.Add(1)
			return f(ctx, d)
		}})
	}
	return func() []code.Source { return out }
}

func serve(b []byte) code.Fetcher {
	return func(context.Context, string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

func serveReader(r io.Reader) code.Fetcher {
	return func(context.Context, string) (io.ReadCloser, error) { return io.NopCloser(r), nil }
}

func refuse(context.Context, string) (io.ReadCloser, error) {
	return nil, errors.New("peer is away")
}

func fileOf(dir, d string) string { return filepath.Join(dir, strings.TrimPrefix(d, digest.Prefix)) }

func wantFiles(t *testing.T, dir string, want int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != want {
		t.Errorf("the directory has %v, error %v, want %d files", entries, err, want)
	}
}

func TestPutAndRead(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t, code.Options{})
	d, err := s.Put(bytes.NewReader(module))
	if err != nil || d != digest.Of(module) {
		t.Fatalf("Put gives %s, error %v", d, err)
	}
	if again, err := s.Put(bytes.NewReader(module)); err != nil || again != d {
		t.Errorf("Put again gives %s, error %v", again, err)
	}
	if !s.Has(d) || s.Has(digest.Of(nil)) || s.Has("nonsense") {
		t.Error("Has is wrong")
	}
	for range 2 {
		f, err := s.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, module) {
			t.Errorf("read %d bytes, error %v", len(got), err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	wantFiles(t, dir, 1)

	// Another store on the directory has it, too.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = code.New(dir, code.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, err := s.Read(t.Context(), d); err != nil || !bytes.Equal(got, module) {
		t.Errorf("after a start: %d bytes, error %v", len(got), err)
	}
	if all, err := s.List(); err != nil || !slices.Equal(all, []string{d}) {
		t.Errorf("List is %v, error %v", all, err)
	}
}

func TestRefusedWrites(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t, code.Options{MaxBytes: int64(len(module))})
	broken := errors.New("broken pipe")
	tests := []struct {
		name string
		put  func() error
		want error
	}{
		{"too large", func() error {
			_, err := s.Put(io.MultiReader(bytes.NewReader(module), strings.NewReader("x")))
			return err
		}, code.ErrTooLarge},
		{"other bytes", func() error { return s.PutAs(digest.Of(module), strings.NewReader("x")) }, code.ErrWrongBytes},
		{"cut", func() error { return s.PutAs(digest.Of(module), bytes.NewReader(module[1:])) }, code.ErrWrongBytes},
		{"not a digest", func() error { return s.PutAs("../../etc/passwd", strings.NewReader("x")) }, digest.ErrMalformed},
		{"failing reader", func() error {
			_, err := s.Put(io.MultiReader(strings.NewReader("x"), iotest.ErrReader(broken)))
			return err
		}, broken},
	}
	for _, tt := range tests {
		if err := tt.put(); !errors.Is(err, tt.want) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
	}
	wantFiles(t, dir, 0)
	if err := s.PutAs(digest.Of(module), bytes.NewReader(module)); err != nil {
		t.Errorf("the largest module: %v", err)
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	s, _ := newStore(t, code.Options{Sources: sources(&calls, refuse, refuse)})
	d := digest.Of(module)
	_, err := s.Read(t.Context(), d)
	if !errors.Is(err, code.ErrMissing) || !strings.Contains(err.Error(), "from peer-1: peer is away") {
		t.Errorf("error %v, want ErrMissing with what each said", err)
	}
	if calls.Load() != 2 {
		t.Errorf("%d fetches, want 2", calls.Load())
	}
	if err := s.Verify(d); !errors.Is(err, code.ErrMissing) {
		t.Errorf("Verify has error %v, want ErrMissing", err)
	}
	if _, err := s.Open(t.Context(), "../x"); !errors.Is(err, digest.ErrMalformed) {
		t.Errorf("Open of a path has error %v", err)
	}
	alone, _ := newStore(t, code.Options{})
	if _, err := alone.Open(t.Context(), d); !errors.Is(err, code.ErrMissing) {
		t.Errorf("without sources: error %v, want ErrMissing", err)
	}
}

// Garbage is refused and the next source is tried; nothing of it stays.
func TestFetchPastBadSources(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	s, dir := newStore(t, code.Options{MaxBytes: int64(len(module)), Sources: sources(&calls,
		refuse,
		serve([]byte("garbage")),
		serve(nil),
		serve(module[:len(module)-1]), // ends early and says nothing
		serveReader(io.MultiReader(bytes.NewReader(module[:100]), iotest.ErrReader(io.ErrUnexpectedEOF))), // breaks off
		serveReader(io.MultiReader(bytes.NewReader(module), neverending{})),
		serve(module),
		refuse,
	)})
	got, err := s.Read(t.Context(), digest.Of(module))
	if err != nil || !bytes.Equal(got, module) {
		t.Fatalf("read %d bytes, error %v", len(got), err)
	}
	if calls.Load() != 7 {
		t.Errorf("%d fetches, want 7", calls.Load())
	}
	if err := s.Ensure(t.Context(), digest.Of(module)); err != nil || calls.Load() != 7 {
		t.Errorf("a second time: %d fetches, error %v", calls.Load(), err)
	}
	wantFiles(t, dir, 1)
}

type neverending struct{}

func (neverending) Read(p []byte) (int, error) { return len(p), nil }

func TestDamageIsRepaired(t *testing.T) {
	t.Parallel()
	flipped := bytes.Clone(module)
	flipped[5000] ^= 1
	for name, damaged := range map[string][]byte{
		"flipped": flipped, "cut": module[:10], "empty": nil, "longer": append(bytes.Clone(module), 'x'),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			s, dir := newStore(t, code.Options{Sources: sources(&calls, serve(module))})
			d, err := s.Put(bytes.NewReader(module))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Ensure(t.Context(), d); err != nil { // checked once
				t.Fatal(err)
			}
			if err := os.WriteFile(fileOf(dir, d), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			// Make sure that the time of change differs, on any file system.
			then := time.Now().Add(-time.Hour)
			if err := os.Chtimes(fileOf(dir, d), then, then); err != nil {
				t.Fatal(err)
			}
			got, err := s.Read(t.Context(), d)
			if err != nil || !bytes.Equal(got, module) {
				t.Errorf("read %d bytes, error %v", len(got), err)
			}
			if calls.Load() != 1 {
				t.Errorf("%d fetches, want 1", calls.Load())
			}
		})
	}
}

// Damage that leaves size and time as they were is found by Verify, and at the
// next start.
func TestSilentDamage(t *testing.T) {
	t.Parallel()
	flipped := bytes.Clone(module)
	flipped[5000] ^= 1
	d := digest.Of(module)
	damage := func(t *testing.T, dir string) {
		t.Helper()
		info, err := os.Stat(fileOf(dir, d))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fileOf(dir, d), flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(fileOf(dir, d), info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("verify", func(t *testing.T) {
		t.Parallel()
		s, dir := newStore(t, code.Options{})
		if err := s.PutAs(d, bytes.NewReader(module)); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(d); err != nil {
			t.Fatal(err)
		}
		damage(t, dir)
		if err := s.Verify(d); !errors.Is(err, code.ErrDamaged) {
			t.Errorf("Verify has error %v, want ErrDamaged", err)
		}
		if s.Has(d) {
			t.Error("the damaged file is still there")
		}
	})
	t.Run("start", func(t *testing.T) {
		t.Parallel()
		s, dir := newStore(t, code.Options{})
		if err := s.PutAs(d, bytes.NewReader(module)); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		damage(t, dir)
		if err := os.WriteFile(filepath.Join(dir, "tmp-123"), []byte("left by a crash"), 0o600); err != nil {
			t.Fatal(err)
		}
		var calls atomic.Int32
		s, err := code.New(dir, code.Options{Sources: sources(&calls, serve(module))})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if got, err := s.Read(t.Context(), d); err != nil || !bytes.Equal(got, module) || calls.Load() != 1 {
			t.Errorf("read %d bytes after %d fetches, error %v", len(got), calls.Load(), err)
		}
		wantFiles(t, dir, 1)
	})
}

func TestConcurrentMissesFetchOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		gate := make(chan struct{})
		s, _ := newStore(t, code.Options{Sources: sources(&calls, func(context.Context, string) (io.ReadCloser, error) {
			<-gate
			return io.NopCloser(bytes.NewReader(module)), nil
		})})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if got, err := s.Read(t.Context(), digest.Of(module)); err != nil || !bytes.Equal(got, module) {
					t.Errorf("read %d bytes, error %v", len(got), err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		wg.Wait()
		if calls.Load() != 1 {
			t.Errorf("%d fetches, want 1", calls.Load())
		}
	})
}

// Who gives up does not end the fetch for those who wait; the last one does,
// and who comes after it starts another.
func TestGivingUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		var gone atomic.Bool
		s, _ := newStore(t, code.Options{Sources: sources(&calls, func(ctx context.Context, _ string) (io.ReadCloser, error) {
			if calls.Load() > 1 {
				return io.NopCloser(bytes.NewReader(module)), nil
			}
			<-ctx.Done()
			gone.Store(true)
			return nil, ctx.Err()
		})})
		d := digest.Of(module)
		results := make(chan error, 2)
		first, giveUpFirst := context.WithCancel(t.Context())
		second, giveUpSecond := context.WithCancel(t.Context())
		defer giveUpSecond()
		go func() { results <- s.Ensure(first, d) }()
		synctest.Wait()
		go func() { results <- s.Ensure(second, d) }()
		synctest.Wait()

		giveUpFirst()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("the first has error %v, want context.Canceled", err)
		}
		synctest.Wait()
		if gone.Load() {
			t.Error("the fetch ended with its first caller")
		}
		giveUpSecond()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("the second has error %v, want context.Canceled", err)
		}
		synctest.Wait()
		if !gone.Load() {
			t.Error("the fetch goes on for nobody")
		}
		if err := s.Ensure(t.Context(), d); err != nil || calls.Load() != 2 {
			t.Errorf("a later caller: %d fetches, error %v", calls.Load(), err)
		}
	})
}

// A source that hangs costs its time-out, and the next one is tried.
func TestHangingSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		hang := func(ctx context.Context, _ string) (io.ReadCloser, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		s, _ := newStore(t, code.Options{FetchTimeout: 10 * time.Second, Sources: sources(&calls, hang, serve(module))})
		begin := time.Now()
		if err := s.Ensure(t.Context(), digest.Of(module)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("took %s, want 10s", took)
		}
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		s, _ := newStore(t, code.Options{Sources: sources(&calls, func(ctx context.Context, _ string) (io.ReadCloser, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, serve(module))})
		d := digest.Of(module)
		result := make(chan error)
		go func() { result <- s.Ensure(t.Context(), d) }()
		synctest.Wait()
		go s.Close()
		if err := <-result; !errors.Is(err, code.ErrClosed) {
			t.Errorf("a fetch under way has error %v, want ErrClosed", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if err := s.Ensure(t.Context(), d); !errors.Is(err, code.ErrClosed) {
			t.Errorf("after Close: error %v, want ErrClosed", err)
		}
		if _, err := s.Put(bytes.NewReader(module)); !errors.Is(err, code.ErrClosed) {
			t.Errorf("Put after Close: error %v, want ErrClosed", err)
		}
	})
}

func TestKeep(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t, code.Options{})
	var all []string
	for i := range 5 {
		d, err := s.Put(strings.NewReader(fmt.Sprint("module ", i)))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	cut := time.Now().Add(-time.Minute)
	old := cut.Add(-time.Hour)
	for _, d := range append(all[:3:3], all[4]) {
		if err := os.Chtimes(fileOf(dir, d), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put(strings.NewReader("module 2")); err != nil { // new again
		t.Fatal(err)
	}
	if !s.Renew(all[4]) || s.Renew(digest.Of(nil)) {
		t.Error("Renew is wrong")
	}
	open, err := s.Open(t.Context(), all[1])
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	n, err := s.Keep(map[string]struct{}{all[0]: {}}, cut)
	if err != nil || n != 1 {
		t.Errorf("removed %d, error %v, want 1", n, err)
	}
	for i, want := range []bool{true, false, true, true, true} {
		if s.Has(all[i]) != want {
			t.Errorf("module %d is there: %v, want %v", i, !want, want)
		}
	}
	if b, err := io.ReadAll(open); err != nil || string(b) != "module 1" {
		t.Errorf("the open module reads %q, error %v", b, err)
	}
	if n, err := s.Keep(nil, time.Now().Add(time.Hour)); err != nil || n != 4 {
		t.Errorf("removed %d, error %v, want 4", n, err)
	}
	wantFiles(t, dir, 0)
}
