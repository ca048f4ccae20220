// Package config is the manual of Isobar's settings: one commented struct for
// `isobar server`, one for `isobar worker`. docs/config.md is generated from
// the comments.
//
// A file is YAML, read strictly: an unknown field, a second document or a
// rounded number is an error with its line. Every field of one value, and
// every list of them, is also read from the environment, which wins: api.address is
// ISOBAR_API_ADDRESS, a list is comma-separated. Values are checked together
// after both, and every error is reported at once.
//
// The package reads one file and the environment it is given, and does nothing
// else: it opens no port and keeps no global.
package config

//go:generate go test -run TestManual -update .

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/strictyaml"
)

// EnvPrefix starts the name of every variable that is read.
const EnvPrefix = "ISOBAR_"

// Size is a number of bytes, written "64MiB".
type Size = strictyaml.Size

// Lookup finds an environment variable, as os.LookupEnv does.
type Lookup func(name string) (value string, ok bool)

// DefaultServer is what a server uses where its file and environment are
// silent.
func DefaultServer() Server {
	return Server{
		Name:          hostname(),
		Mesh:          "isobar",
		Jurisdictions: []string{},
		Data:          "isobar-data",
		API:           API{Address: "127.0.0.1:7101"},
		Peer:          Listener{Address: "127.0.0.1:7121"},
		Raft:          Listener{Address: "127.0.0.1:7141"},
		Gossip:        Gossip{Address: "127.0.0.1:7161", Join: []string{}, Keys: []string{}},
		Join:          []string{},
		Lease:         Lease{Cell: 10 * time.Second, Worker: 6 * time.Second, Renew: 2 * time.Second},
		Retention:     Retention{Task: 24 * time.Hour},
		Lifetime:      7 * 24 * time.Hour,
		Queue:         Queue{Count: 100_000, Bytes: 1 << 30},
		Prices:        Prices{CPUHour: 0.033, MemoryGiBHour: 0.00375, GPUs: map[string]float64{}},
		Energy: Energy{
			WattsPerCPU: 3.5, IdleWattsPerCPU: 0.74, WattsPerGiB: 0.4, NetworkKWhPerGiB: 0.00107, PUE: 1.11,
			WattsPerGPU: map[string]float64{}, IdleWattsPerGPU: map[string]float64{}, EmbodiedGPerGPUHour: map[string]float64{},
		},
		Carbon: Carbon{Speed: 1},
		Policy: Policy{CarbonPrice: 190, LatencyPrice: 1.33e-5, DelayPrice: 1.33e-7, QualityPrice: 0.001},

		Tenants:         map[string]Tenant{},
		EgressUSDPerGiB: map[string]float64{},
		ReturnUSDPerGiB: map[string]float64{},
		RTTMs:           map[string]float64{},
		Between:         Between{RTTMs: map[string]map[string]float64{}, EgressUSDPerGiB: map[string]map[string]float64{}},
		Homes:           []string{},
		Broker: Broker{
			Kind: "embedded", Quota: 10 << 30, Cache: 256 << 20, Timeout: 5 * time.Second, SharedWith: map[string][]string{},
		},
		OTLP: OTLP{Protocol: "http"},
		Log:  Log{Level: "info", Format: "text"},
	}
}

// DefaultWorker is what a worker uses where its file and environment are
// silent. CPU and MemoryMiB of 0 mean the host's.
func DefaultWorker() Worker {
	return Worker{
		Name:      hostname(),
		Servers:   []string{"http://127.0.0.1:7101"},
		Data:      "isobar-worker-data",
		Runtimes:  []string{"wasm", "exec", "http"},
		Functions: []string{},
		Grace:     30 * time.Second,
		OTLP:      OTLP{Protocol: "http"},
		Log:       Log{Level: "info", Format: "text"},
	}
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return name
}

// LoadServer reads a server's file, then the environment, then lets override
// (flags; may be nil) have the last word, and checks the whole. An empty path
// reads no file.
func LoadServer(path string, env Lookup, override func(*Server)) (Server, error) {
	cfg := DefaultServer()
	src, err := load(path, env, &cfg)
	if err != nil {
		return Server{}, err
	}
	if override != nil {
		override(&cfg)
	}
	if cfg.Cell == "" && cfg.Region != "" {
		cfg.Cell = cfg.Region + "-1"
	}
	return cfg, errors.Join(checkServer(&cfg, src)...)
}

// LoadWorker reads a worker's file, then the environment, and checks the whole.
// An empty path reads no file.
func LoadWorker(path string, env Lookup, override func(*Worker)) (Worker, error) {
	cfg := DefaultWorker()
	src, err := load(path, env, &cfg)
	if err != nil {
		return Worker{}, err
	}
	if override != nil {
		override(&cfg)
	}
	return cfg, errors.Join(checkWorker(&cfg, src)...)
}

// ReadServer is LoadServer without the check of the values, for printing what
// is in effect while it is still being filled in.
func ReadServer(path string, env Lookup) (Server, error) {
	cfg := DefaultServer()
	_, err := load(path, env, &cfg)
	return cfg, err
}

// ReadWorker is LoadWorker without the check of the values.
func ReadWorker(path string, env Lookup) (Worker, error) {
	cfg := DefaultWorker()
	_, err := load(path, env, &cfg)
	return cfg, err
}

// source says where each value came from, for errors.
type source struct {
	doc *strictyaml.Document
	env map[string]string // field -> variable
}

func (s source) errorf(field, format string, args ...any) error {
	if name, ok := s.env[field]; ok {
		return fmt.Errorf("%s: %s", name, fmt.Sprintf(format, args...))
	}
	return s.doc.Errorf(field, format, args...)
}

func load(path string, env Lookup, into any) (source, error) {
	src := source{env: map[string]string{}}
	name, data := "configuration", []byte(nil)
	if path != "" {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			return src, fmt.Errorf("config: read file: %w", err)
		}
		name = path
	}
	var fileErr error
	src.doc, fileErr = strictyaml.Decode(name, data, into)
	envErr := strictyaml.Walk(into, func(field string, v reflect.Value) error {
		variable := EnvName(field)
		text, ok := env(variable)
		if !ok || !fromText(v.Type()) {
			return nil
		}
		src.env[field] = variable
		if err := setFromText(v, text); err != nil {
			return fmt.Errorf("%s: %w", variable, err)
		}
		return nil
	})
	return src, errors.Join(fileErr, envErr)
}

// EnvName is the variable of a field: api.address is ISOBAR_API_ADDRESS.
func EnvName(field string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(field, ".", "_"))
}

// fromText reports whether a field of the type can come from the environment.
func fromText(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return strictyaml.IsScalar(t.Elem())
	default:
		return strictyaml.IsScalar(t)
	}
}

func setFromText(v reflect.Value, text string) error {
	if v.Kind() == reflect.Pointer {
		fresh := reflect.New(v.Type().Elem())
		if err := strictyaml.SetScalar(fresh.Elem(), text); err != nil {
			return err
		}
		v.Set(fresh)
		return nil
	}
	if v.Kind() != reflect.Slice {
		return strictyaml.SetScalar(v, text)
	}
	list := reflect.MakeSlice(v.Type(), 0, 0)
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		if err := strictyaml.SetScalar(item, word); err != nil {
			return err
		}
		list = reflect.Append(list, item)
	}
	v.Set(list)
	return nil
}
