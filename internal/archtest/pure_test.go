package archtest

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pureImports are what a pure file may import, besides its row. Nothing of it
// has a clock, a file, a lock or chance; of package time only the arithmetic is
// used (forbidden).
func pureImports() []string {
	return []string{
		"bytes", "cmp", "container/list", "container/heap", "crypto/sha256", "encoding/binary", "encoding/hex", "errors", "fmt", "hash/crc32", "hash/fnv", "iter",
		"maps", "math", "math/bits", "slices", "sort", "strconv", "strings", "time", "unicode/utf8",
		"github.com/google/btree", "google.golang.org/protobuf/encoding/protowire", "google.golang.org/protobuf/proto",
		"google.golang.org/protobuf/types/known/durationpb", "google.golang.org/protobuf/types/known/timestamppb",
	}
}

// forbidden are functions of the packages above that ask for the time.
func forbidden() map[string][]string {
	return map[string][]string{
		"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer", "Local", "LoadLocation"},
		"google.golang.org/protobuf/types/known/timestamppb": {"Now"},
	}
}

// anyOrder marks a range over a map whose result does not depend on the order.
const anyOrder = "any order"

// TestPureRooms reads every statement of the pure files.
func TestPureRooms(t *testing.T) {
	t.Parallel()
	all := module(t)
	exports := exportData(t)
	for path, r := range rooms() {
		if r.pure == nil {
			continue
		}
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			p := all[path]
			fset, parsed := files(t, p, p.GoFiles)
			for name := range r.pure.but {
				if !slices.Contains(p.GoFiles, name) {
					t.Errorf("%s is excused, and there is no such file", name)
				}
			}
			c := newChecker(t, p.ImportPath, fset, parsed, exports)
			for i, f := range parsed {
				if r.pure.but[p.GoFiles[i]] == "" {
					c.file(f)
				}
			}
			for _, fault := range c.faults {
				t.Errorf("%s/%s", path, fault)
			}
		})
	}
}

// exportData finds the compiled types of everything a pure room imports.
func exportData(t *testing.T) map[string]string {
	t.Helper()
	args := []string{"-export", "-deps"}
	for path, r := range rooms() {
		if r.pure != nil {
			args = append(args, "./"+path)
		}
	}
	list, err := goList(args...)
	if err != nil {
		t.Fatal(err)
	}
	exports := map[string]string{}
	for _, p := range list {
		exports[p.ImportPath] = p.Export
	}
	return exports
}

type checker struct {
	fset   *token.FileSet
	info   *types.Info
	faults []string // "file.go:12: what"
	// free are the lines with anyOrder, of the file being read.
	free map[int]bool
}

func newChecker(t *testing.T, path string, fset *token.FileSet, parsed []*ast.File, exports map[string]string) *checker {
	t.Helper()
	c := &checker{fset: fset, info: &types.Info{Uses: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{}}}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})}
	if _, err := conf.Check(path, fset, parsed, c.info); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *checker) errorf(at token.Pos, format string, args ...any) {
	pos := c.fset.Position(at)
	c.faults = append(c.faults, fmt.Sprintf("%s:%d: %s", filepath.Base(pos.Filename), pos.Line, fmt.Sprintf(format, args...)))
}

func (c *checker) file(f *ast.File) {
	for _, i := range f.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		if _, mine := own(path); !mine && !slices.Contains(pureImports(), path) {
			c.errorf(i.Pos(), "a pure file imports %s", path)
		}
	}
	c.free = map[int]bool{}
	for _, group := range f.Comments {
		for _, line := range group.List {
			if strings.Contains(line.Text, anyOrder) {
				n := c.fset.Position(line.Pos()).Line
				c.free[n], c.free[n+1] = true, true
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		c.node(n)
		return true
	})
}

func (c *checker) node(n ast.Node) {
	switch n := n.(type) {
	case *ast.GoStmt:
		c.errorf(n.Pos(), "a pure file starts a goroutine")
	case *ast.SelectStmt:
		c.errorf(n.Pos(), "a pure file selects")
	case *ast.ChanType:
		c.errorf(n.Pos(), "a pure file has a channel")
	case *ast.RangeStmt:
		if _, ok := c.info.TypeOf(n.X).Underlying().(*types.Map); ok && !c.free[c.fset.Position(n.Pos()).Line] {
			c.errorf(n.Pos(), "a range over a map: sort its keys, or say %q in a comment beside it and why", anyOrder)
		}
	case *ast.Ident:
		o := c.info.Uses[n]
		if o == nil || o.Pkg() == nil || o.Parent() != o.Pkg().Scope() {
			return
		}
		if slices.Contains(forbidden()[o.Pkg().Path()], o.Name()) {
			c.errorf(n.Pos(), "a pure file uses %s.%s", o.Pkg().Name(), o.Name())
		}
	}
}

// planted breaks every rule of a pure file, one a line.
const planted = `package planted

import (
	"math/rand"
	"time"
)

func now() time.Time { return time.Now() }

var clock = time.Since

func work(m map[string]int) (n int) {
	c := make(chan int)
	go now()
	select {
	case n = <-c:
	default:
	}
	for _, v := range m {
		n += v
	}
	for _, v := range m { // any order: a sum
		n += v
	}
	return rand.Int() + int(time.Second)
}
`

// TestPlantedFaults: a rule that sees nothing holds nothing.
func TestPlantedFaults(t *testing.T) {
	t.Parallel()
	list, err := goList("-export", "-deps", "math/rand", "time")
	if err != nil {
		t.Fatal(err)
	}
	exports := map[string]string{}
	for _, p := range list {
		exports[p.ImportPath] = p.Export
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "planted.go", planted, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	c := newChecker(t, "planted", fset, []*ast.File{f}, exports)
	c.file(f)
	want := []string{
		"planted.go:4: a pure file imports math/rand", "planted.go:8: a pure file uses time.Now", "planted.go:10: a pure file uses time.Since",
		"planted.go:13: a pure file has a channel", "planted.go:14: a pure file starts a goroutine", "planted.go:15: a pure file selects",
		"planted.go:19: a range over a map",
	}
	if len(c.faults) != len(want) {
		t.Errorf("%d faults seen of %d: %q", len(c.faults), len(want), c.faults)
	}
	for i, fault := range c.faults {
		if i < len(want) && !strings.HasPrefix(fault, want[i]) {
			t.Errorf("saw %q, want %q", fault, want[i])
		}
	}
}
