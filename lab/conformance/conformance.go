// Package conformance runs Kubernetes' own end-to-end tests, unmodified, in a lab.
//
// The test program and agnhost are built from the Kubernetes that the lab runs. As
// there is no registry, the images are put together from Debian packages and given
// to each node under the names that the tests ask for. The package changes nothing in the
// lab but that, and for tests of load balancers what they need.
//
// The tests of network-policy-api are run in the same way, with a substitute for SCTP.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/components"
	"flock.fritzlab.net/flock/lab/plan"
)

// Settings say what is run.
type Settings struct {
	// Focus and Skip are regular expressions of the tests' names: those that
	// match the first and not the second run. An empty Skip skips none.
	Focus, Skip string
	// LoadBalancers: flock-controller gives addresses to Services without a class, and the
	// tests run on the outside host.
	LoadBalancers bool
	// Procs is how many tests run at the same time.
	Procs int
	// Timeout of the whole run.
	Timeout time.Duration
	// Out is the directory for the log and the results, which is replaced.
	Out string
}

// Run runs the tests in the lab and prints how many passed and failed, and which
// failed. The error says that some did, or why they could not run.
func Run(ctx context.Context, l *cluster.Lab, want Settings, progress io.Writer) error {
	if err := sameVersion(l.Kubernetes); err != nil {
		return err
	}
	bin, err := components.BuildSuite(ctx, l.Checkout, progress)
	if err != nil {
		return err
	}
	kubernetes, err := components.KubernetesSource(ctx, l.Checkout)
	if err != nil {
		return err
	}
	archive, err := imageArchive(ctx, bin, "suite", kubernetesImages(bin, kubernetes, l.Dir.Path("images", "bin")), progress)
	if err != nil {
		return err
	}
	if err := l.ImportImages("suite", archive); err != nil {
		return err
	}
	if want.LoadBalancers {
		if err := provideLoadBalancers(ctx, l); err != nil {
			return err
		}
	}
	return run(l, want, progress, func(reports string) error { return runSuite(ctx, l, bin, reports, want, progress) }, readResults)
}

// sameVersion refuses a lab with another Kubernetes than that of the tests: they ask for what
// came after it, and what then fails says nothing about flock.
func sameVersion(of components.Release) error {
	if of.Version() == components.Kubernetes {
		return nil
	}
	return fmt.Errorf("the lab runs Kubernetes %s, and the tests are those of %s, which an older one does not pass: run lab down, then lab up --kubernetes %s", of.Version(), components.Kubernetes, components.Newest)
}

// run runs a suite, which writes into the directory that it is given, and says what came
// of it.
func run(l *cluster.Lab, want Settings, progress io.Writer, suite func(reports string) error, read func(dir string) (results, error)) error {
	// The suite runs in a member, and sees the lab's directory there.
	reports := l.Dir.Path("conformance")
	if err := os.RemoveAll(reports); err != nil {
		return err
	}
	if err := os.MkdirAll(reports, 0o755); err != nil {
		return err
	}
	ran := suite(reports)
	if err := errors.Join(os.RemoveAll(want.Out), os.CopyFS(want.Out, os.DirFS(reports))); err != nil {
		return errors.Join(ran, err)
	}
	r, err := read(want.Out)
	if err != nil {
		return errors.Join(ran, err)
	}
	r.print(progress)
	switch {
	case len(r.failed) > 0:
		return fmt.Errorf("%d of %d tests failed: see %s", len(r.failed), len(r.failed)+len(r.passed), filepath.Join(want.Out, logName))
	case len(r.passed) == 0 && ran == nil:
		return fmt.Errorf("no test matches --focus %q and not --skip %q", want.Focus, want.Skip)
	}
	return ran
}

const logName = "e2e.log"

func runSuite(ctx context.Context, l *cluster.Lab, bin, reports string, want Settings, progress io.Writer) error {
	return start(ctx, l, reports, want, progress, filepath.Join(bin, "ginkgo"),
		"--procs="+strconv.Itoa(want.Procs), "--timeout="+want.Timeout.String(), "--no-color",
		"--focus="+want.Focus, "--skip="+want.Skip, filepath.Join(bin, "e2e.test"), "--",
		"--provider=skeleton", "--kubeconfig="+l.Dir.Path("pki", "admin.kubeconfig"), "--num-nodes="+strconv.Itoa(l.Nodes),
		"--dns-domain=cluster.local", "--disable-log-dump", "--report-dir="+reports, "--e2e-output-dir="+reports)
}

// start runs the program of a suite to its end, and has its log written.
func start(ctx context.Context, l *cluster.Lab, reports string, want Settings, progress io.Writer, argv ...string) error {
	log, err := os.Create(filepath.Join(reports, logName))
	if err != nil {
		return err
	}
	defer log.Close()
	// The clients of load balancers have to be no neighbors of the nodes.
	from := plan.ControlPlane
	if want.LoadBalancers {
		from = plan.Outside
	}
	cmd, err := l.Command(from, argv...)
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "run the tests that match %s; the log is %s\n", want.Focus, log.Name())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(os.Interrupt) })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return errors.Join(context.Cause(ctx), fmt.Errorf("the suite ended with %w: see %s", err, filepath.Join(want.Out, logName)))
	}
	return nil
}
