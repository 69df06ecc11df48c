package agent_test

import (
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

const browser = "chromium-headless-shell"

// TestPageInBrowser opens the page of an agent in a browser: what a person sees there is what
// the node has, in the page's tables, and the browser has no complaint about it.
func TestPageInBrowser(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath(browser); err != nil {
		t.Skipf("%s is not installed, so no browser has seen the page: make packages installs it", browser)
	}
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	for _, name := range []string{"web", "lost"} {
		api.labeled(name, map[string]string{"app": "web"})
	}
	n.start("--page-address=127.0.0.1:9481")
	web, lost := n.sandbox("0123456789abcdef"), n.sandbox("lost")
	addrs := web.mustAddPod("web")
	lost.mustAddPod("lost")
	api.policies.put("web", isolate("web", ""))
	lost.ns.IP("link", "del", "eth0")
	api.reported(n, "Pod", "lost", "LinkLost", "")
	n.becomes(false, n.router, addrs...) // by the policy, which has counted it then
	link := n.links()[0]

	b := newBrowser(n)
	var page document
	eventually(t, n.agentLog, func() error {
		page = b.open("http://127.0.0.1:9481/")
		if rows := page.table("Policies"); len(rows) == 0 || len(rows[0]) != 4 {
			return fmt.Errorf("no policy has decided anything:\n%s", page.source)
		}
		return nil
	})
	if title := page.text(atom.Title); title != "node1 · flock" {
		t.Errorf("title %q", title)
	}
	if heading := page.text(atom.H1); heading != "node1" {
		t.Errorf("heading %q", heading)
	}
	for _, c := range []struct {
		table string
		want  []string // what a row of it has in its cells
	}{
		{"Conditions", []string{"Ready", "True", "ServingPods"}},
		{"Pods (1)", []string{"shop/web", "0123456789ab", link, addrs[0].String(), addrs[1].String(), "dev " + link}},
		{"Routes of flock", []string{"2001:db8:1::/64", "unreachable"}},
		{"Routes of flock", []string{addrs[0].String() + "/128", "dev " + link}},
		{"Policies", []string{"shop", "ingress"}},
		{"Recent Events", []string{"Warning", "Pod shop/lost", "LinkLost", "was deleted or moved"}},
	} {
		rows := page.table(c.table)
		if !slices.ContainsFunc(rows, func(cells []string) bool {
			row := strings.Join(cells, " | ")
			return !slices.ContainsFunc(c.want, func(w string) bool { return !strings.Contains(row, w) })
		}) {
			t.Errorf("table %s has no row with %q among %q", c.table, c.want, rows)
		}
	}
	// The page's policy forbids scripts, and the browser says so when something breaks it.
	if scripts := page.all(atom.Script); len(scripts) > 0 {
		t.Errorf("the page has a script: %v", scripts)
	}
	if strings.Contains(b.said, "Content Security Policy") || strings.Contains(b.said, "Refused to") {
		t.Errorf("the browser complains:\n%s", b.said)
	}
	for _, size := range []image.Point{{1280, 900}, {390, 844}} { // a desk and a telephone
		picture := b.screenshot("http://127.0.0.1:9481/", size)
		if picture.Bounds().Size() != size {
			t.Errorf("the picture has %v, want %v", picture.Bounds().Size(), size)
		}
		ink, colors := inked(picture)
		if ink < 0.01 || colors < 10 {
			t.Errorf("%v: %.1f %% of the picture differ from its background, in %d colors: it is blank", size, 100*ink, colors)
		}
	}
	if ink, _ := inked(b.screenshot("about:blank", image.Pt(1280, 900))); ink != 0 {
		t.Errorf("of a blank page %.1f %% are no background", 100*ink)
	}

	// A browser that is led here by a name of the Internet gets nothing of the node.
	if evil := b.open("http://evil.example:9481/", "--host-resolver-rules=MAP evil.example 127.0.0.1"); strings.Contains(evil.source, addrs[0].String()) || !strings.Contains(evil.source, "the page is for the node itself") {
		t.Errorf("evil.example sees\n%s", evil.source)
	}
}

// headless is a browser on the node.
type headless struct {
	n    *node
	home string
	said string // on its standard error
}

func newBrowser(n *node) *headless { return &headless{n: n, home: n.t.TempDir()} }

func (b *headless) run(args ...string) string {
	b.n.t.Helper()
	ctx, cancel := context.WithTimeout(b.n.t.Context(), 60*time.Second)
	defer cancel()
	// As root it has no sandbox; in a container /dev/shm is too small for it.
	cmd := exec.CommandContext(ctx, browser, append([]string{"--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + b.home}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+b.home)
	cmd.WaitDelay = time.Second
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	var err error
	b.n.host.Run(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	b.said += said.String()
	if err != nil {
		b.n.t.Fatalf("%s %v: %v\n%s", browser, args, err, said.String())
	}
	return out.String()
}

// open returns the page as the browser has it, after it has parsed and repaired it.
func (b *headless) open(url string, args ...string) document {
	b.n.t.Helper()
	source := b.run(append(args, "--dump-dom", url)...)
	root, err := html.Parse(strings.NewReader(source))
	if err != nil {
		b.n.t.Fatal(err)
	}
	return document{source, root}
}

func (b *headless) screenshot(url string, size image.Point) image.Image {
	b.n.t.Helper()
	path := filepath.Join(b.home, "page.png")
	b.run("--screenshot="+path, fmt.Sprintf("--window-size=%d,%d", size.X, size.Y), "--hide-scrollbars", url)
	file, err := os.Open(path)
	if err != nil {
		b.n.t.Fatal(err)
	}
	defer file.Close()
	picture, err := png.Decode(file)
	if err != nil {
		b.n.t.Fatal(err)
	}
	return picture
}

// inked is the part of a picture that is not of the color of its corner, and how many
// colors it has.
func inked(picture image.Image) (part float64, colors int) {
	seen := map[color.Color]bool{}
	all, ink := 0, 0
	background := picture.At(0, 0)
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			c := picture.At(x, y)
			seen[c] = true
			if all++; c != background {
				ink++
			}
		}
	}
	return float64(ink) / float64(all), len(seen)
}

// document is a page of the browser.
type document struct {
	source string
	root   *html.Node
}

func (d document) all(element atom.Atom) (found []*html.Node) {
	for n := range d.root.Descendants() {
		if n.DataAtom == element {
			found = append(found, n)
		}
	}
	return found
}

// text is that of the first such element.
func (d document) text(element atom.Atom) string {
	for _, n := range d.all(element) {
		return textOf(n)
	}
	return ""
}

// table returns the cells of the rows of data that stand below a heading.
func (d document) table(heading string) (rows [][]string) {
	below := false
	for n := range d.root.Descendants() {
		switch n.DataAtom {
		case atom.H2:
			below = strings.HasPrefix(textOf(n), heading)
		case atom.Tr:
			var cells []string
			for c := range n.ChildNodes() {
				if c.DataAtom == atom.Td {
					cells = append(cells, textOf(c))
				}
			}
			if below && len(cells) > 0 {
				rows = append(rows, cells)
			}
		}
	}
	return rows
}

func textOf(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data + " ")
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}
