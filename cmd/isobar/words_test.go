package main

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplitCommand(t *testing.T) {
	t.Parallel()
	for line, want := range map[string][]string{
		"tr a-z A-Z":           {"tr", "a-z", "A-Z"},
		"  a\t b\n":            {"a", "b"},
		`sh -c 'echo $X | wc'`: {"sh", "-c", "echo $X | wc"},
		`a "b c" 'd "e"' f\ g`: {"a", "b c", `d "e"`, "f g"},
		`a "" ''`:              {"a", "", ""},
		`a "b\"c"`:             {"a", `b"c`},
		"":                     nil,
		`jq -c .a[0]`:          {"jq", "-c", ".a[0]"},
	} {
		got, err := splitCommand(line)
		if err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", line, diff)
		}
	}
	for line, want := range map[string]error{
		"a | b": errShell, "a $B": errShell, `a "$B"`: errShell, "a > b": errShell,
		"a *": errShell, "a 'b": errQuote, `a "b`: errQuote, `a \`: errQuote,
	} {
		if got, err := splitCommand(line); !errors.Is(err, want) {
			t.Errorf("%q: %q, %v, want %v", line, got, err, want)
		}
	}
}
