// Package components gets the programs that a lab runs: Debian's packages, and
// Kubernetes, containerd and the reference CNI plugins, which are built from their
// Go modules into a cache that all checkouts and labs share. It writes nowhere
// else and never replaces a cache that is complete.
package components

import (
	"cmp"
	"context"
	"encoding/json"
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

// Versions of what is built. Those of Kubernetes are pinned in the go.mod of
// lab/kubernetes and of lab/kubernetes/oldest too.
const (
	Kubernetes = "v1.37.2"
	// OldestKubernetes is of the oldest minor version that flock supports.
	OldestKubernetes = "v1.32.2"

	Containerd = "v2.4.2"
	Plugins    = "v1.9.1"
	CoreDNS    = "v1.14.6" // that of Kubernetes' add-on
	// PolicyAPI is the network-policy-api whose tests are run, as in lab/policyapi/go.mod.
	PolicyAPI = "v0.3.0"
	// MetalLB is what flock's Services are held against.
	MetalLB = "v0.15.2"
	// KubeRouter is another network plugin, from which nodes are moved to flock.
	KubeRouter = "v2.1.0"
)

// kube-router's program, and the reference plugin that wires its pods, as the cache has them.
const (
	KubeRouterProgram = "kube-router-" + KubeRouter
	BridgePlugin      = "bridge"
)

// MetalLB's programs as the cache has them.
const (
	MetalLBController = "metallb-controller-" + MetalLB
	MetalLBSpeaker    = "metallb-speaker-" + MetalLB
)

const metalLBModule = "go.universe.tf/metallb"

// PolicyAPITest is the program with the tests of network-policy-api.
const PolicyAPITest = "network-policy-api-" + PolicyAPI + ".test"

// The modules of lab/ that pin what is built.
const kubernetesModule, oldestModule, policyAPIModule = "kubernetes", "kubernetes/oldest", "policyapi"

// Release says which Kubernetes a lab runs.
type Release string

// The releases of Kubernetes that a lab can run.
const (
	Newest Release = "newest"
	Oldest Release = "oldest"
)

// ParseRelease parses what --kubernetes says.
func ParseRelease(s string) (Release, error) {
	switch r := Release(s); r {
	case Newest, Oldest:
		return r, nil
	}
	return "", fmt.Errorf("--kubernetes %s: want %s, which is %s, or %s, which is %s", s, Newest, Kubernetes, Oldest, OldestKubernetes)
}

// Version is that of Kubernetes.
func (r Release) Version() string {
	if r == Oldest {
		return OldestKubernetes
	}
	return Kubernetes
}

func (r Release) module() string {
	if r == Oldest {
		return oldestModule
	}
	return kubernetesModule
}

// build is one go build, go install or go test -c, and the programs that come out
// of it.
type build struct {
	programs []string
	as       []string // what the cache calls them; nil: the same
	packages []string // of the module, or with a version of their own
	module   string   // below lab; empty: that of Kubernetes
	test     bool     // the package's test is the program
	tags     string
	ldflags  string
	minutes  string // cold, on two cores
}

// kubernetesFlags set the version of Kubernetes' programs.
func kubernetesFlags(release string) string {
	minor := strings.Split(strings.TrimPrefix(release, "v"), ".")
	version := "k8s.io/component-base/version"
	return fmt.Sprintf("-s -w -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s -X %s.gitTreeState=clean",
		version, release, version, minor[0], version, minor[1], version)
}

const plugins = "github.com/containernetworking/plugins/plugins"

// forLab are the programs that every lab runs.
func forLab(r Release) []build {
	var all []build
	for _, p := range []struct{ program, minutes string }{
		{"kubectl", "1"}, {"kube-apiserver", "2 to 3"}, {"kube-controller-manager", "1"}, {"kube-scheduler", "1"}, {"kubelet", "1"}, {"kube-proxy", "1"},
	} {
		all = append(all, build{programs: []string{p.program}, packages: []string{"k8s.io/kubernetes/cmd/" + p.program}, module: r.module(), ldflags: kubernetesFlags(r.Version()), minutes: p.minutes})
	}
	const containerd = "github.com/containerd/containerd/v2"
	return append(all,
		build{
			programs: []string{"containerd", "containerd-shim-runc-v2", "ctr"},
			packages: []string{containerd + "/cmd/containerd@" + Containerd, containerd + "/cmd/containerd-shim-runc-v2@" + Containerd, containerd + "/cmd/ctr@" + Containerd},
			tags:     "no_btrfs,no_zfs,no_devmapper,no_aufs",
			ldflags:  "-s -w -X " + containerd + "/version.Version=" + Containerd,
			minutes:  "1 to 2",
		},
		build{
			programs: []string{"ptp", "host-local", "loopback", "portmap"},
			packages: []string{
				plugins + "/main/ptp@" + Plugins, plugins + "/ipam/host-local@" + Plugins, plugins + "/main/loopback@" + Plugins,
				plugins + "/meta/portmap@" + Plugins,
			},
			ldflags: "-s -w",
			minutes: "1",
		},
		build{
			programs: []string{"coredns"},
			packages: []string{"github.com/coredns/coredns@" + CoreDNS},
			ldflags:  "-s -w",
			minutes:  "2",
		},
	)
}

// forSuite are those that Kubernetes' own tests are run with, and in their images.
func forSuite() []build {
	const kubernetes, images = "k8s.io/kubernetes/test/", "k8s.io/kubernetes/test/images/"
	return []build{
		{programs: []string{"e2e.test"}, packages: []string{kubernetes + "e2e"}, test: true, ldflags: kubernetesFlags(Kubernetes), minutes: "8 to 15"},
		{
			programs: []string{"ginkgo", "agnhost", "regression-issue-74839"},
			packages: []string{"github.com/onsi/ginkgo/v2/ginkgo", images + "agnhost", images + "regression-issue-74839"},
			ldflags:  "-s -w", minutes: "1",
		},
	}
}

// forPolicyAPI are those that network-policy-api's tests are run with, and in their image.
func forPolicyAPI() []build {
	return append(forSuite()[1:], build{
		programs: []string{PolicyAPITest}, packages: []string{"sigs.k8s.io/network-policy-api/conformance"}, module: policyAPIModule,
		test: true, ldflags: "-s -w", minutes: "1",
	})
}

// forMetalLB are MetalLB's own.
func forMetalLB() []build {
	return []build{{
		programs: []string{"controller", "speaker"}, as: []string{MetalLBController, MetalLBSpeaker},
		packages: []string{metalLBModule + "/controller@" + MetalLB, metalLBModule + "/speaker@" + MetalLB},
		ldflags:  "-s -w", minutes: "3",
	}}
}

// forKubeRouter are kube-router's own, and the plugin that it has the runtime call.
func forKubeRouter() []build {
	return []build{
		{
			programs: []string{"kube-router"}, as: []string{KubeRouterProgram},
			packages: []string{"github.com/cloudnativelabs/kube-router/v2/cmd/kube-router@" + KubeRouter},
			ldflags:  "-s -w", minutes: "3",
		},
		{programs: []string{BridgePlugin}, packages: []string{plugins + "/main/bridge@" + Plugins}, ldflags: "-s -w", minutes: "1"},
	}
}

// Cache is where the programs are for a lab with that Kubernetes.
func Cache(r Release) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: set HOME or XDG_CACHE_HOME, the programs that the lab builds go there", err)
	}
	key := strings.Join([]string{"kubernetes-" + r.Version(), "containerd-" + Containerd, "plugins-" + Plugins, "coredns-" + CoreDNS, runtime.GOARCH}, "_")
	return filepath.Join(base, "flock-lab", key, "bin"), nil
}

// Build builds what the cache lacks of the programs for a lab and returns the
// cache.
func Build(ctx context.Context, r Release, checkout string, progress io.Writer) (string, error) {
	return buildAll(ctx, r, forLab(r), checkout, progress)
}

// BuildSuite does the same for those of Kubernetes' own tests.
func BuildSuite(ctx context.Context, checkout string, progress io.Writer) (string, error) {
	return buildAll(ctx, Newest, forSuite(), checkout, progress)
}

// BuildPolicyAPI does the same for those of network-policy-api's tests.
func BuildPolicyAPI(ctx context.Context, checkout string, progress io.Writer) (string, error) {
	return buildAll(ctx, Newest, forPolicyAPI(), checkout, progress)
}

// BuildMetalLB does the same for MetalLB's controller and speaker.
func BuildMetalLB(ctx context.Context, checkout string, progress io.Writer) (string, error) {
	return buildAll(ctx, Newest, forMetalLB(), checkout, progress)
}

// BuildKubeRouter does the same for kube-router and its plugin.
func BuildKubeRouter(ctx context.Context, checkout string, progress io.Writer) (string, error) {
	return buildAll(ctx, Newest, forKubeRouter(), checkout, progress)
}

func buildAll(ctx context.Context, r Release, builds []build, checkout string, progress io.Writer) (string, error) {
	cache, err := Cache(r)
	if err != nil {
		return "", err
	}
	if len(missing(builds, cache)) == 0 {
		return cache, nil
	}
	unlock, err := lockCache(cache, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	todo := missing(builds, cache) // another lab may have built them meanwhile
	start := time.Now()
	for i, b := range todo {
		began := time.Now()
		fmt.Fprintf(progress, "build %d of %d: %s (cold about %s min) … ", i+1, len(todo), strings.Join(b.programs, ", "), b.minutes)
		stop := dots(progress)
		err := b.run(ctx, filepath.Join(checkout, "lab", cmp.Or(b.module, kubernetesModule)), cache)
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

// KubernetesSource is the directory with the source of the newest Kubernetes that is
// built.
func KubernetesSource(ctx context.Context, checkout string) (string, error) {
	return source(ctx, filepath.Join(checkout, "lab", kubernetesModule), "k8s.io/kubernetes")
}

// PolicyAPISource is the directory with the source of network-policy-api.
func PolicyAPISource(ctx context.Context, checkout string) (string, error) {
	dir := filepath.Join(checkout, "lab", policyAPIModule)
	if out, err := goCommand(ctx, dir, "mod", "download", "sigs.k8s.io/network-policy-api"); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return source(ctx, dir, "sigs.k8s.io/network-policy-api")
}

// MetalLBSource is the directory with the source of the MetalLB that is built.
func MetalLBSource(ctx context.Context, checkout string) (string, error) {
	out, err := goCommand(ctx, filepath.Join(checkout, "lab", kubernetesModule), "mod", "download", "-json", metalLBModule+"@"+MetalLB)
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("go mod download -json %s: %w", metalLBModule, err)
	}
	return module.Dir, nil
}

func source(ctx context.Context, dir, module string) (string, error) {
	out, err := goCommand(ctx, dir, "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return "", fmt.Errorf("find the source of %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
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

func missing(builds []build, cache string) []build {
	var todo []build
	for _, b := range builds {
		for _, p := range b.cached() {
			if _, err := os.Stat(filepath.Join(cache, p)); err != nil {
				todo = append(todo, b)
				break
			}
		}
	}
	return todo
}

// cached are the names of the programs in the cache.
func (b build) cached() []string {
	if b.as != nil {
		return b.as
	}
	return b.programs
}

// run builds next to the cache and moves in what is whole.
func (b build) run(ctx context.Context, module, cache string) error {
	temp, err := os.MkdirTemp(filepath.Dir(cache), "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	args := []string{"build", "-o", temp + "/"}
	switch {
	case strings.Contains(b.packages[0], "@"):
		args = []string{"install"}
	case b.test:
		args = []string{"test", "-c", "-o", filepath.Join(temp, b.programs[0])}
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
	for i, p := range b.cached() {
		if err := os.Rename(filepath.Join(temp, b.programs[i]), filepath.Join(cache, p)); err != nil {
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
