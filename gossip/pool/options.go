package pool

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// Options say who a server is and how it reaches the others.
type Options struct {
	// Mesh is the mesh's name, 1 to 64 bytes, the same on every server. It is
	// part of every message, so meshes that share a network and by mistake a
	// key do not merge.
	Mesh string
	// Self is this server. ID, Name, Cell and Region are required.
	Self Member

	// Bind is the IP address and port of gossip, TCP and UDP: "127.0.0.1:0"
	// takes any free port. Required unless Transport is set.
	Bind string
	// Advertise is the IP address and port that others use, when it is not
	// Bind. With port 0 it is the port of Bind. Optional.
	Advertise string
	// Seeds are gossip addresses of servers to join through, host:port; this
	// server's own may be among them. They are tried until one answers, and
	// again whenever this server finds itself alone. None is a mesh of one that
	// others may join.
	Seeds []string

	// Keys encrypt gossip: base64 (standard, padded) of 16, 24 or 32 bytes. The
	// first encrypts, all decrypt. To change the key without a gap: add the new
	// one last on every server, then put it first on every server, then remove
	// the old one.
	Keys []string
	// InsecureNoKey allows to run without a key. Whoever reaches the port can
	// then make the mesh believe anything.
	InsecureNoKey bool

	// Timing is how fast failures are found; the zero value is DefaultTiming.
	// It should be the same on every server.
	Timing Timing
	// Delay emulates distance: how much later packets and streams reach servers
	// of a region, one way. Addresses that are not known to be a member's, such
	// as a seed's at first, are not delayed. Nil emulates nothing. It must be
	// fast and safe for concurrent use.
	Delay func(region string) time.Duration

	// Logger takes what memberlist says, and the counts of refused messages at
	// most once a minute. Nil discards.
	Logger *slog.Logger
	// Transport is used instead of TCP and UDP, and shut down with the pool.
	// For tests.
	Transport memberlist.NodeAwareTransport

	bind, advertise netip.AddrPort
}

// NewKey makes a key for Options.Keys: base64 of 32 random bytes.
func NewKey() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	return base64.StdEncoding.EncodeToString(b)
}

// ErrNoKey is returned by New without a key, unless InsecureNoKey is set.
var ErrNoKey = errors.New("no gossip key: set one, or allow gossip without a key explicitly")

// check fills in defaults and parses addresses and keys.
func (o Options) check() (Options, *memberlist.Keyring, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Timing == (Timing{}) {
		o.Timing = DefaultTiming()
	}
	if o.Mesh == "" || len(o.Mesh) > 64 {
		return o, nil, fmt.Errorf("mesh name of %d bytes, want 1 to 64", len(o.Mesh))
	}
	if err := o.Timing.check(); err != nil {
		return o, nil, err
	}
	// The flag makes the encoding no longer, so it fits while leaving too.
	if _, err := encodeMember(o.Self, false); err != nil {
		return o, nil, err
	}
	ring, err := keyring(o.Keys, o.InsecureNoKey)
	if err != nil {
		return o, nil, err
	}
	if o.Transport == nil {
		if o.bind, err = netip.ParseAddrPort(o.Bind); err != nil {
			return o, nil, fmt.Errorf("bind address: %w", err)
		}
	}
	if o.Advertise != "" {
		if o.advertise, err = netip.ParseAddrPort(o.Advertise); err != nil {
			return o, nil, fmt.Errorf("advertised address: %w", err)
		}
	}
	if o.bind.IsValid() && o.bind.Addr().IsUnspecified() && !o.advertise.IsValid() {
		return o, nil, fmt.Errorf("bind address %s is every address: an advertised one is needed", o.bind)
	}
	return o, ring, nil
}

// keyring reads the keys; no error holds any part of one. Nil is no encryption.
func keyring(keys []string, insecure bool) (*memberlist.Keyring, error) {
	if len(keys) == 0 {
		if !insecure {
			return nil, ErrNoKey
		}
		return nil, nil
	}
	var raw [][]byte
	for i, k := range keys {
		b, err := base64.StdEncoding.DecodeString(k)
		if err != nil {
			return nil, fmt.Errorf("gossip key %d is not base64", i+1)
		}
		if err := memberlist.ValidateKey(b); err != nil {
			return nil, fmt.Errorf("gossip key %d has %d bytes, want 16, 24 or 32", i+1, len(b))
		}
		raw = append(raw, b)
	}
	return memberlist.NewKeyring(raw, raw[0])
}

// Timing is how fast a mesh notices. All servers should have the same.
type Timing struct {
	// ProbeInterval is how often a server probes one other.
	ProbeInterval time.Duration
	// ProbeTimeout is how long the answer may take before others are asked to
	// probe too. It must be above the longest round trip, and below
	// ProbeInterval.
	ProbeTimeout time.Duration
	// SuspicionMult × ProbeInterval (× log10 of the members, above 10) is how
	// long a server that did not answer may still object.
	SuspicionMult int
	// GossipInterval is how often news is sent to three other servers.
	GossipInterval time.Duration
	// RetransmitMult × log10 of the members + 1, rounded up, is how often one
	// digest is sent on by each. A server sends about three packets in each
	// GossipInterval, each of one full digest or several small ones.
	RetransmitMult int
	// PushPullInterval is how often everything known is exchanged with one
	// other server.
	PushPullInterval time.Duration
	// RejoinInterval is how often one failed member, or the seeds, are tried.
	RejoinInterval time.Duration
	// StreamTimeout bounds one exchange over TCP.
	StreamTimeout time.Duration
}

// DefaultTiming suits round trips up to 300 ms and tolerates a lost second: a
// dead region is reported after about 7 seconds.
func DefaultTiming() Timing {
	return Timing{
		ProbeInterval: time.Second, ProbeTimeout: 600 * time.Millisecond, SuspicionMult: 4,
		GossipInterval: 200 * time.Millisecond, RetransmitMult: 4,
		PushPullInterval: 15 * time.Second, RejoinInterval: 5 * time.Second,
		StreamTimeout: 10 * time.Second,
	}
}

// DevTiming is for a mesh on one machine with emulated round trips up to
// 300 ms: a dead region is reported within about 5 seconds.
func DevTiming() Timing {
	return Timing{
		ProbeInterval: 800 * time.Millisecond, ProbeTimeout: 450 * time.Millisecond, SuspicionMult: 2,
		GossipInterval: 100 * time.Millisecond, RetransmitMult: 4,
		PushPullInterval: 5 * time.Second, RejoinInterval: time.Second,
		StreamTimeout: 5 * time.Second,
	}
}

func (t Timing) check() error {
	for _, d := range []time.Duration{
		t.ProbeInterval, t.ProbeTimeout, t.GossipInterval, t.PushPullInterval, t.RejoinInterval, t.StreamTimeout,
	} {
		if d <= 0 {
			return errors.New("timing: every interval must be above zero")
		}
	}
	if t.ProbeTimeout >= t.ProbeInterval {
		return fmt.Errorf("timing: probe timeout %v must be below the probe interval %v", t.ProbeTimeout, t.ProbeInterval)
	}
	if t.SuspicionMult < 1 || t.RetransmitMult < 1 {
		return errors.New("timing: multipliers must be 1 or more")
	}
	return nil
}

func (t Timing) apply(c *memberlist.Config) {
	c.ProbeInterval, c.ProbeTimeout = t.ProbeInterval, t.ProbeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = t.SuspicionMult, 3
	// A server that misses answers doubles its patience, and no more: the bound
	// on detection matters more here than with thousands of members.
	c.AwarenessMaxMultiplier = 2
	// News of members is small and not repeated, unlike a digest: with 8 sends
	// by each, 3 in 10,000 miss it and wait for the next exchange; with 4 it
	// would be 2 in 100.
	c.GossipInterval, c.RetransmitMult = t.GossipInterval, 8
	c.PushPullInterval, c.TCPTimeout = t.PushPullInterval, t.StreamTimeout
}
