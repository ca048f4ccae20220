package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func feed(t *testing.T, s *summary, events ...string) string {
	t.Helper()
	var out bytes.Buffer
	s.out = &out
	if err := s.read(strings.NewReader(strings.Join(events, "\n"))); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

const (
	runA   = `{"Action":"run","Package":"h.org/o/p/q","Test":"TestA"}`
	logA   = `{"Action":"output","Package":"h.org/o/p/q","Test":"TestA","Output":"    a_test.go:7: no such thing here\n"}`
	passA  = `{"Action":"pass","Package":"h.org/o/p/q","Test":"TestA"}`
	skipA  = `{"Action":"skip","Package":"h.org/o/p/q","Test":"TestA"}`
	failA  = `{"Action":"fail","Package":"h.org/o/p/q","Test":"TestA"}`
	runAB  = `{"Action":"run","Package":"h.org/o/p/q","Test":"TestA/b"}`
	passAB = `{"Action":"pass","Package":"h.org/o/p/q","Test":"TestA/b"}`
	failAB = `{"Action":"fail","Package":"h.org/o/p/q","Test":"TestA/b"}`
	okLine = `{"Action":"output","Package":"h.org/o/p/q","Output":"ok  \th.org/o/p/q\t0.1s\n"}`
	okPkg  = `{"Action":"pass","Package":"h.org/o/p/q"}`
	badPkg = `{"Action":"fail","Package":"h.org/o/p/q"}`
)

func TestSummary(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name                    string
		events                  []string
		want                    string
		passed, failed, skipped int
		strict                  bool
		maySkip                 string
	}{
		{"pass", []string{runA, logA, passA, okLine, okPkg}, "ok  \th.org/o/p/q\t0.1s\n", 1, 0, 0, false, ""},
		{"subtests count, their parent does not", []string{runA, runAB, passAB, passA, okPkg}, "", 1, 0, 0, false, ""},
		{"skip", []string{runA, logA, skipA, okLine, okPkg}, "skipped: q.TestA: no such thing here\nok  \th.org/o/p/q\t0.1s\n", 0, 0, 1, false, ""},
		{"skip without a word", []string{runA, skipA, okPkg}, "skipped: q.TestA: no reason given\n", 0, 0, 1, false, ""},
		{
			"skip of what is required", []string{runA, logA, skipA, okPkg},
			"FAIL: q.TestA was skipped, and with CI=true it must run: no such thing here\n", 0, 1, 0, true, "",
		},
		{"skip that is allowed", []string{runA, logA, skipA, okPkg}, "skipped: q.TestA: no such thing here\n", 0, 0, 1, true, `^q\.Test`},
		{"fail", []string{runA, logA, failA, badPkg}, "    a_test.go:7: no such thing here\n", 0, 1, 0, false, ""},
		{"subtest fails its parent", []string{runA, runAB, failAB, failA, badPkg}, "", 0, 1, 0, false, ""},
		{"parent fails by itself", []string{runA, runAB, passAB, logA, failA, badPkg}, "    a_test.go:7: no such thing here\n", 1, 1, 0, false, ""},
		{
			"panic outside of a test",
			[]string{`{"Action":"output","Package":"h.org/o/p/q","Output":"panic: oh\n"}`, badPkg}, "panic: oh\n", 0, 1, 0, false, "",
		},
		{
			"does not build",
			[]string{
				`{"ImportPath":"h.org/o/p/q [h.org/o/p/q.test]","Action":"build-output","Output":"q.go:1:1: nonsense\n"}`,
				`{"ImportPath":"h.org/o/p/q [h.org/o/p/q.test]","Action":"build-fail"}`,
				`{"Action":"output","Package":"h.org/o/p/q","Output":"FAIL\th.org/o/p/q [build failed]\n"}`,
				`{"Action":"fail","Package":"h.org/o/p/q","FailedBuild":"h.org/o/p/q [h.org/o/p/q.test]"}`,
			},
			"q.go:1:1: nonsense\nFAIL\th.org/o/p/q [build failed]\n", 0, 1, 0, false, "",
		},
		{"no test files", []string{`{"Action":"output","Package":"h.org/o/p/q","Output":"?   \th.org/o/p/q\t[no test files]\n"}`, `{"Action":"skip","Package":"h.org/o/p/q"}`}, "", 0, 0, 0, false, ""},
		{"not an event", []string{"go: downloading"}, "go: downloading\n", 0, 0, 0, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &summary{strict: tt.strict}
			if tt.maySkip != "" {
				s.maySkip = regexp.MustCompile(tt.maySkip)
			}
			if got := feed(t, s, tt.events...); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			if s.passed != tt.passed || s.failed != tt.failed || s.skipped != tt.skipped {
				t.Errorf("%d passed, %d failed, %d skipped; want %d, %d, %d", s.passed, s.failed, s.skipped, tt.passed, tt.failed, tt.skipped)
			}
		})
	}
}

// TestRun runs go test on a module made for it: one test of each kind, and a
// package that does not build.
func TestRun(t *testing.T) {
	t.Parallel()
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Fatalf("find go: %v", err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":            "module h.org/o/p\n\ngo 1.26\n",
		"good/a_test.go":    "package good\nimport \"testing\"\nfunc TestA(t *testing.T) {}\nfunc TestB(t *testing.T) { t.Skip(\"not here\") }\n",
		"bad/a_test.go":     "package bad\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Run(\"x\", func(t *testing.T) { t.Error(\"broken\") }) }\n",
		"nobuild/a_test.go": "package nobuild\nimport \"testing\"\nfunc TestA(t *testing.T) { nonsense }\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	test := func(pkg string) []string { return []string{"--", goTool, "-C", dir, "test", "-json", pkg} }
	for _, tt := range []struct {
		name string
		args []string
		ci   bool
		code int
		want []string
	}{
		{"good", test("./good"), false, 0, []string{"skipped: good.TestB: not here\n", "ok  \th.org/o/p/good", "\n1 passed, 0 failed, 1 skipped\n"}},
		{"good in CI", test("./good"), true, 1, []string{"FAIL: good.TestB", "\n1 passed, 1 failed, 0 skipped\n"}},
		{"bad", test("./bad"), false, 1, []string{"a_test.go:3: broken", "--- FAIL: TestA/x", "FAIL\th.org/o/p/bad", "\n0 passed, 1 failed, 0 skipped\n"}},
		{"does not build", test("./nobuild"), false, 1, []string{"undefined: nonsense", "[build failed]", "\n0 passed, 1 failed, 0 skipped\n"}},
		{"two commands", append(test("./bad"), test("./good")...), false, 1, []string{"\n1 passed, 1 failed, 1 skipped\n"}},
		{"no such subcommand", []string{"--", goTool, "nonsense"}, false, 1, []string{"FAIL: ", "0 passed, 1 failed, 0 skipped\n"}},
		{"nothing to run", nil, false, 2, nil},
		{"empty command", []string{"--"}, false, 2, nil},
		{"no such command", []string{"--", filepath.Join(dir, "none")}, false, 2, nil},
		{"bad expression", append([]string{"--may-skip", "("}, test("./good")...), false, 2, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			if code := run(tt.args, tt.ci, &stdout, &stderr); code != tt.code {
				t.Errorf("exit %d, want %d; output:\n%s%s", code, tt.code, &stdout, &stderr)
			}
			for _, want := range tt.want {
				if !strings.Contains("\n"+stdout.String(), want) {
					t.Errorf("no %q in:\n%s", want, &stdout)
				}
			}
		})
	}
}
