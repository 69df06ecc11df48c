package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"flock.fritzlab.net/flock/lab/image"
)

// Source is what a release is made from.
type Source struct {
	Checkout string // the root of the source tree
	Version  string // as the programs and the image report it
	Revision string // the commit; empty if it is not known
	Time     time.Time
}

// SourceOf reads from git what is not given: the version from the tags, the commit, and
// its time. The time can also come from $SOURCE_DATE_EPOCH, in seconds since 1970
// (reproducible-builds.org/specs/source-date-epoch).
func SourceOf(ctx context.Context, checkout, version, revision string) (Source, error) {
	s := Source{Checkout: checkout, Version: version, Revision: revision, Time: time.Unix(0, 0).UTC()}
	git := func(args ...string) string {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", checkout}, args...)...).Output()
		if err != nil {
			return "" // an archive of the sources has no git
		}
		return strings.TrimSpace(string(out))
	}
	if s.Version == "" {
		s.Version = git("describe", "--tags", "--always", "--dirty")
	}
	if s.Version == "" {
		return s, fmt.Errorf("%s is no git checkout: give --version", checkout)
	}
	if s.Revision == "" {
		s.Revision = git("rev-parse", "HEAD")
	}
	seconds := os.Getenv("SOURCE_DATE_EPOCH")
	if seconds == "" {
		seconds = git("log", "-1", "--format=%ct")
	}
	if seconds != "" {
		n, err := strconv.ParseInt(seconds, 10, 64)
		if err != nil {
			return s, fmt.Errorf("SOURCE_DATE_EPOCH=%s: want seconds since 1970", seconds)
		}
		s.Time = time.Unix(n, 0).UTC()
	}
	return s, nil
}

// platform is what a program is built for.
type platform struct{ os, arch string }

// build builds programs, which are directories of cmd/, into the directory. Nothing of
// the machine is in them: no path, no build time, no git state. Settings that change the
// result are fixed here, whatever the environment says.
func (s Source) build(ctx context.Context, p platform, into string, programs ...string) error {
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	into, err := filepath.Abs(into)
	if err != nil {
		return err
	}
	ldflags := "-s -w -X flock.fritzlab.net/flock/internal/version.Version=" + s.Version
	args := []string{
		"build", "-trimpath", "-buildvcs=false",
		"-ldflags", ldflags, "-ldflags", "./cmd/flock=" + ldflags + " " + image.PluginFlags,
		"-o", into + "/",
	}
	for _, program := range programs {
		args = append(args, "./cmd/"+program)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = s.Checkout
	cmd.Env = append(os.Environ(),
		"CGO_ENABLED=0", "GOOS="+p.os, "GOARCH="+p.arch, "GOAMD64=v1", "GOARM64=v8.0",
		"GOFLAGS=-mod=readonly", "GOEXPERIMENT=", "GOWORK=off", "GOTOOLCHAIN=local")
	if said, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("go build for %s/%s: %w", p.os, p.arch, err), errors.New(strings.TrimSpace(string(said))))
	}
	return nil
}
