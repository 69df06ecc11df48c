package flock_test

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/flockctl"
)

// said is text between backquotes.
var said = regexp.MustCompile("`([^`]+)`")

// literals are the strings in flock's programs, those of one file in one.
func literals(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, file := range sources(t) {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if text, err := strconv.Unquote(l.Value); err == nil {
					b.WriteString(text + "\n")
				}
			}
			return true
		})
	}
	// What the API server says in flock's place.
	for _, file := range []string{"deploy/chart/base/rbac.yaml"} {
		b.WriteString(read(t, file))
	}
	return b.String()
}

// TestTroubleshooting checks each entry of docs/troubleshooting.md: it has all parts, the
// code contains what it quotes, and the tests that it names exist.
func TestTroubleshooting(t *testing.T) {
	code := literals(t)
	tests := testsOf(t)
	page := read(t, "docs/troubleshooting.md")
	entries := regexp.MustCompile(`(?m)^### `).Split(page, -1)[1:]
	if len(entries) < 20 {
		t.Fatalf("%d entries", len(entries))
	}
	for _, e := range entries {
		title, text, _ := strings.Cut(e, "\n")
		text, _, _ = strings.Cut(text, "\n## ")
		parts := map[string]string{}
		for _, item := range strings.Split(text, "\n- **")[1:] {
			name, rest, _ := strings.Cut(item, "**: ")
			parts[name] = rest
		}
		for _, name := range []string{"Look", "It says", "Cause", "Remedy", "Test"} {
			if parts[name] == "" {
				t.Errorf("%s: there is no %q", title, name)
			}
		}
		for _, m := range said.FindAllStringSubmatch(beforeTable(parts["It says"]), -1) {
			if quote := strings.Join(strings.Fields(m[1]), " "); !strings.Contains(code, quote) {
				t.Errorf("%s: no program says %q", title, quote)
			}
		}
		// Tests come before the packages that have them: "`TestA`, `TestB` in `pkg/c`".
		var waiting []string
		for _, m := range said.FindAllStringSubmatch(firstParagraph(parts["Test"]), -1) {
			if strings.HasPrefix(m[1], "Test") {
				waiting = append(waiting, m[1])
				continue
			}
			if len(waiting) == 0 {
				t.Errorf("%s: which test is in %s?", title, m[1])
			}
			for _, name := range waiting {
				if !tests[m[1]][name] {
					t.Errorf("%s: there is no test %s in %s", title, name, m[1])
				}
			}
			waiting = nil
		}
		if len(waiting) > 0 {
			t.Errorf("%s: which package has %v?", title, waiting)
		}
	}
}

// firstParagraph is text up to its first empty line.
func firstParagraph(text string) string {
	text, _, _ = strings.Cut(text, "\n\n")
	return text
}

// beforeTable is what comes before a table: BIRD's words, in this case.
func beforeTable(text string) string {
	text, _, _ = strings.Cut(text, "\n\n|")
	return text
}

// testsOf are the names of all tests, by package.
func testsOf(t *testing.T) map[string]map[string]bool {
	t.Helper()
	name := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	all := map[string]map[string]bool{}
	for _, root := range []string{"bench", "cmd", "internal", "lab", "pkg"} {
		err := filepath.WalkDir(root, func(file string, _ os.DirEntry, err error) error {
			if strings.HasSuffix(file, "_test.go") {
				dir := filepath.ToSlash(filepath.Dir(file))
				for _, m := range name.FindAllStringSubmatch(read(t, file), -1) {
					if all[dir] == nil {
						all[dir] = map[string]bool{}
					}
					all[dir][m[1]] = true
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestErrorsPage checks that the code has each message, reason and Event of
// docs/errors.md.
func TestErrorsPage(t *testing.T) {
	code := literals(t)
	_, page, ok := strings.Cut(read(t, "docs/errors.md"), "## Refused annotations")
	if !ok {
		t.Fatal("no section about annotations")
	}
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(line, "|")
		for _, cell := range cells[1 : len(cells)-2] { // the last one is prose, unless it has reasons
			check(t, code, cell)
		}
		if last := strings.TrimSpace(cells[len(cells)-2]); strings.HasPrefix(last, "`") {
			check(t, code, last)
		}
	}
}

func check(t *testing.T, code, cell string) {
	t.Helper()
	for _, m := range said.FindAllStringSubmatch(cell, -1) {
		if !strings.Contains(code, m[1]) {
			t.Errorf("docs/errors.md: no program says %q", m[1])
		}
	}
}

// operator is a command of flockctl, at the start of a line or of code, or in $(…).
var operator = regexp.MustCompile("(?:^ *(?:\\$ )?|`|\\(|&& |; )(?:flockctl|kubectl flock) ([a-z]+)")

// TestCommandsExist checks that flockctl has each command that a page names.
func TestCommandsExist(t *testing.T) {
	seen := map[string]bool{}
	for _, page := range pages(t) {
		if page == "docs/flags.md" {
			continue // flockctl itself says what is there
		}
		fenced := false
		for line := range strings.Lines(read(t, page)) {
			if strings.HasPrefix(strings.TrimSpace(line), "```") {
				fenced = !fenced
			}
			if !fenced && !strings.HasPrefix(line, "    ") {
				// Prose: only what is between backquotes.
				line = strings.Join(said.FindAllString(line, -1), " ")
			}
			for _, m := range operator.FindAllStringSubmatch(line, -1) {
				if seen[m[1]] {
					continue
				}
				seen[m[1]] = true
				if status := flockctl.Main(context.Background(), []string{"flockctl", m[1], "--help"}, strings.NewReader(""), io.Discard, io.Discard); status != 0 {
					t.Errorf("%s names flockctl %s, and flockctl %[2]s --help fails", page, m[1])
				}
			}
		}
	}
	if len(seen) < 8 {
		t.Errorf("found only %v", seen)
	}
}

// TestIndex checks that docs/README.md leads to every page.
func TestIndex(t *testing.T) {
	index := map[string]bool{}
	for _, m := range link.FindAllStringSubmatch(read(t, "docs/README.md"), -1) {
		file, _, _ := strings.Cut(m[1], "#")
		index[filepath.Join("docs", file)] = true
	}
	for _, page := range pages(t) {
		if dir := filepath.Dir(page); dir == "docs" && page != "docs/README.md" || dir == "docs/peering" {
			if !index[page] {
				t.Errorf("docs/README.md does not lead to %s", page)
			}
		}
	}
}
