package flock_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// A page refers to code as `pkg/agent: Agent.Run`, or to several names of a
// package as `pkg/agent: Agent.Run, Config`.
var reference = regexp.MustCompile("`((?:pkg|cmd|internal|lab|bench)[a-z0-9/-]*): ([^`]+)`")

// TestCode checks that every function, type, constant and file to which a page
// refers exists.
func TestCode(t *testing.T) {
	declared := map[string]map[string]bool{}
	for _, page := range pages(t) {
		for _, m := range reference.FindAllStringSubmatch(read(t, page), -1) {
			dir := m[1]
			if declared[dir] == nil {
				declared[dir] = declarations(t, dir)
			}
			for _, name := range strings.Split(m[2], ", ") {
				if !declared[dir][name] {
					t.Errorf("%s refers to %s in %s, which does not exist", page, name, dir)
				}
			}
		}
	}
}

// declarations returns the names that a package declares, methods as Type.Method,
// and the names of its files.
func declarations(t *testing.T, dir string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if e.IsDir() || path.Ext(e.Name()) != ".go" || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		names[e.Name()] = true
		f, err := parser.ParseFile(token.NewFileSet(), path.Join(dir, e.Name()), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					name = receiver(d.Recv.List[0].Type) + "." + name
				}
				names[name] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						names[s.Name.Name] = true
						fields(s, names)
					case *ast.ValueSpec:
						for _, n := range s.Names {
							names[n.Name] = true
						}
					}
				}
			}
		}
	}
	return names
}

// fields adds a type's fields, or the methods of an interface, as Type.Field.
func fields(s *ast.TypeSpec, names map[string]bool) {
	var list *ast.FieldList
	switch t := s.Type.(type) {
	case *ast.StructType:
		list = t.Fields
	case *ast.InterfaceType:
		list = t.Methods
	default:
		return
	}
	for _, f := range list.List {
		for _, n := range f.Names {
			names[s.Name.Name+"."+n.Name] = true
		}
	}
}

func receiver(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.StarExpr:
		return receiver(x.X)
	case *ast.IndexExpr:
		return receiver(x.X)
	case *ast.IndexListExpr:
		return receiver(x.X)
	case *ast.Ident:
		return x.Name
	}
	return ""
}

// TestPaths checks that the files and packages of the repository which a page
// names in code spans exist.
func TestPaths(t *testing.T) {
	span := regexp.MustCompile("`((?:pkg|cmd|internal|lab|bench|deploy)/[A-Za-z0-9_./-]*)`")
	for _, page := range pages(t) {
		for _, m := range span.FindAllStringSubmatch(read(t, page), -1) {
			if !fs.ValidPath(strings.TrimSuffix(m[1], "/")) {
				continue
			}
			if _, err := os.Stat(m[1]); err != nil {
				t.Errorf("%s names %s, which does not exist", page, m[1])
			}
		}
	}
}
