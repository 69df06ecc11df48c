package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"flock.fritzlab.net/flock/lab/image"
)

type imageEntry = image.Entry

// Options are what a user can choose.
type Options struct {
	Source Source
	Out    string // the directory of the result; what is in it is deleted
	Cache  string // Debian's packages
	// Image is the repository that the image will be pushed to, as manifests name it:
	// registry.example/flock. Empty: flock.
	Image string
	// Architectures are those of the image; empty: all. A release of some has flockctl
	// for Linux on these alone, for a quick look.
	Architectures []string
	// DownloadURL is where the files will be, for krew's manifest.
	DownloadURL string
	Progress    io.Writer
}

// ref is the image's name with its tag.
func (o Options) ref() string { return cmp.Or(o.Image, "flock") + ":" + tag(o.Source.Version) }

// tag is a version as an image's tag can have it: a + is not allowed there (OCI
// distribution-spec 1.1, pulling manifests).
func tag(version string) string { return strings.ReplaceAll(version, "+", "-") }

// ctlPlatforms are those that operators run flockctl on.
var ctlPlatforms = []platform{{"darwin", "amd64"}, {"darwin", "arm64"}, {"linux", "amd64"}, {"linux", "arm64"}}

// Make makes a release: all files and their checksums. It returns their names.
func Make(ctx context.Context, o Options) ([]string, error) {
	if _, err := name.NewTag(o.ref()); err != nil {
		return nil, fmt.Errorf("image %q: %w: want a repository without a tag, as in registry.example/flock", o.Image, err)
	}
	ctl := ctlPlatforms
	if len(o.Architectures) == 0 {
		o.Architectures = Architectures
	} else {
		ctl = slices.DeleteFunc(slices.Clone(ctl), func(p platform) bool { return p.os != "linux" || !slices.Contains(o.Architectures, p.arch) })
	}
	work, err := os.MkdirTemp("", "flock-release-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	if err := os.RemoveAll(o.Out); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, err
	}
	license := file{name: "LICENSE", mode: 0o644, source: filepath.Join(o.Source.Checkout, "LICENSE")}

	var programs []program
	var contents []Content
	for _, arch := range o.Architectures {
		fmt.Fprintf(o.Progress, "programs and image for linux/%s\n", arch)
		p := platform{"linux", arch}
		bin := filepath.Join(work, "linux-"+arch)
		if err := o.Source.build(ctx, p, bin, image.Programs...); err != nil {
			return nil, err
		}
		files := []file{license}
		for _, program := range image.Programs {
			files = append(files, file{name: program, mode: 0o755, source: filepath.Join(bin, program)})
		}
		if err := writeTarGz(o.file("linux_"+arch+".tar.gz"), files...); err != nil {
			return nil, err
		}
		c, err := o.Source.content(ctx, arch, bin, work, o.Cache)
		if err != nil {
			return nil, err
		}
		contents = append(contents, c)
		for _, name := range image.Programs {
			programs = append(programs, program{name, filepath.Join(bin, name), p})
		}
	}
	index, err := o.Source.index(contents)
	if err != nil {
		return nil, err
	}
	if err := writeArchive(o.file("image.tar"), "docker.io/library/"+o.ref(), tag(o.Source.Version), index); err != nil {
		return nil, err
	}

	archives := map[platform]string{}
	for _, p := range ctl {
		fmt.Fprintf(o.Progress, "flockctl for %s/%s\n", p.os, p.arch)
		bin := filepath.Join(work, "flockctl-"+p.os+"-"+p.arch)
		if err := o.Source.build(ctx, p, bin, "flockctl"); err != nil {
			return nil, err
		}
		programs = append(programs, program{"flockctl", filepath.Join(bin, "flockctl"), p})
		archives[p] = filepath.Join(o.Out, fmt.Sprintf("flockctl_%s_%s_%s.tar.gz", o.Source.Version, p.os, p.arch))
		if err := writeTarGz(archives[p], license,
			file{name: "flockctl", mode: 0o755, source: filepath.Join(bin, "flockctl")}); err != nil {
			return nil, err
		}
	}
	fmt.Fprintln(o.Progress, "manifests, bill of materials, checksums")
	if err := errors.Join(o.manifests(), o.chart()); err != nil {
		return nil, err
	}
	krew, err := o.krew(archives)
	if err != nil {
		return nil, err
	}
	bill, err := o.Source.bill(programs, contents)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(o.Out, "krew.yaml"), krew, 0o644),
		os.WriteFile(o.file("spdx.json"), bill, 0o644),
	); err != nil {
		return nil, err
	}
	return o.checksums()
}

func (o Options) file(what string) string {
	separator := "_"
	if what == "spdx.json" {
		separator = "."
	}
	return filepath.Join(o.Out, "flock_"+o.Source.Version+separator+what)
}

// checksums writes SHA256SUMS, as sha256sum --check reads it, and returns the names of
// all files.
func (o Options) checksums() ([]string, error) {
	entries, err := os.ReadDir(o.Out)
	if err != nil {
		return nil, err
	}
	var names []string
	var b strings.Builder
	for _, e := range entries {
		sum, err := fileSum(filepath.Join(o.Out, e.Name()))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s  %s\n", sum, e.Name())
		names = append(names, e.Name())
	}
	return append(names, "SHA256SUMS"), os.WriteFile(filepath.Join(o.Out, "SHA256SUMS"), []byte(b.String()), 0o644)
}

// Root lays out what the image of one architecture has below a directory. The Dockerfile
// copies it, so that it makes the same image.
func Root(ctx context.Context, s Source, arch, cache, out string) error {
	if !slices.Contains(Architectures, arch) {
		return fmt.Errorf("--arch=%s: want one of %s", arch, strings.Join(Architectures, ", "))
	}
	work, err := os.MkdirTemp("", "flock-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	bin := filepath.Join(work, "bin")
	if err := s.build(ctx, platform{"linux", arch}, bin, image.Programs...); err != nil {
		return err
	}
	c, err := s.content(ctx, arch, bin, work, cache)
	if err != nil {
		return err
	}
	return lay(out, slices.Concat(c.BIRD, c.Flock))
}

// lay writes the entries, all of which are files, below a directory.
func lay(out string, entries []image.Entry) error {
	for _, e := range entries {
		to := filepath.Join(out, e.Path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		content, err := os.ReadFile(e.Source)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, content, e.Mode.Perm()); err != nil {
			return err
		}
		if err := os.Chmod(to, e.Mode.Perm()); err != nil { // whatever the umask
			return err
		}
	}
	return nil
}

// Push sends the image of a release to a registry, with the credentials that docker
// login or podman login has stored. ref is a repository, or one with a tag; without one,
// the tag is the version. It returns the name with the digest, by which a manifest can
// name exactly this image.
func Push(ctx context.Context, dir, ref string) (string, error) {
	archives, err := filepath.Glob(filepath.Join(dir, "flock_*_image.tar"))
	if err != nil || len(archives) != 1 {
		return "", fmt.Errorf("%s has %d images: run make release", dir, len(archives))
	}
	index, version, cleanup, err := readArchive(archives[0])
	if err != nil {
		return "", err
	}
	defer cleanup()
	to, err := name.NewTag(ref, name.WithDefaultTag(version))
	if err != nil {
		return "", fmt.Errorf("image %q: %w: want a repository, as in registry.example/flock", ref, err)
	}
	if err := remote.WriteIndex(to, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return "", fmt.Errorf("push %s: %w", to, err)
	}
	digest, err := index.Digest()
	if err != nil {
		return "", err
	}
	return to.Context().Digest(digest.String()).String(), nil
}

// readArchive reads what writeArchive wrote.
func readArchive(file string) (index v1.ImageIndex, version string, cleanup func(), err error) {
	dir, err := os.MkdirTemp("", "flock-image-")
	if err != nil {
		return nil, "", nil, err
	}
	cleanup = func() { os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			cleanup()
		}
	}()
	if err := untar(file, dir); err != nil {
		return nil, "", nil, err
	}
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, "", nil, err
	}
	manifest, err := outer.IndexManifest()
	if err != nil {
		return nil, "", nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, "", nil, fmt.Errorf("%s has %d images, want 1", file, len(manifest.Manifests))
	}
	m := manifest.Manifests[0]
	index, err = outer.ImageIndex(m.Digest)
	return index, m.Annotations["org.opencontainers.image.ref.name"], cleanup, err
}

// Changed names the files that differ between two releases, in their content or by being
// in one of them alone.
func Changed(a, b string) ([]string, error) {
	sums := func(dir string) (map[string]string, error) {
		of := map[string]string{}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				of[d.Name()], err = fileSum(path)
			}
			return err
		})
		return of, err
	}
	first, err := sums(a)
	if err != nil {
		return nil, err
	}
	second, err := sums(b)
	if err != nil {
		return nil, err
	}
	var differ []string
	for name := range first {
		if second[name] != first[name] {
			differ = append(differ, name)
		}
	}
	for name := range second {
		if first[name] == "" {
			differ = append(differ, name)
		}
	}
	slices.Sort(differ)
	return differ, nil
}
