package agent_test

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestEventLinkLost: a link that another program takes away is reported at the pod, once,
// and not when the runtime ends the pod.
func TestEventLinkLost(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	api.labeled("lost", nil)
	api.labeled("ended", nil)
	n.start()
	ended := n.sandbox("ended")
	ended.mustAddPod("ended")
	ended.mustDel()
	lost := n.sandbox("lost")
	lost.mustAddPod("lost")
	link := n.links()
	lost.ns.IP("link", "del", "eth0")
	api.reported(n, "Pod", "lost", "LinkLost", "was deleted or moved to another network namespace before the end of the pod")
	lost.mustDel() // what is gone is no error
	api.mu.Lock()
	defer api.mu.Unlock()
	count := 0
	for _, e := range api.events {
		if e.Reason != "LinkLost" {
			continue
		}
		count++
		if e.Regarding.UID != "uid-lost" || !strings.Contains(e.Note, link[len(link)-1]) || !strings.Contains(e.Note, "delete it") {
			t.Errorf("%+v; want one of the pod's UID that names %v and what to do", e, link)
		}
	}
	if count != 1 {
		t.Errorf("%d Events LinkLost, want one", count)
	}
}

// TestEventPolicyNotEnforced: a policy with a part that cannot be enforced is reported at the
// policy, with the field, where it selects a pod of the node. What else it says is in force.
func TestEventPolicyNotEnforced(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	api.labeled("web", map[string]string{"app": "web"})
	api.labeled("friend", map[string]string{"app": "friend"})
	api.labeled("stranger", map[string]string{"app": "stranger"})
	n.start()
	web, friend, stranger := n.sandbox("web"), n.sandbox("friend"), n.sandbox("stranger")
	addrs := web.mustAddPod("web")
	friend.mustAddPod("friend")
	stranger.mustAddPod("stranger")

	elsewhere := isolate("of-another-node", "")
	elsewhere.UID = "policy-0"
	wrong(&elsewhere)
	api.policies.put("elsewhere", elsewhere)
	policy := isolate("web", "friend")
	policy.UID = "policy-1"
	wrong(&policy)
	api.policies.put("web", policy)
	api.reported(n, "NetworkPolicy", "isolate-web", "PolicyNotEnforced", `spec.ingress[1].ports[0].endPort: 90 cannot follow the named port "http"`)
	n.becomes(true, friend.ns, addrs...)
	n.becomes(false, stranger.ns, addrs...)
	api.mu.Lock()
	defer api.mu.Unlock()
	for _, e := range api.events {
		if e.Reason == "PolicyNotEnforced" && (e.Regarding.Name != "isolate-web" || e.Regarding.UID != "policy-1" || e.Regarding.APIVersion != "networking.k8s.io/v1") {
			t.Errorf("%+v", e)
		}
	}
}

// wrong adds a rule with a port that the API server of an older Kubernetes takes and that
// means nothing.
func wrong(p *networkingv1.NetworkPolicy) {
	http, end := intstr.FromString("http"), int32(90)
	p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: &http, EndPort: &end}}})
}
