// Command pulsar starts and stops a real Apache Pulsar on this machine, for
// development and tests; `make pulsar` and `make pulsar-stop` run it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/isobar-mesh/isobar/broker/pulsar/standalone"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pulsar:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	switch {
	case len(args) == 1 && args[0] == "start":
		r, err := standalone.StartShared(ctx, os.Stderr)
		if err != nil {
			return err
		}
		fmt.Printf("Apache Pulsar %s is healthy: %s, admin %s, process %d, log %s\n", standalone.Version, r.Service, r.Admin, r.PID, r.Log)
		return nil
	case len(args) == 1 && args[0] == "url": // as --broker takes it, behind REGION=
		r, err := standalone.Shared(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%s,%s\n", r.Service, r.Admin)
		return nil
	case len(args) == 1 && args[0] == "fetch":
		_, err := standalone.Fetch(ctx, os.Stderr)
		return err
	case len(args) == 1 && args[0] == "stop":
		stopped, err := standalone.StopShared()
		if err == nil && !stopped {
			fmt.Println("no Apache Pulsar of `make pulsar` runs")
		}
		return err
	default:
		return fmt.Errorf("usage: pulsar start|url|fetch|stop")
	}
}
