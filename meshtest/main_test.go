package meshtest_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The flags of this suite.
var (
	runs     = flag.Int("meshtest.runs", 2, "runs of the kill test")
	seed     = flag.Uint64("meshtest.seed", 1, "seed of its first run; each further run adds one")
	inFlight = flag.Int("meshtest.tasks", 2000, "tasks not ended when its server is killed")
	// CI runs three, soak as many as it is told.
	letterRuns = flag.Int("meshtest.letterruns", 3, "runs of the test of dead letters")
	// of TestKilledPulsar
	pulsarTasks = flag.Int("meshtest.pulsar-tasks", 5000, "tasks on a Pulsar that is killed")
	pulsarKills = flag.Int("meshtest.pulsar-kills", 1, "how often it is killed")
	leaderKills = flag.Int("meshtest.leader-kills", 2, "how often the leader is")

	keep = flag.Bool("meshtest.keep", false, "keep the data directories")
)

// isobar is the path of the binary under test, built by TestMain.
var isobar string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if testing.Short() {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "isobar-meshtest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "meshtest: make directory:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	isobar = filepath.Join(dir, "isobar")
	build := exec.Command("go", "build", "-o", isobar, "../cmd/isobar")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "meshtest: build isobar:", err)
		return 1
	}
	return m.Run()
}
