package raftlog

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Options of a server. Dir, ServerID and Bind are required.
type Options struct {
	// Dir holds the server's id, log and snapshots. It should be on the file
	// system of the machine's data, so that snapshots are hard links. One
	// process at a time may use it.
	Dir string
	// ServerID is the server's UUID, from LoadServerID(Dir). It must never be
	// used with another directory: an empty directory is a new server.
	ServerID string

	// Bind is the host:port to listen on, port 0 for any. Without TLS only a
	// loopback host is accepted.
	Bind string
	// Advertise is the host:port that the other servers dial. Default: the
	// address listened on, which must then be a specific one.
	Advertise string
	// TLS, when set, is used for both directions: Certificates, RootCAs and
	// ClientCAs (default RootCAs) are taken from it, the rest is ours: TLS 1.3,
	// and both sides prove themselves. Nil: plain TCP on loopback, for tests.
	TLS *tls.Config
	// VerifyPeer, when set, decides about a peer after its chain was verified,
	// in both directions: a cell accepts its own servers only, by what their
	// certificates say. It replaces the check of the host name, which says
	// nothing of a cell. It is called from many goroutines.
	VerifyPeer func(leaf *x509.Certificate) error
	// Dial, when set, opens the TCP connection to a peer, for emulated
	// networks. Default: net.Dialer.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// Bootstrap makes a new cell of this one server, if Dir is new; a server
	// with any state ignores it. Exactly one server of a cell may have it set
	// when Dir is new: the others Join.
	Bootstrap bool
	// MayBootstrap, when set, is asked before a new cell is made; its error
	// ends Open and makes none. A cell that lives elsewhere must not be made
	// again by a server whose directory was emptied.
	MayBootstrap func() error

	// HeartbeatTimeout is how long a follower waits for the leader before it
	// asks for an election; actual waits are drawn from one to two times it.
	// Default 1 s: within a region a round trip takes milliseconds, but an
	// fsync on a shared disk, or a process on a busy two-core machine, stalls
	// for hundreds; 300 ms was seen to elect for nothing. A killed leader is
	// replaced after one to two of it and a vote. At least 50 ms.
	HeartbeatTimeout time.Duration
	// ElectionTimeout is how long a candidate waits for votes; drawn alike.
	// Default HeartbeatTimeout; at least that.
	ElectionTimeout time.Duration
	// LeaderLease is how long a leader that hears no majority stays one.
	// Nothing is safe because of it (Verify asks the majority), so it need not
	// be short; a short one deposes leaders for a stall. Default
	// HeartbeatTimeout; at most that.
	LeaderLease time.Duration
	// TransportTimeout bounds one exchange of the raft port, and per 256 KiB
	// the sending of a snapshot. Default 10 s.
	TransportTimeout time.Duration

	// InFlight is how many entries may be proposed and not yet applied; while
	// that many are, groups gather for the next. Default 4, from 1 to 64: one
	// would let the disk wait for the peers, many make small entries.
	InFlight int
	// SnapshotBytes of log since the last snapshot start the next. Default
	// 64 MiB. It bounds what a start applies again, and with TrailingBytes
	// the log's size.
	SnapshotBytes int64
	// TrailingBytes of log are kept behind a snapshot, at least 64 entries, so
	// that a follower a little behind is not sent a whole one. Default 16 MiB.
	TrailingBytes int64
	// KeepSnapshots is how many are kept. Default 2, at least 1.
	KeepSnapshots int
	// SegmentBytes is the size of a file of the log; it is preallocated, and
	// the log shrinks by whole files. Default 16 MiB; from 64 KiB to 1 GiB.
	SegmentBytes int

	// Logger gets what raft says and what the log decides. Default: none.
	Logger *slog.Logger
}

// ErrOptions: an option is missing or out of its range.
var ErrOptions = errors.New("bad options")

// The parts of Options.Dir.
const (
	serverIDFile = "server-id"
	logDir       = "log"
	snapshotDir  = "snapshots"
	tmpDir       = "tmp"
)

// maxAppendEntries bounds one append to a follower: 16 MiB of full entries.
const maxAppendEntries = 32

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// complete fills in the defaults and checks the ranges.
func (o *Options) complete() error {
	setDefault(&o.HeartbeatTimeout, time.Second)
	setDefault(&o.ElectionTimeout, o.HeartbeatTimeout)
	setDefault(&o.LeaderLease, o.HeartbeatTimeout)
	setDefault(&o.TransportTimeout, 10*time.Second)
	setDefault(&o.InFlight, 4)
	setDefault(&o.SnapshotBytes, 64<<20)
	setDefault(&o.TrailingBytes, 16<<20)
	setDefault(&o.KeepSnapshots, 2)
	setDefault(&o.SegmentBytes, 16<<20)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		var d net.Dialer
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", address)
		}
	}
	for _, check := range []struct {
		ok   bool
		name string
	}{
		{o.Dir != "", "Dir"},
		{o.ServerID != "", "ServerID"},
		{o.Bind != "", "Bind"},
		{o.HeartbeatTimeout >= 50*time.Millisecond, "HeartbeatTimeout"},
		{o.ElectionTimeout >= o.HeartbeatTimeout, "ElectionTimeout"},
		{o.LeaderLease > 0 && o.LeaderLease <= o.HeartbeatTimeout, "LeaderLease"},
		{o.TransportTimeout > 0, "TransportTimeout"},
		{o.InFlight >= 1 && o.InFlight <= 64, "InFlight"},
		{o.SnapshotBytes > 0, "SnapshotBytes"},
		{o.TrailingBytes > 0, "TrailingBytes"},
		{o.KeepSnapshots >= 1, "KeepSnapshots"},
		{o.SegmentBytes >= 64<<10 && o.SegmentBytes <= 1<<30, "SegmentBytes"},
	} {
		if !check.ok {
			return fmt.Errorf("%s is missing or out of range: %w", check.name, ErrOptions)
		}
	}
	if o.TLS == nil && !isLoopback(o.Bind) {
		return fmt.Errorf("bind %s without TLS: only loopback may be plain: %w", o.Bind, ErrOptions)
	}
	return nil
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// LoadServerID returns the id of the server kept in dir. For a directory
// without one it makes dir, mints a UUID and keeps it, durably.
func LoadServerID(dir string) (string, error) {
	path := filepath.Join(dir, serverIDFile)
	b, err := os.ReadFile(path)
	if err == nil {
		id, err := uuid.Parse(strings.TrimSpace(string(b)))
		if err != nil {
			return "", fmt.Errorf("raftlog: read server id %s: %w", path, err)
		}
		return id.String(), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("raftlog: read server id: %w", err)
	}
	id, err := uuid.NewRandom()
	if err != nil {
		return "", fmt.Errorf("raftlog: mint server id: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("raftlog: keep server id: %w", err)
	}
	if err := writeFile(path, []byte(id.String()+"\n")); err != nil {
		return "", fmt.Errorf("raftlog: keep server id: %w", err)
	}
	// dir itself must outlive a power cut too, and the data directory above it;
	// what this user may not open it has not made.
	data := filepath.Dir(dir)
	for _, up := range []string{data, filepath.Dir(data)} {
		if err := syncDir(up); err != nil && !errors.Is(err, os.ErrPermission) {
			return "", fmt.Errorf("raftlog: keep server id: %w", err)
		}
	}
	return id.String(), nil
}

// writeFile puts a whole file in place, durably: after a crash it is there
// with all its bytes, or not.
func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
