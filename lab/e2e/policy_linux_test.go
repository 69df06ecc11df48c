//go:build cluster

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
)

const policyNamespace = "policy"

// podsAPI says that the kubelets have the Pods API: without it an agent that was killed knows no
// pods until the API server answers. The kubelets of the oldest Kubernetes lack it.
var podsAPI = true

// networkPolicies: a policy closes and opens, for connections that there are too, by
// pods' addresses and through Services; and it does so whatever becomes of the agent, of
// the API server and of the pod, with kube-proxy in either mode.
func networkPolicies(t *testing.T) {
	began := time.Now()
	stage := func(what string) { t.Logf("%s after %s", what, time.Since(began).Round(100*time.Millisecond)) }
	c := newPodClient(t)
	c.namespaces(t, policyNamespace)
	create := func(name, app, node string) {
		t.Helper()
		template := echoPod(app, node, nil)
		pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		pod.Name = name
		if _, err := c.CoreV1().Pods(policyNamespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create("web", "web", "node1")
	create("served", "served", "node2")
	create("friend", "friend", "node1")
	create("friend-far", "friend-far", "node2")
	create("stranger", "stranger", "node2")
	create("stranger-near", "stranger-near", "node1")
	pods, netns := map[string]corev1.Pod{}, map[string]string{}
	for _, name := range []string{"web", "served", "friend", "friend-far", "stranger", "stranger-near"} {
		pods[name] = c.ready(t, policyNamespace, name, 1)[0]
		netns[name] = c.netns(t, pods[name])
	}
	friends, strangers := []string{"friend", "friend-far"}, []string{"stranger", "stranger-near"}
	web := podIPs(t, pods["web"])

	// judge waits until the friends are answered at all addresses, and the strangers as
	// it is said.
	patience := 30 * time.Second
	judge := func(addrs []netip.Addr, strangersToo bool) {
		t.Helper()
		for _, who := range slices.Concat(friends, strangers) {
			want := strangersToo || slices.Contains(friends, who)
			for _, a := range addrs {
				eventually(t, patience, func() error {
					if answered := answers(netns[who], a); answered != want {
						return fmt.Errorf("%s is answered at %s: %t, want %t", who, a, answered, want)
					}
					return nil
				})
			}
		}
	}
	judge(web, true)
	stage("pods are ready")

	policies := c.NetworkingV1().NetworkPolicies(policyNamespace)
	isolate := func(app string, from ...string) *networkingv1.NetworkPolicy {
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "isolate-" + app}}
		p.Spec.PodSelector.MatchLabels = map[string]string{"app": app}
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: from}},
		}}}}}
		return p
	}
	var open []*heldConn // from a friend and a stranger, in both families
	for _, who := range []string{"friend", "stranger"} {
		for _, a := range web {
			open = append(open, hold(t, who, netns[who], a))
		}
	}
	defer func() {
		for _, h := range open {
			h.Close()
		}
	}()
	asked := time.Now()
	if _, err := policies.Create(t.Context(), isolate("web", friends...), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for answers(netns["stranger"], web[0]) {
		if time.Since(asked) > 20*time.Second {
			t.Fatal("a policy is not enforced after 20 s")
		}
	}
	t.Logf("closed after %s at most, the last try's timeout included", time.Since(asked).Round(time.Millisecond))
	judge(web, false)
	for _, h := range open {
		if err, want := h.ask(time.Second), h.who == "friend"; (err == nil) != want {
			t.Errorf("a connection of the %s from before the policy goes on: %t, want %t: %v", h.who, err == nil, want, err)
		}
	}
	if _, err := policies.Update(t.Context(), isolate("web", slices.Concat(friends, strangers)...), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	judge(web, true)
	for _, h := range open {
		if h.who == "stranger" {
			// It was cut off, and its ends go on trying.
			if err := h.answer(20 * time.Second); err != nil {
				t.Errorf("a connection that is allowed again does not go on: %v", err)
			}
		}
	}
	if _, err := policies.Update(t.Context(), isolate("web", friends...), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	judge(web, false)

	stage("a policy has closed, opened and closed")

	// Labels change: of the pod that the policy selects, and of peers on either node.
	relabel := func(app string, names ...string) {
		t.Helper()
		for _, name := range names {
			patch := fmt.Appendf(nil, `{"metadata":{"labels":{"app":%q}}}`, app)
			if _, err := c.CoreV1().Pods(policyNamespace).Patch(t.Context(), name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	relabel("free", "web")
	judge(web, true)
	relabel("web", "web")
	judge(web, false)
	relabel("friend", strangers...)
	judge(web, true)
	relabel("stranger", strangers...)
	judge(web, false)
	stage("labels have changed")
	if podsAPI {
		web = startsBehindPolicies(t, netns["stranger"], web, func(web []netip.Addr) { t.Helper(); judge(web, false) }, stage)
	}

	// Through a Service, with kube-proxy in either mode.
	if _, err := policies.Create(t.Context(), isolate("served", friends...), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	both := corev1.IPFamilyPolicyRequireDualStack
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "served"}}
	service.Spec.Selector = map[string]string{"app": "served"}
	service.Spec.Ports = []corev1.ServicePort{{Port: cluster.EchoPort}}
	service.Spec.IPFamilyPolicy = &both
	service, err := c.CoreV1().Services(policyNamespace).Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var ips []netip.Addr
	for _, ip := range service.Spec.ClusterIPs {
		ips = append(ips, netip.MustParseAddr(ip))
	}
	// The watches of kube-proxy too may wait up to a minute before they try the API server again.
	patience = 90 * time.Second
	judge(ips, false)
	if podsAPI { // the oldest Kubernetes' kube-proxy is in mode iptables already
		defer withIPTables(t, "node2")()
		judge(ips, false)
	}
	judge(podIPs(t, pods["served"]), false)
	if err := policies.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	judge(ips, true)
	judge(web, true)
	eventually(t, 20*time.Second, func() error {
		if out := mustLab(t, "exec", "node1", "--", "nft", "list", "tables"); strings.Contains(out, "flock-policy") {
			return fmt.Errorf("no policy is left, and there is a table:\n%s", out)
		}
		return nil
	})
	stage("all is done")
}

// startsBehindPolicies: with the API server dead, the agent is killed, and the pod web gets a
// new sandbox, whose addresses are returned. judge waits until it is closed as before.
func startsBehindPolicies(t *testing.T, stranger string, web []netip.Addr, judge func(web []netip.Addr), stage func(string)) []netip.Addr {
	before := sandboxOf(t, "node1", "web")
	if killed := killOn(t, plan.ControlPlane, "kube-apiserver"); killed != 1 {
		t.Errorf("%d API servers killed", killed)
	}
	t.Cleanup(func() {
		if t.Failed() {
			mustLab(t, "up")
		}
	})
	if killed := killOn(t, "node1", "/usr/local/bin/flock-agent"); killed != 1 {
		t.Errorf("%d agents killed", killed)
	}
	if answers(stranger, web[0]) {
		t.Error("without the agent, the policy is not enforced")
	}
	eventually(t, 30*time.Second, func() error {
		if len(running(t, "node1", "/usr/local/bin/flock-agent")) == 0 {
			return fmt.Errorf("the kubelet has not started the agent again")
		}
		return nil
	})
	mustLab(t, "exec", "node1", "--", "ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", before.ContainerID)
	var now attachment
	eventually(t, 60*time.Second, func() error {
		now = sandboxOf(t, "node1", "web")
		if now.ContainerID == before.ContainerID || now.State != "committed" {
			return fmt.Errorf("the pod has no new sandbox yet: %+v", now)
		}
		return nil
	})
	web = nil
	for _, a := range now.Addrs {
		web = append(web, a.Addr)
	}
	judge(web)
	stage("a pod has started behind its policies without the API server")
	// Its watches would wait up to a minute before they try the API server again, and the
	// namespace could not end.
	if killed := killOn(t, plan.ControlPlane, "kube-controller-manager"); killed != 1 {
		t.Errorf("%d controller managers killed", killed)
	}
	mustLab(t, "up")
	judge(web)
	stage("the API server is back")
	return web
}

// answers says whether a new connection from a network namespace is answered, soon.
func answers(netns string, to netip.Addr) bool {
	conn, err := dialFrom(netns, to, 500*time.Millisecond)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func dialFrom(netns string, to netip.Addr, patience time.Duration) (conn net.Conn, err error) {
	err = member.InNet(netns, func() error {
		conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, cluster.EchoPort).String(), patience)
		return err
	})
	return conn, err
}

// heldConn is a connection that goes on over changes.
type heldConn struct {
	net.Conn
	who string
	in  *bufio.Reader
}

func hold(t *testing.T, who, netns string, to netip.Addr) *heldConn {
	t.Helper()
	conn, err := dialFrom(netns, to, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	h := &heldConn{conn, who, bufio.NewReader(conn)}
	if err := h.ask(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	return h
}

// ask sends a request and waits for its answer.
func (h *heldConn) ask(patience time.Duration) error {
	if _, err := fmt.Fprint(h, "GET / HTTP/1.1\r\nHost: pod\r\n\r\n"); err != nil {
		return err
	}
	return h.answer(patience)
}

func (h *heldConn) answer(patience time.Duration) error {
	h.SetReadDeadline(time.Now().Add(patience))
	response, err := http.ReadResponse(h.in, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// sandboxOf is the newest attachment of a pod on a node.
func sandboxOf(t *testing.T, node, pod string) (found attachment) {
	t.Helper()
	for _, a := range attachments(t, node) {
		if a.PodNamespace == policyNamespace && a.PodName == pod && a.State != "released" {
			found = a
		}
	}
	return found
}

// withIPTables runs a node's kube-proxy in iptables mode until it is called back.
func withIPTables(t *testing.T, node string) (back func()) {
	t.Helper()
	file := labDir(t).Member(node, "config", "kube-proxy.yaml")
	config, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(filepath.Dir(file), "kube-proxy-iptables.yaml")
	changed := strings.Replace(string(config), "mode: nftables", "mode: iptables", 1)
	if changed == string(config) {
		t.Fatalf("%s does not name the mode:\n%s", file, config)
	}
	if err := os.WriteFile(other, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	if killed := killOn(t, node, "kube-proxy"); killed != 1 {
		t.Errorf("%d kube-proxies killed on %s", killed, node)
	}
	proxy := exec.Command(program, "--name", labName, "exec", node, "--", "kube-proxy", "--config="+other)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	back = func() {
		killOn(t, node, "kube-proxy")
		proxy.Wait()
		mustLab(t, "up")
	}
	eventually(t, 30*time.Second, func() error {
		rules, err := lab("exec", node, "--", "iptables-save", "-t", "nat")
		if err != nil || !strings.Contains(rules, "KUBE-SVC-") {
			return fmt.Errorf("kube-proxy has no rules of iptables: %w: %s", err, rules)
		}
		tables := mustLab(t, "exec", node, "--", "nft", "list", "tables")
		if strings.Contains(tables, "kube-proxy") {
			return fmt.Errorf("kube-proxy's tables of nftables are left: %s", tables)
		}
		return nil
	})
	return back
}
