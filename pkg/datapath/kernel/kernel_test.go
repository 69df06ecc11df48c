package kernel

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Only this package defines what is flock's in the kernel.
func TestMarksStandHereOnly(t *testing.T) {
	t.Parallel()
	root := "../../.."
	marks := []uint64{RouteProtocol, MetricStatic, MetricService, GroupReleased, GroupDeleted}
	// These are common numbers: they are looked for beside a name that says what they are.
	metrics := []uint64{MetricLocal, MetricStatic, MetricService, MetricAnnounced}
	var files, found int
	for _, dir := range []string{"cmd", "internal", "pkg"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				filepath.Dir(path) == filepath.Join(root, "pkg/datapath/kernel") {
				return err
			}
			files++
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			report := func(n ast.Node) {
				found++
				t.Errorf("%v: this number is flock's mark in the kernel: take it from pkg/datapath/kernel", set.Position(n.Pos()))
			}
			named := func(name string, n ast.Expr) {
				if v, ok := integer(n); ok && slices.Contains(metrics, v) && strings.Contains(strings.ToLower(name), "metric") {
					report(n)
				}
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.KeyValueExpr:
					if key, ok := n.Key.(*ast.Ident); ok {
						named(key.Name, n.Value)
					}
				case *ast.ValueSpec:
					for i, v := range n.Values {
						named(n.Names[min(i, len(n.Names)-1)].Name, v)
					}
				case *ast.BasicLit:
					v, ok := integer(n)
					if ok && (slices.Contains(marks, v) || v >= FirstNexthop && v <= LastNexthop) {
						report(n)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 100 {
		t.Errorf("%d files were read; is %s the repository's root?", files, root)
	}
}

func integer(n ast.Expr) (uint64, bool) {
	lit, ok := n.(*ast.BasicLit)
	if !ok || lit.Kind != token.INT {
		return 0, false
	}
	v, err := strconv.ParseUint(lit.Value, 0, 64)
	return v, err == nil
}

func TestIsLink(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"flock0badcafe": true, "flock00000000": true,
		"flock": false, "flock0badcaf": false, "flock0badcafe0": false, "flock0BADCAFE": false, ServiceLink: false, "eth0": false, "flocking0000": false,
	} {
		if IsLink(name) != want {
			t.Errorf("IsLink(%q) = %t", name, !want)
		}
	}
}

func TestIsNexthop(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		id    uint32
		proto uint8
		want  bool
	}{
		{FirstNexthop, RouteProtocol, true}, {LastNexthop, RouteProtocol, true},
		{FirstNexthop - 1, RouteProtocol, false}, {LastNexthop + 1, RouteProtocol, false}, {FirstNexthop, 0, false},
	} {
		if IsNexthop(tc.id, tc.proto) != tc.want {
			t.Errorf("IsNexthop(%#x, %d) = %t", tc.id, tc.proto, !tc.want)
		}
	}
}

func TestAlias(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", MaxAlias)
	for _, tc := range []struct{ id, pod, wantPod string }{
		{"c0ffee", "shop/web-0", "shop/web-0"},
		{"c0ffee", "", ""},
		{"c0ffee", "a pod with spaces", "a pod with spaces"},
		{strings.Repeat("c", MaxContainerID), long, strings.Repeat("é", 63)},
	} {
		s := Alias(tc.id, tc.pod)
		if id, pod := ParseAlias(s); id != tc.id || pod != tc.wantPod || len(s) > MaxAlias {
			t.Errorf("%q, %q: alias %q of %d bytes is read as %q, %q", tc.id, tc.pod, s, len(s), id, pod)
		}
	}
	if id, pod := ParseAlias("uplink"); id != "" || pod != "uplink" {
		t.Errorf("alias without container: %q, %q", id, pod)
	}
}

func ExampleAlias() {
	fmt.Println(Alias("c0ffee", "shop/web-0"))
	// Output: shop/web-0 c0ffee
}
