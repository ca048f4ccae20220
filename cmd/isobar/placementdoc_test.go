package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestPlacementPage runs the examples of docs/placement.md: it writes the files
// that are shown, runs the commands, and compares what they print with what the
// page says. UPDATE_SCRIPTS=1 writes the page anew.
func TestPlacementPage(t *testing.T) {
	const page = "../../docs/placement.md"
	source, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	back, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	parts := strings.Split(string(source), "```")
	ran := 0
	for i := 1; i < len(parts); i += 2 {
		kind, body, _ := strings.Cut(parts[i], "\n")
		switch language, name, _ := strings.Cut(kind, " "); {
		case name != "":
			if err := os.WriteFile(name, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		case language == "console":
			line, want, _ := strings.Cut(body, "\n")
			var stdout, stderr bytes.Buffer
			if code := run(strings.Fields(line)[2:], nil, &stdout, &stderr); code != 0 {
				t.Fatalf("%s: exit code %d: %s", line, code, stderr.String())
			}
			if got := stdout.String(); got != want {
				parts[i] = kind + "\n" + line + "\n" + got
				if os.Getenv("UPDATE_SCRIPTS") == "" {
					t.Errorf("%s prints\n%s\nthe page says\n%s", line, got, want)
				}
			}
			if stderr.Len() > 0 {
				t.Errorf("%s: standard error: %s", line, stderr.String())
			}
			ran++
		}
	}
	if ran < 3 {
		t.Errorf("%d examples ran", ran)
	}
	if os.Getenv("UPDATE_SCRIPTS") != "" {
		t.Chdir(back)
		if err := os.WriteFile(page, []byte(strings.Join(parts, "```")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
