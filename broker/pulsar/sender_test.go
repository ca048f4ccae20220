package pulsar

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"

	"github.com/isobar-mesh/isobar/broker/pulsar/pulsartest"
)

// Each message is told of, those too that the client had not put on the wire when
// its producer was closed.
func TestSenderTellsOfEach(t *testing.T) {
	t.Parallel()
	client, err := pulsar.NewClient(pulsar.ClientOptions{URL: pulsartest.Shared(t).Service, Logger: log.DefaultNopLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	topic := fmt.Sprintf("sender-%08x", rand.Uint32())
	for round := range 20 {
		producer, err := client.CreateProducer(pulsar.ProducerOptions{Topic: topic, BatchingMaxPublishDelay: batchDelay, BatchingMaxMessages: batchMessages})
		if err != nil {
			t.Fatal(err)
		}
		s := &sender{producer: producer}
		const n = 200
		told := make(chan error, 2*n)
		for i := range n {
			if i == n/2 {
				s.end()
			}
			s.send(t.Context(), &pulsar.ProducerMessage{Payload: []byte("payload")}, func(_ pulsar.MessageID, err error) { told <- err })
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		for i := range n {
			select {
			case <-told: // stored or not: it is known
			case <-ctx.Done():
				t.Fatalf("round %d: %d of %d messages are told of", round, i, n)
			}
		}
		cancel()
	}
}
