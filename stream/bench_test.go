package stream_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/broker/embedded"
	"github.com/isobar-mesh/isobar/consensus/locallog"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	"github.com/isobar-mesh/isobar/stream"
)

// BenchmarkDeliver is what a message costs from the publisher to the
// acknowledgement beside the log and the network: 500 are published, delivered and
// acknowledged together.
func BenchmarkDeliver(b *testing.B) {
	c := newCell(b, embedded.Options{}, locallog.Options{})
	defer c.stop()
	c.create(&meshv1.StreamRecord{Partitions: 4, MaxBytes: 1 << 20})
	const batch = 500
	payload := make([]byte, 256)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		msgs := make([]stream.Message, batch)
		for i := range msgs {
			msgs[i] = stream.Message{Key: fmt.Sprint(i % 100), Payload: payload}
		}
		c.publish(fmt.Sprint(n), msgs...)
		for got := 0; got < batch; {
			list := c.next("g", "s", 1000, time.Second).Deliveries
			got += len(list)
			c.ack("g", "s", list...)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*batch), "µs/message")
}
