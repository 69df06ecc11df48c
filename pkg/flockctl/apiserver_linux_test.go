//go:build apiserver

package flockctl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/kube/kubetest"
	"flock.fritzlab.net/flock/pkg/pod"
)

// TestAPIServer asks a real API server, with the rights that docs/flockctl.md says are
// needed and no others.
func TestAPIServer(t *testing.T) {
	s := kubetest.Start(t, "../../deploy")
	before, role, _ := strings.Cut(string(readFile(t, "../../docs/flockctl.md")), "```yaml\napiVersion: rbac")
	role, _, ok := strings.Cut("apiVersion: rbac"+role, "```")
	if before == "" || !ok {
		t.Fatal("docs/flockctl.md has no ClusterRole")
	}
	s.Kubectl(role, "apply", "--filename=-")
	s.Kubectl("", "create", "clusterrolebinding", "reader", "--clusterrole=flock-reader", "--user=reader")
	reader := s.Admin()
	reader.Impersonate = rest.ImpersonationConfig{UserName: "reader"}
	c, err := newCluster(reader, "default")
	if err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, func() error { _, err := execute(c, "node"); return err }) // the right comes into force

	if out, err := execute(c, "node"); err != nil || !strings.Contains(out, "No node is flock's") {
		t.Errorf("an empty cluster: %v\n%s", err, out)
	}
	if out, err := execute(c, "anycast"); err != nil || !strings.Contains(out, "No pod has an anycast address") {
		t.Errorf("an empty cluster: %v\n%s", err, out)
	}

	s.Kubectl(string(readFile(t, "testdata/file.yaml")), "apply", "--filename=-")
	s.Kubectl("", "patch", "nodeconfig", "node1", "--subresource=status", "--type=merge", `--patch={"status":{
		"observedGeneration":1,"podSource":"kubelet",
		"conditions":[{"type":"Accepted","status":"True","reason":"InForce","message":"","lastTransitionTime":"2026-01-02T11:00:00Z"}],
		"sessions":[{"protocol":"bgp","peer":"tor","router":"2001:db8:0:1::1","up":true,"state":"Established","sent":1,"accepted":0,"rejected":0}],
		"anycast":[{"address":"2001:db8:53::53","pod":"default/web","announced":true,"reason":"Ready","since":"2026-01-02T11:59:00Z"}]}}`)
	web := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Annotations: map[string]string{
			"flock.fritzlab.net/anycast": "2001:db8:53::53", "flock.fritzlab.net/addresses": "2001:db8:200::7",
		}},
		Spec: corev1.PodSpec{NodeName: "node1", Containers: []corev1.Container{{Name: "c", Image: "echo:dev"}}},
	}
	if err := s.Core(s.Admin()).Post().Namespace("default").Resource("pods").Body(web).Do(t.Context()).Into(web); err != nil {
		t.Fatal(err)
	}
	s.Kubectl(fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"AddressClaim","metadata":{"name":"2001-0db8-0200-0000-0000-0000-0000-0007"},
		"spec":{"address":"2001:db8:200::7","podNamespace":"default","podName":"web","podUID":%q,"nodeName":"node1"}}`, web.UID), "create", "--filename=-")
	s.Kubectl(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"AddressClaim","metadata":{"name":"2001-0db8-0200-0000-0000-0000-0000-0008"},
		"spec":{"address":"2001:db8:200::8","podNamespace":"default","podName":"other","podUID":"x","nodeName":"node2"}}`, "create", "--filename=-")
	s.Kubectl("", "patch", "pod", "web", "--namespace=default", "--subresource=status", "--type=merge", `--patch={"status":{"podIP":"2001:db8:100:1::7","podIPs":[{"ip":"2001:db8:100:1::7"}]}}`)
	s.Kubectl(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: web}
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: default, name: web}
spec: {ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: default, name: web, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{port: 8080}]
endpoints: [{addresses: ["2001:db8:100:1::7"], nodeName: node1, conditions: {ready: true}, targetRef: {kind: Pod, namespace: default, name: web}}]
`, "apply", "--filename=-")
	api, err := kube.NewClient(s.Agent("node1"))
	if err != nil {
		t.Fatal(err)
	}
	events := kube.NewRecorder(api, "node1", slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go events.Run(ctx)
	events.Event(pod.Ref{Namespace: "default", Name: "web", UID: web.UID}, kube.Normal, "AnycastAnnounced", "Announce", "2001:db8:53::53 announced on node node1: Ready")

	for line, want := range map[string][]string{
		"node":                                   {"node1   none    True       -       -         1/1        64601   2001:db8:100:1::/64   -", "no agent runs here"},
		"node node1":                             {"Established", "Comes from    written by hand", "2001:db8:53::53   default/web   yes"},
		"node node1 -o yaml":                     {"apiVersion: flock.fritzlab.net/v1alpha1", "kind: NodeConfig"},
		"anycast":                                {"2001:db8:53::53   default/web   node1   yes"},
		"anycast 2001:db8:53::53":                {"AddressPool dns (2001:db8:53::/64) grants it as anycast, with communities 64512:53"},
		"pod web":                                {"2001:db8:200::7 (static)", "2001:db8:200::7   node1", "2001:db8:53::53   yes", "AnycastAnnounced   1       2001:db8:53::53 announced on node node1: Ready"},
		"render node1 -f testdata/template.yaml": {"written by hand", "protocol bgp peer_tor"},
		"render node1":                           {"protocol bgp peer_tor", "bgp_community.add((64512,53));"},
		"pod default/web -o json":                {`"since": "`},
		"anycast 2001:db8:53::53 -oyaml":         {"announced: true"},
		"trace 2001:db8::9 web 80":               {"DENIED: 2001:db8::9 outside", "denied because no rule of the policies that select the pod allows it: NetworkPolicy default/web", "podCIDR route 2001:db8:100:1::/64"},
		"trace 2001:db8::9 svc/web 80":           {"TCP 8080, for the Service's 80/TCP"},
		"trace web 2001:db8:100:1::7":            {"a pod to itself"},
		"trace web 2001:db8::9 443":              {"allowed because no policy decides about it", "next hop tor 2001:db8:0:1::1"},
		"policy web":                             {"Ingress, isolated by NetworkPolicy default/web", "pods app=friend in namespace default", "TCP 80"},
	} {
		nettest.Eventually(t, func() error {
			out, err := execute(c, line)
			if err != nil && !errors.Is(err, errDenied) {
				return fmt.Errorf("flockctl %s: %w", line, err)
			}
			for _, w := range want {
				if !strings.Contains(out, w) {
					return fmt.Errorf("flockctl %s: no %q in\n%s", line, w, out)
				}
			}
			if strings.Contains(out, "2001:db8:200::8") {
				return fmt.Errorf("flockctl %s: another pod's claim in\n%s", line, out)
			}
			return nil
		})
	}

	reader.Impersonate.UserName = "nobody"
	c, err = newCluster(reader, "default")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"node", "node node1", "anycast", "pod web", "render node1", "trace web 2001:db8::9", "policy web"} {
		if _, err := execute(c, line); err == nil || !strings.Contains(err.Error(), "ClusterRole") {
			t.Errorf("flockctl %s without rights: %v", line, err)
		}
	}
	s.Kubectl("", "delete", "customresourcedefinition", "nodeconfigs.flock.fritzlab.net")
	if c, err = newCluster(s.Admin(), "default"); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, func() error {
		if _, err := execute(c, "node node1"); err == nil || !strings.Contains(err.Error(), "flock is not installed") {
			return fmt.Errorf("without the CRD: %v", err)
		}
		return nil
	})
}
