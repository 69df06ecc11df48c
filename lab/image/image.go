package image

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// importName is the annotation from which containerd takes an imported image's
// name, in full: registry, repository and tag.
const importName = "io.containerd.image.name"

// Spec is an image: what is in it and how it is run.
type Spec struct {
	// Ref names the image as a pod's spec does: "flock:dev".
	Ref string
	// Entrypoint and Cmd are what runs, an argument an element.
	Entrypoint, Cmd []string
	// Env holds NAME=value pairs.
	Env []string
	// User runs it, as "uid" or "uid:gid"; empty: root.
	User string
	// Entries are the files, directories and links in it. Directories above
	// them need no entry of their own: they are root's with mode 0755.
	Entries []Entry
}

// Entry is a file, a directory (Mode has fs.ModeDir) or a symbolic link (Link is
// set) of an image.
type Entry struct {
	// Path in the image, absolute and clean.
	Path string
	// Mode holds the permissions, and fs.ModeDir for a directory.
	Mode fs.FileMode
	// Source is the file on this machine whose content is taken.
	Source string
	// Content is a file's content where there is no Source.
	Content []byte
	// Link is a symbolic link's target.
	Link string
	// UID and GID own it.
	UID, GID int
}

// File is an executable file taken from this machine.
func File(path, source string) Entry {
	return Entry{Path: path, Source: source, Mode: 0o755}
}

// Write writes the image to the file name, which it replaces at once or leaves
// as it was. The image is for the platform of this machine.
func Write(name string, spec Spec) (err error) {
	ref, err := reference.ParseDockerRef(spec.Ref)
	if err != nil {
		return fmt.Errorf("image reference %q: %w: want a name and a tag, as in flock:dev", spec.Ref, err)
	}
	entries, err := withParents(spec.Entries)
	if err != nil {
		return fmt.Errorf("image %s: %w", spec.Ref, err)
	}

	layer, err := os.CreateTemp(filepath.Dir(name), ".layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	sum := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, sum), entries); err != nil {
		return fmt.Errorf("image %s: %w", spec.Ref, err)
	}

	out, err := os.CreateTemp(filepath.Dir(name), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	if err := writeLayout(out, ref.String(), spec, layer, sum); err != nil {
		return fmt.Errorf("image %s: %w", spec.Ref, err)
	}
	if err := errors.Join(out.Chmod(0o644), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), name)
}

// withParents checks the entries and returns them sorted, each behind its
// directories, which are added where they are missing.
func withParents(entries []Entry) ([]Entry, error) {
	all := map[string]Entry{}
	for _, e := range entries {
		if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || e.Path == "/" {
			return nil, fmt.Errorf("path %q: must be absolute, clean and not the root", e.Path)
		}
		if _, twice := all[e.Path]; twice {
			return nil, fmt.Errorf("path %s: is in the image twice", e.Path)
		}
		all[e.Path] = e
	}
	for _, e := range entries {
		for dir := path.Dir(e.Path); dir != "/"; dir = path.Dir(dir) {
			above, ok := all[dir]
			if !ok {
				all[dir] = Entry{Path: dir, Mode: fs.ModeDir | 0o755}
			} else if !above.Mode.IsDir() {
				return nil, fmt.Errorf("path %s: lies below %s, which is not a directory", e.Path, dir)
			}
		}
	}
	sorted := make([]Entry, 0, len(all))
	for _, e := range all {
		sorted = append(sorted, e)
	}
	slices.SortFunc(sorted, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return sorted, nil
}

func writeLayer(w io.Writer, entries []Entry) error {
	tw := tar.NewWriter(w)
	for _, e := range entries {
		if err := e.write(tw); err != nil {
			return fmt.Errorf("path %s: %w", e.Path, err)
		}
	}
	return tw.Close()
}

func (e Entry) write(tw *tar.Writer) error {
	h := &tar.Header{
		Typeflag: tar.TypeReg,
		Name:     strings.TrimPrefix(e.Path, "/"),
		Mode:     int64(e.Mode.Perm()),
		Uid:      e.UID,
		Gid:      e.GID,
		ModTime:  time.Unix(0, 0),
	}
	switch {
	case e.Mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		return tw.WriteHeader(h)
	case e.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Link, 0o777
		return tw.WriteHeader(h)
	case e.Source == "":
		return writeFile(tw, h, e.Content)
	}
	f, err := os.Open(e.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("source %s: is not a regular file", e.Source)
	}
	h.Size = st.Size()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if n, err := io.Copy(tw, f); err != nil {
		return err
	} else if n != h.Size {
		return fmt.Errorf("source %s: had %d bytes, of which %d could be read: is it being written?", e.Source, h.Size, n)
	}
	return nil
}

// writeLayout writes the image layout around the layer, whose digest is sum.
func writeLayout(w io.Writer, name string, spec Spec, layer *os.File, sum hash.Hash) error {
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	layerDesc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer,
		Digest:    digest.NewDigest(digest.SHA256, sum),
		Size:      size,
	}
	platform := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	config, configDesc, err := document(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: platform,
		Config: ocispec.ImageConfig{
			User:       spec.User,
			Env:        spec.Env,
			Entrypoint: spec.Entrypoint,
			Cmd:        spec.Cmd,
			WorkingDir: "/",
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerDesc.Digest}},
	})
	if err != nil {
		return err
	}
	manifest, manifestDesc, err := document(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configDesc,
		Layers:    []ocispec.Descriptor{layerDesc},
	})
	if err != nil {
		return err
	}
	manifestDesc.Platform = &platform
	manifestDesc.Annotations = map[string]string{importName: name}
	index, _, err := document(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifestDesc},
	})
	if err != nil {
		return err
	}
	layout, _, err := document("", ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}

	tw := tar.NewWriter(w)
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{ocispec.ImageLayoutFile, layout},
		{ocispec.ImageIndexFile, index},
		{blob(manifestDesc.Digest), manifest},
		{blob(configDesc.Digest), config},
	} {
		if err := writeFile(tw, header(f.name), f.content); err != nil {
			return err
		}
	}
	h := header(blob(layerDesc.Digest))
	h.Size = size
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(tw, layer); err != nil {
		return err
	}
	return tw.Close()
}

func document(mediaType string, v any) ([]byte, ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	return b, ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, err
}

func blob(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func header(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: time.Unix(0, 0)}
}

func writeFile(tw *tar.Writer, h *tar.Header, content []byte) error {
	h.Size = int64(len(content))
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(content)
	return err
}
