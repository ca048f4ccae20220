// Package loopback finds ports of 127.0.0.1 that nothing uses, and that the system
// gives to nobody meanwhile.
//
// It owns which ports are safe to write into a configuration. Who may listen on a
// port of the system's choice asks the system for it, with port 0.
package loopback

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
)

// The ports lie below those that the system gives to outgoing connections (from
// 32768 on Linux, from 49152 on macOS): a server that is away must find its port
// free when it comes back, and a peer that dials it meanwhile must not reach
// itself.
const (
	first = 10240
	end   = 32768
)

// tries bounds the search for one port: one that is free for TCP may be taken for
// UDP.
const tries = 200

// Free returns n ports that nothing uses, by TCP or UDP, no two the same.
func Free(n int) ([]int, error) {
	var out []int
	for range n {
		port, release, err := free()
		if err != nil {
			return nil, fmt.Errorf("loopback: find a free port: %w", err)
		}
		defer release() // held until all are found: none is given twice
		out = append(out, port)
	}
	return out, nil
}

func free() (port int, release func(), err error) {
	for range tries {
		port = first + rand.IntN(end-first)
		if release, err = hold(port); err == nil {
			return port, release, nil
		}
	}
	return 0, nil, err
}

// Check returns the system's error for a port that something uses.
func Check(port int) error {
	release, err := hold(port)
	if err != nil {
		return err
	}
	release()
	return nil
}

// Address of a port.
func Address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func hold(port int) (release func(), err error) {
	var listen net.ListenConfig
	t, err := listen.Listen(context.Background(), "tcp", Address(port))
	if err != nil {
		return nil, err
	}
	u, err := listen.ListenPacket(context.Background(), "udp", Address(port))
	if err != nil {
		closeAll(t)
		return nil, err
	}
	return func() { closeAll(t, u) }, nil
}

func closeAll(held ...io.Closer) {
	for _, c := range held {
		_ = c.Close() // it was only held
	}
}
