package release

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// devImage is the image as deploy/ names it.
const devImage = "image: flock:dev"

// manifests writes install.yaml, which is all of deploy/ with the release's image, and
// crds.yaml.
func (o Options) manifests() error {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(o.Source.Checkout, "deploy"))
	if err != nil {
		return err
	}
	var all, crds bytes.Buffer
	for _, r := range built.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			return err
		}
		text = bytes.ReplaceAll(text, []byte(devImage+"\n"), []byte("image: "+o.ref()+"\n"))
		for _, into := range []*bytes.Buffer{&all, &crds} {
			if into == &all || r.GetKind() == "CustomResourceDefinition" {
				into.WriteString("---\n")
				into.Write(text)
			}
		}
	}
	if err := os.WriteFile(o.file("install.yaml"), all.Bytes(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(o.file("crds.yaml"), crds.Bytes(), 0o644)
}

var semver = regexp.MustCompile(`^v?(\d+\.\d+\.\d+(?:[-+].*)?)$`)

// semverOf is the version as semantic versioning wants it. A build between releases is
// older than every release.
func semverOf(version string) string {
	if m := semver.FindStringSubmatch(version); m != nil {
		return m[1]
	}
	version = strings.Trim(regexp.MustCompile(`[^0-9A-Za-z-]+`).ReplaceAllString(version, "-"), "-")
	if strings.Trim(version, "0123456789") == "" { // a number may not begin with 0 (semver.org, 9)
		version = "g" + version
	}
	return "0.0.0-dev." + version
}

// krew is the manifest by which krew, kubectl's plugin manager, installs flockctl as
// "kubectl flock" (krew.sigs.k8s.io/docs/developer-guide/plugin-manifest).
func (o Options) krew(archives map[platform]string) ([]byte, error) {
	type selector struct {
		MatchLabels map[string]string `json:"matchLabels"`
	}
	type copied struct {
		From string `json:"from"`
		To   string `json:"to"`
	}
	type build struct {
		Selector selector `json:"selector"`
		URI      string   `json:"uri"`
		SHA256   string   `json:"sha256"`
		Bin      string   `json:"bin"`
		Files    []copied `json:"files"`
	}
	manifest := struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Metadata   map[string]string `json:"metadata"`
		Spec       struct {
			Version     string  `json:"version"`
			Homepage    string  `json:"homepage"`
			Short       string  `json:"shortDescription"`
			Description string  `json:"description"`
			Platforms   []build `json:"platforms"`
		} `json:"spec"`
	}{APIVersion: "krew.googlecontainertools.github.com/v1alpha2", Kind: "Plugin", Metadata: map[string]string{"name": "flock"}}
	manifest.Spec.Version = "v" + semverOf(o.Source.Version)
	manifest.Spec.Homepage = "https://flock.fritzlab.net/flock"
	manifest.Spec.Short = "See what the CNI flock is doing, and why"
	manifest.Spec.Description = "Shows the state of nodes, pods, addresses and BGP sessions of a cluster with the\nCNI flock, what is wrong, and the next command to type.\n"
	for _, p := range ctlPlatforms {
		archive, ok := archives[p]
		if !ok {
			continue
		}
		sum, err := fileSum(archive)
		if err != nil {
			return nil, err
		}
		manifest.Spec.Platforms = append(manifest.Spec.Platforms, build{
			Selector: selector{map[string]string{"os": p.os, "arch": p.arch}},
			URI:      fmt.Sprintf("%s/%s", strings.TrimSuffix(o.DownloadURL, "/"), filepath.Base(archive)),
			SHA256:   sum, Bin: "kubectl-flock",
			Files: []copied{{"flockctl", "kubectl-flock"}, {"LICENSE", "."}},
		})
	}
	return yaml.Marshal(manifest)
}

// chart writes the Helm chart of deploy/chart with the release's version and image.
func (o Options) chart() error {
	dir := filepath.Join(o.Source.Checkout, "deploy", "chart")
	version := semverOf(o.Source.Version)
	var files []file
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, r := range []struct{ file, old, new string }{
			{"Chart.yaml", "\nversion: 0.0.0-dev\nappVersion: dev\n", "\nversion: " + version + "\nappVersion: " + strconv.Quote(tag(o.Source.Version)) + "\n"},
			{"values.yaml", "\n  repository: flock\n", "\n  repository: " + cmp.Or(o.Image, "flock") + "\n"},
		} {
			if name != r.file {
				continue
			}
			if !bytes.Contains(content, []byte(r.old)) {
				return fmt.Errorf("%s does not have %q, where the release's own belongs", path, r.old)
			}
			content = bytes.Replace(content, []byte(r.old), []byte(r.new), 1)
		}
		files = append(files, file{name: "flock/" + filepath.ToSlash(name), mode: 0o644, content: content})
		return nil
	})
	if err != nil {
		return err
	}
	return writeTarGz(filepath.Join(o.Out, "flock-"+version+".tgz"), files...)
}
