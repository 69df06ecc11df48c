package flock_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "flock.fritzlab.net/flock"

// layered is a package as the table in CONTRIBUTING.md describes it.
type layered struct {
	layer    int      // 0 is the topmost; -1 is the layer of tests, which is above it
	pure     bool     // its layer is the one of pure packages
	siblings []string // packages of the same layer that it may import
}

// TestImports holds the imports of all packages against the table in
// CONTRIBUTING.md. A package may import packages of the layers below its own.
// In its own layer it may import only the packages that its row names.
func TestImports(t *testing.T) {
	packages, err := readLayers("CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	imports, err := readImports(".")
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range packages {
		if imports[pkg] == nil {
			t.Errorf("CONTRIBUTING.md lists %s, which does not exist: remove its row", pkg)
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(imports)) {
		p, ok := packages[pkg]
		if !ok {
			t.Errorf("%s is not in the table of CONTRIBUTING.md: add a row in its layer", pkg)
			continue
		}
		for _, imported := range imports[pkg] {
			local, isLocal := strings.CutPrefix(imported, module+"/")
			if !isLocal {
				if p.pure && impure(imported) {
					t.Errorf("%s is a pure package and must not import %s", pkg, imported)
				}
				continue
			}
			q, ok := packages[local]
			switch {
			case !ok: // reported above
			case q.layer > p.layer:
			case q.layer < p.layer:
				t.Errorf("%s imports %s, which is in a layer above it", pkg, local)
			case !slices.Contains(p.siblings, local):
				t.Errorf("%s imports %s, which is in the same layer: avoid the import, or name it in the row of %s in CONTRIBUTING.md", pkg, local, pkg)
			}
		}
		for _, s := range p.siblings {
			if !slices.Contains(imports[pkg], module+"/"+s) {
				t.Errorf("the row of %s in CONTRIBUTING.md allows an import of %s that does not exist: remove it", pkg, s)
			}
			if q, ok := packages[s]; ok && q.layer != p.layer {
				t.Errorf("the row of %s in CONTRIBUTING.md names %s, which is in another layer: remove it", pkg, s)
			}
		}
	}
}

// TestModulesBeside checks that nothing outside the lab imports it, the
// benchmarks apart, and that nothing imports the benchmarks.
func TestModulesBeside(t *testing.T) {
	for _, dir := range []string{"lab", "bench", "cmd", "pkg", "internal"} {
		imports, err := readImports(dir)
		if err != nil {
			t.Fatal(err)
		}
		for pkg, imported := range imports {
			for _, i := range imported {
				if dir != "lab" && dir != "bench" && strings.HasPrefix(i, module+"/lab") {
					t.Errorf("%s imports %s: only bench/ may import lab/", path.Join(dir, pkg), i)
				}
				if dir != "bench" && strings.HasPrefix(i, module+"/bench") {
					t.Errorf("%s imports %s: nothing may import bench/", path.Join(dir, pkg), i)
				}
			}
		}
	}
}

// impure reports whether a package does input or output.
func impure(imported string) bool {
	switch imported {
	case "net", "os", "os/exec", "syscall", "net/http", "log/slog", "context":
		return true
	}
	return strings.HasPrefix(imported, "golang.org/x/sys/") || strings.HasPrefix(imported, "k8s.io/client-go/")
}

var code = regexp.MustCompile("`([^`]+)`")

// readLayers reads the table of packages: a row with one bold cell starts a layer,
// the rows below it are the layer's packages, and the code in the third cell of a
// row names packages of the same layer.
func readLayers(file string) (map[string]layered, error) {
	page, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	_, table, ok := strings.Cut(string(page), "<!-- packages -->\n")
	table, _, ok2 := strings.Cut(table, "<!-- end of packages -->")
	if !ok || !ok2 {
		return nil, fmt.Errorf("%s: the marks around the table of packages are missing", file)
	}
	packages := map[string]layered{}
	layers, layer, pure := -1, 0, false
	for _, row := range strings.Split(strings.TrimSpace(table), "\n")[2:] {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		if strings.HasPrefix(cells[0], "**") {
			layers++
			layer = layers
			if strings.HasPrefix(cells[0], "**tests") {
				layer = -1
			}
			pure = strings.HasPrefix(cells[0], "**pure")
			continue
		}
		name := code.FindStringSubmatch(cells[0])
		if name == nil || layers < 0 {
			return nil, fmt.Errorf("%s: row %q names no package, or stands before the first layer", file, row)
		}
		p := layered{layer: layer, pure: pure}
		if len(cells) > 2 {
			for _, m := range code.FindAllStringSubmatch(cells[2], -1) {
				p.siblings = append(p.siblings, m[1])
			}
		}
		packages[name[1]] = p
	}
	return packages, nil
}

// readImports returns the imports of each package below root, by its path
// relative to root. It reads the files for all platforms and build tags, without
// those of tests, and skips the modules within the module.
func readImports(root string) (map[string][]string, error) {
	imports := map[string][]string{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err) && file == root:
			return fs.SkipAll
		case err != nil:
			return err
		case d.IsDir():
			_, err := os.Stat(filepath.Join(file, "go.mod"))
			nested := err == nil
			hidden := strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"
			if file != root && (nested || hidden) {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		if imports[pkg] == nil {
			imports[pkg] = []string{}
		}
		for _, i := range f.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			if !slices.Contains(imports[pkg], imported) {
				imports[pkg] = append(imports[pkg], imported)
			}
		}
		return nil
	})
	return imports, err
}
