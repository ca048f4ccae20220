package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Version of Apache Pulsar that is fetched.
const Version = "4.0.8"

// ErrMissing: the distribution was not fetched to this machine.
var ErrMissing = errors.New("no Apache Pulsar here; run `make pulsar`")

// Distribution is an unpacked Apache Pulsar.
type Distribution struct {
	home  string // of the program
	cache string // where the distribution and its own standalone are kept
}

// Cache is the directory of all that this package keeps:
// $XDG_CACHE_HOME/isobar/pulsar, by default ~/.cache/isobar/pulsar.
func Cache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("standalone: find the cache directory: %w", err)
	}
	return filepath.Join(dir, "isobar", "pulsar"), nil
}

// Find returns the distribution that was fetched before, or ErrMissing.
func Find() (*Distribution, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	d := &Distribution{home: filepath.Join(cache, "apache-pulsar-"+Version), cache: cache}
	if _, err := os.Stat(filepath.Join(d.home, "bin", "pulsar")); err != nil {
		return nil, fmt.Errorf("standalone: find Apache Pulsar %s: %w", Version, ErrMissing)
	}
	return d, nil
}

// Tool is the path of one of the distribution's own programs, such as
// "pulsar-client".
func (d *Distribution) Tool(name string) string { return filepath.Join(d.home, "bin", name) }

// Fetch returns the distribution, and downloads (245 MB) and unpacks it first if
// it is not here. It needs Maven and tar. Several processes may call it at once:
// one does the work. Progress is written to out.
func Fetch(ctx context.Context, out io.Writer) (*Distribution, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, fmt.Errorf("standalone: fetch: %w", err)
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if d, err := Find(); err == nil {
		return d, nil
	}
	if err := need("mvn", "tar", "java"); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return nil, fmt.Errorf("standalone: fetch: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }() // what is left over costs room only
	if err := download(ctx, work, out); err != nil {
		return nil, err
	}
	// Renamed when whole, so that a fetch that was cut short leaves nothing that
	// looks like a distribution.
	name := "apache-pulsar-" + Version
	if err := os.Rename(filepath.Join(work, name), filepath.Join(cache, name)); err != nil {
		return nil, fmt.Errorf("standalone: fetch: %w", err)
	}
	return Find()
}

func download(ctx context.Context, work string, out io.Writer) error {
	_, _ = fmt.Fprintf(out, "==> fetching Apache Pulsar %s with Maven (245 MB)\n", Version)
	mvn := exec.CommandContext(ctx, "mvn", "-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy",
		"-Dartifact=org.apache.pulsar:pulsar-server-distribution:"+Version+":tar.gz:bin", "-DoutputDirectory="+work)
	mvn.Dir, mvn.Stdout, mvn.Stderr = work, out, out
	if err := mvn.Run(); err != nil {
		return fmt.Errorf("standalone: fetch with Maven: %w", err)
	}
	archive := filepath.Join(work, "pulsar-server-distribution-"+Version+"-bin.tar.gz")
	tar := exec.CommandContext(ctx, "tar", "xzf", archive, "-C", work)
	tar.Stdout, tar.Stderr = out, out
	if err := tar.Run(); err != nil {
		return fmt.Errorf("standalone: unpack %s: %w", archive, err)
	}
	return nil
}

// need checks that programs are installed.
func need(programs ...string) error {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("standalone: %s is not installed: a JDK of version 17 or later and Maven are needed: %w", p, err)
		}
	}
	return nil
}

// lock holds a file's lock until unlock is called or the process ends.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("standalone: lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("standalone: lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil // nothing was written
}
