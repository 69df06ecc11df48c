package conformance

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"flock.fritzlab.net/flock/lab/image"
)

// All are in the name of the archive: another way to make it makes another one.
var (
	//go:embed rootfs.sh
	rootfsScript []byte
	//go:embed images.go
	thisFile []byte
	//go:embed sctp/main.go
	sctpFile []byte
)

// imageArchive is the file of that name and of these images, which are made of the
// programs in bin, on Debian packages, and kept next to it.
func imageArchive(ctx context.Context, bin, name string, specs func(debian v1.Layer) ([]image.Spec, error), progress io.Writer) (string, error) {
	key := sha256.Sum256(slices.Concat(rootfsScript, thisFile, sctpFile))
	archive := filepath.Join(filepath.Dir(bin), fmt.Sprintf("%s-images-%x.tar", name, key[:6]))
	if _, err := os.Stat(archive); !errors.Is(err, fs.ErrNotExist) {
		return archive, err
	}
	fmt.Fprintln(progress, "build the images of", name, "from Debian packages")
	root, err := os.MkdirTemp(filepath.Dir(bin), "rootfs-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(root)
	if out, err := exec.CommandContext(ctx, "bash", "-c", string(rootfsScript), "rootfs.sh", root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build a root file system from Debian packages: %w: %s", err, out)
	}
	debian, err := layer(root)
	if err != nil {
		return "", err
	}
	all, err := specs(debian)
	if err != nil {
		return "", err
	}
	for i := range all {
		all[i].Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	return archive, image.Write(archive, all...)
}

// kubernetesImages are those of Kubernetes' suite. Those with programs of Kubernetes have
// the genuine ones; nginx, busybox and the tools that tests call are Debian's. kubernetes
// is the source of the suite, and pause the directory of the lab's pause program.
func kubernetesImages(bin, kubernetes, pause string) func(v1.Layer) ([]image.Spec, error) {
	return func(debian v1.Layer) ([]image.Spec, error) {
		names, err := references(kubernetes)
		if err != nil {
			return nil, err
		}
		registry, err := registry(image.Pause(pause))
		if err != nil {
			return nil, err
		}
		coredns := image.File("/coredns", filepath.Join(bin, "coredns"))
		certificates := filepath.Join(kubernetes, "test/images/agnhost/porter")
		agnhost := image.Spec{
			Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
			Base: []v1.Layer{debian},
			Entries: append(registry,
				image.File("/agnhost", filepath.Join(bin, "agnhost")),
				image.Entry{Path: "/agnhost-2", Link: "agnhost"},
				coredns,
				image.File("/localhost.crt", filepath.Join(certificates, "localhost.crt")),
				image.File("/localhost.key", filepath.Join(certificates, "localhost.key")),
			),
		}
		shell := image.Spec{Cmd: []string{"sh"}, Base: []v1.Layer{debian}}
		nginx := image.Spec{Entrypoint: []string{"/usr/sbin/nginx"}, Base: []v1.Layer{debian}}
		dns := shell
		dns.Entries = []image.Entry{coredns}
		regression := image.Spec{
			Entrypoint: []string{"/regression-issue-74839"},
			Entries:    []image.Entry{image.File("/regression-issue-74839", filepath.Join(bin, "regression-issue-74839"))},
		}
		var all []image.Spec
		for id, spec := range map[string]image.Spec{
			"Agnhost": agnhost, "AgnhostPrev": agnhost,
			"BusyBox": shell, "DistrolessIptables": shell, "GlibcDnsTesting": dns,
			"Nginx": nginx, "NginxNew": nginx,
			"Pause": image.Pause(pause), "RegressionIssue74839": regression,
		} {
			spec.Ref = names[id]
			all = append(all, spec)
		}
		return all, nil
	}
}

// registry are the files of agnhost's fake registry, which serves pause:testing (see
// test/images/agnhost/fakeregistryserver).
func registry(pause image.Spec) ([]image.Entry, error) {
	const dir = "/var/registry/pause"
	img, err := pause.Image()
	if err != nil {
		return nil, err
	}
	file := func(kind string, digest v1.Hash, content []byte) image.Entry {
		return image.Entry{Path: path.Join(dir, kind, digest.Algorithm, digest.Hex[:2], digest.Hex, "data"), Content: content, Mode: 0o644}
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	configName, err := img.ConfigName()
	if err != nil {
		return nil, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	files := []image.Entry{
		{Path: dir + "/manifests/testing", Content: []byte(digest.String()), Mode: 0o644},
		file("manifests", digest, manifest),
		file("blobs", configName, config),
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return nil, err
		}
		r, err := l.Compressed()
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		files = append(files, file("blobs", digest, content))
	}
	return files, nil
}

// layer is the layer of a directory tree.
func layer(root string) (v1.Layer, error) {
	var entries []image.Entry
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := image.Entry{Path: path[len(root):], Mode: info.Mode()}
		switch {
		case d.IsDir():
		case info.Mode()&fs.ModeSymlink != 0:
			e.Link, err = os.Readlink(path)
		case info.Mode().IsRegular():
			e.Source = path
		default:
			return nil
		}
		entries = append(entries, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	return image.Layer(entries)
}

var (
	registryLine = regexp.MustCompile(`(\w+Registry):\s+"([^"]+)"`)
	imageLine    = regexp.MustCompile(`configs\[(\w+)\] = Config\{list\.(\w+), "([^"]+)", "([^"]+)"\}`)
)

// references reads the names and versions of the images from the suite's source.
func references(kubernetes string) (map[string]string, error) {
	source, err := os.ReadFile(filepath.Join(kubernetes, "test/utils/image/manifest.go"))
	if err != nil {
		return nil, err
	}
	registries := map[string]string{}
	for _, m := range registryLine.FindAllSubmatch(source, -1) {
		registries[string(m[1])] = string(m[2])
	}
	names := map[string]string{}
	for _, m := range imageLine.FindAllSubmatch(source, -1) {
		names[string(m[1])] = fmt.Sprintf("%s/%s:%s", registries[string(m[2])], m[3], m[4])
	}
	return names, nil
}
