//go:build cluster

package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/plan"
)

// comesBack: flock on a node finds itself as after a boot, while the router has no
// route to the node. No pod goes there before it has one, so a Service that gets a
// pod there loses no request; a session that is lost later takes no pod away.
func comesBack(t *testing.T) {
	began := time.Now()
	c := newPodClient(t)
	const ns = "reboot"
	c.namespaces(t, ns)
	create := func(app, name, node string) {
		t.Helper()
		template := echoPod(app, node, nil)
		pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		pod.Name = name
		pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "POD_NAME", Value: name}}
		if node == "" {
			pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: lastNode}
		}
		if _, err := c.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	get := func(name string) *corev1.Pod {
		t.Helper()
		pod, err := c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	create("web", "web-there", "node1")
	create("resident", "resident", lastNode)
	v6 := corev1.IPv6Protocol
	service, err := c.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 8080}},
			IPFamilies: []corev1.IPFamily{v6},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.ready(t, ns, "web", 1)
	resident := c.ready(t, ns, "resident", 1)[0]
	url := "http://" + net.JoinHostPort(service.Spec.ClusterIP, "8080") + "/"
	eventually(t, 60*time.Second, func() error { // until kube-proxy has the Service
		out, err := lab("exec", "node2", "--", echoProgram, "get", "-timeout", "1s", url)
		if err != nil || !strings.Contains(out, `"ok":true`) {
			return fmt.Errorf("%s: %w: %s", url, err, out)
		}
		return nil
	})
	stream := askFrom(t, "node2", url)

	// The boot.
	stopAgent(t)
	t.Cleanup(func() {
		if t.Failed() {
			startAgent(t)
			atTor(t, "enable")
			mustLab(t, "up")
		}
	})
	atTor(t, "disable")
	mustLab(t, "exec", lastNode, "--", "rm", "/run/flock/taking-pods")
	mustKubectl(t, "taint", "node", lastNode, "flock.fritzlab.net/starting=:NoSchedule")
	startAgent(t)
	eventually(t, 60*time.Second, func() error {
		taints := nodeShows(t, "True", "FlockIsStarting", "BGP peer tor-ipv6 is down")
		if !strings.Contains(taints, "flock.fritzlab.net/starting") || !strings.Contains(taints, corev1.TaintNodeNetworkUnavailable) {
			return fmt.Errorf("taints of %s: %q", lastNode, taints)
		}
		return nil
	})
	create("web", "web-bound", lastNode)
	create("scheduled", "scheduled", "")
	agentSays(t, "a pod waits", ns+"/web-bound")
	eventually(t, 60*time.Second, func() error {
		for _, condition := range get("scheduled").Status.Conditions {
			if condition.Type == corev1.PodScheduled && condition.Reason == corev1.PodReasonUnschedulable && strings.Contains(condition.Message, "taint") {
				return nil
			}
		}
		return fmt.Errorf("pod scheduled: %+v", get("scheduled").Status)
	})
	if ips := get("web-bound").Status.PodIPs; len(ips) != 0 {
		t.Errorf("a pod has %v, and the router no way to it", ips)
	}
	for _, a := range podIPs(t, resident) {
		mustLab(t, "exec", lastNode, "--", "ping", "-c1", "-W5", a.String())
	}

	atTor(t, "enable")
	c.ready(t, ns, "web", 2)
	c.ready(t, ns, "scheduled", 1)
	if taints := nodeShows(t, "False", "FlockIsUp", ""); taints != "" {
		t.Errorf("taints of %s: %q", lastNode, taints)
	}
	eventually(t, 60*time.Second, func() error {
		if !strings.Contains(stream.said(), "web-bound") {
			return fmt.Errorf("the Service has not led to the pod on %s", lastNode)
		}
		return nil
	})
	stream.allAnswered(t)

	atTor(t, "disable")
	eventually(t, 60*time.Second, func() error {
		up := mustKubectl(t, "get", "nodeconfig", lastNode, `--output=jsonpath={.status.conditions[?(@.type=="SessionsUp")]}{.status.conditions[?(@.type=="Ready")].status}`)
		if !strings.Contains(up, `"status":"False"`) || !strings.Contains(up, "tor-ipv6") || !strings.Contains(up, "tor-ipv4") || !strings.HasSuffix(up, "True") {
			return fmt.Errorf("SessionsUp and Ready: %s", up)
		}
		return nil
	})
	if taints := nodeShows(t, "False", "FlockIsUp", ""); taints != "" {
		t.Errorf("taints of %s for a session that was lost: %q", lastNode, taints)
	}
	for _, name := range []string{"resident", "web-bound", "scheduled"} {
		if p := get(name); !isReady(*p) || p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("pod %s: %+v", name, p.Status)
		}
	}
	atTor(t, "enable")
	sessionsUp(t)
	t.Logf("took %s", time.Since(began).Round(100*time.Millisecond))
}

// atTor has the router enable or disable its sessions with the last node. Over
// one that is disabled it learns nothing, and forgets what it knew.
func atTor(t *testing.T, verb string) {
	t.Helper()
	for _, family := range []string{"_ipv6", "_ipv4"} {
		mustLab(t, "exec", plan.Tor, "--", "birdc", verb, lastNode+family)
	}
}

// nodeShows waits for the condition NetworkUnavailable of the last node and returns
// the node's taints.
func nodeShows(t *testing.T, status, reason, message string) (taints string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		out := mustKubectl(t, "get", "node", lastNode, `--output=jsonpath={range .status.conditions[?(@.type=="NetworkUnavailable")]}{.status}|{.reason}|{.message}{end}|{.spec.taints[*].key}`)
		f := strings.Split(out, "|")
		if len(f) != 4 || f[0] != status || f[1] != reason || !strings.Contains(f[2], message) {
			return fmt.Errorf("node %s says %q, want %s for %s: %s", lastNode, out, status, reason, message)
		}
		taints = f[3]
		return nil
	})
	return taints
}

// agentSays waits for a line with these words in the log of the last node's agent.
func agentSays(t *testing.T, words ...string) {
	t.Helper()
	pod := strings.TrimSpace(agentPods(t, "--field-selector=spec.nodeName="+lastNode, "--output=name"))
	eventually(t, 60*time.Second, func() error {
		log, err := kubectl("", "--namespace=flock-system", "logs", pod, "--container=agent")
		if err != nil { // its container may not have started yet
			return fmt.Errorf("%w: %s", err, log)
		}
		for line := range strings.Lines(log) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("no line with %q:\n%s", words, log)
	})
}
