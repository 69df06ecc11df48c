package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// What deploy/ calls things.
const (
	flockNamespace = "flock-system"
	flockDaemonSet = "flock"
	agentLabel     = "flock.fritzlab.net/agent"
	startupTaint   = "flock.fritzlab.net/starting"
)

// deployFlock installs flock as an operator would: manifests, a NodeConfig for
// each node, the label by which a node opts in.
func (l *Lab) deployFlock(ctx context.Context, client kubernetes.Interface, nodes []plan.Node, images []imageFile) error {
	if _, err := l.Kubectl(ctx, "", "apply", "--kustomize", filepath.Join(l.Checkout, "lab", "deploy")); err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, "", "wait", "--for=condition=Established", "--timeout=60s", "crd/nodeconfigs.flock.fritzlab.net"); err != nil {
		return err
	}
	var configs strings.Builder
	for _, n := range nodes {
		config, err := NodeConfig(n, l.routing())
		if err != nil {
			return err
		}
		configs.WriteString(config + "---\n")
	}
	if _, err := l.Kubectl(ctx, configs.String(), "apply", "--filename=-"); err != nil {
		return err
	}
	// An image of the same name but other content is a change that only the
	// lab knows of: the DaemonSet is rolled out anew for it.
	i := slices.IndexFunc(images, func(i imageFile) bool { return strings.HasPrefix(i.name, "flock_") })
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"lab.flock.fritzlab.net/image":%q}}}}}`, images[i].digest)
	daemonSets := client.AppsV1().DaemonSets(flockNamespace)
	if _, err := daemonSets.Patch(ctx, flockDaemonSet, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("note the image's digest on DaemonSet %s: %w", flockDaemonSet, err)
	}
	label, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{agentLabel: ""}}})
	if err != nil {
		return err
	}
	err = process.Await(ctx, "the nodes to register", nil, func(ctx context.Context) error {
		for _, n := range nodes {
			if _, err := client.CoreV1().Nodes().Patch(ctx, n.Name(), types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
				return fmt.Errorf("label node %s: %w", n.Name(), err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return process.Await(ctx, "flock on every node", nil, func(ctx context.Context) error {
		ds, err := daemonSets.Get(ctx, flockDaemonSet, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := ds.Status
		if s.ObservedGeneration < ds.Generation || int(s.UpdatedNumberScheduled) != len(nodes) || int(s.NumberReady) != len(nodes) {
			return fmt.Errorf("DaemonSet %s/%s: %d of %d pods updated, %d ready: see lab kubectl -n %s describe pods",
				flockNamespace, flockDaemonSet, s.UpdatedNumberScheduled, len(nodes), s.NumberReady, flockNamespace)
		}
		return nil
	})
}

// NodeConfig is the manifest of a node's configuration as the plan has it.
func NodeConfig(node plan.Node, routing fabric.Routing) (string, error) {
	content, err := render("nodeconfig.yaml", map[string]any{
		"Node": node, "Routing": string(routing),
		"Tor": plan.TorLAN, "TorAS": plan.TorAS,
		"Hello": fabric.OSPFHelloSeconds, "Dead": fabric.OSPFDeadSeconds,
	})
	return string(content), err
}
