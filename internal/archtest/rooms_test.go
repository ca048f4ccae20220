package archtest

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// room says what one package may be.
type room struct {
	// may lists the packages of this module that it may import.
	may string
	// never lists standard packages that it must not import, with all below
	// them: the room must not know what they are about.
	never string
	// tests marks a package that only tests may import.
	tests bool
	// pure is nil for a package that may do what it likes.
	pure *pure
}

// pure rooms have no clock, no I/O, no goroutine, no lock and no chance.
type pure struct {
	// but are files that are not, with the reason.
	but map[string]string
}

const (
	v1     = "proto/isobar/v1"
	meshV1 = "proto/isobar/mesh/v1"
)

// rooms is the table: ARCHITECTURE.md explains it.
func rooms() map[string]room {
	return map[string]room{
		"proto/isobar/v1":      {},
		"proto/isobar/mesh/v1": {may: v1},

		"internal/mesh": {pure: &pure{}},
		"placement":     {may: "internal/mesh", pure: &pure{}},

		"gossip":      {may: "internal/mesh " + meshV1, pure: &pure{}},
		"gossip/pool": {may: "gossip internal/delay internal/mesh " + meshV1, never: "net/http"},

		"consensus":               {never: "net os"},
		"consensus/consensustest": {may: "consensus", tests: true},
		"consensus/locallog":      {may: "consensus"},
		"consensus/raftlog":       {may: "consensus", never: "net/http"},

		"state": {may: "consensus", pure: &pure{but: map[string]string{
			"memory.go":      "a store that many read while one writes",
			"memory_file.go": "checkpoints of the store in memory",
			"replica.go":     "its position is read while the log writes it",
		}}},
		"state/pebblestore": {may: "state", never: "net"},

		"broker":            {may: "internal/mesh", never: "net os"},
		"broker/brokertest": {may: "broker internal/mesh", tests: true},
		"broker/embedded": {may: "broker internal/mesh state", never: "net os", pure: &pure{but: map[string]string{
			"broker.go": "the leader's door: its references are counted under a lock",
			"stream.go": "the door to the messages of streams, which are read within a context's deadline",
		}}},
		"broker/pulsar":            {may: "broker internal/mesh"},
		"broker/pulsar/pulsartest": {may: "broker/pulsar/standalone", tests: true},
		"broker/pulsar/standalone": {may: "internal/loopback"},

		"registry": {may: "internal/mesh internal/strictyaml registry/digest state " + meshV1 + " " + v1, never: "net/http", pure: &pure{but: map[string]string{
			"cache.go":    "decoded documents, shared by readers",
			"edit.go":     "the author's clock stamps an edit",
			"manifest.go": "modules are read from files, by the CLI",
			"registry.go": "the clock, and a lock over the cache",
			"validate.go": "net/url reads an endpoint's address",
		}}},
		"registry/digest":   {pure: &pure{}},
		"registry/code":     {may: "registry/digest", never: "net"},
		"registry/exchange": {may: "internal/mesh registry " + meshV1, never: "net os"},

		"scheduler":          {may: "broker consensus gossip internal/mesh placement scheduler/fairness scheduler/fsm state " + meshV1 + " " + v1, never: "net os"},
		"scheduler/fairness": {may: "internal/mesh", pure: &pure{}},
		"scheduler/fsm":      {may: "internal/mesh state " + meshV1 + " " + v1, pure: &pure{}},
		"scheduler/api":      {may: "broker consensus gossip internal/mesh registry scheduler scheduler/fsm scheduler/peers stream stream/groups " + meshV1 + " " + v1, never: "net os"},
		"scheduler/peers":    {may: "consensus gossip gossip/pool internal/identity internal/mesh scheduler " + meshV1 + " " + v1, never: "os"},

		"stream":        {may: "broker consensus internal/mesh state stream/groups " + meshV1, never: "net os"},
		"stream/groups": {may: "internal/mesh state " + meshV1, pure: &pure{}},

		"carbon": {may: "internal/strictcsv", never: "net"},
		"client": {may: v1, never: "os"},

		"worker":                     {may: "internal/mesh registry/code worker/attempt " + v1},
		"worker/accel":               {may: "internal/mesh internal/strictyaml", never: "net"},
		"worker/attempt":             {may: "internal/mesh", never: "os net/http"},
		"worker/attempt/attempttest": {tests: true},
		"worker/attempt/endpoint":    {may: "worker/attempt", never: "os"},
		"worker/attempt/process":     {may: "worker/attempt", never: "net"},
		"worker/attempt/wasm":        {may: "worker/attempt", never: "net os"},

		"loadtest":         {may: "loadtest/azure " + v1, never: "net"},
		"loadtest/azure":   {may: "internal/strictcsv", never: "net os"},
		"simulate":         {may: "carbon internal/mesh internal/meshfile internal/strictcsv loadtest/azure placement", never: "net"},
		"simulate/results": {may: "carbon internal/meshfile loadtest simulate", never: "net"},

		"internal/archtest":   {tests: true},
		"internal/config":     {may: "internal/mesh internal/strictyaml", never: "net/http"},
		"internal/delay":      {never: "net/http os/exec"},
		"internal/devmesh":    {may: "client internal/config internal/identity internal/loopback internal/mesh internal/meshfile internal/strictyaml " + v1},
		"internal/identity":   {may: "internal/mesh", never: "net/http"},
		"internal/loopback":   {never: "net/http os"},
		"internal/meshfile":   {may: "internal/mesh internal/strictyaml", never: "net os"},
		"internal/sim":        {may: "consensus scheduler/fsm state " + meshV1 + " " + v1, never: "net os sync time", tests: true},
		"internal/strictcsv":  {never: "net os"},
		"internal/strictyaml": {never: "net os"},
		"internal/telemetry":  {},
		"internal/testsum":    {never: "net"},
		"internal/server": {may: "broker broker/embedded broker/pulsar carbon consensus consensus/raftlog gossip/pool internal/config internal/delay internal/identity " +
			"internal/mesh internal/telemetry placement registry registry/code registry/exchange scheduler scheduler/api scheduler/fsm " +
			"scheduler/peers state state/pebblestore stream stream/groups worker/attempt/wasm " + meshV1 + " " + v1},

		"cmd/isobar": {may: "carbon client internal/config internal/devmesh internal/mesh internal/meshfile internal/server internal/telemetry registry " +
			"registry/digest simulate worker worker/accel worker/attempt worker/attempt/endpoint worker/attempt/process worker/attempt/wasm " + v1},
		"cmd/pulsar": {may: "broker/pulsar/standalone"},
		"cmd/demo":   {may: "carbon client examples/functions/sentiment internal/mesh internal/meshfile loadtest registry " + v1},
		// The benchmarks time the rooms from inside, so they may know them; nobody imports them.
		"loadtest/bench": {may: "broker broker/embedded broker/pulsar broker/pulsar/standalone client consensus consensus/raftlog internal/config internal/identity internal/loopback internal/mesh internal/server " +
			"internal/telemetry loadtest placement scheduler scheduler/fairness scheduler/fsm state state/pebblestore worker worker/attempt worker/attempt/wasm " + meshV1 + " " + v1},

		"docs":                               {tests: true},
		"meshtest":                           {tests: true},
		"examples":                           {tests: true},
		"examples/functions":                 {tests: true},
		"examples/functions/sentiment":       {never: "net os"},
		"examples/functions/sentiment/large": {may: "examples/functions/sentiment", never: "net"},
		"examples/functions/sentiment/small": {may: "examples/functions/sentiment", never: "net"},
		"examples/functions/thumbnail":       {never: "net"},
	}
}

// libraries lists who alone may import a library of others, also below it.
// Tests of other packages may not either, unless they are named.
func libraries() map[string]string {
	return map[string]string{
		"github.com/hashicorp/raft":           "consensus/raftlog",
		"github.com/hashicorp/raft-wal":       "consensus/raftlog",
		"github.com/hashicorp/go-hclog":       "consensus/raftlog",
		"github.com/hashicorp/memberlist":     "gossip/pool",
		"github.com/cockroachdb/pebble/v2":    "state/pebblestore",
		"github.com/tetratelabs/wazero":       "worker/attempt/wasm",
		"github.com/google/btree":             "state",
		"github.com/oklog/ulid/v2":            "scheduler",
		"github.com/spf13/cobra":              "cmd/isobar",
		"github.com/apache/pulsar-client-go":  "broker/pulsar loadtest/bench meshtest",
		"go.opentelemetry.io/otel/sdk":        "internal/telemetry client worker meshtest scheduler/api internal/server",
		"go.opentelemetry.io/otel/exporters":  "internal/telemetry",
		"github.com/prometheus/client_golang": "internal/telemetry internal/server loadtest/bench broker/pulsar",
		"connectrpc.com/connect/v2":           "proto/isobar/v1 proto/isobar/mesh/v1 scheduler/api scheduler/peers internal/server client worker cmd/isobar cmd/demo docs examples meshtest loadtest/bench",
		"connectrpc.com/otelconnect":          "internal/server client",
		"github.com/rogpeppe/go-internal":     "cmd/isobar docs",
	}
}

// testLibraries are linked into tests and nothing else.
func testLibraries() []string {
	return []string{
		"pgregory.net/rapid", "go.uber.org/goleak", "github.com/google/go-cmp", "github.com/cockroachdb/datadriven",
		"github.com/rogpeppe/go-internal/testscript", "github.com/anishathalye/porcupine", "go.opentelemetry.io/otel/sdk/trace/tracetest",
	}
}

func under(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// TestEveryPackageHasARow: a package without a row fails, and so does a row
// without a package.
func TestEveryPackageHasARow(t *testing.T) {
	t.Parallel()
	table, all := rooms(), module(t)
	for _, path := range sorted(all) {
		if _, ok := table[path]; !ok {
			t.Errorf("package %s has no row in the table: say what it may import", path)
		}
	}
	for _, path := range sorted(table) {
		if _, ok := all[path]; !ok {
			t.Errorf("the row of %s has no package any more", path)
		}
	}
}

// TestArrows: a package imports what its row allows, and its row allows what it
// imports.
func TestArrows(t *testing.T) {
	t.Parallel()
	table, all := rooms(), module(t)
	for _, path := range sorted(all) {
		r, p := table[path], all[path]
		allowed := strings.Fields(r.may)
		used := map[string]bool{}
		for _, i := range p.Imports {
			if mine, ok := own(i); ok {
				used[mine] = true
				switch {
				case !slices.Contains(allowed, mine):
					t.Errorf("%s may not import %s", path, mine)
				case table[mine].tests && !r.tests:
					t.Errorf("%s may not import %s, which is for tests", path, mine)
				}
				continue
			}
			for no := range strings.FieldsSeq(r.never) {
				if under(i, no) {
					t.Errorf("%s may not import %s", path, i)
				}
			}
		}
		for _, mine := range allowed {
			if !used[mine] {
				t.Errorf("%s may import %s and does not: take it out of its row", path, mine)
			}
		}
		if r.tests && len(p.GoFiles) > 0 && p.Name == "main" {
			t.Errorf("%s is a program and marked as for tests", path)
		}
	}
}

// TestAdapters: but for the wiring, no package knows two backends of the seams.
func TestAdapters(t *testing.T) {
	t.Parallel()
	adapters := []string{"broker/embedded", "broker/pulsar", "consensus/raftlog", "consensus/locallog", "gossip/pool", "state/pebblestore"}
	wiring := []string{"internal/server", "loadtest/bench"}
	for path, p := range module(t) {
		n := 0
		for _, i := range p.Imports {
			if mine, ok := own(i); ok && slices.Contains(adapters, mine) {
				n++
			}
		}
		if n > 1 && !slices.Contains(wiring, path) {
			t.Errorf("%s imports %d backends; only %v wires", path, n, wiring)
		}
	}
}

// TestLibraries: a library of others is known to its room alone.
func TestLibraries(t *testing.T) {
	t.Parallel()
	libs := libraries()
	for path, p := range module(t) {
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for lib, who := range libs {
				if under(i, lib) && !slices.Contains(strings.Fields(who), path) {
					t.Errorf("%s may not import %s: only %s", path, i, who)
				}
			}
		}
	}
}

// TestNoTestLibraryIsLinked: what is for tests is in no program.
func TestNoTestLibraryIsLinked(t *testing.T) {
	t.Parallel()
	table := rooms()
	linked, err := goList("-deps", "./cmd/isobar", "./cmd/demo")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range linked {
		mine, ok := own(p.ImportPath)
		if ok && table[mine].tests {
			t.Errorf("%s is linked into a program, and is for tests", mine)
		}
		if ok && slices.Contains(p.Imports, "testing") {
			t.Errorf("%s is linked into a program and imports testing", mine)
		}
		for _, lib := range testLibraries() {
			if under(p.ImportPath, lib) {
				t.Errorf("%s is linked into a program, and is for tests", p.ImportPath)
			}
		}
	}
}

// TestProtoHoldsNoHandWrittenCode: everything beside the contracts is generated.
func TestProtoHoldsNoHandWrittenCode(t *testing.T) {
	t.Parallel()
	for path, p := range module(t) {
		if !under(path, "proto") {
			continue
		}
		_, parsed := files(t, p, slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles))
		for _, f := range parsed {
			if !ast.IsGenerated(f) {
				t.Errorf("%s: a file that is not generated", path)
			}
		}
	}
}
