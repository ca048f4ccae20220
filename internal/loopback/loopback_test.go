package loopback

import (
	"net"
	"slices"
	"testing"
)

func TestFree(t *testing.T) {
	t.Parallel()
	ports, err := Free(50)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ports)
	if len(slices.Compact(slices.Clone(ports))) != 50 || ports[0] < first || ports[49] >= end {
		t.Errorf("ports %v", ports)
	}
	for _, network := range []string{"tcp", "udp"} {
		port := ports[len(network)%2]
		var held interface{ Close() error }
		if network == "tcp" {
			held, err = net.Listen(network, Address(port))
		} else {
			held, err = net.ListenPacket(network, Address(port))
		}
		if err != nil {
			t.Fatal(err)
		}
		if Check(port) == nil {
			t.Errorf("port %d is free, and in use by %s", port, network)
		}
		if err := held.Close(); err != nil {
			t.Error(err)
		}
	}
}
