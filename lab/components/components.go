// Package components gets the programs that a lab runs: Debian's packages, and
// Kubernetes, containerd and the reference CNI plugins, which are built from their
// Go modules into a cache that all checkouts and labs share. It writes nowhere
// else and never replaces a cache that is complete.
package components

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Versions of what is built. That of Kubernetes is pinned in lab/go.mod too.
const (
	Kubernetes = "v1.37.2"
	Containerd = "v2.4.2"
	Plugins    = "v1.9.1"
)

// build is one go build or go install, and the programs that come out of it.
type build struct {
	programs []string
	packages []string // of the lab's module, or with a version of their own
	tags     string
	ldflags  string
	minutes  string // cold, on two cores
}

func builds() []build {
	minor := strings.Split(strings.TrimPrefix(Kubernetes, "v"), ".")
	version := "k8s.io/component-base/version"
	ldflags := fmt.Sprintf("-s -w -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s -X %s.gitTreeState=clean",
		version, Kubernetes, version, minor[0], version, minor[1], version)
	var all []build
	for _, p := range []struct{ program, minutes string }{
		{"kubectl", "1"}, {"kube-apiserver", "2 to 3"}, {"kube-controller-manager", "1"}, {"kube-scheduler", "1"}, {"kubelet", "1"}, {"kube-proxy", "1"},
	} {
		all = append(all, build{programs: []string{p.program}, packages: []string{"k8s.io/kubernetes/cmd/" + p.program}, ldflags: ldflags, minutes: p.minutes})
	}
	const containerd, plugins = "github.com/containerd/containerd/v2", "github.com/containernetworking/plugins/plugins"
	return append(all,
		build{
			programs: []string{"containerd", "containerd-shim-runc-v2", "ctr"},
			packages: []string{containerd + "/cmd/containerd@" + Containerd, containerd + "/cmd/containerd-shim-runc-v2@" + Containerd, containerd + "/cmd/ctr@" + Containerd},
			tags:     "no_btrfs,no_zfs,no_devmapper,no_aufs",
			ldflags:  "-s -w -X " + containerd + "/version.Version=" + Containerd,
			minutes:  "1 to 2",
		},
		build{
			programs: []string{"ptp", "host-local", "loopback"},
			packages: []string{plugins + "/main/ptp@" + Plugins, plugins + "/ipam/host-local@" + Plugins, plugins + "/main/loopback@" + Plugins},
			ldflags:  "-s -w",
			minutes:  "1",
		},
	)
}

// Cache is where the programs are.
func Cache() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: set HOME or XDG_CACHE_HOME, the programs that the lab builds go there", err)
	}
	key := strings.Join([]string{"kubernetes-" + Kubernetes, "containerd-" + Containerd, "plugins-" + Plugins, runtime.GOARCH}, "_")
	return filepath.Join(base, "flock-lab", key, "bin"), nil
}

// Build builds what the cache lacks and returns the cache. module is the lab's
// own directory in a checkout.
func Build(ctx context.Context, module string, progress io.Writer) (string, error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	if len(missing(cache)) == 0 {
		return cache, nil
	}
	unlock, err := lockCache(cache, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	todo := missing(cache) // another lab may have built them meanwhile
	start := time.Now()
	for i, b := range todo {
		began := time.Now()
		fmt.Fprintf(progress, "build %d of %d: %s (cold about %s min) … ", i+1, len(todo), strings.Join(b.programs, ", "), b.minutes)
		stop := dots(progress)
		err := b.run(ctx, module, cache)
		stop()
		if err != nil {
			fmt.Fprintln(progress, "failed")
			return "", err
		}
		fmt.Fprintf(progress, "%.0f s\n", time.Since(began).Seconds())
	}
	if len(todo) > 0 {
		fmt.Fprintf(progress, "built in %.0f s, kept in %s\n", time.Since(start).Seconds(), cache)
	}
	return cache, nil
}

// dots prints one every ten seconds until it is stopped: the compiler does not say
// how far it is.
func dots(progress io.Writer) (stop func()) {
	tick := time.NewTicker(10 * time.Second)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-tick.C:
				fmt.Fprint(progress, ". ")
			case <-end:
				return
			}
		}
	}()
	return func() {
		tick.Stop()
		close(end)
		<-ended
	}
}

func missing(cache string) []build {
	var todo []build
	for _, b := range builds() {
		for _, p := range b.programs {
			if _, err := os.Stat(filepath.Join(cache, p)); err != nil {
				todo = append(todo, b)
				break
			}
		}
	}
	return todo
}

// run builds next to the cache and moves in what is whole.
func (b build) run(ctx context.Context, module, cache string) error {
	temp, err := os.MkdirTemp(filepath.Dir(cache), "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	args := []string{"build", "-o", temp + "/"}
	if strings.Contains(b.packages[0], "@") {
		args = []string{"install"}
	}
	args = append(args, "-trimpath", "-ldflags", b.ldflags)
	if b.tags != "" {
		args = append(args, "-tags", b.tags)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, b.packages...)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+temp, "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(cmd.Args[1:], " "), err, out)
	}
	for _, p := range b.programs {
		if err := os.Rename(filepath.Join(temp, p), filepath.Join(cache, p)); err != nil {
			return err
		}
	}
	return nil
}

// lockCache keeps two labs from building the same at the same time.
func lockCache(cache string, progress io.Writer) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Dir(cache))
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		fmt.Fprintln(progress, "waiting for another lab that builds the programs")
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", filepath.Dir(cache), err)
	}
	return func() { f.Close() }, nil
}
