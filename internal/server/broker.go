package server

import (
	"fmt"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isobar-mesh/isobar/broker"
	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/broker/pulsar"
	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
	"github.com/isobar-mesh/isobar/stream/groups"
)

// payloads is a broker as the terms of leadership come and go.
type payloads interface {
	broker.Broker
	Lead(term uint64) error
	Resign()
}

// openBroker opens the configured broker and returns what keeps the messages of
// streams, and how much memory the leader takes for payloads. A cluster that
// cannot be reached is no error: the server starts, and accepts nothing until it
// is there.
func (s *Server) openBroker() (messages broker.Streams, cache int, err error) {
	c := s.cfg.Broker
	if c.Kind != "pulsar" {
		s.broker = embedded.New(s.state.Reader(state.BrokerMachine), embedded.Options{})
		return embedded.NewStreams(s.state.Reader(state.BrokerMachine), embedded.Options{}), 0, nil
	}
	p, err := pulsar.Open(pulsar.Options{
		Service: c.Service, Admin: c.Admin, Cluster: c.Cluster, Cell: string(s.cell.ID), Server: s.cfg.Name,
		Region: s.cell.Region, Jurisdictions: s.cell.Jurisdictions, SharedWith: c.SharedWith, Quota: int64(c.Quota), Timeout: c.Timeout,
		Auth: pulsar.Auth{TokenFile: c.TokenFile, OAuth2: pulsar.OAuth2(c.OAuth2)},
		TLS:  pulsar.TLS(c.TLS), Log: payloadLog{s.state.Reader(state.SchedulerMachine), s.state.Reader(state.StreamMachine)}, Logger: s.log.With("part", "broker"),
	})
	if err != nil {
		return nil, 0, err
	}
	s.later(p.Close)
	s.broker = p
	gauge := func(name, help string, f func(pulsar.Stats) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return f(p.Stats()) })
	}
	s.tel.Registry().MustRegister(
		gauge("isobar_pulsar_producers", "Topics of the region's Pulsar this server has open to append.", func(st pulsar.Stats) float64 { return float64(st.Producers) }),
		gauge("isobar_pulsar_foreign_messages", "Messages met in our topics that we did not write; they are never run.", func(st pulsar.Stats) float64 { return float64(st.Foreign) }),
		gauge("isobar_pulsar_changed_policies", "Policies of our namespaces that are not as they must be: an alarm.", func(st pulsar.Stats) float64 { return float64(st.Alarms) }),
		gauge("isobar_pulsar_replaced", "1 while the Pulsar is not the one that holds payloads still needed, and nothing is done in it: an alarm.", func(st pulsar.Stats) float64 {
			return truth(st.Strange)
		}),
		gauge("isobar_pulsar_lost_ranges", "Ranges of streams' messages that were dropped in Pulsar, not by Isobar: an alarm.", func(st pulsar.Stats) float64 { return float64(st.Lost) }),
		gauge("isobar_pulsar_denied", "1 while Pulsar does not know us by our credentials, or there is no token, and nothing is accepted: an alarm.", func(st pulsar.Stats) float64 {
			return truth(st.Denied)
		}),
	)
	return p.Streams(), int(c.Cache), nil
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// payloadLog is what the cell's log says of its payloads and streams.
type payloadLog struct {
	state.Reader
	streams state.Reader
}

func (l payloadLog) Incarnation() string { return fsm.Incarnation(l) }

func (l payloadLog) Needed(low, high broker.Reference) string {
	if task, topic, ok := fsm.Needed(l, low, high); ok {
		return fmt.Sprintf("the payload of %s, of %s,", task, topic)
	}
	if n, ok := groups.Needed(l.streams, low, high); ok {
		return fmt.Sprintf("the stream %s", n)
	}
	return ""
}

// sharers are the regions that use the same cluster: those the configuration
// names, and those whose marks are found in it. They are not known while marks
// could not be read and none are named.
func (s *Server) sharers() (out []mesh.Cell, known bool) {
	regions := maps.Clone(s.cfg.Broker.SharedWith)
	known = true
	if p, ok := s.broker.(*pulsar.Broker); ok {
		var found map[string][]string
		found, known = p.Sharers()
		for region, jurisdictions := range found {
			if _, declared := regions[region]; !declared {
				if regions == nil {
					regions = map[string][]string{}
				}
				regions[region] = jurisdictions
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(regions)) {
		out = append(out, mesh.Cell{Region: name, Jurisdictions: regions[name]})
	}
	return out, known
}
