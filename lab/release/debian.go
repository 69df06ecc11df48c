package release

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Architectures are those of a release, as Go and Debian both name them.
var Architectures = []string{"amd64", "arm64"}

// debianNames are the Debian packages of which the image has files: BIRD, and the
// libraries that it and its client load. A program whose library is in none of them
// fails the build.
var debianNames = []string{
	"bird2",
	"libc6",
	"libcom-err2",
	"libgcrypt20",
	"libgpg-error0",
	"libgssapi-krb5-2",
	"libk5crypto3",
	"libkeyutils1",
	"libkrb5-3",
	"libkrb5support0",
	"libreadline8",
	"libssh-gcrypt-4",
	"libtinfo6",
	"zlib1g",
}

//go:embed debian.lock
var debianLock string

// LockFile is where debian.lock is in a checkout.
const LockFile = "lab/release/debian.lock"

// Package is a Debian package at one version.
type Package struct {
	Arch, Name, Version string
	SHA256              string // of the .deb, in hexadecimal
}

// Pinned are the Debian packages of the image for an architecture.
func Pinned(arch string) ([]Package, error) {
	all, err := parseLock(debianLock)
	if err != nil {
		return nil, err
	}
	of := slices.DeleteFunc(all, func(p Package) bool { return p.Arch != arch })
	var names []string
	for _, p := range of {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, debianNames) {
		return nil, fmt.Errorf("%s has the packages %q for %s, want %q: run make release-lock", LockFile, names, arch, debianNames)
	}
	return of, nil
}

// parseLock reads lines "arch name version sha256"; # begins a comment.
func parseLock(text string) (all []Package, err error) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 4 || len(f[3]) != hex.EncodedLen(sha256.Size) {
			return nil, fmt.Errorf("%s: line %q: want ARCH NAME VERSION SHA256", LockFile, line)
		}
		all = append(all, Package{Arch: f[0], Name: f[1], Version: f[2], SHA256: f[3]})
	}
	return all, nil
}

func formatLock(all []Package) string {
	var b strings.Builder
	b.WriteString("# The Debian packages of which flock's image has files: architecture, name, version and\n" +
		"# the SHA-256 of the .deb. Made by make release-lock from the packages that the\n" +
		"# machine's apt sources offer, whose signatures apt has verified.\n")
	for _, p := range all {
		fmt.Fprintf(&b, "%s %s %s %s\n", p.Arch, p.Name, p.Version, p.SHA256)
	}
	return b.String()
}

// apt runs apt-get and apt-cache for another architecture than the machine's, with
// lists and caches of its own, and with the machine's sources and keys. So the machine
// stays as it is.
type apt struct{ dir, arch string }

// newApt reads the lists of packages; dir must be a directory of its own.
func newApt(ctx context.Context, dir, arch string) (apt, error) {
	a := apt{dir, arch}
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return a, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "state/status"), nil, 0o644); err != nil {
		return a, err
	}
	_, err := a.run(ctx, dir, "apt-get", "update", "--quiet")
	return a, err
}

func (a apt) run(ctx context.Context, in, program string, args ...string) ([]byte, error) {
	state := filepath.Join(a.dir, "state")
	options := []string{
		"-o", "APT::Architecture=" + a.arch, "-o", "APT::Architectures=" + a.arch,
		"-o", "Dir::State=" + state, "-o", "Dir::State::status=" + filepath.Join(state, "status"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "APT::Sandbox::User=root", // it downloads into our directory
	}
	cmd := exec.CommandContext(ctx, program, slices.Concat(options, args)...)
	cmd.Dir = in
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(complaints.Bytes()))
	}
	return out, nil
}

// Lock returns the content of debian.lock with the newest versions that the machine's
// apt sources offer.
func Lock(ctx context.Context) (string, error) {
	var all []Package
	for _, arch := range Architectures {
		dir, err := os.MkdirTemp("", "flock-apt-")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(dir)
		a, err := newApt(ctx, dir, arch)
		if err != nil {
			return "", err
		}
		for _, name := range debianNames {
			out, err := a.run(ctx, dir, "apt-cache", "show", "--no-all-versions", name)
			if err != nil {
				return "", err
			}
			p := Package{Arch: arch, Name: name}
			for line := range strings.Lines(string(out)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
				switch key {
				case "Version":
					p.Version = value
				case "SHA256":
					p.SHA256 = value
				}
			}
			all = append(all, p)
		}
	}
	return formatLock(all), nil
}

// download returns the files of the packages, which are all of one architecture. It
// keeps them in cache, and asks apt only for those that are not there.
func download(ctx context.Context, cache string, packages []Package) ([]string, error) {
	var files []string
	var missing []Package
	for _, p := range packages {
		file := filepath.Join(cache, p.SHA256+".deb")
		files = append(files, file)
		if sum, err := fileSum(file); err != nil || sum != p.SHA256 {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return files, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(cache, "apt-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	a, err := newApt(ctx, dir, packages[0].Arch)
	if err != nil {
		return nil, err
	}
	for _, p := range missing {
		into, err := os.MkdirTemp(dir, "deb-")
		if err != nil {
			return nil, err
		}
		if _, err := a.run(ctx, into, "apt-get", "download", "--quiet", p.Name+"="+p.Version); err != nil {
			return nil, fmt.Errorf("%w: if Debian has a newer version now, run make release-lock and commit the result; to build an older release, let apt's sources name snapshot.debian.org at its date", err)
		}
		got, err := filepath.Glob(filepath.Join(into, "*.deb"))
		if err != nil || len(got) != 1 {
			return nil, fmt.Errorf("apt-get download %s: got the files %q", p.Name, got)
		}
		sum, err := fileSum(got[0])
		if err != nil {
			return nil, err
		}
		if sum != p.SHA256 {
			return nil, fmt.Errorf("package %s %s for %s has the SHA-256 %s: %s wants %s", p.Name, p.Version, p.Arch, sum, LockFile, p.SHA256)
		}
		if err := os.Rename(got[0], filepath.Join(cache, p.SHA256+".deb")); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// unpack lays the files of the packages out below root, as Debian 12 does with its
// merged /usr. Links that are absolute in the package become relative, so that they
// lead nowhere outside of root.
func unpack(ctx context.Context, root string, debs []string) error {
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, deb := range debs {
		content, err := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb).Output()
		if err != nil {
			return fmt.Errorf("dpkg-deb --fsys-tarfile %s: %w", deb, err)
		}
		if err := extract(root, tar.NewReader(bytes.NewReader(content))); err != nil {
			return fmt.Errorf("%s: %w", deb, err)
		}
	}
	return nil
}

func extract(root string, tr *tar.Reader) error {
	in, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer in.Close()
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" {
			continue
		}
		if h.Typeflag == tar.TypeDir {
			if err := in.MkdirAll(name, 0o755); err != nil {
				return err
			}
			continue
		}
		if err := in.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeReg:
			f, err := in.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, h.FileInfo().Mode().Perm())
			if err != nil {
				return err
			}
			if _, err := io.Copy(f, tr); err != nil {
				return errors.Join(err, f.Close())
			}
			if err := f.Close(); err != nil {
				return err
			}
		case tar.TypeSymlink:
			if err := in.Symlink(relative(name, h.Linkname), name); err != nil {
				return err
			}
		case tar.TypeLink:
			if err := in.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name); err != nil {
				return err
			}
		default:
			return fmt.Errorf("path %s: is neither a file, a directory nor a link", h.Name)
		}
	}
}

// relative is what a link at name must say to lead to target. Both are below the same
// root, where /lib and its like are links to directories below usr.
func relative(name, target string) string {
	if !path.IsAbs(target) {
		return target
	}
	merged := func(p string) string {
		if first, _, _ := strings.Cut(p, "/"); slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, first) {
			return "usr/" + p
		}
		return p
	}
	depth := strings.Count(merged(name), "/")
	return strings.Repeat("../", depth) + merged(strings.TrimPrefix(target, "/"))
}

func fileSum(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
