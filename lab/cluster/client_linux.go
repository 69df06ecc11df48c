package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// RESTConfig reaches the API server as administrator: its connections begin in
// the control plane's namespace, as the machine itself has no way there.
func (l *Lab) RESTConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", l.kubeconfig("admin"))
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w: is it up? see lab status", l.Dir.Lab(), err)
	}
	config.Dial = member.Of(l.Dir, plan.ControlPlane).Dial
	config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	config.QPS, config.Burst = 200, 400
	config.Timeout = 30 * time.Second
	return config, nil
}

// Client is a client of the API server.
func (l *Lab) Client() (kubernetes.Interface, error) {
	config, err := l.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// apiReady is nil when the API server says that it is ready.
func (l *Lab) apiReady(ctx context.Context) error {
	client, err := l.Client()
	if err != nil {
		return err
	}
	_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").Timeout(2 * time.Second).DoRaw(ctx)
	return err
}

// Kubectl runs kubectl as administrator and returns what it printed. The error
// holds what it complained of.
func (l *Lab) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := l.KubectlCommand(args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// nodesReady is nil when all nodes are Ready, else says which are not and why. A
// word from before the start of the node's kubelet does not count.
func nodesReady(ctx context.Context, client kubernetes.Interface, nodes []plan.Node, kubelets []*process.Process) error {
	var missing []error
	for i, n := range nodes {
		if err := nodeReady(ctx, client, n.Name(), kubelets[i].At); err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", n.Name(), err))
		}
	}
	return errors.Join(missing...)
}

func nodeReady(ctx context.Context, client kubernetes.Interface, name string, since time.Time) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, t := range node.Spec.Taints {
		if slices.Contains([]string{corev1.TaintNodeNotReady, corev1.TaintNodeNetworkUnavailable, startupTaint}, t.Key) {
			return fmt.Errorf("still has taint %s", t.Key)
		}
	}
	for _, c := range node.Status.Conditions {
		switch {
		case c.Type != corev1.NodeReady:
		case c.Status != corev1.ConditionTrue:
			return fmt.Errorf("not Ready: %s: %s", c.Reason, c.Message)
		// The API has whole seconds.
		case !c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)):
			return nil
		default:
			return leaseRenewed(ctx, client, name, since)
		}
	}
	return errors.New("has not reported yet")
}

// leaseRenewed is nil if the kubelet renewed its lease since then: its word while
// its status stays the same.
func leaseRenewed(ctx context.Context, client kubernetes.Interface, name string, since time.Time) error {
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(since) {
		return errors.New("its kubelet has not reported since its start")
	}
	return nil
}
