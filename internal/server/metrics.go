package server

import (
	"errors"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isobar-mesh/isobar/internal/mesh"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
	"github.com/isobar-mesh/isobar/state"
)

// counters are what this server counts while it leads, so that the sum over a
// cell's servers is the cell's; those of a leader that died are lost with it.
type counters struct {
	rejected prometheus.Counter
	ended    *prometheus.CounterVec // by state
	attempts *prometheus.CounterVec // by outcome
	plans    prometheus.Counter
	full     *prometheus.CounterVec // by bound
}

// openMetrics registers what operators watch; RPCs are measured by their
// interceptors.
func (s *Server) openMetrics() error {
	r := s.tel.Registry()
	s.counters = counters{
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "isobar_peer_rejected_connections_total", Help: "Connections to the peer port without a valid certificate of the mesh.",
		}),
		ended:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isobar_tasks_ended_total", Help: "Tasks that ended at this home, by state."}, []string{"state"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isobar_attempts_ended_total", Help: "Attempts that ended, by verdict of their home."}, []string{"verdict"}),
	}
	s.counters.plans = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "isobar_plans_total", Help: "Starts that were put off by choice, or moved while they were.",
	})
	s.counters.full = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "isobar_queue_full_total", Help: "Tasks that a full queue refused, submitted or redriven, by the bound of queue that it was at.",
	}, []string{"bound"})
	for _, bound := range []string{"count", "bytes", "cost.tokens", "cost.bytes", "cost.accelerator_mib"} {
		s.counters.full.WithLabelValues(bound)
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	r.MustRegister(s.counters.rejected, s.counters.ended, s.counters.attempts, s.counters.plans, s.counters.full,
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
	return nil
}

// count looks at what a command did, on the leader only.
func (s *Server) count(r *fsm.Result) {
	if !s.sched.Leading() {
		return
	}
	if r.Verdict == fsm.Planned {
		if r.Task.PutOff {
			s.counters.plans.Inc()
		}
		return
	}
	if r.Verdict != "" && r.Items == nil && r.Task != nil && r.Task.Lease == nil && r.Task.Attempt > 0 {
		s.counters.attempts.WithLabelValues(string(r.Verdict)).Inc()
	}
	for _, e := range r.Effects {
		if e.Kind == fsm.LeaseGone && r.Verdict == "" {
			s.counters.attempts.WithLabelValues("lost").Inc() // by a tick: lease, timeout or deadline ran out
		}
		if e.Kind == fsm.TaskEnded {
			s.counters.ended.WithLabelValues(strings.ToLower(strings.TrimPrefix(e.State.String(), "TASK_STATE_"))).Inc()
		}
	}
}

// countRefused counts what a full queue refused, on the leader only.
func (s *Server) countRefused(err error) {
	if full, ok := errors.AsType[*fsm.QueueFullError](err); ok && s.sched.Leading() {
		s.counters.full.WithLabelValues(full.By).Inc()
	}
}

// queueCollector reports tasks by lane and state, dead letters and paused queues,
// read when scraped.
type queueCollector struct{ s *Server }

func queueDesc() *prometheus.Desc {
	return prometheus.NewDesc("isobar_tasks", "Tasks not ended, by lane and state.", []string{"lane", "state"}, nil)
}

func deadDesc() *prometheus.Desc {
	return prometheus.NewDesc("isobar_dead_letters", "Dead tasks that are kept, by lane.", []string{"lane"}, nil)
}

func pausedDesc() *prometheus.Desc {
	return prometheus.NewDesc("isobar_queues_paused", "Queues that are paused.", nil, nil)
}

func heldDesc() *prometheus.Desc {
	return prometheus.NewDesc("isobar_queues_held", "Queues whose next task waits for a bound or a pace, by cause.", []string{"cause"}, nil)
}

func (c *queueCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- queueDesc()
	ch <- deadDesc()
	ch <- pausedDesc()
	ch <- heldDesc()
}

func (c *queueCollector) Collect(ch chan<- prometheus.Metric) {
	var counts [4][3]uint64
	var dead [4]uint64
	paused := 0
	for q, r := range fsm.Queues(c.s.state.Reader(state.SchedulerMachine)) {
		counts[q.Lane][0] += r.Ready
		counts[q.Lane][1] += r.Deferred
		counts[q.Lane][2] += r.Leased
		dead[q.Lane] += r.Dead
		if r.Pause != nil {
			paused++
		}
	}
	ch <- prometheus.MustNewConstMetric(pausedDesc(), prometheus.GaugeValue, float64(paused))
	held := c.s.sched.QueuesHeld()
	for _, cause := range []string{"paced", "function", "tenant", "cost", "room"} {
		ch <- prometheus.MustNewConstMetric(heldDesc(), prometheus.GaugeValue, float64(held[cause]), cause)
	}
	for _, lane := range mesh.Lanes() {
		ch <- prometheus.MustNewConstMetric(deadDesc(), prometheus.GaugeValue, float64(dead[lane]), lane.String())
		for i, name := range []string{"ready", "deferred", "leased"} {
			ch <- prometheus.MustNewConstMetric(queueDesc(), prometheus.GaugeValue, float64(counts[lane][i]), lane.String(), name)
		}
	}
}
