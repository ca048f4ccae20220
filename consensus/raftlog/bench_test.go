package raftlog

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/consensus/consensustest"
)

// BenchmarkPropose commits groups of 1 KiB from many goroutines, into Pebble.
func BenchmarkPropose(b *testing.B) {
	for _, servers := range []int{1, 3} {
		for _, inFlight := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("servers=%d/inflight=%d", servers, inFlight), func(b *testing.B) {
				c := newCluster(b, servers, openPebbleRecorder, func(o *Options) {
					o.HeartbeatTimeout = time.Second
					o.InFlight = inFlight
					o.SegmentBytes = 0
				})
				l := c.leader()
				group := l.m.Encode(bytes.Repeat([]byte{'x'}, 1<<10))
				before := l.Stats()
				b.SetParallelism(256)
				b.SetBytes(1 << 10)
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := l.Propose(b.Context(), group); err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.StopTimer()
				s := l.Stats()
				b.ReportMetric(float64(s.Groups-before.Groups)/float64(s.Entries-before.Entries), "groups/entry")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "groups/s")
			})
		}
	}
}

// BenchmarkProposeAlone is the latency of one proposer.
func BenchmarkProposeAlone(b *testing.B) {
	for _, servers := range []int{1, 3} {
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) {
			c := newCluster(b, servers, openPebbleRecorder, func(o *Options) { o.HeartbeatTimeout = time.Second })
			l := c.leader()
			group := l.m.Encode(bytes.Repeat([]byte{'x'}, 1<<10))
			for b.Loop() {
				if _, err := l.Propose(b.Context(), group); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

var _ consensustest.Machine = (*recorder)(nil)
