package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/isobar-mesh/isobar/internal/config"
)

const minimal = `name: s1
region: eu-north
jurisdictions: [eu, se]
bootstrap: true
gossip: {keys: [QUFBQUFBQUFBQUFBQUFBQQ==]}
tls: {ca: ca.pem, cert: s.pem, key: s.key}
`

func none(string) (string, bool) { return "", false }

func from(vars map[string]string) config.Lookup {
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestServerDefaults(t *testing.T) {
	t.Parallel()
	cfg, err := config.LoadServer(write(t, minimal), none, nil)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Cell != "eu-north-1" || cfg.API.Address != "127.0.0.1:7101" || cfg.Lease.Cell != 10*time.Second {
		t.Errorf("got %+v", cfg)
	}
}

func TestEnvironmentWinsOverFileAndFlagsOverBoth(t *testing.T) {
	t.Parallel()
	env := from(map[string]string{
		"ISOBAR_API_ADDRESS": "127.0.0.1:9000", "ISOBAR_QUEUE_BYTES": "2GiB", "ISOBAR_GOSSIP_JOIN": "127.0.0.1:1, 127.0.0.1:2",
		"ISOBAR_CARBON_CLOCK": "2022-06-01T00:00:00Z", "ISOBAR_POLICY_CARBON_PRICE": "50",
	})
	cfg, err := config.LoadServer(write(t, minimal+"policy: {carbon_price: 10}\n"), env, func(s *config.Server) { s.Data = "/elsewhere" })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"127.0.0.1:1", "127.0.0.1:2"}, cfg.Gossip.Join); diff != "" {
		t.Error(diff)
	}
	if cfg.API.Address != "127.0.0.1:9000" || cfg.Queue.Bytes != 2<<30 || cfg.Policy.CarbonPrice != 50 || cfg.Data != "/elsewhere" ||
		cfg.Carbon.Clock == nil || cfg.Carbon.Clock.Month() != time.June {
		t.Errorf("got %+v", cfg)
	}
}

func TestServerRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, add string
		env       map[string]string
		want      string
	}{
		{name: "unknown field", add: "lease:\n  cel: 3s\n", want: ":8: lease.cel: unknown field; did you mean cell?"},
		{name: "open API", add: "api: {address: '0.0.0.0:7101', advertise: 'http://a:1'}\n", want: "clients are not authenticated yet"},
		{name: "open API by name", add: "api: {address: 'myhost:7101'}\n", want: "--insecure-no-auth"},
		{name: "open API by environment", env: map[string]string{"ISOBAR_API_ADDRESS": "10.0.0.1:7101"}, want: "ISOBAR_API_ADDRESS: 10.0.0.1:7101 can be reached"},
		{name: "wildcard without advertise", add: "peer: {address: '0.0.0.0:1'}\n", want: "peer.advertise: is required"},
		{name: "port", add: "raft: {address: '127.0.0.1:70000'}\n", want: ":7: raft.address: must end with a port"},
		{name: "no port", add: "raft: {address: localhost}\n", want: "raft.address: must be host:port"},
		{name: "join and bootstrap", add: "join: ['127.0.0.1:1']\n", want: "exclude each other"},
		{name: "worker lease too long", add: "lease: {worker: 10s}\n", want: "lease.worker: must be shorter than lease.cell"},
		{name: "renew too slow", add: "lease: {renew: 4s}\n", want: "lease.renew: must be at most half"},
		{name: "bad level", env: map[string]string{"ISOBAR_LOG_LEVEL": "loud"}, want: `ISOBAR_LOG_LEVEL: must be debug, info, warn or error, got "loud"`},
		{name: "bad number in environment", env: map[string]string{"ISOBAR_QUEUE_COUNT": "many"}, want: "ISOBAR_QUEUE_COUNT: must be a whole number"},
		{name: "two feeds", add: "carbon: {zone: SE-SE1, file: a.csv, generate: true}\n", want: "exclude each other"},
		{name: "feed without zone", add: "carbon: {generate: true}\n", want: "carbon.zone: is required"},
		{name: "negative price", add: "prices: {gpus: {H100: -1}}\n", want: ":7: prices.gpus.H100: must be 0 or more"},
		{name: "idle above busy", add: "energy: {watts_per_cpu: 0.5}\n", want: "energy.idle_watts_per_cpu: must be at most watts_per_cpu, got 0.74"},
		{name: "idle accelerator", add: "energy: {idle_watts_per_gpu: {A100: 40}}\n", want: "energy.idle_watts_per_gpu.A100: must be at most watts_per_gpu"},
		{name: "between regions", add: "between: {rtt_ms: {a: {b: -1}}}\n", want: "between.rtt_ms.a.b: must be 0 or more"},
		{name: "network", add: "energy: {network_kwh_per_gib: -1}\n", want: "energy.network_kwh_per_gib: must be 0 or more"},
		{name: "embodied", add: "energy: {embodied_g_per_gpu_hour: {A100: -1}}\n", want: "energy.embodied_g_per_gpu_hour.A100: must be 0 or more"},
		{name: "pue", add: "energy: {pue: 0.9}\n", want: "energy.pue: must be 1 or more"},
		{name: "weight below nothing", add: "tenants: {acme: {weight: -1}}\n", want: ":7: tenants.acme.weight: must be 0.001 to 1000, got -1; left out it is 1"},
		{name: "tenant's name", add: "tenants: {Acme: {weight: 1}}\n", want: "tenants.Acme: must be 1 to 63 lower-case"},
		{name: "a tenant is no number", add: "tenants: {acme: 3}\n", want: "tenants.acme: must be a mapping"},
		{name: "half an attempt", add: "tenants: {default: {concurrency: {attempts: 0.5}}}\n", want: "tenants.default.concurrency.attempts: must be a whole number"},
		{name: "many attempts", add: "tenants: {default: {concurrency: {attempts: 1000001}}}\n", want: "tenants.default.concurrency.attempts: must be 0 to 1000000, got 1000001; 0 is no bound"},
		{name: "no cores", add: "tenants: {default: {concurrency: {cpu: -1}}}\n", want: "tenants.default.concurrency.cpu: must be 0 to 1000000 cores"},
		{name: "memory of a tenant", add: "tenants: {default: {concurrency: {memory_mib: -1}}}\n", want: "tenants.default.concurrency.memory_mib: must be 0 to"},
		{name: "accelerators of a tenant", add: "tenants: {default: {concurrency: {gpus: -1}}}\n", want: "tenants.default.concurrency.gpus: must be 0 to"},
		{name: "tokens of a tenant", add: "tenants: {default: {concurrency: {cost: {tokens: -1}}}}\n", want: "tenants.default.concurrency.cost.tokens: must be 0 to 1099511627776, got -1; 0 is no bound"},
		{name: "bytes of a tenant", add: "tenants: {default: {concurrency: {cost: {bytes: 2TiB}}}}\n", want: "tenants.default.concurrency.cost.bytes: must be 0 to 1099511627776"},
		{name: "accelerators' memory of a tenant", add: "tenants: {default: {concurrency: {cost: {accelerator_mib: -1}}}}\n", want: "tenants.default.concurrency.cost.accelerator_mib: must be 0 to"},
		{name: "a cost misspelt", add: "tenants: {default: {concurrency: {cost: {token: 1}}}}\n", want: "tenants.default.concurrency.cost.token: unknown field; did you mean tokens?"},
		{name: "home twice", add: "homes: [eu-north-1, eu-north-1]\n", want: "homes[1]: is given twice"},
		{name: "broker's kind", add: "broker: {kind: kafka}\n", want: "broker.kind: must be embedded or pulsar"},
		{name: "broker without a word", add: "broker: pulsar\n", want: "broker: must be a mapping"},
		{name: "broker without a service", add: "broker: {kind: pulsar, admin: 'http://a:8080'}\n", want: "broker.service: must be pulsar://host:port"},
		{name: "broker without an admin API", add: "broker: {kind: pulsar, service: 'pulsar://a:6650'}\n", want: "broker.admin: is required"},
		{name: "embedded broker with a service", add: "broker: {service: 'pulsar://a:6650'}\n", want: "broker.kind: must be pulsar"},
		{name: "broker's quota", add: "broker: {kind: pulsar, service: 'pulsar://a:6650', admin: 'http://a:8080', quota: 1KiB}\n", want: "broker.quota: must hold one payload"},
		{name: "two identities at the broker", add: "broker: {kind: pulsar, service: 'pulsar://a:6650', admin: 'http://a:8080', token_file: t, oauth2: {issuer: 'http://i', key_file: k}}\n", want: "broker.token_file: and oauth2 exclude each other"},
		{name: "credentials without an issuer", add: "broker: {kind: pulsar, service: 'pulsar://a:6650', admin: 'http://a:8080', oauth2: {key_file: k}}\n", want: "broker.oauth2.issuer: is required with oauth2"},
		{name: "an issuer without credentials", add: "broker: {kind: pulsar, service: 'pulsar://a:6650', admin: 'http://a:8080', oauth2: {issuer: 'https://i'}}\n", want: "broker.oauth2.key_file: is required with an issuer"},
		{name: "an issuer that is no URL", add: "broker: {kind: pulsar, service: 'pulsar://a:6650', admin: 'http://a:8080', oauth2: {issuer: 'i', key_file: k}}\n", want: "broker.oauth2.issuer: "},
		{name: "unknown field of the broker", add: "broker: {kind: pulsar, servce: x}\n", want: "broker.servce: unknown field; did you mean service?"},
		{name: "emulation without figures", add: "emulate_rtt: true\n", want: "emulate_rtt: needs rtt_ms"},
		{name: "name", env: map[string]string{"ISOBAR_NAME": "S/1"}, want: "ISOBAR_NAME: must be 1 to 63"},
		{name: "small queue", add: "queue: {bytes: 1KiB}\n", want: "queue.bytes: must hold one payload of 1MiB"},
		{name: "cost of a queue", add: "queue: {cost: {tokens: -1}}\n", want: ":7: queue.cost.tokens: must be 0 to 1099511627776, got -1; 0 is no bound"},
		{name: "cost of a queue by environment", env: map[string]string{"ISOBAR_QUEUE_COST_BYTES": "2TiB"}, want: "ISOBAR_QUEUE_COST_BYTES: must be 0 to"},
		{name: "otlp", add: "otlp: {endpoint: 'localhost:4318'}\n", want: "otlp.endpoint: must be a URL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := config.LoadServer(write(t, minimal+c.add), from(c.env), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want it to hold %q", err, c.want)
			}
		})
	}
}

func TestInsecureNoAuthOpensTheAPI(t *testing.T) {
	t.Parallel()
	file := write(t, minimal+"api: {address: '10.0.0.1:7101'}\n")
	if _, err := config.LoadServer(file, none, func(s *config.Server) { s.InsecureNoAuth = true }); err != nil {
		t.Error(err)
	}
}

func TestGossipKeyStaysOutOfErrors(t *testing.T) {
	t.Parallel()
	_, err := config.LoadServer(write(t, strings.Replace(minimal, "QUFBQUFBQUFBQUFBQUFBQQ==", "c2VjcmV0", 1)), none, nil)
	if err == nil || strings.Contains(err.Error(), "c2VjcmV0") || !strings.Contains(err.Error(), "gossip.keys[0]") {
		t.Errorf("error %v", err)
	}
}

func TestEverythingWrongIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := config.LoadServer("", none, nil)
	for _, want := range []string{"region: is required", "gossip.keys: names no key", "tls.ca: is required", "join: names no server"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want it to hold %q", err, want)
		}
	}
}

func TestPrintedConfigurationLoadsAgain(t *testing.T) {
	t.Parallel()
	clock := time.Date(2022, 1, 2, 3, 0, 0, 0, time.UTC)
	want, err := config.LoadServer(write(t, minimal), none, func(s *config.Server) {
		s.Carbon = config.Carbon{Zone: "SE-SE1", File: "x.csv.gz", Clock: &clock, Speed: 60}
		s.RTTMs = map[string]float64{"us-east": 112}
		s.Between = config.Between{
			RTTMs: map[string]map[string]float64{"a": {"b": 60}}, EgressUSDPerGiB: map[string]map[string]float64{"a": {"b": 0.02}, "b": {"a": 0.08}},
		}
		s.Prices.GPUs = map[string]float64{"H100": 6.98}
		s.Tenants = map[string]config.Tenant{"acme": {Weight: 2.5, Concurrency: config.Concurrency{
			Attempts: 3, CPU: 1.5, MemoryMiB: 512, GPUs: 1, Cost: config.Cost{Tokens: 9, Bytes: 64 << 20, AcceleratorMiB: 8},
		}}}
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.LoadServer(write(t, string(text)), none, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWorker(t *testing.T) {
	t.Parallel()
	cfg, err := config.LoadWorker(write(t, "name: w1\nservers: [http://127.0.0.1:7101]\ncpu: 2\nmemory_mib: 512\nruntimes: [exec]\n"), none, nil)
	if err != nil || cfg.CPU != 2 || cfg.MemoryMiB != 512 || len(cfg.Runtimes) != 1 {
		t.Errorf("got %+v, %v", cfg, err)
	}
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := config.LoadWorker(write(t, string(text)), none, nil); err != nil || !cmp.Equal(cfg, again) {
		t.Errorf("%v\n%s\n%s", err, text, cmp.Diff(cfg, again))
	}
	for in, want := range map[string]string{
		"name: w\nservers: []\n":                         "servers: names no server",
		"name: w\nservers: [ftp://x]\n":                  "servers[0]: must be a URL",
		"name: w\nruntimes: [docker]\n":                  "must be one of wasm, exec, http",
		"name: w\nruntimes: [exec, exec]\n":              "is given twice",
		"name: w\ncpu: -1\n":                             "cpu: must be above 0",
		"name: w\nmemory_mib: 1.5\n":                     "memory_mib: must be a whole number",
		"name: w\nrutimes: [exec]\n":                     "did you mean runtimes?",
		"name: w\nlog: {format: xml}\n":                  "log.format: must be text or json",
		"name: w\notlp: {protocol: udp}\n":               "otlp.protocol",
		"name: w\nfunctions: [A]\n":                      "functions[0]: must be 1 to 63",
		"name: w\ngrace: -1s\n":                          "grace: must not be negative",
		"name: w\nservers: ['http://127.0.0.1:1', null]": "servers[1]: is empty",
	} {
		if _, err := config.LoadWorker(write(t, in), none, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want it to hold %q", in, err, want)
		}
	}
}

func TestLoopback(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "[::1]:1": true, "localhost:1": true, "127.9.9.9:1": true, "[::ffff:127.0.0.1]:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "192.168.0.1:1": false, "example.com:1": false, "nonsense": false,
	} {
		if got := config.Loopback(address); got != want {
			t.Errorf("Loopback(%q) = %v, want %v", address, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]config.Size{"0": 0, "12": 12, "12B": 12, "1KiB": 1024, "1 GiB": 1 << 30, "3TiB": 3 << 40} {
		var got config.Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "1.5GiB", "1GB", "9223372036854775807GiB"} {
		var got config.Size
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
}
