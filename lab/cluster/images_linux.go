package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"flock.fritzlab.net/flock/lab/image"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
)

// pauseImage as containerd names it in full.
const pauseImage = "docker.io/library/" + image.PauseRef

// imageFile is an image that was written, ready to be imported.
type imageFile struct{ name, path, digest string }

// buildImages builds the programs of the images from the checkout and writes the
// images below the lab's directory. What did not change has the same digest.
func (l *Lab) buildImages(ctx context.Context) ([]imageFile, error) {
	bin := l.Dir.Path("images", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	module := filepath.Join(l.Checkout, "lab")
	if err := goBuild(ctx, module, bin, "-s -w", "./echo", "./image/pause"); err != nil {
		return nil, err
	}
	specs := []image.Spec{image.Pause(bin), image.Echo(bin), image.CoreDNS(l.Programs)}
	if l.CNI != PTP {
		var programs []string
		for _, p := range image.Programs {
			programs = append(programs, "./cmd/"+p)
		}
		version := "-s -w -X flock.fritzlab.net/flock/internal/version.Version=lab"
		if err := goBuild(ctx, l.Checkout, bin, version, programs...); err != nil {
			return nil, err
		}
		flock, err := image.Flock(l.Checkout, bin)
		if err != nil {
			return nil, err
		}
		specs = append(specs, flock)
	}
	var files []imageFile
	for _, s := range specs {
		name := strings.ReplaceAll(s.Ref, ":", "_")
		path := l.Dir.Path("images", name+".tar")
		if err := image.Write(path, s); err != nil {
			return nil, err
		}
		digest, err := fileDigest(path)
		if err != nil {
			return nil, err
		}
		files = append(files, imageFile{name, path, digest})
	}
	return files, nil
}

// ImportImages gives the images of an archive to each node that does not have it.
func (l *Lab) ImportImages(name, archive string) error {
	digest, err := fileDigest(archive)
	if err != nil {
		return err
	}
	var imports []func() error
	for _, n := range plan.Nodes(l.Nodes) {
		imports = append(imports, func() error {
			return l.importImage(member.Of(l.Dir, n.Name()), imageFile{name, archive, digest})
		})
	}
	return together(imports...)
}

func goBuild(ctx context.Context, dir, out, ldflags string, packages ...string) error {
	args := []string{"build", "-trimpath", "-ldflags", ldflags, "-ldflags", "./cmd/flock=" + ldflags + " " + image.PluginFlags, "-o", out + "/"}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s in %s: %w\n%s", strings.Join(packages, " "), dir, err, said)
	}
	return nil
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
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
