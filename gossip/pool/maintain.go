package pool

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// forgetAfter is how long a member that is gone is remembered and tried.
	forgetAfter = 24 * time.Hour
	// reportEvery bounds how often refused messages are logged.
	reportEvery = time.Minute
	// seedEvery is every how many rounds a seed is tried although nobody is
	// missing: two meshes that never met have no failed member to try.
	seedEvery = 12
	// measureAtOnce bounds the probes of new members under way at one time.
	measureAtOnce = 8
)

// maintain keeps the pool together until Close.
func (p *Pool) maintain() {
	defer close(p.done)
	p.join(p.opt.Seeds...)
	close(p.tried)
	tick := time.NewTicker(p.opt.Timing.RejoinInterval)
	defer tick.Stop()
	var reported uint64
	reportedAt := time.Now()
	for round := 1; ; round++ {
		select {
		case <-p.stopping:
			return
		case <-p.kick:
			p.measure()
			continue
		case <-tick.C:
		}
		p.forget()
		p.rejoin(round)
		p.measure()
		if s := p.Stats(); s.Refused() > reported && time.Since(reportedAt) >= reportEvery {
			p.log.Warn("pool: messages were refused", "packets", s.RefusedPackets, "streams", s.RefusedStreams,
				"wrong_key", s.WrongKey, "undecodable", s.Undecodable, "unknown", s.UnknownKind, "strangers", s.Strangers)
			reported, reportedAt = s.Refused(), time.Now()
		}
	}
}

// rejoin tries one failed member, so that a parted mesh heals: memberlist itself
// forgets a dead member within a minute. Without any, it tries the seeds.
func (p *Pool) rejoin(round int) {
	var failed []string
	known := map[string]bool{p.Address(): true}
	p.mu.Lock()
	alive := 0
	for _, m := range p.members {
		switch m.State {
		case Failed:
			failed = append(failed, m.ID+"/"+m.GossipAddress)
		case Alive:
			alive++
			known[m.GossipAddress] = true
		}
	}
	leaving := p.leaving
	p.mu.Unlock()
	seeds := slices.DeleteFunc(slices.Clone(p.opt.Seeds), func(s string) bool { return known[s] })
	switch {
	case leaving:
	case len(failed) > 0:
		p.join(failed[rand.IntN(len(failed))])
		if alive == 1 {
			p.join(seeds...)
		}
	case len(seeds) > 0 && alive == 1:
		p.join(seeds...)
	case len(seeds) > 0 && round%seedEvery == 0:
		p.join(seeds[rand.IntN(len(seeds))])
	}
}

// join exchanges everything with the servers at the addresses. Failures are
// tried again in the next round.
func (p *Pool) join(addresses ...string) {
	own := p.Address()
	for _, a := range addresses {
		select {
		case <-p.stopping:
			return
		default:
		}
		if a == own {
			continue
		}
		if _, err := p.list.Join([]string{a}); err != nil {
			p.log.Debug("pool: a server can't be reached", "address", a, "error", err)
			continue
		}
		p.counts.rejoins.Add(1)
	}
}

// measure probes members whose round-trip time is not settled, since memberlist's
// own probes may take a while to come to them.
func (p *Pool) measure() {
	type target struct{ id, addr string }
	var targets []target
	p.mu.Lock()
	for id, m := range p.members {
		if m.State == Alive && m.samples < settled && id != p.opt.Self.ID {
			targets = append(targets, target{id, m.GossipAddress})
		}
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	slots := make(chan struct{}, measureAtOnce)
	for _, t := range targets {
		select {
		case <-p.stopping:
		case slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-slots }()
				if rtt, err := p.list.Ping(t.id, address(t.addr)); err == nil {
					p.measured(t.id, rtt)
				}
			})
		}
	}
	wg.Wait()
}

// forget drops members that have been gone for long.
func (p *Pool) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, m := range p.members {
		if m.State == Alive || time.Since(m.Since) < forgetAfter {
			continue
		}
		delete(p.members, id)
		if p.byAddr[m.GossipAddress] == id {
			delete(p.byAddr, m.GossipAddress)
		}
		p.changed()
	}
}

// address is a net.Addr of a host:port, as memberlist's Ping takes it.
type address string

func (address) Network() string  { return "udp" }
func (a address) String() string { return string(a) }

var _ memberlist.NodeAwareTransport = (*transport)(nil)
