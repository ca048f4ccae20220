package pool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/memberlist"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

// Member is what a server says of itself.
type Member struct {
	ID     string // the server's UUID; unique in the mesh, kept over restarts
	Name   string // for people: "eu-north-1a"
	Cell   mesh.CellID
	Region string
	// Addresses as host:port; "" for none.
	PeerAddress string // other cells, over mutual TLS
	APIAddress  string // clients
	RaftAddress string // servers of the same cell
	PID         int    // process id, 0 for not told
}

// State is whether a server is there.
type State uint8

const (
	// Alive: it answers probes, or is only suspected.
	Alive State = iota + 1
	// Left: it said that it goes.
	Left
	// Failed: it stopped answering.
	Failed
)

func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Left:
		return "left"
	case Failed:
		return "failed"
	default:
		return fmt.Sprintf("state(%d)", uint8(s))
	}
}

// Status is one server as this one sees it.
type Status struct {
	Member
	GossipAddress string // host:port
	State         State
	Since         time.Time     // of the state, by this server's clock
	RTT           time.Duration // smoothed; 0 while not measured
}

// peer is a Status with what only the pool needs.
type peer struct {
	Status
	samples int // round trips measured since it is alive, up to settled
}

// The encoding of a member, at most memberlist.MetaMaxSize bytes: a version, a
// byte of flags, seven texts each behind its length in one byte, and the
// process id as a varint. A reader refuses another version, other flags and
// trailing bytes, so a new field needs a new version, sent only once every
// server reads it.
const (
	memberVersion = 1
	flagLeaving   = 1
)

// errMember is what is wrong with a member's description.
var errMember = errors.New("invalid member")

func encodeMember(m Member, leaving bool) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	b := []byte{memberVersion, 0}
	if leaving {
		b[1] |= flagLeaving
	}
	for _, s := range m.texts() {
		b = append(b, byte(len(*s)))
		b = append(b, *s...)
	}
	b = binary.AppendUvarint(b, uint64(m.PID))
	if len(b) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("%w %q: %d bytes, at most %d: shorten its names or addresses",
			errMember, m.ID, len(b), memberlist.MetaMaxSize)
	}
	return b, nil
}

func decodeMember(b []byte) (m Member, leaving bool, err error) {
	fail := func(what string) (Member, bool, error) {
		return Member{}, false, fmt.Errorf("%w: %s", errMember, what)
	}
	if len(b) < 2 || b[0] != memberVersion || b[1]&^flagLeaving != 0 {
		return fail("unknown version")
	}
	leaving = b[1]&flagLeaving != 0
	b = b[2:]
	for _, s := range m.texts() {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return fail("cut off")
		}
		*s, b = string(b[1:1+int(b[0])]), b[1+int(b[0]):]
	}
	pid, n := binary.Uvarint(b)
	if n <= 0 || n != len(b) || pid > 1<<31 {
		return fail("bad process id")
	}
	m.PID = int(pid)
	if err := m.check(); err != nil {
		return Member{}, false, err
	}
	return m, leaving, nil
}

// texts lists the member's texts in the order of the encoding.
func (m *Member) texts() [7]*string {
	return [...]*string{&m.ID, &m.Name, (*string)(&m.Cell), &m.Region, &m.PeerAddress, &m.APIAddress, &m.RaftAddress}
}

func (m *Member) check() error {
	for i, s := range m.texts() {
		switch {
		case i < 4 && *s == "":
			return fmt.Errorf("%w %q: id, name, cell and region are required", errMember, m.ID)
		case len(*s) > 255:
			return fmt.Errorf("%w: a text of %d bytes, at most 255", errMember, len(*s))
		case !utf8.ValidString(*s) || strings.ContainsFunc(*s, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return fmt.Errorf("%w: bytes that are no text", errMember)
		}
	}
	// memberlist reads "name/address" where an address is asked for.
	if strings.Contains(m.ID, "/") {
		return fmt.Errorf("%w %q: an id holds no slash", errMember, m.ID)
	}
	for _, a := range []string{m.PeerAddress, m.APIAddress, m.RaftAddress} {
		if a == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(a); err != nil {
			return fmt.Errorf("%w %q: %w", errMember, m.ID, err)
		}
	}
	if m.PID < 0 {
		return fmt.Errorf("%w %q: negative process id", errMember, m.ID)
	}
	return nil
}
