package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// metrics registers what operators watch; the rest comes from the rooms' own
// instruments.
func (s *Server) metrics() {
	r := s.tel.Registry()
	s.rejected = prometheus.NewCounter(prometheus.CounterOpts{Name: "isobar_peer_rejected_connections_total", Help: "Connections to the peer port without a valid certificate of the mesh."})
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	r.MustRegister(s.rejected,
		gauge("isobar_raft_rejected_connections", "Connections to the raft port that were closed as garbage or foreign.", func() float64 { return float64(s.raft.Stats().RejectedConnections) }),
		gauge("isobar_gossip_refused", "Datagrams and streams on the gossip port that were refused.", func() float64 { return float64(s.pool.Stats().Refused()) }),
		gauge("isobar_leading", "1 while this server leads its cell.", func() float64 {
			if s.sched.Leading() {
				return 1
			}
			return 0
		}),
		gauge("isobar_log_applied_index", "Last log index applied.", func() float64 { return float64(s.raft.AppliedIndex()) }),
		gauge("isobar_log_bytes", "Bytes of the replicated log on disk.", func() float64 { return float64(s.raft.Stats().LogBytes) }),
		gauge("isobar_state_bytes", "Bytes of the state on disk.", func() float64 { return float64(s.store.DiskBytes()) }),
		&queueCollector{s: s},
	)
}

// queueCollector reports tasks by lane and state, read when scraped.
type queueCollector struct{ s *Server }

func queueDesc() *prometheus.Desc {
	return prometheus.NewDesc("isobar_tasks", "Tasks not ended, by lane and state.", []string{"lane", "state"}, nil)
}

func (c *queueCollector) Describe(ch chan<- *prometheus.Desc) { ch <- queueDesc() }

func (c *queueCollector) Collect(ch chan<- prometheus.Metric) {
	var counts [4][3]uint64
	for q, r := range fsm.Queues(c.s.state.Reader(state.SchedulerMachine)) {
		counts[q.Lane][0] += r.Ready
		counts[q.Lane][1] += r.Deferred
		counts[q.Lane][2] += r.Leased
	}
	for _, lane := range mesh.Lanes() {
		for i, name := range []string{"ready", "deferred", "leased"} {
			ch <- prometheus.MustNewConstMetric(queueDesc(), prometheus.GaugeValue, float64(counts[lane][i]), lane.String(), name)
		}
	}
}
