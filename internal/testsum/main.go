// Command testsum runs `go test -json` commands one after the other and prints
// what a person wants of them: go test's own line for each package, the output
// of what failed, a line "skipped: PART: reason" for each test that this machine
// cannot run, and at the end, alone on its line,
//
//	120 passed, 0 failed, 3 skipped
//
// Its arguments are flags, then the commands, each after a "--":
//
//	testsum -- go test -json ./a/... -- go test -json -p 1 ./b/...
//
// Tests are counted as leaves: a test with subtests counts for itself only when
// it fails though none of them did. It exits 1 when anything failed, also when a
// command failed that said nothing of a test. With CI=true in the environment a
// skipped test is a failure, unless its part matches --may-skip: what is required
// must not vanish because a machine lacks something.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
)

func main() {
	os.Exit(run(os.Args[1:], os.Getenv("CI") == "true", os.Stdout, os.Stderr))
}

func run(args []string, ci bool, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("testsum", flag.ContinueOnError)
	flags.SetOutput(stderr)
	maySkip := flags.String("may-skip", "", "with CI=true: regular expression of the parts that may be skipped all the same")
	own, commands := split(args)
	if err := flags.Parse(own); err != nil {
		return 2
	}
	if flags.NArg() > 0 || len(commands) == 0 {
		_, _ = fmt.Fprintln(stderr, "testsum: usage: testsum [--may-skip REGEXP] -- go test -json ... [-- go test -json ...]")
		return 2
	}
	s := &summary{out: stdout, strict: ci}
	if *maySkip != "" {
		allowed, err := regexp.Compile(*maySkip)
		if err != nil {
			_, _ = fmt.Fprintln(stderr, "testsum: read --may-skip:", err)
			return 2
		}
		s.maySkip = allowed
	}
	for _, command := range commands {
		if err := test(command, s, stderr); err != nil {
			_, _ = fmt.Fprintln(stderr, "testsum:", err)
			return 2
		}
	}
	_, _ = fmt.Fprintf(stdout, "%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	if s.failed > 0 {
		return 1
	}
	return 0
}

// split parts the arguments at each "--".
func split(args []string) (own []string, commands [][]string) {
	at := &own
	for _, a := range args {
		if a == "--" {
			commands = append(commands, nil)
			at = &commands[len(commands)-1]
			continue
		}
		*at = append(*at, a)
	}
	return own, commands
}

// test runs one command to its end.
func test(command []string, s *summary, stderr io.Writer) error {
	if len(command) == 0 {
		return errors.New("run tests: an empty command after --")
	}
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // the command is what we are asked to run
	cmd.Stderr = stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("run tests: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run tests: %w", err)
	}
	failedBefore := s.failed
	if err := s.read(events); err != nil {
		return errors.Join(fmt.Errorf("run tests: %w", err), cmd.Wait())
	}
	if err := cmd.Wait(); err != nil && s.failed == failedBefore {
		// It failed without an event that says so: an unknown flag, say.
		s.failed++
		_, _ = fmt.Fprintf(s.out, "FAIL: %v: %v\n", command, err)
	}
	return nil
}
