package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action      string `json:"Action"`
	Package     string `json:"Package"`
	ImportPath  string `json:"ImportPath"` // of build-output and build-fail
	Test        string `json:"Test"`
	Output      string `json:"Output"`
	FailedBuild string `json:"FailedBuild"`
}

// maxLine is the longest event that is read: a line of output, escaped.
const maxLine = 16 << 20

// summary grows with the events.
type summary struct {
	out                     io.Writer
	strict                  bool           // a skip is a failure
	maySkip                 *regexp.Regexp // but for these; nil is none
	passed, failed, skipped int

	packages map[string]*pkg
	builds   map[string]*strings.Builder // output of the compiler
}

// pkg is a package under test.
type pkg struct {
	output strings.Builder             // of no test
	tests  map[string]*strings.Builder // output by test
	// parents have subtests; broken have one that failed.
	parents, broken map[string]bool
	failed          int
}

// read takes in the events of one command.
func (s *summary) read(r io.Reader) error {
	s.packages, s.builds = map[string]*pkg{}, map[string]*strings.Builder{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			_, _ = fmt.Fprintln(s.out, lines.Text()) // not an event: for the person
			continue
		}
		s.event(e)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	return nil
}

func (s *summary) event(e event) {
	switch {
	case e.Action == "build-output":
		if s.builds[e.ImportPath] == nil {
			s.builds[e.ImportPath] = &strings.Builder{}
		}
		_, _ = s.builds[e.ImportPath].WriteString(e.Output)
	case e.Action == "build-fail" || e.Package == "":
	case e.Test == "":
		s.packageEvent(s.at(e.Package), e)
	default:
		s.testEvent(s.at(e.Package), e)
	}
}

func (s *summary) at(name string) *pkg {
	p := s.packages[name]
	if p == nil {
		p = &pkg{tests: map[string]*strings.Builder{}, parents: map[string]bool{}, broken: map[string]bool{}}
		s.packages[name] = p
	}
	return p
}

func (s *summary) packageEvent(p *pkg, e event) {
	switch e.Action {
	case "output":
		switch {
		case strings.HasPrefix(e.Output, "ok  \t"):
			_, _ = fmt.Fprint(s.out, e.Output)
		case strings.HasPrefix(e.Output, "?   \t"), e.Output == "PASS\n":
		default:
			p.output.WriteString(e.Output)
		}
	case "fail":
		if b := s.builds[e.FailedBuild]; b != nil {
			_, _ = fmt.Fprint(s.out, b.String())
			delete(s.builds, e.FailedBuild) // once, for all packages it fails
		}
		_, _ = fmt.Fprint(s.out, p.output.String())
		if p.failed == 0 {
			// It did not build, or ended outside of any test.
			s.failed++
		}
		delete(s.packages, e.Package)
	case "pass", "skip":
		delete(s.packages, e.Package)
	}
}

func (s *summary) testEvent(p *pkg, e event) {
	if p.tests[e.Test] == nil {
		p.tests[e.Test] = &strings.Builder{}
	}
	parent, nested := parentOf(e.Test)
	switch e.Action {
	case "run":
		if nested {
			p.parents[parent] = true
		}
		return
	case "output":
		_, _ = p.tests[e.Test].WriteString(e.Output)
		return
	case "pass":
		if !p.parents[e.Test] {
			s.passed++
		}
	case "skip":
		s.skip(p, e)
	case "fail":
		_, _ = fmt.Fprint(s.out, p.tests[e.Test].String())
		p.failed++
		if !p.broken[e.Test] {
			s.failed++
		}
		for name, ok := parent, nested; ok; name, ok = parentOf(name) {
			p.broken[name] = true
		}
	default: // pause, cont, start, bench
		return
	}
	delete(p.tests, e.Test)
}

func (s *summary) skip(p *pkg, e event) {
	part := short(e.Package) + "." + e.Test
	why := reason(p.tests[e.Test].String())
	if s.strict && (s.maySkip == nil || !s.maySkip.MatchString(part)) {
		s.failed++
		p.failed++
		_, _ = fmt.Fprintf(s.out, "FAIL: %s was skipped, and with CI=true it must run: %s\n", part, why)
		return
	}
	s.skipped++
	_, _ = fmt.Fprintf(s.out, "skipped: %s: %s\n", part, why)
}

// parentOf is the test that a subtest belongs to; ok is false for one that is
// no subtest.
func parentOf(name string) (parent string, ok bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", false
	}
	return name[:i], true
}

// short drops the host, the owner and the project of an import path.
func short(path string) string {
	parts := strings.SplitN(path, "/", 4)
	return parts[len(parts)-1]
}

var logged = regexp.MustCompile(`^\s*\S+\.go:\d+: (.*)$`)

// reason finds what the test said last before it was skipped.
func reason(output string) string {
	why := "no reason given"
	for line := range strings.Lines(output) {
		if m := logged.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			why = m[1]
		}
	}
	return why
}
