package main

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/isobar-mesh/isobar/loadtest"
)

// TestCompare: each way in which two runs can differ is seen, by its request.
func TestCompare(t *testing.T) {
	t.Parallel()
	outputs := func() []loadtest.Output {
		return []loadtest.Output{
			{Request: "r1", Function: "sentiment", Variant: "small", SHA256: "aa"},
			{Request: "r2", Function: "sentiment", Variant: "large", SHA256: "bb"},
			{Request: "r3", Function: "thumbnail", Variant: "only", SHA256: "cc"},
		}
	}
	for _, tt := range []struct {
		name   string
		change func([]loadtest.Output) []loadtest.Output
		want   string
		code   int
	}{
		{"equal", func(o []loadtest.Output) []loadtest.Output { return o }, "3 requests in both: 3 by the same variant with the same output, 0 by another variant", 0},
		{"other order", func(o []loadtest.Output) []loadtest.Output { slices.Reverse(o); return o }, "3 by the same variant", 0},
		{"other variant", func(o []loadtest.Output) []loadtest.Output { o[0].Variant, o[0].SHA256 = "large", "ab"; return o }, "2 by the same variant with the same output, 1 by another variant", 0},
		{"other output", func(o []loadtest.Output) []loadtest.Output { o[1].SHA256 = "b0"; return o }, "r2 by sentiment/large made bb, and b0 in the second run", exitFailed},
		{"lost", func(o []loadtest.Output) []loadtest.Output { o[2].SHA256 = ""; return o }, "r3 did not complete in both", exitFailed},
		{"missing", func(o []loadtest.Output) []loadtest.Output { return o[:2] }, "r3 is not in the second run", exitFailed},
		{"more", func(o []loadtest.Output) []loadtest.Output {
			return append(o, loadtest.Output{Request: "r4", SHA256: "dd"})
		}, "r4 is not in the first run", exitFailed},
		{"twice", func(o []loadtest.Output) []loadtest.Output { return append(o, o[0]) }, "r1 is twice in the second run", exitFailed},
	} {
		dir := t.TempDir()
		a, b := filepath.Join(dir, "a.json"), filepath.Join(dir, "b.json")
		for path, o := range map[string][]loadtest.Output{a: outputs(), b: tt.change(outputs())} {
			if err := writeJSON(path, loadtest.Report{Outputs: o}); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		if code := run([]string{"compare", a, b}, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: exit code %d, want %d and %q in:\n%s", tt.name, code, tt.code, tt.want, &out)
		}
	}
	var out bytes.Buffer
	if code := run([]string{"compare", "no.json", "none.json"}, &out, &out); code != exitUsage {
		t.Errorf("files that are not there: exit code %d", code)
	}
}
