package main

import (
	"net/http/httptest"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"isobar": main})
}

// TestScripts runs testdata: the real main, as a process of its own, against
// canned answers of a cell.
func TestScripts(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(cannedCell())
	t.Cleanup(server.Close)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("CELL", server.URL)
			env.Setenv("ISOBAR_SERVER", server.URL)
			for name, id := range map[string]string{"DONE": doneTask, "DEAD": deadTask, "RUNNING": runningTask, "PUTOFF": putOffTask, "BINARY": binaryTask} {
				env.Setenv(name, id)
			}
			// A port that nothing listens on: a listener that was closed.
			closed := httptest.NewServer(nil)
			env.Setenv("NOBODY", closed.URL)
			closed.Close()
			return nil
		},
	})
}
