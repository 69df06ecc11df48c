package cluster

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"flock.fritzlab.net/flock/lab/image"
	"flock.fritzlab.net/flock/lab/plan"
)

// deployDNS deploys the cluster's name server. It needs nodes that take pods to
// become available: see dnsReady.
func (l *Lab) deployDNS(ctx context.Context) error {
	var addrs []string
	for _, p := range l.Families.Of(plan.Services) {
		addrs = append(addrs, plan.DNS(p).String())
	}
	manifest, err := render("coredns.yaml", map[string]any{"Image": image.CoreDNSRef, "Addresses": addrs})
	if err != nil {
		return err
	}
	_, err = l.Kubectl(ctx, string(manifest), "apply", "--filename=-")
	return err
}

// dnsReady is nil when the name server is available.
func dnsReady(ctx context.Context, client kubernetes.Interface) error {
	d, err := client.AppsV1().Deployments("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if s := d.Status; s.ObservedGeneration < d.Generation || s.UpdatedReplicas < 1 || s.AvailableReplicas < 1 {
		return fmt.Errorf("deployment kube-system/coredns: %d of 1 pods available: see lab kubectl -n kube-system describe pods", s.AvailableReplicas)
	}
	return nil
}
