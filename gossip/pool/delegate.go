package pool

import (
	"fmt"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/isobar-mesh/isobar/gossip"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// Invalidates implements memberlist.Broadcast.
func (b broadcast) Invalidates(o memberlist.Broadcast) bool {
	other, ok := o.(broadcast)
	return ok && other.name == b.name
}

// Message implements memberlist.Broadcast.
func (b broadcast) Message() []byte { return b.message }

// Finished implements memberlist.Broadcast.
func (b broadcast) Finished() {}

// Name implements memberlist.NamedBroadcast.
func (b broadcast) Name() string { return b.name }

// spread queues a digest to be sent to others. Whoever learns of a digest
// spreads it, so news reaches all even when its first sender knows few.
func (p *Pool) spread(d *meshv1.Digest, encoded []byte) {
	p.queue.QueueBroadcast(broadcast{
		name:    d.GetCell() + " " + d.GetIncarnation(),
		message: append([]byte{kindDigest}, encoded...),
	})
}

// delegate is what memberlist calls. Its methods do not block, and call
// memberlist back never: some are called with memberlist's locks held.
type delegate struct{ p *Pool }

// NodeMeta implements memberlist.Delegate.
func (d delegate) NodeMeta(int) []byte {
	d.p.mu.Lock()
	leaving := d.p.leaving
	d.p.mu.Unlock()
	b, err := encodeMember(d.p.opt.Self, leaving)
	if err != nil {
		return nil // cannot be: New encoded the same
	}
	return b
}

// NotifyMsg implements memberlist.Delegate.
func (d delegate) NotifyMsg(b []byte) {
	if len(b) == 0 || b[0] != kindDigest {
		d.p.counts.unknown.Add(1)
		return
	}
	d.p.receive(b[1:], time.Now())
}

// receive takes in a digest from the network; bad ones are counted. encoded may
// be reused by the caller afterwards.
func (p *Pool) receive(encoded []byte, at time.Time) {
	digest, err := gossip.Decode(encoded)
	if err == nil {
		_, err = p.merge(digest, encoded, at)
	}
	if err != nil {
		p.counts.undecodable.Add(1)
		p.log.Debug("pool: a digest was dropped", "error", err)
	}
}

// GetBroadcasts implements memberlist.Delegate.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.p.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (d delegate) LocalState(bool) []byte { return encodeState(d.p.View(), time.Now()) }

// MergeRemoteState implements memberlist.Delegate.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	list, err := decodeState(b)
	if err != nil {
		d.p.counts.undecodable.Add(1)
		d.p.log.Debug("pool: an exchange was dropped", "error", err)
		return
	}
	now := time.Now()
	for _, a := range list {
		d.p.receive(a.encoded, now.Add(-a.age))
	}
}

// NotifyAlive implements memberlist.AliveDelegate: it keeps out servers whose
// description can't be read, such as those of another program.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	m, _, err := decodeMember(n.Meta)
	if err == nil && m.ID != n.Name {
		err = fmt.Errorf("%w: %q calls itself %q", errMember, n.Name, m.ID)
	}
	if err != nil {
		d.p.counts.strangers.Add(1)
	}
	return err
}

// NotifyJoin implements memberlist.EventDelegate.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.p.seen(n, Alive) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.p.seen(n, Alive) }

// NotifyLeave implements memberlist.EventDelegate. memberlist does not tell
// here whether the server left or failed; the server's own mark does.
func (d delegate) NotifyLeave(n *memberlist.Node) { d.p.seen(n, Failed) }

// seen notes what memberlist says of a server.
func (p *Pool) seen(n *memberlist.Node, state State) {
	desc, leaving, err := decodeMember(n.Meta)
	if err != nil {
		return // NotifyAlive kept it out
	}
	if state == Failed && leaving {
		state = Left
	}
	if p.note(n, desc, state) {
		p.log.Info("pool: member is "+state.String(), "member", desc.Name, "cell", desc.Cell, "id", desc.ID)
	}
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// note enters a server's description and state, and reports whether the state
// is another than before.
func (p *Pool) note(n *memberlist.Node, desc Member, state State) (moved bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[n.Name]
	if m == nil {
		m = &peer{}
		p.members[n.Name] = m
	}
	if m.State != state {
		m.State, m.Since, moved = state, time.Now(), true
	}
	if id := p.byAddr[m.GossipAddress]; id == n.Name {
		delete(p.byAddr, m.GossipAddress)
	}
	if state != Alive {
		m.RTT, m.samples = 0, 0 // it may come back elsewhere
	}
	m.Member, m.GossipAddress = desc, n.Address()
	p.byAddr[m.GossipAddress] = n.Name
	p.changed()
	return moved
}

// AckPayload implements memberlist.PingDelegate.
func (d delegate) AckPayload() []byte { return nil }

// NotifyPingComplete implements memberlist.PingDelegate.
func (d delegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, _ []byte) {
	d.p.measured(n.Name, rtt)
}

// settled is how many round trips it takes until they are smoothed. Before, the
// latest counts: the first may meet a peer that is still busy starting, or one
// that does not know yet how far away it should be.
const settled = 3

// measured takes in one round trip; later ones count for a quarter.
func (p *Pool) measured(id string, rtt time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[id]
	if m == nil || m.State != Alive || rtt <= 0 {
		return
	}
	if m.samples < settled {
		m.samples++
		m.RTT = rtt
		p.changed()
		return
	}
	m.RTT += (rtt - m.RTT) / 4
}

// alive counts the living members, this server included.
func (p *Pool) alive() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, m := range p.members {
		if m.State == Alive {
			n++
		}
	}
	return n
}

// distance is the emulated one-way delay to an address.
func (p *Pool) distance(a memberlist.Address) time.Duration {
	if p.opt.Delay == nil {
		return 0
	}
	p.mu.Lock()
	m := p.members[a.Name]
	if m == nil {
		m = p.members[p.byAddr[a.Addr]]
	}
	region := ""
	if m != nil {
		region = m.Region
	}
	p.mu.Unlock()
	if region == "" {
		return 0
	}
	return p.opt.Delay(region)
}
