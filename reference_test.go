package flock_test

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the pages that are made from the code")

// crd is what the page shows of a CustomResourceDefinition.
type crd struct {
	Spec struct {
		Names struct {
			Kind, Plural string
			ShortNames   []string
		}
		Versions []struct {
			Schema struct {
				OpenAPIV3Schema schema
			}
		}
	}
}

type schema struct {
	Type, Format, Description string
	Properties                map[string]schema
	AdditionalProperties      any
	Items                     *schema
	Required                  []string
	Enum                      []any
	Default                   any
	Minimum, Maximum          *int64
	MaxItems                  *int64
	Validations               []struct{ Message string } `json:"x-kubernetes-validations"`
}

// TestCRDPage holds docs/crds.md to the CRDs.
func TestCRDPage(t *testing.T) {
	files, err := filepath.Glob("deploy/chart/base/crds/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no CRDs", err)
	}
	var b strings.Builder
	written := map[string]schema{} // the objects in a NodeConfig's spec, which templates have too
	b.WriteString("# Custom resources\n\nEvery field of flock's objects. All of them are cluster-scoped, of `flock.fritzlab.net/v1alpha1`.\n`make generate` makes this page from the CRDs in `deploy/chart/base/crds`; `kubectl explain nodeconfig.spec.bgp` shows the same.\n")
	for _, file := range files {
		var c crd
		if err := yaml.Unmarshal([]byte(read(t, file)), &c); err != nil {
			t.Fatal(file, err)
		}
		writeCRD(&b, written, c)
	}
	hold(t, "docs/crds.md", b.String())
}

// hold compares a page with what it should be, and writes it with -update.
func hold(t *testing.T, page, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, page) != want {
		t.Errorf("%s is not what the code says: run make generate", page)
	}
}

func writeCRD(b *strings.Builder, written map[string]schema, c crd) {
	names, root := c.Spec.Names, c.Spec.Versions[0].Schema.OpenAPIV3Schema
	fmt.Fprintf(b, "\n## %s\n\n`kubectl get %s`, short `%s`. %s\n", names.Kind, names.Plural, strings.Join(names.ShortNames, "`, `"), prose(root.Description))
	if rules := validations(root); rules != "" {
		fmt.Fprintf(b, "\n%s\n", rules)
	}
	for _, part := range []string{"spec", "status"} {
		if s, ok := root.Properties[part]; ok {
			writeObject(b, written, names.Kind, part, s)
		}
	}
}

// writeObject writes a table of an object's fields, and then those of the objects in
// it.
func writeObject(b *strings.Builder, written map[string]schema, kind, path string, of schema) {
	fmt.Fprintf(b, "\n### %s `%s`\n", kind, path)
	if of.Description != "" {
		fmt.Fprintf(b, "\n%s\n", prose(of.Description))
	}
	if rules := validations(of); rules != "" {
		fmt.Fprintf(b, "\n%s\n", rules)
	}
	fmt.Fprintf(b, "\n| field | type | |\n|---|---|---|\n")
	type object struct {
		path   string
		schema schema
	}
	var below []object
	fields := make([]string, 0, len(of.Properties))
	for name := range of.Properties {
		fields = append(fields, name)
	}
	slices.Sort(fields)
	for _, name := range fields {
		field := of.Properties[name]
		inner, suffix := field, ""
		if field.Type == "array" && field.Items != nil {
			inner, suffix = *field.Items, "[]"
		}
		text := []string{prose(field.Description)}
		if slices.Contains(of.Required, name) && field.Default == nil {
			text = append(text, "**Required.**")
		}
		text = append(text, limits(field))
		if suffix != "" {
			text = append(text, limits(inner))
		}
		if field.Type != "object" && len(inner.Properties) == 0 {
			text = append(text, validations(field))
			if suffix != "" {
				text = append(text, validations(inner))
			}
		}
		text = slices.DeleteFunc(text, func(s string) bool { return s == "" })
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", name, typeOf(field), strings.ReplaceAll(strings.Join(text, " "), "|", "\\|"))
		if typeOf(inner) == "object" && len(inner.Properties) > 0 {
			below = append(below, object{path + "." + name + suffix, inner})
		}
	}
	for _, o := range below {
		same := strings.TrimPrefix(o.path, "spec.template.")
		if reflect.DeepEqual(written[same], o.schema) {
			fmt.Fprintf(b, "\n### %s `%s`\n\nAs [`spec.%s`](#nodeconfig-spec%s) of a NodeConfig.\n", kind, o.path, same, strings.NewReplacer(".", "", "[", "", "]", "").Replace(strings.ToLower(same)))
			continue
		}
		if kind == "NodeConfig" {
			written[strings.TrimPrefix(o.path, "spec.")] = o.schema
		}
		writeObject(b, written, kind, o.path, o.schema)
	}
}

// typeOf names a type. Kubernetes' own are not spelled out.
func typeOf(s schema) string {
	_, expressions := s.Properties["matchExpressions"]
	_, transition := s.Properties["lastTransitionTime"]
	switch {
	case expressions:
		return "label selector"
	case transition:
		return "condition"
	case s.Type == "array":
		return "list of " + typeOf(*s.Items)
	case s.Format == "date-time":
		return "time"
	case s.Type == "object" && s.AdditionalProperties != nil:
		return "map"
	}
	return s.Type
}

// limits are what a value must keep to.
func limits(s schema) string {
	var all []string
	if len(s.Enum) > 0 {
		var values []string
		for _, e := range s.Enum {
			values = append(values, fmt.Sprintf("`%v`", e))
		}
		all = append(all, "One of "+strings.Join(values, ", ")+".")
	}
	switch {
	case s.Minimum != nil && s.Maximum != nil:
		all = append(all, fmt.Sprintf("%d to %d.", *s.Minimum, *s.Maximum))
	case s.Minimum != nil:
		all = append(all, fmt.Sprintf("At least %d.", *s.Minimum))
	}
	if s.MaxItems != nil {
		all = append(all, fmt.Sprintf("At most %d.", *s.MaxItems))
	}
	if text := fmt.Sprint(s.Default); s.Default != nil && text != "[]" && text != "map[]" {
		all = append(all, "Default `"+text+"`.")
	}
	return strings.Join(all, " ")
}

// validations are the messages of what the API server refuses.
func validations(s schema) string {
	var all []string
	for _, v := range s.Validations {
		if v.Message != "" {
			all = append(all, "“"+v.Message+"”")
		}
	}
	if len(all) == 0 {
		return ""
	}
	return "Refused: " + strings.Join(all, "; ") + "."
}

// prose joins the lines of a description.
func prose(s string) string { return strings.Join(strings.Fields(s), " ") }

// programs whose --help docs/flags.md has. The plugin, cmd/flock, has no flags.
var programs = []string{"flock-agent", "flock-bird-stop", "flock-controller", "flock-installer", "flock-probe", "flock-slice", "flockctl"}

// TestFlagsPage holds docs/flags.md to what the programs say with --help.
func TestFlagsPage(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the programs are for Linux")
	}
	dir := t.TempDir()
	args := []string{"build", "-o", dir}
	for _, p := range programs {
		args = append(args, "./cmd/"+p)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	var b strings.Builder
	b.WriteString("# Flags\n\nWhat each program says with `--help`. `make generate` makes this page. The plugin `flock` has no flags:\n[cmd-flock.md](cmd-flock.md).\n")
	for _, p := range programs {
		cmd := exec.Command(filepath.Join(dir, p), "--help")
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // defaults come from the environment
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s --help: %v\n%s", p, err, out)
		}
		fmt.Fprintf(&b, "\n## %s\n\n```\n%s\n```\n", p, strings.TrimSpace(trimLines(out)))
	}
	hold(t, "docs/flags.md", b.String())
}

// trimLines takes away blanks at the ends of lines, and tabs.
func trimLines(text []byte) string {
	var b strings.Builder
	for line := range bytes.Lines(text) {
		b.WriteString(strings.TrimRight(strings.ReplaceAll(string(line), "\t", "    "), " \n") + "\n")
	}
	return b.String()
}

// keyOfCode is a key in Go's sources: a string, or behind the constant Prefix.
var keyOfCode = regexp.MustCompile(`(?:"flock\.fritzlab\.net/|Prefix \+ "|GroupName \+ "/)([A-Za-z0-9]+(?:-[a-z0-9]+)*)"`)

// keysOfCode are those in Go's sources without the tests.
func keysOfCode(t *testing.T) []string {
	var all []string
	for _, file := range sources(t) {
		for _, m := range keyOfCode.FindAllStringSubmatch(read(t, file), -1) {
			if m[1] != "v1alpha1" {
				all = append(all, "flock.fritzlab.net/"+m[1])
			}
		}
	}
	return all
}

// sources are the Go files of flock's programs, without tests.
func sources(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, root := range []string{"cmd", "internal", "pkg"} {
		err := filepath.WalkDir(root, func(file string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(file, ".go") && !strings.HasSuffix(file, "_test.go") {
				all = append(all, file)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// key is a name with flock's prefix in a page or in the code.
var key = regexp.MustCompile(`flock\.fritzlab\.net/[A-Za-z0-9]+(-[a-z0-9]+)*`)

// TestAnnotationsPage checks that docs/annotations.md has each key of the API, and no
// other.
func TestAnnotationsPage(t *testing.T) {
	page := map[string]bool{}
	for _, k := range key.FindAllString(read(t, "docs/annotations.md"), -1) {
		page[k] = true
	}
	for _, k := range keysOfCode(t) {
		if !page[k] {
			t.Errorf("docs/annotations.md lacks %s", k)
		}
	}
	code := keysOfCode(t)
	for k := range page {
		if !slices.Contains(code, k) {
			t.Errorf("docs/annotations.md has %s, which no code has", k)
		}
	}
}
