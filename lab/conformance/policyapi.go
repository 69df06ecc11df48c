package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/components"
	"flock.fritzlab.net/flock/lab/image"
)

// RunPolicyAPI does what Run does with network-policy-api's own tests, the experimental
// ones included, after it has installed the CRD of ClusterNetworkPolicy. Settings.Procs
// does not count.
//
// The tests are unmodified. Each of their pods has servers of SCTP, which end if the
// kernel has none, so the image agnhost has the substitute lab/conformance/sctp.
func RunPolicyAPI(ctx context.Context, l *cluster.Lab, want Settings, progress io.Writer) error {
	bin, err := components.BuildPolicyAPI(ctx, l.Checkout, progress)
	if err != nil {
		return err
	}
	source, err := components.PolicyAPISource(ctx, l.Checkout)
	if err != nil {
		return err
	}
	archive, err := imageArchive(ctx, bin, "policy-suite", policyAPIImages(ctx, l.Checkout, bin, source), progress)
	if err != nil {
		return err
	}
	if err := l.ImportImages("policy-suite", archive); err != nil {
		return err
	}
	crd := filepath.Join(source, "config", "crd", "experimental", "policy.networking.k8s.io_clusternetworkpolicies.yaml")
	manifest, err := os.ReadFile(crd)
	if err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, string(manifest), "apply", "--server-side", "-f", "-"); err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, "", "wait", "--for=condition=Established", "--timeout=60s", "crd/clusternetworkpolicies.policy.networking.k8s.io"); err != nil {
		return err
	}
	return run(l, want, progress, func(reports string) error {
		argv := []string{filepath.Join(bin, components.PolicyAPITest), "-test.v", "-test.timeout=" + want.Timeout.String(), "-test.run=^TestConformance$/(" + want.Focus + ")"}
		if want.Skip != "" {
			argv = append(argv, "-test.skip=^TestConformance$/("+want.Skip+")")
		}
		return start(ctx, l, reports, want, progress, append(argv, "-all-features", "-debug")...)
	}, readTestLog)
}

var imageOfManifest = regexp.MustCompile(`(?m)^\s*image: (\S+)$`)

// policyAPIImages are those of network-policy-api's suite: agnhost with the substitute.
func policyAPIImages(ctx context.Context, checkout, bin, source string) func(v1.Layer) ([]image.Spec, error) {
	return func(debian v1.Layer) ([]image.Spec, error) {
		manifests, err := os.ReadFile(filepath.Join(source, "conformance", "base", "manifests.yaml"))
		if err != nil {
			return nil, err
		}
		var names []string
		for _, m := range imageOfManifest.FindAllSubmatch(manifests, -1) {
			names = append(names, string(m[1]))
		}
		slices.Sort(names)
		names = slices.Compact(names)
		if len(names) != 1 {
			return nil, fmt.Errorf("the pods of network-policy-api's tests run the images %q, want agnhost alone", names)
		}
		substitute := filepath.Join(bin, "agnhost-sctp")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", substitute, "./conformance/sctp")
		build.Dir = filepath.Join(checkout, "lab")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		return []image.Spec{{
			Ref:        names[0],
			Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
			Base: []v1.Layer{debian},
			Entries: []image.Entry{
				image.File("/agnhost", substitute),
				image.File("/agnhost-genuine", filepath.Join(bin, "agnhost")),
			},
		}}, nil
	}
}

var testLine = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (TestConformance(?:/([^/\s]+))?) \(([\d.]+)s\)$`)

// readTestLog reads the log of a test program whose tests are those of TestConformance.
// That one itself counts if it failed before the first of them.
func readTestLog(dir string) (results, error) {
	log, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil {
		return results{}, err
	}
	var r results
	var whole string
	for _, m := range testLine.FindAllStringSubmatch(string(log), -1) {
		line := fmt.Sprintf("%6s s  %s", m[4], m[3])
		switch {
		case m[3] == "":
			whole = m[1]
		case m[1] == "PASS":
			r.passed = append(r.passed, line)
		case m[1] == "FAIL":
			r.failed = append(r.failed, line)
		default:
			r.skipped = append(r.skipped, line)
		}
	}
	if whole == "" {
		return r, errors.New("the tests did not come to their end")
	}
	if whole == "FAIL" && len(r.failed) == 0 {
		r.failed = append(r.failed, "the set-up")
	}
	for _, list := range [][]string{r.passed, r.failed, r.skipped} {
		slices.Sort(list)
	}
	return r, nil
}
