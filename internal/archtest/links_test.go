package archtest

import (
	"errors"
	"go/ast"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// words are those of the design, which code, API, CLI and pages share.
func words() []string {
	return []string{
		"region", "cell", "worker", "tenant", "function", "task", "lane", "queue", "stream", "lease", "attempt", "digest", "decision",
	}
}

// pages are the module's pages, by their path in it.
func pages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "dist"):
			return filepath.SkipDir
		case filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		out[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWords: ARCHITECTURE.md explains each word of the design in a row that
// links to a folder, and the folder is there.
func TestWords(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| \[([a-z]+)\]\(([^)#]+)\) \| (.+) \|$`)
	found := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		word, folder := m[1], m[2]
		if !slices.Contains(words(), word) {
			continue
		}
		found[word] = true
		info, err := os.Stat(filepath.Join(root, folder))
		if err != nil || !info.IsDir() {
			t.Errorf("%s leads to %s, which is no folder", word, folder)
		}
	}
	for _, w := range words() {
		if !found[w] {
			t.Errorf("ARCHITECTURE.md has no row | [%s](folder/) | meaning |", w)
		}
	}
}

// TestLinks: every link of a page that stays in the module leads to a file or
// folder, and to a heading of it where it names one.
func TestLinks(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	all := pages(t)
	if len(all) < 5 {
		t.Fatalf("only %d pages found", len(all))
	}
	for path, text := range all {
		for _, m := range link.FindAllStringSubmatch(prose(text), -1) {
			to, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %s: %v", path, m[1], err)
				continue
			}
			if to.Scheme != "" || to.Host != "" {
				continue
			}
			target := path
			if to.Path != "" {
				target = filepath.Join(filepath.Dir(path), to.Path)
			}
			if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s leads nowhere", path, m[1])
				continue
			}
			if to.Fragment != "" && !slices.Contains(anchors(all[target]), to.Fragment) {
				t.Errorf("%s: %s has no such heading", path, m[1])
			}
		}
	}
}

// prose is a page without its fenced blocks.
func prose(text string) string {
	var out strings.Builder
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
			continue
		}
		if !fenced {
			out.WriteString(line)
		}
	}
	return out.String()
}

// anchors are the names of a page's headings, as the usual renderers make them.
func anchors(text string) []string {
	var out []string
	for line := range strings.Lines(prose(text)) {
		if !strings.HasPrefix(line, "#") {
			continue
		}
		title := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
		out = append(out, strings.Map(func(r rune) rune {
			switch {
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return r
			case r == ' ':
				return '-'
			}
			return -1
		}, title))
	}
	return out
}

// TestNamedTests: a test that a page names, as in `TestWords` or
// [TestWords](../internal/archtest/links_test.go), is there.
func TestNamedTests(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, p := range module(t) {
		_, parsed := files(t, p, slices.Concat(p.TestGoFiles, p.XTestGoFiles))
		for _, f := range parsed {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
					known[fn.Name.Name] = true
				}
			}
		}
	}
	named := regexp.MustCompile(`\b(Test|Fuzz|Benchmark)[A-Z0-9][A-Za-z0-9_]*`)
	for path, text := range pages(t) {
		for _, m := range named.FindAllString(text, -1) {
			if !known[m] {
				t.Errorf("%s names %s, and there is no such test", path, m)
			}
		}
	}
}

// TestDependencies: ARCHITECTURE.md says of each direct dependency what it is
// for and why it and not another; and of nothing else.
func TestDependencies(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	direct := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(string(mod), -1) {
		direct[m[1]] = true
	}
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+\\.[a-z]+/[^`]+)` \\| [^|]+ \\| [^|]+ \\|$").FindAllStringSubmatch(string(text), -1) {
		if !direct[m[1]] {
			t.Errorf("ARCHITECTURE.md explains %s, which go.mod does not require directly", m[1])
		}
		delete(direct, m[1])
	}
	for _, d := range sorted(direct) {
		t.Errorf("ARCHITECTURE.md does not say why %s", d)
	}
}
