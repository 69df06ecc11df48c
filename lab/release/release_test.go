package release

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"

	"flock.fritzlab.net/flock/lab/image"
)

const checkout = "../.."

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func testSource() Source {
	return Source{Checkout: checkout, Version: "v1.2.3", Revision: "0123456789abcdef", Time: time.Unix(1700000000, 0).UTC()}
}

// contents are images with stand-ins for what takes long to build: each architecture has
// files of its own.
func contents(t *testing.T) (all []Content) {
	t.Helper()
	for _, arch := range Architectures {
		c := Content{Arch: arch, Packages: must(Pinned(arch))}
		bird := filepath.Join(t.TempDir(), "bird")
		if err := os.WriteFile(bird, []byte("bird for "+arch), 0o755); err != nil {
			t.Fatal(err)
		}
		c.BIRD = []image.Entry{image.File("/usr/sbin/bird", bird)}
		bin := t.TempDir()
		for _, p := range image.Programs {
			if err := os.WriteFile(filepath.Join(bin, p), []byte(p+" for "+arch), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		c.Flock = image.Own(checkout, bin)
		all = append(all, c)
	}
	return all
}

// TestImageArchive: the archive holds one image for each architecture, under the name
// that runtimes import it by, with labels; and it has the same bytes a second time.
func TestImageArchive(t *testing.T) {
	s, dir := testSource(), t.TempDir()
	var files [2]string
	all := contents(t)
	for i := range files {
		files[i] = filepath.Join(dir, fmt.Sprintf("flock_%d_image.tar", i))
		if err := writeArchive(files[i], "docker.io/library/flock:v1.2.3", "v1.2.3", must(s.index(all))); err != nil {
			t.Fatal(err)
		}
		// Nothing of the files' times is in it.
		for _, c := range all {
			for _, e := range c.Flock {
				if !strings.HasPrefix(e.Source, checkout) {
					if err := os.Chtimes(e.Source, time.Unix(1, 0), time.Unix(int64(i), 0)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if a, b := must(fileSum(files[0])), must(fileSum(files[1])); a != b {
		t.Errorf("the image has other bytes the second time: %s and %s", a, b)
	}

	index, version, cleanup, err := readArchive(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer cleanup()
	if version != "v1.2.3" {
		t.Errorf("ref.name is %q, want v1.2.3", version)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	var archs []string
	for _, m := range must(index.IndexManifest()).Manifests {
		archs = append(archs, m.Platform.Architecture)
		one := must(index.Image(m.Digest))
		config := must(one.ConfigFile())
		if config.Architecture != m.Platform.Architecture || config.OS != "linux" || !config.Created.Equal(s.Time) {
			t.Errorf("%s: config is for %s/%s, of %s", m.Platform.Architecture, config.OS, config.Architecture, config.Created)
		}
		if l := config.Config.Labels; l["org.opencontainers.image.version"] != "v1.2.3" || l["org.opencontainers.image.revision"] != s.Revision || l["org.opencontainers.image.licenses"] == "" {
			t.Errorf("labels %v", l)
		}
		if want := []string{"/usr/local/bin/flock-agent"}; !slices.Equal(config.Config.Entrypoint, want) {
			t.Errorf("entrypoint %q, want %q", config.Config.Entrypoint, want)
		}
		files := imageFiles(t, one)
		if got, want := files["/usr/local/bin/flock-agent"].content, "flock-agent for "+m.Platform.Architecture; got != want {
			t.Errorf("flock-agent is %q, want %q", got, want)
		}
		if got, want := files["/usr/sbin/bird"].content, "bird for "+m.Platform.Architecture; got != want {
			t.Errorf("bird is %q, want %q", got, want)
		}
	}
	if !slices.Equal(archs, Architectures) {
		t.Errorf("images for %q, want %q", archs, Architectures)
	}
}

// imageFile is a file of an image.
type imageFile struct {
	mode    int64
	content string
}

func imageFiles(t *testing.T, one v1.Image) map[string]imageFile {
	t.Helper()
	files := map[string]imageFile{}
	for _, l := range must(one.Layers()) {
		r := must(l.Uncompressed())
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				files["/"+h.Name] = imageFile{h.Mode, string(must(io.ReadAll(tr)))}
			}
		}
		r.Close()
	}
	return files
}

// TestPush pushes an image to a real registry and reads it there.
func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	dir := t.TempDir()
	index := must(testSource().index(contents(t)))
	if err := writeArchive(filepath.Join(dir, "flock_v1.2.3_image.tar"), "flock:v1.2.3", "v1.2.3", index); err != nil {
		t.Fatal(err)
	}
	pushed, err := Push(t.Context(), dir, host+"/team/flock")
	if err != nil {
		t.Fatal(err)
	}
	byDigest := must(name.NewDigest(pushed))
	byTag := must(name.NewTag(host + "/team/flock:v1.2.3"))
	for _, ref := range []name.Reference{byDigest, byTag} {
		got, err := remote.Index(ref)
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if must(got.Digest()) != must(index.Digest()) {
			t.Errorf("%s is another image", ref)
		}
	}
	if _, err := Push(t.Context(), t.TempDir(), host+"/team/flock"); err == nil || !strings.Contains(err.Error(), "make release") {
		t.Errorf("without a release: %v", err)
	}
}

// TestBill: the bill of materials is valid, and names each Debian package and each module
// of each program, at the version that is in it.
func TestBill(t *testing.T) {
	s := testSource()
	bin := t.TempDir()
	if err := s.build(t.Context(), platform{"linux", "amd64"}, bin, "flock-probe"); err != nil {
		t.Fatal(err)
	}
	programs := []program{{"flock-probe", filepath.Join(bin, "flock-probe"), platform{"linux", "amd64"}}}
	all := contents(t)[:1]
	text := must(s.bill(programs, all))
	if again := must(s.bill(programs, all)); !bytes.Equal(text, again) {
		t.Error("the bill has other bytes the second time")
	}
	doc, err := spdxjson.Read(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	validateBill(t, doc, text)
	has := func(name, version string) bool {
		return slices.ContainsFunc(doc.Packages, func(p *spdx.Package) bool { return p.PackageName == name && p.PackageVersion == version })
	}
	for _, p := range all[0].Packages {
		if !has(p.Name, p.Version) {
			t.Errorf("Debian's %s %s is not in the bill", p.Name, p.Version)
		}
	}
	if !has("flock-probe", "v1.2.3") || !has("flock-image-linux-amd64", "v1.2.3") {
		t.Error("flock's own parts are not in the bill")
	}
}

// validateBill checks what SPDX 2.3 requires of identifiers and relationships.
func validateBill(t *testing.T, doc *spdx.Document, text []byte) {
	t.Helper()
	if doc.SPDXVersion != "SPDX-2.3" || doc.DataLicense != "CC0-1.0" || doc.DocumentNamespace == "" || doc.CreationInfo == nil || doc.CreationInfo.Created != "2023-11-14T22:13:20Z" {
		t.Errorf("head: %+v %+v", doc, doc.CreationInfo)
	}
	var raw struct {
		Relationships []struct{ SpdxElementID, RelatedSpdxElement, RelationshipType string }
		Packages      []struct{ SPDXID string }
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"SPDXRef-DOCUMENT": true}
	for _, p := range raw.Packages {
		if known[p.SPDXID] {
			t.Errorf("%s is there twice", p.SPDXID)
		}
		if !regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`).MatchString(p.SPDXID) {
			t.Errorf("%s is no SPDX identifier", p.SPDXID)
		}
		known[p.SPDXID] = true
	}
	related := map[string]bool{"SPDXRef-DOCUMENT": true}
	for _, r := range raw.Relationships {
		if !known[r.SpdxElementID] || !known[r.RelatedSpdxElement] {
			t.Errorf("%s %s %s: names a package that is not there", r.SpdxElementID, r.RelationshipType, r.RelatedSpdxElement)
		}
		related[r.RelatedSpdxElement] = true
	}
	for id := range known {
		if !related[id] {
			t.Errorf("nothing says what %s is for", id)
		}
	}
}

// TestPinned: debian.lock has all packages of all architectures, and nothing else.
func TestPinned(t *testing.T) {
	all := must(parseLock(debianLock))
	if formatLock(all) != debianLock {
		t.Errorf("%s is not as make release-lock writes it", LockFile)
	}
	var n int
	for _, arch := range Architectures {
		n += len(must(Pinned(arch)))
	}
	if n != len(all) {
		t.Errorf("%s has %d lines, of which %d are of an architecture that is released", LockFile, len(all), n)
	}
	for _, bad := range []string{"amd64 bird2 2.0.12-7", "amd64 bird2 2.0.12-7 123", "amd64 bird2 2.0.12-7 " + strings.Repeat("0", 64) + " more"} {
		if _, err := parseLock(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestUnpack lays real packages out: with merged /usr, and links that stay inside.
func TestUnpack(t *testing.T) {
	source := filepath.Join(t.TempDir(), "package")
	for name, content := range map[string]string{
		"DEBIAN/control":             "Package: some\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: none\n",
		"lib/x86_64-linux-gnu/ld.so": "loader",
		"usr/share/doc/some/text":    "text",
	} {
		file := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(source, "lib64"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"lib64/ld-linux.so.2": "/lib/x86_64-linux-gnu/ld.so", // absolute, as libc6 has it
		"lib64/near":          "ld-linux.so.2",
		"usr/share/doc/far":   "/usr/share/doc/some/text",
	} {
		if err := os.Symlink(target, filepath.Join(source, link)); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(t.TempDir(), "some.deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", source, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	root := t.TempDir()
	if err := unpack(t.Context(), root, []string{deb}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"lib64/ld-linux.so.2":            "loader",
		"usr/lib64/near":                 "loader",
		"usr/lib/x86_64-linux-gnu/ld.so": "loader",
		"usr/share/doc/far":              "text",
	} {
		file := filepath.Join(root, name)
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
		if real, err := filepath.EvalSymlinks(file); err == nil && !strings.HasPrefix(real, must(filepath.EvalSymlinks(root))) {
			t.Errorf("%s leads to %s, which is outside", name, real)
		}
	}
}

// TestDockerfile: the last stage of the Dockerfile is the content of `release root`, run
// as the release's image is.
func TestDockerfile(t *testing.T) {
	text := string(must(os.ReadFile(filepath.Join(checkout, "Dockerfile"))))
	_, last, ok := strings.Cut(text, "\nFROM scratch\n")
	if !ok || strings.Contains(last, "\nFROM ") {
		t.Fatal("the last stage must be FROM scratch: all content comes from `release root`")
	}
	if !strings.Contains(text, "go run ./cmd/release root --arch=${TARGETARCH} --version=${VERSION} --out=/rootfs\n") {
		t.Error("the first stage must lay the content out below /rootfs with `release root`")
	}
	spec := image.FlockWith(nil, checkout, "")
	var want []string
	for _, e := range spec.Env {
		want = append(want, "ENV "+e)
	}
	want = append(want, "COPY --from=build /rootfs/ /", `ENTRYPOINT ["`+strings.Join(spec.Entrypoint, `", "`)+`"]`)
	var got []string
	for line := range strings.Lines(last) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && !strings.HasPrefix(line, "LABEL ") && !strings.HasPrefix(line, "ARG ") {
			got = append(got, line)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("Dockerfile:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for label := range testSource().labels() {
		if label != "org.opencontainers.image.created" && !strings.Contains(last, label+"=") {
			t.Errorf("the Dockerfile has no label %s", label)
		}
	}
}

// TestChart: Helm renders the chart of a release with the release's image, and finds
// nothing wrong with it.
func TestChart(t *testing.T) {
	o := Options{Source: testSource(), Out: t.TempDir(), Image: "registry.example/flock"}
	if err := o.chart(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(o.Out, "flock-1.2.3.tgz")
	for _, args := range [][]string{{"lint", "--strict", "--namespace=flock-system", file}, {"template", "flock", file, "--namespace=flock-system"}} {
		cmd := exec.Command("go", append([]string{"tool", "-modfile=" + checkout + "/tools/helm/go.mod", "helm"}, args...)...)
		home := t.TempDir()
		cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+home, "HELM_CACHE_HOME="+home, "HELM_DATA_HOME="+home)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("helm %q: %v: %s", args, err, out)
		}
		if n := strings.Count(string(out), "image: registry.example/flock:v1.2.3\n"); args[0] == "template" && n != 4 {
			t.Errorf("the release's image is named %d times, want once for each of four containers", n)
		}
	}
}

// TestVersions: what a version of git becomes where another form is asked for.
func TestVersions(t *testing.T) {
	for version, want := range map[string]struct{ semver, tag string }{
		"v1.2.3":              {"1.2.3", "v1.2.3"},
		"v1.2.3-rc.1":         {"1.2.3-rc.1", "v1.2.3-rc.1"},
		"v1.2.3-4-gabcdef0":   {"1.2.3-4-gabcdef0", "v1.2.3-4-gabcdef0"},
		"v1.2.3+more":         {"1.2.3+more", "v1.2.3-more"},
		"abcdef0":             {"0.0.0-dev.abcdef0", "abcdef0"},
		"abcdef0-dirty":       {"0.0.0-dev.abcdef0-dirty", "abcdef0-dirty"},
		"0123456":             {"0.0.0-dev.g0123456", "0123456"}, // a number may not begin with 0 there
		"something_else/here": {"0.0.0-dev.something-else-here", "something_else/here"},
	} {
		if got := semverOf(version); got != want.semver {
			t.Errorf("semverOf(%s) is %s, want %s", version, got, want.semver)
		}
		if got := tag(version); got != want.tag {
			t.Errorf("tag(%s) is %s, want %s", version, got, want.tag)
		}
	}
}
