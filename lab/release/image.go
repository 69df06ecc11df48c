package release

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"flock.fritzlab.net/flock/lab/image"
)

// Content is what the image of an architecture has, in two layers: BIRD, which changes
// when Debian's packages do, and flock.
type Content struct {
	Arch        string
	BIRD, Flock []image.Entry
	Packages    []Package
}

// content collects what goes into the image: flock's programs for the architecture from
// bin, and BIRD from Debian's packages, which are unpacked below work.
func (s Source) content(ctx context.Context, arch, bin, work, cache string) (Content, error) {
	c := Content{Arch: arch}
	var err error
	if c.Packages, err = Pinned(arch); err != nil {
		return c, err
	}
	debs, err := download(ctx, cache, c.Packages)
	if err != nil {
		return c, err
	}
	root := filepath.Join(work, "debian-"+arch)
	if err := unpack(ctx, root, debs); err != nil {
		return c, err
	}
	if c.BIRD, err = image.BIRD(root); err != nil {
		return c, fmt.Errorf("%w: is its package missing in debianNames?", err)
	}
	for _, p := range c.Packages {
		file := "/usr/share/doc/" + p.Name + "/copyright"
		real, err := filepath.EvalSymlinks(filepath.Join(root, file))
		if err != nil {
			return c, fmt.Errorf("package %s: its copyright: %w", p.Name, err)
		}
		c.BIRD = append(c.BIRD, image.Entry{Path: file, Source: real, Mode: 0o644})
	}
	c.Flock = append(image.Own(s.Checkout, bin), image.Entry{
		Path: "/usr/share/doc/flock/copyright", Source: filepath.Join(s.Checkout, "LICENSE"), Mode: 0o644,
	})
	return c, nil
}

// labels are those of the OCI image specification's annotations (image-spec 1.1,
// annotations.md).
func (s Source) labels() map[string]string {
	l := map[string]string{
		"org.opencontainers.image.title":         "flock",
		"org.opencontainers.image.description":   "A Kubernetes CNI for bare-metal clusters with real routers",
		"org.opencontainers.image.url":           "https://flock.fritzlab.net/flock",
		"org.opencontainers.image.documentation": "https://flock.fritzlab.net/flock",
		"org.opencontainers.image.licenses":      "Apache-2.0 AND GPL-2.0-or-later",
		"org.opencontainers.image.version":       s.Version,
		"org.opencontainers.image.created":       s.Time.Format("2006-01-02T15:04:05Z"),
	}
	if s.Revision != "" {
		l["org.opencontainers.image.revision"] = s.Revision
	}
	return l
}

// image is the image of one architecture.
func (s Source) image(c Content) (v1.Image, error) {
	spec := image.FlockWith(nil, s.Checkout, "")
	spec.Entries, spec.Arch, spec.Labels, spec.Created = nil, c.Arch, s.labels(), s.Time
	for _, entries := range [][]image.Entry{c.BIRD, c.Flock} {
		plain, err := image.Layer(entries)
		if err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(plain.Uncompressed, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression))
		if err != nil {
			return nil, err
		}
		spec.Base = append(spec.Base, layer)
	}
	return spec.Image()
}

// index is the image of all architectures.
func (s Source) index(contents []Content) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, c := range contents {
		one, err := s.image(c)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        one,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: c.Arch}},
		})
	}
	return mutate.Annotations(index, s.labels()).(v1.ImageIndex), nil
}

// writeArchive writes the image as an archive of an OCI image layout (image-spec 1.1,
// image-layout.md), as ctr, podman, skopeo and crane read it. ref is its name.
func writeArchive(file, ref, version string, index v1.ImageIndex) error {
	dir, err := os.MkdirTemp(filepath.Dir(file), ".layout-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	at, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := at.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": version,
		"io.containerd.image.name":          ref,
	})); err != nil {
		return err
	}
	return writeTar(file, dir)
}

// writeTar archives the regular files below dir, by name, with nothing of the machine in
// their headers.
func writeTar(file, dir string) error {
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var name string
			name, err = filepath.Rel(dir, path)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(names)
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	tw := tar.NewWriter(out)
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := addFile(tw, filepath.ToSlash(name), 0o644, content); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return out.Close()
}
