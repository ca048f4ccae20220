package archtest

import (
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"
)

// TestPackageNames: a package is named after what it holds, and not like one of
// the standard library, which every importer would have to rename.
func TestPackageNames(t *testing.T) {
	t.Parallel()
	banned := []string{"base", "common", "helper", "helpers", "manager", "misc", "model", "models", "shared", "types", "util", "utils"}
	std, err := goList("std")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range std {
		if !strings.Contains(p.ImportPath, "internal/") && !strings.HasPrefix(p.ImportPath, "vendor/") && p.Name != "main" {
			banned = append(banned, p.Name)
		}
	}
	for at, p := range module(t) {
		name := strings.TrimSuffix(p.Name, "_test")
		if slices.Contains(banned, name) || slices.Contains(banned, path.Base(at)) {
			t.Errorf("%s: a package must not be named %s", at, name)
		}
	}
}

// TestPackageDocs: every package says in its doc what it is.
func TestPackageDocs(t *testing.T) {
	t.Parallel()
	for at, p := range module(t) {
		names := p.GoFiles
		if len(names) == 0 {
			names = slices.Concat(p.TestGoFiles, p.XTestGoFiles)
		}
		_, parsed := files(t, p, names)
		documented := 0
		for _, f := range parsed {
			if f.Doc == nil || ast.IsGenerated(f) {
				continue
			}
			documented++
			want := "Package " + f.Name.Name + " "
			if f.Name.Name == "main" {
				want = "Command " + path.Base(at) + " "
			}
			if doc := f.Doc.Text(); !strings.HasPrefix(doc, want) || len(strings.Fields(doc)) < 8 {
				t.Errorf("%s: its doc must begin with %q and say what it is: %q", at, want, doc)
			}
		}
		if documented != 1 && !under(at, "proto") {
			t.Errorf("%s: %d of its files have the package doc, want one", at, documented)
		}
	}
}

// TestExportedDocs: every exported name of a package has a doc, and so has
// every exported method. The share of each package is logged.
func TestExportedDocs(t *testing.T) {
	t.Parallel()
	for _, at := range sorted(module(t)) {
		p := module(t)[at]
		if p.Name == "main" || under(at, "proto") {
			continue
		}
		fset, parsed := files(t, p, p.GoFiles)
		n, bare := 0, 0
		for _, f := range parsed {
			for _, e := range exported(f) {
				n++
				if !e.documented {
					bare++
					t.Errorf("%s:%d: %s has no doc", at, fset.Position(e.at).Line, e.name)
				}
			}
		}
		if n > 0 {
			t.Logf("%-30s %3d exported names, %d without doc", at, n, bare)
		}
	}
}

// name is an exported name of a file.
type name struct {
	name       string
	at         token.Pos
	documented bool
}

func exported(f *ast.File) []name {
	var out []name
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			// A method that only satisfies an interface is documented there.
			if d.Name.IsExported() && (d.Recv == nil || ast.IsExported(receiver(d)) && !wellKnown(d.Name.Name)) {
				out = append(out, name{d.Name.Name, d.Pos(), d.Doc != nil})
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				out = append(out, specNames(d, s)...)
			}
		}
	}
	return out
}

func specNames(d *ast.GenDecl, s ast.Spec) []name {
	switch s := s.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() {
			return []name{{s.Name.Name, s.Pos(), s.Doc != nil || d.Doc != nil || s.Comment != nil}}
		}
	case *ast.ValueSpec:
		var out []name
		for _, n := range s.Names {
			if n.IsExported() {
				out = append(out, name{n.Name, s.Pos(), s.Doc != nil || s.Comment != nil || d.Doc != nil})
			}
		}
		return out
	}
	return nil
}

func receiver(d *ast.FuncDecl) string {
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if index, ok := typ.(*ast.IndexExpr); ok {
		typ = index.X
	}
	if id, ok := typ.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// wellKnown are methods whose meaning everybody knows.
func wellKnown(method string) bool {
	return slices.Contains([]string{"Error", "Unwrap", "Is", "String", "Len", "Less", "Swap", "Close", "Write", "Read", "MarshalText", "UnmarshalText", "MarshalYAML", "UnmarshalYAML"}, method)
}
