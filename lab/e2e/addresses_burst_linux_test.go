//go:build cluster

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/plan"
)

// killedInABurst kills the agent while it assigns addresses to twenty pods. Afterwards
// the node's records, the pods' addresses in the API and the addresses that the outside
// host reaches are the same, and no address is held without a pod.
func killedInABurst(t *testing.T, c *podClient) {
	const burst = 20
	node := plan.Nodes(3)[2].Name()
	var replicas int32 = burst
	named := metav1.ObjectMeta{Name: "burst"}
	_, err := c.AppsV1().Deployments("shop").Create(t.Context(), &appsv1.Deployment{ObjectMeta: named, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas,
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "burst"}},
		Template: echoPod("burst", node, map[string]string{"flock.fritzlab.net/ipv4": "true"}),
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		if n := len(ofBurst(attachments(t, node))); n < 3 {
			return fmt.Errorf("%d attachments", n)
		}
		return nil
	})
	if killed := killOn(t, node, "/usr/local/bin/flock-agent"); killed != 1 {
		t.Fatalf("%d agents killed, want 1", killed)
	}
	atKill := len(ofBurst(attachments(t, node)))
	began := time.Now()
	pods := c.ready(t, "shop", "burst", burst)
	t.Logf("killed at %d of %d attachments; all Ready %s later", atKill, burst, time.Since(began).Round(100*time.Millisecond))

	// A sandbox that was given up in the crash may be on its way out still.
	eventually(t, 30*time.Second, func() error {
		list, err := c.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
		if err != nil {
			return err
		}
		has := map[string][]netip.Addr{}
		for _, p := range list.Items {
			if !p.Spec.HostNetwork {
				has[p.Namespace+"/"+p.Name] = podIPs(t, p)
			}
		}
		holder := map[netip.Addr]string{}
		for _, r := range attachments(t, node) {
			pod := r.PodNamespace + "/" + r.PodName
			var held []netip.Addr
			for _, a := range r.Addrs {
				if other, taken := holder[a.Addr]; taken {
					t.Fatalf("%s is held by %s and by %s", a.Addr, other, pod)
				}
				holder[a.Addr] = pod
				held = append(held, a.Addr)
			}
			if r.State != "committed" || !slices.Equal(held, has[pod]) {
				return fmt.Errorf("%s attachment of pod %s holds %v; the pod has %v", r.State, pod, held, has[pod])
			}
			delete(has, pod)
		}
		for pod, addrs := range has {
			if len(addrs) > 0 {
				return fmt.Errorf("pod %s has %v, of which the node's records know nothing", pod, addrs)
			}
		}
		return nil
	})
	for _, p := range pods {
		c.reached(t, p, podIPs(t, p)...)
	}

	if err := c.AppsV1().Deployments("shop").Delete(t.Context(), "burst", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		if left := ofBurst(attachments(t, node)); len(left) > 0 {
			return fmt.Errorf("%d attachments of pods that were deleted are left", len(left))
		}
		return nil
	})
}

// attachment is what a record of the node's store says of one.
type attachment struct {
	State                 string
	ContainerID           string
	PodNamespace, PodName string
	Addrs                 []struct{ Addr netip.Addr }
}

// attachments are the node's records, less those that are gone and only rest.
func attachments(t *testing.T, node string) (records []attachment) {
	t.Helper()
	out := mustLab(t, "exec", node, "--", "sh", "-c", "cat /run/flock/attachments/*.json 2>/dev/null; true")
	for in := json.NewDecoder(strings.NewReader(out)); ; {
		var r attachment
		err := in.Decode(&r)
		if errors.Is(err, io.EOF) {
			return records
		}
		if err != nil {
			t.Fatalf("attachments of %s: %v\n%s", node, err, out)
		}
		if r.State != "resting" {
			records = append(records, r)
		}
	}
}

func ofBurst(records []attachment) []attachment {
	return slices.DeleteFunc(records, func(r attachment) bool { return !strings.HasPrefix(r.PodName, "burst-") })
}
