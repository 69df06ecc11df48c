package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Spec is an image: what is in it and how it is run.
type Spec struct {
	// Ref names the image as a pod's spec does: "flock:dev".
	Ref string
	// Entrypoint and Cmd are what runs, an argument an element.
	Entrypoint, Cmd []string
	// Env holds NAME=value pairs.
	Env []string
	// Labels describe it (org.opencontainers.image.*).
	Labels map[string]string
	// Arch is the processor that it is for, as Go names it; empty: this machine's.
	Arch string
	// Created is when it was made; zero: not said.
	Created time.Time
	// User runs it, as "uid" or "uid:gid"; root if empty.
	User string
	// Base are layers below the entries.
	Base []v1.Layer
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
	// Source is the file on this machine with the content.
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

// Write writes the images to the file, which it replaces at once or leaves as it
// was. A layer that several of them have is written once.
func Write(file string, specs ...Spec) (err error) {
	images := map[name.Reference]v1.Image{}
	for _, spec := range specs {
		ref, err := name.NewTag(spec.Ref)
		if err != nil {
			return fmt.Errorf("image reference %q: %w: want a name and a tag, as in flock:dev", spec.Ref, err)
		}
		if images[ref], err = spec.Image(); err != nil {
			return fmt.Errorf("image %s: %w", spec.Ref, err)
		}
	}
	out, err := os.CreateTemp(filepath.Dir(file), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	if err := tarball.MultiRefWrite(images, out); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := errors.Join(out.Chmod(0o644), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), file)
}

// Image is the image itself, without its name.
func (s Spec) Image() (v1.Image, error) {
	layers := slices.Clone(s.Base)
	if len(s.Entries) > 0 || len(layers) == 0 {
		own, err := Layer(s.Entries)
		if err != nil {
			return nil, err
		}
		layers = append(layers, own)
	}
	oci := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.ConfigFile(oci, &v1.ConfigFile{
		OS: "linux", Architecture: cmp.Or(s.Arch, runtime.GOARCH), Created: v1.Time{Time: s.Created},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Entrypoint: s.Entrypoint, Cmd: s.Cmd, Env: s.Env, User: s.User, WorkingDir: "/", Labels: s.Labels},
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(image, layers...)
}

// Layer is a layer of the entries, which any number of images may have. It is not
// compressed: it never leaves the machine.
func Layer(entries []Entry) (v1.Layer, error) {
	sorted, err := withParents(entries)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range sorted {
		if err := e.write(tw); err != nil {
			return nil, fmt.Errorf("path %s: %w", e.Path, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return static.NewLayer(b.Bytes(), types.OCIUncompressedLayer), nil
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

func writeFile(tw *tar.Writer, h *tar.Header, content []byte) error {
	h.Size = int64(len(content))
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(content)
	return err
}
