package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/api"
)

// TestErrorsPage: the table of errors.md has every reason of the code, with the
// code that the API answers it with, and no other.
func TestErrorsPage(t *testing.T) {
	t.Parallel()
	rows := table(t, "errors.md", "| reason | code | meaning | what to do |")
	listed := map[string]bool{}
	for _, row := range rows {
		reason, code := strings.Trim(row[0], "`"), strings.Trim(row[1], "`")
		if listed[reason] {
			t.Errorf("%s stands there twice", reason)
		}
		listed[reason] = true
		d := api.Describe(&scheduler.Refusal{Reason: scheduler.Reason(reason), Message: "m"}, func() string { return "" })
		if d.GetCode() != code {
			t.Errorf("%s is %s, the page says %s", reason, d.GetCode(), code)
		}
		if row[2] == "" || row[3] == "" {
			t.Errorf("%s has no meaning, or nothing to do", reason)
		}
	}
	for _, reason := range reasons(t) {
		if !listed[reason] {
			t.Errorf("%s is missing", reason)
		}
		delete(listed, reason)
	}
	for reason := range listed {
		t.Errorf("%s is no reason of the code", reason)
	}
}

// reasons are the constants of type Reason.
func reasons(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../scheduler/refusal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Reason" {
			return true
		}
		for _, v := range spec.Values {
			s, err := strconv.Unquote(v.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, s)
		}
		return true
	})
	if len(out) < 20 {
		t.Fatalf("found only %d reasons", len(out))
	}
	return out
}

// table reads the rows below a header.
func table(t *testing.T, page, header string) [][]string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	at := slices.Index(lines, header)
	if at < 0 {
		t.Fatalf("%s has no table %q", page, header)
	}
	var out [][]string
	for _, line := range lines[at+2:] {
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for c := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.TrimSpace(c))
		}
		if len(cells) != strings.Count(header, "|")-1 {
			t.Fatalf("%s: %d cells in %s", page, len(cells), line)
		}
		out = append(out, cells)
	}
	return out
}
