package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const modulePath = "github.com/isobar-mesh/isobar"

// listed is a package as `go list` tells it. Paths of this module are without
// the module's own: "scheduler/fsm".
type listed struct {
	ImportPath   string
	Name         string
	Dir          string
	Export       string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Standard     bool
}

// goList runs `go list` in the module's root.
func goList(args ...string) ([]listed, error) {
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Name,Dir,Export,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports,Standard"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(stderr.String()))
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		}
		all = append(all, p)
	}
}

// root is the module's folder, as seen from this one.
const root = "../.."

// own cuts the module's path off; ok is false for a package of others.
func own(path string) (string, bool) {
	return strings.CutPrefix(path, modulePath+"/")
}

// module lists the packages of the module by their path in it, once.
func module(t *testing.T) map[string]listed {
	t.Helper()
	all, err := loadModule()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var loadModule = sync.OnceValues(func() (map[string]listed, error) {
	list, err := goList("./...")
	if err != nil {
		return nil, err
	}
	all := map[string]listed{}
	for _, p := range list {
		path, ok := own(p.ImportPath)
		if !ok {
			path = "."
		}
		all[path] = p
	}
	return all, nil
})

// files parses the files of a package, with comments.
func files(t *testing.T, p listed, names []string) (*token.FileSet, []*ast.File) {
	t.Helper()
	fset := token.NewFileSet()
	var out []*ast.File
	for _, name := range names {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return fset, out
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
