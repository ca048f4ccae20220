package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"
)

// options of a run.
type options struct {
	// binary is the isobar program; modules holds the functions' WASM modules
	// and examples their manifests and the labelled sentences.
	binary, modules, examples string
	// traces are files of the Azure LLM inference trace; none generates.
	traces []string
	// carbon is a file of intensities; "" generates.
	carbon string
	// requests to send, in play of time.
	requests int
	play     time.Duration
	// span is how much of the workload is played.
	span time.Duration
	seed uint64
	// cpu is how many cores each region offers.
	cpu float64
	// quality is the price of 1.0 of quality lost, in USD.
	quality float64
	// ports is fixed or auto; data the mesh's directory, "" a temporary one.
	ports, data string
	// brokers are what dev is told by --broker.
	brokers []string
	// once ends after the table. report is a file for its JSON.
	once   bool
	report string
}

// usageError is one that another command line, or another file, would not have.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	var traces string
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.binary, "isobar", "bin/isobar", "the isobar program")
	flags.StringVar(&o.modules, "modules", "bin/examples", "folder of the functions' WASM modules")
	flags.StringVar(&o.examples, "examples", "examples/functions", "folder of the functions' manifests and labelled sentences")
	flags.StringVar(&traces, "trace", "", "files of the Azure LLM inference trace, comma-separated, .csv or .csv.gz (default: generated in its shape)")
	flags.StringVar(&o.carbon, "carbon", "", "CSV of carbon intensity, gzipped or not: datetime_utc and a column a zone (default: generated)")
	flags.IntVar(&o.requests, "requests", 500, "requests to send, evenly picked from the workload; 0 sends all")
	flags.DurationVar(&o.play, "play", 50*time.Second, "time to play the workload in")
	flags.DurationVar(&o.span, "span", 57*time.Minute, "how much of the workload to play, from its begin")
	flags.Uint64Var(&o.seed, "seed", 1, "seed of all that is drawn")
	flags.Float64Var(&o.cpu, "cpu", 1, "cores that each region offers")
	flags.Float64Var(&o.quality, "quality-price", 1e-6, "USD for 1.0 of quality lost, to placement")
	flags.StringVar(&o.ports, "ports", "fixed", "fixed: APIs on 7101, 7201, 7301; auto: free ones")
	flags.StringVar(&o.data, "data", "", "keep the mesh's data in this folder (default: a temporary one)")
	flags.Func("broker", "REGION=URL: the region keeps payloads in this Apache Pulsar; repeatable; a URL alone is eu-north's", func(s string) error {
		for entry := range strings.FieldsSeq(s) {
			if strings.HasPrefix(entry, "pulsar://") {
				entry = "eu-north=" + entry
			}
			o.brokers = append(o.brokers, entry)
		}
		return nil
	})
	flags.BoolVar(&o.once, "once", false, "end after the table")
	flags.StringVar(&o.report, "report", "", "write the table as JSON to this file too")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for path := range strings.SplitSeq(traces, ",") {
		if path = strings.TrimSpace(path); path != "" {
			o.traces = append(o.traces, path)
		}
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	case o.requests < 0:
		return o, errors.New("--requests must be 0 or more")
	case o.play <= 0 || o.span <= 0:
		return o, errors.New("--play and --span must be above 0")
	case !(o.cpu >= 1):
		return o, errors.New("--cpu must be 1 or more: the functions need a core")
	case !(o.quality >= 0):
		return o, errors.New("--quality-price must be 0 or more")
	case o.ports != "fixed" && o.ports != "auto":
		return o, fmt.Errorf("--ports %q is neither fixed nor auto", o.ports)
	}
	return o, nil
}
