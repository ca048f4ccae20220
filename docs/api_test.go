package docs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// block is a fenced block of a page.
type block struct {
	line  int
	info  string // what follows the fence: "sh", "json", "sh grpcurl"
	text  string
	needs string // the program that info asks for
}

// blocks reads the fenced blocks of a page.
func blocks(t *testing.T, page string) []block {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var out []block
	var at *block
	for i, line := range strings.Split(string(text), "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && at == nil:
			at = &block{line: i + 1, info: info}
			_, at.needs, _ = strings.Cut(info, " ")
		case fence:
			out, at = append(out, *at), nil
		case at != nil:
			at.text += line + "\n"
		}
	}
	if at != nil {
		t.Fatalf("%s:%d: the block is not closed", page, at.line)
	}
	return out
}

// run is a block of commands and what the page says it answers.
type run struct {
	block
	want *block
}

func runs(all []block) []run {
	var out []run
	for i, b := range all {
		if kind, _, _ := strings.Cut(b.info, " "); kind != "sh" {
			continue
		}
		r := run{block: b}
		if i+1 < len(all) && (all[i+1].info == "json" || all[i+1].info == "text") {
			r.want = &all[i+1]
		}
		out = append(out, r)
	}
	return out
}

// TestAPIPage runs the commands of api.md, in one shell as the page says, and
// compares every answer with the one that is printed there.
func TestAPIPage(t *testing.T) {
	m := testMesh(t)
	need(t, "docs/api.md", "curl")
	need(t, "docs/api.md", "bash")
	playPage(t, "api.md", m, func(script string) string {
		return strings.ReplaceAll(script, "http://127.0.0.1:7101", m.home())
	})
}

// playPage runs the shell blocks of a page in one shell and checks each answer.
func playPage(t *testing.T, page string, m *devMesh, prepare func(string) string) {
	t.Helper()
	dir := t.TempDir()
	out := func(i int, what string) string { return filepath.Join(dir, fmt.Sprintf("%s.%d", what, i)) }
	list := runs(blocks(t, page))
	if len(list) == 0 {
		t.Fatalf("%s has no commands", page)
	}
	var script bytes.Buffer
	script.WriteString("set -eu\n")
	skipped := map[int]bool{}
	for i, r := range list {
		if r.needs != "" && !have(t, page, r.needs) {
			skipped[i] = true
			continue
		}
		fmt.Fprintf(&script, "{\n%s} >%s 2>%s\n", r.text, out(i, "out"), out(i, "err"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	sh := exec.CommandContext(ctx, "bash")
	sh.Dir = filepath.Join(dir, "here")
	if err := os.Mkdir(sh.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range pageFiles(t, page) {
		if err := os.WriteFile(filepath.Join(sh.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sh.Env = append(clean(os.Environ()), "PATH="+m.bin+":"+os.Getenv("PATH"), "ISOBAR_SERVER="+m.home())
	sh.Stdin = strings.NewReader(prepare(script.String()))
	// What the page leaves running ends with it.
	sh.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	sh.Cancel = func() error { return syscall.Kill(-sh.Process.Pid, syscall.SIGKILL) }
	sh.WaitDelay = time.Second
	message, failed := sh.CombinedOutput()
	_ = syscall.Kill(-sh.Process.Pid, syscall.SIGKILL) // most often nothing is left
	for i, r := range list {
		if skipped[i] {
			continue
		}
		name := fmt.Sprintf("%s:%d", page, r.line)
		stderr, err := os.ReadFile(out(i, "err"))
		if err != nil {
			t.Fatalf("%s was not reached: %v\n%s", name, failed, message)
		}
		stdout, err := os.ReadFile(out(i, "out"))
		if err != nil {
			t.Fatal(err)
		}
		if r.want != nil {
			if err := answers(r.want, stdout); err != nil {
				t.Errorf("%s: %v\n%s\nit answered:\n%s%s", name, err, r.text, stdout, stderr)
			}
		} else if failed != nil && len(stderr) > 0 {
			t.Logf("%s: %s", name, stderr)
		}
	}
	if failed != nil {
		t.Errorf("%s: %v\n%s", page, failed, message)
	}
}

// pageFiles are the files that a page shows: blocks of another language whose
// first line is a comment with a file's name.
func pageFiles(t *testing.T, page string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, b := range blocks(t, page) {
		first, _, _ := strings.Cut(b.text, "\n")
		name := strings.TrimLeft(first, "#/ ")
		if kind, _, _ := strings.Cut(b.info, " "); kind != "sh" && name != first && name == filepath.Base(name) && filepath.Ext(name) != "" && !strings.Contains(name, " ") {
			out[name] = b.text
		}
	}
	return out
}

// TestFunctionsPage deploys the manifest that functions.md shows.
func TestFunctionsPage(t *testing.T) {
	m := testMesh(t)
	need(t, "docs/functions.md", "bash")
	playPage(t, "functions.md", m, func(script string) string { return script })
}

// TestReadme goes through the first ten minutes of the README.
func TestReadme(t *testing.T) {
	m := testMesh(t)
	need(t, "README.md", "bash")
	playPage(t, "../README.md", m, func(script string) string { return script })
}

// TestOperationsPage makes certificates and starts a server and a worker by
// hand, as operations.md says, on free ports.
func TestOperationsPage(t *testing.T) {
	m := testMesh(t)
	need(t, "docs/operations.md", "bash")
	need(t, "docs/operations.md", "openssl")
	playPage(t, "operations.md", m, func(script string) string {
		for _, port := range []string{"8101", "8121", "8141", "8161"} {
			script = strings.ReplaceAll(script, "127.0.0.1:"+port, address(freePort(t)))
		}
		return script
	})
}

// TestMetricsTable: operations.md has every metric of Isobar's own, with its
// kind, and no other.
func TestMetricsTable(t *testing.T) {
	m := testMesh(t)
	m.submitted(t)
	kinds := map[string]string{}
	for line := range strings.Lines(m.metrics(t)) {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" && strings.HasPrefix(f[2], "isobar_") {
			kinds[f[2]] = f[3]
		}
	}
	for _, row := range table(t, "operations.md", "| metric | kind | what |") {
		name := strings.Trim(row[0], "`")
		if kinds[name] != row[1] {
			t.Errorf("%s is %q, the page says %s", name, kinds[name], row[1])
		}
		delete(kinds, name)
	}
	for name := range kinds {
		t.Errorf("%s is not on the page", name)
	}
}

// metrics is what the first region's server tells Prometheus.
func (m *devMesh) metrics(t *testing.T) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.home()+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// submitted has one task of every kind of metric run at eu-north.
func (m *devMesh) submitted(t *testing.T) {
	t.Helper()
	m.deploy(t, "counted", `"runtime": "exec", "command": ["cat"], "resources": {"cpu": 0.1, "memoryMib": 64}`, "")
	m.wait(t, m.submit(t, `{"function": "counted", "text": "x"}`))
}

// have is need for a part of a page: without the program the part is left out.
func have(t *testing.T, page, program string) bool {
	t.Helper()
	_, err := exec.LookPath(program)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("%s: %s is not installed", page, program)
	}
	if err != nil {
		t.Logf("skipped: %s: %s is not installed", page, program)
	}
	return err == nil
}

// answers compares what a block printed with what the page shows.
func answers(want *block, got []byte) error {
	if want.info == "text" {
		w, g := strings.TrimSpace(want.text), strings.TrimSpace(string(got))
		if !matches(w, g) {
			return fmt.Errorf("the page shows\n%s", w)
		}
		return nil
	}
	w, err := values([]byte(want.text))
	if err != nil {
		return fmt.Errorf("line %d of the page: %w", want.line, err)
	}
	g, err := values(got)
	if err != nil {
		return err
	}
	if len(w) != len(g) {
		return fmt.Errorf("%d values, the page shows %d", len(g), len(w))
	}
	var errs []error
	for i := range w {
		errs = append(errs, shows(fmt.Sprintf("$%d", i), w[i], g[i]))
	}
	return errors.Join(errs...)
}

func values(text []byte) ([]any, error) {
	var out []any
	for d := json.NewDecoder(bytes.NewReader(text)); ; {
		var v any
		switch err := d.Decode(&v); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("it is not JSON: %w", err)
		}
		out = append(out, v)
	}
}

// shows reports where an answer differs from the page: fields that the page
// leaves out and the values of numbers are free.
func shows(at string, want, got any) error {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is %v, want an object", at, got)
		}
		var errs []error
		for _, k := range slices.Sorted(maps.Keys(w)) {
			v, ok := g[k]
			if !ok {
				errs = append(errs, fmt.Errorf("%s.%s is missing", at, k))
				continue
			}
			errs = append(errs, shows(at+"."+k, w[k], v))
		}
		return errors.Join(errs...)
	case []any:
		g, ok := got.([]any)
		if n := len(w); n > 0 && w[n-1] == "…" { // and others
			w, g = w[:n-1], g[:min(n-1, len(g))]
		}
		if !ok || len(g) != len(w) {
			return fmt.Errorf("%s is %v, want a list of %d", at, got, len(w))
		}
		var errs []error
		for i := range w {
			errs = append(errs, shows(fmt.Sprintf("%s[%d]", at, i), w[i], g[i]))
		}
		return errors.Join(errs...)
	case string:
		if g, ok := got.(string); !ok || !matches(w, g) {
			return fmt.Errorf("%s is %v, want %q", at, got, w)
		}
	case float64:
		if _, ok := got.(float64); !ok {
			return fmt.Errorf("%s is %v, want a number", at, got)
		}
	default:
		if want != got {
			return fmt.Errorf("%s is %v, want %v", at, got, want)
		}
	}
	return nil
}

// matches compares with a pattern in which … stands for anything.
func matches(pattern, s string) bool {
	parts := strings.Split(pattern, "…")
	if len(parts) == 1 {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	last := len(parts) - 1
	for _, p := range parts[1:last] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[last])
}
