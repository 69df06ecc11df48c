package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// What deploy/ calls things.
const (
	flockNamespace  = "flock-system"
	flockDaemonSet  = "flock"
	flockDeployment = "flock-controller"
	agentLabel      = "flock.fritzlab.net/agent"
	startupTaint    = "flock.fritzlab.net/starting"
)

// deployFlock installs flock as an operator would: manifests, a NodeConfig for
// each node, the label by which a node opts in.
func (l *Lab) deployFlock(ctx context.Context, client kubernetes.Interface, nodes []plan.Node, images []imageFile) error {
	manifests, err := l.Kubectl(ctx, "", "kustomize", filepath.Join(l.Checkout, "lab", "deploy"))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(images, func(i imageFile) bool { return strings.HasPrefix(i.name, "flock_") })
	if manifests, err = noteImage(manifests, images[i].digest); err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, manifests, "apply", "--filename=-"); err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, "", "wait", "--for=condition=Established", "--timeout=60s", "crd/nodeconfigs.flock.fritzlab.net"); err != nil {
		return err
	}
	var configs strings.Builder
	for _, n := range nodes {
		config, err := NodeConfig(n, l.Families, l.routing())
		if err != nil {
			return err
		}
		configs.WriteString(config + "---\n")
	}
	if _, err := l.Kubectl(ctx, configs.String(), "apply", "--filename=-"); err != nil {
		return err
	}
	daemonSets, deployments := client.AppsV1().DaemonSets(flockNamespace), client.AppsV1().Deployments(flockNamespace)
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
	err = process.Await(ctx, "flock on every node", nil, func(ctx context.Context) error {
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
	if err != nil {
		return err
	}
	return process.Await(ctx, "flock-controller", nil, func(ctx context.Context) error {
		d, err := deployments.Get(ctx, flockDeployment, metav1.GetOptions{})
		if err != nil {
			return err
		}
		// Two instances need two nodes.
		if s, want := d.Status, min(*d.Spec.Replicas, int32(len(nodes))); s.ObservedGeneration < d.Generation || s.UpdatedReplicas != *d.Spec.Replicas || s.ReadyReplicas < want {
			return fmt.Errorf("the Deployment %s/%s has %d pods updated, %d ready: see lab kubectl -n %s describe pods", flockNamespace, flockDeployment, s.UpdatedReplicas, s.ReadyReplicas, flockNamespace)
		}
		return nil
	})
}

// noteImage writes the digest of the image into the pods' templates: Kubernetes does not
// notice a new image with the same name, and rolls out again what has changed here. It is a
// part of what is applied, so that no pod is made to be replaced at once.
func noteImage(manifests, digest string) (string, error) {
	var out strings.Builder
	for doc := range strings.SplitSeq(manifests, "\n---\n") {
		object := map[string]any{}
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			return "", fmt.Errorf("manifest of flock: %w", err)
		}
		if kind := object["kind"]; kind == "DaemonSet" || kind == "Deployment" {
			if err := unstructured.SetNestedField(object, digest, "spec", "template", "metadata", "annotations", "lab.flock.fritzlab.net/image"); err != nil {
				return "", err
			}
		}
		text, err := yaml.Marshal(object)
		if err != nil {
			return "", err
		}
		out.WriteString("---\n" + string(text))
	}
	return out.String(), nil
}

// NodeConfig is the manifest of a node's configuration as the plan has it.
func NodeConfig(node plan.Node, families plan.Families, routing fabric.Routing) (string, error) {
	content, err := render("nodeconfig.yaml", map[string]any{
		"Node": node, "Families": families, "Routing": string(routing),
		"Tor": plan.TorLAN, "TorAS": plan.TorAS,
		"Hello": fabric.OSPFHelloSeconds, "Dead": fabric.OSPFDeadSeconds,
	})
	return string(content), err
}
