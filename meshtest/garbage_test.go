package meshtest_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// checkGarbage throws garbage at the ports between servers: each connection is
// closed, each is counted, and the mesh works on.
func checkGarbage(t *testing.T, m *mesh) {
	s := m.serversOf("eu-north")[0]
	doors := []struct {
		name, network, metric string
		port                  int
	}{
		{"raft", "tcp", "isobar_raft_rejected_connections", s.ports.Raft},
		{"peer", "tcp", "isobar_peer_rejected_connections_total", s.ports.Peer},
		{"gossip stream", "tcp", "isobar_gossip_refused", s.ports.Gossip},
		{"gossip datagram", "udp", "isobar_gossip_refused", s.ports.Gossip},
	}
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			before := counted(t, s, d.metric)
			const times = 3
			for range times {
				throw(t, d.network, local(d.port))
			}
			eventually(t, 20*time.Second, "count of garbage", func(context.Context) error {
				if n := counted(t, s, d.metric) - before; n < times {
					return fmt.Errorf("%v of %d counted", n, times)
				}
				return nil
			})
		})
	}
	m.deploy(t, "eu-north", execSpec("after", "cat"))
	for _, region := range m.regions() {
		m.await(t, m.submit(t, region, &isobarv1.TaskSpec{Function: "after", Input: &isobarv1.TaskSpec_Text{Text: "x"}}))
	}
}

func counted(t *testing.T, s *server, metric string) float64 {
	t.Helper()
	samples, err := scrape(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	n, ok := samples[metric]
	if !ok {
		t.Fatalf("there is no metric %s", metric)
	}
	return n
}

// throw sends random bytes, and sees a connection closed.
func throw(t *testing.T, network, address string) {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	garbage := make([]byte, 700)
	_, _ = rand.Read(garbage) // never fails
	if _, err := conn.Write(garbage); err != nil {
		t.Fatal(err)
	}
	if network == "udp" {
		return
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// A TLS listener may send an alert first; then the connection ends.
	_, err = io.Copy(io.Discard, conn)
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		t.Errorf("%s keeps a connection open that sent garbage", address)
	}
}
