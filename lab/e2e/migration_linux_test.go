//go:build cluster && migration

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/kuberouter"
	"flock.fritzlab.net/flock/lab/plan"
)

const movingNamespace = "moving"

// movingDeployments have a pod on each node.
var movingDeployments = []string{"web", "guarded"}

// TestMigration moves nodes from a real kube-router to flock and back, as docs/migration.md says,
// while pods of both and the host outside ask pods and Services, and flock's nodes enforce a policy.
// No node is rebooted: flock works beside what kube-router leaves in the kernel, and says what
// that is.
func TestMigration(t *testing.T) {
	upFlags = []string{"--cni", string(cluster.None)}
	mustLab(t, "down") // what an earlier run may have left
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("KEEP_LAB") != "" {
			t.Logf("the lab is kept: bin/lab --name %s status", labName)
			return
		}
		mustLab(t, "down")
	})
	part(t, "up, with kube-router", func(t *testing.T) {
		mustLab(t, "up")
		l, err := cluster.Load(labDir(t))
		if err != nil {
			t.Fatal(err)
		}
		l.Progress = t.Output()
		if err := kuberouter.Install(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		mustKubectl(t, "wait", "nodes", "--all", "--for=condition=Ready", "--timeout=120s")
		mustKubectl(t, "--namespace=kube-system", "rollout", "status", "deployment/coredns", servicePatience)
		for _, n := range plan.Nodes(3) {
			kubeRouterServes(t, n)
		}
	})
	part(t, "flock without a node changes nothing", func(t *testing.T) {
		mustKubectl(t, "apply", "--kustomize=../deploy")
		mustKubectl(t, "wait", "--for=condition=Established", "--timeout=60s", "crd/nodeconfigs.flock.fritzlab.net")
		if pods := agentPods(t, "--output=name"); strings.Contains(pods, "/flock-") && !strings.Contains(pods, "controller") {
			t.Errorf("pods of flock: %s", pods)
		}
	})
	part(t, "two nodes, one after the other, and one back", moveNodes)
}

// moveNodes moves node1 and node2 to flock, and node1 back.
func moveNodes(t *testing.T) {
	c := newPodClient(t)
	var loads []*load
	defer func() {
		if t.Failed() {
			keepEvidence(t, c, loads)
		}
	}()
	apply(t, movingManifest)
	for _, name := range []string{"client", "stranger"} {
		apply(t, fmt.Sprintf(movingPod, name))
	}
	for _, name := range movingDeployments {
		apply(t, fmt.Sprintf(movingDeployment, name))
	}
	for _, name := range movingDeployments {
		mustKubectl(t, "--namespace="+movingNamespace, "rollout", "status", "deployment/"+name, servicePatience)
	}
	client := c.ready(t, movingNamespace, "client", 1)[0]
	stranger := c.ready(t, movingNamespace, "stranger", 1)[0]
	flocks := map[string]bool{} // the nodes that are flock's
	judge := func(when string) {
		t.Helper()
		friendly, strange := c.netns(t, client), c.netns(t, stranger)
		for _, guarded := range c.ready(t, movingNamespace, "guarded", 3) {
			for _, a := range podIPs(t, guarded) {
				if !flocks[guarded.Spec.NodeName] {
					continue // kube-router 2.1.0 often gives up in the middle of its rules of a dual-stack cluster
				}
				eventually(t, 30*time.Second, func() error {
					if !answers(friendly, a) {
						return fmt.Errorf("%s: %s (%s) on %s does not answer the pod that may ask", when, guarded.Name, a, guarded.Spec.NodeName)
					}
					if answers(strange, a) {
						return fmt.Errorf("%s: %s (%s) on %s answers the pod that may not ask", when, guarded.Name, a, guarded.Spec.NodeName)
					}
					return nil
				})
				// And back: the pods on other nodes reach the client.
				for _, to := range podIPs(t, client) {
					eventually(t, 30*time.Second, func() error {
						if !answers(c.netns(t, guarded), to) {
							return fmt.Errorf("%s: %s on %s does not reach %s on %s", when, guarded.Name, guarded.Spec.NodeName, to, client.Spec.NodeName)
						}
						return nil
					})
				}
			}
		}
	}
	judge("kube-router alone")

	port := mustKubectl(t, "--namespace="+movingNamespace, "get", "service", "web", "--output=jsonpath={.spec.ports[0].nodePort}")
	for _, addr := range strings.Fields(mustKubectl(t, "--namespace="+movingNamespace, "get", "service", "web", "--output=jsonpath={.spec.clusterIPs[0]} {.spec.clusterIPs[1]}")) {
		loads = append(loads, askIn(t, c, client, fmt.Sprintf("http://%s/", netip.AddrPortFrom(netip.MustParseAddr(addr), cluster.EchoPort)), movingPatience))
	}
	last := plan.Nodes(3)[2]
	for _, host := range []string{fmt.Sprintf("[%s]", last.LAN().IPv6.Addr()), last.LAN().IPv4.Addr().String()} {
		loads = append(loads, askAtRate(t, nil, fmt.Sprintf("http://%s:%s/", host, port), movingRate, movingPatience))
	}
	for _, a := range podIPs(t, client) {
		loads = append(loads, askAtRate(t, nil, fmt.Sprintf("http://%s/", netip.AddrPortFrom(a, cluster.EchoPort)), movingRate, movingPatience))
	}
	// A pod asks itself too. If that takes so long, the machine has let processes wait, and what
	// others asked meanwhile says nothing of networks.
	control := askIn(t, c, client, echoURL(podIPs(t, client)[0]), time.Second)
	defer control.stop(t)
	began := time.Now()
	step := func(what string) {
		t.Helper()
		stalls := control.failures(t, what, began)
		failed := map[*load][]failure{}
		for _, l := range loads {
			failed[l] = l.failures(t, what, began)
			for _, f := range failed[l] {
				if f.end.Sub(f.start) > movingPatience+time.Second {
					stalls = append(stalls, f) // the client itself has not run when its time was over
				}
			}
		}
		for _, l := range loads {
			for _, f := range failed[l] {
				if slices.ContainsFunc(stalls, func(s failure) bool { return s.start.Before(f.end) && f.start.Before(s.end) }) {
					t.Logf("during %s, a request to %s failed %v, while the machine stalled", what, l.url, f)
					continue
				}
				t.Errorf("during %s, a request to %s failed %v", what, l.url, f)
			}
		}
		if t.Failed() {
			t.FailNow() // what kept them from an answer is still to be seen
		}
		began = time.Now()
	}
	time.Sleep(5 * time.Second) // some requests that kube-router alone serves
	step("kube-router alone")

	for _, n := range plan.Nodes(2) {
		moveToFlock(t, n)
		flocks[n.Name()] = true
		step("the move of " + n.Name())
		judge("after the move of " + n.Name())
		left := leftOn(t, n.Name())
		t.Logf("%s:\n%s", n.Name(), left)
		for _, want := range []string{"link kube-bridge ", "chain ip filter KUBE-", "chain ip6 filter KUBE-", " of protocol 17, "} {
			if !strings.Contains(left, want) {
				t.Errorf("flockctl check --local on %s does not name %q", n.Name(), want)
			}
		}
	}
	// What is left on node2 goes by the commands that flockctl names, and nothing of flock's with it.
	mustLab(t, "exec", "node2", "--", "sh", "-ec", strings.Join([]string{
		// kube-router took what the router announces of the LAN in the place of the kernel's route.
		"ip route replace 192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.12",
		"ip link del kube-bridge", "ip -4 route flush proto 17", "ip -6 route flush proto 17",
		"iptables-save | grep -v -e KUBE-ROUTER- -e KUBE-POD-FW- -e KUBE-NWPLCY- | iptables-restore",
		"ip6tables-save | grep -v -e KUBE-ROUTER- -e KUBE-POD-FW- -e KUBE-NWPLCY- | ip6tables-restore",
	}, "; "))
	if left := leftOn(t, "node2"); !strings.Contains(left, "nothing is wrong") {
		t.Errorf("after that, node2 has\n%s", left)
	}
	step("the removal of what kube-router left on node2")
	judge("after the removal of what kube-router left on node2")
	moveBack(t, plan.Nodes(1)[0])
	delete(flocks, "node1")
	// From here it is kube-router that wires the pods: its routes of IPv6 come some seconds later.
	for _, l := range loads {
		failed := l.failures(t, "the move back of node1", began)
		t.Logf("during the move back of node1, %d requests to %s failed", len(failed), l.url)
	}
	began = time.Now()
	judge("after the move back of node1")
	for _, l := range loads {
		l.stop(t)
	}
}

// moveToFlock is the steps of docs/migration.md for a node.
func moveToFlock(t *testing.T, n plan.Node) {
	t.Helper()
	began := time.Now()
	drain(t, n.Name())
	drained := time.Since(began)
	config, err := cluster.NodeConfig(n, plan.Dual, "")
	if err != nil {
		t.Fatal(err)
	}
	apply(t, config)
	startAgentOn(t, n.Name())()
	eventually(t, 2*time.Minute, func() error {
		out, err := lab("flockctl", "check", n.Name())
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	uncordon(t, n.Name())
	spread(t)
	t.Logf("%s is flock's after %s, of which the drain took %s", n.Name(), time.Since(began).Round(time.Second), drained.Round(time.Second))
}

// moveBack is its section Back.
func moveBack(t *testing.T, n plan.Node) {
	t.Helper()
	page, err := os.ReadFile("../../docs/deploy.md")
	if err != nil {
		t.Fatal(err)
	}
	uninstall := regexp.MustCompile("(?s)# uninstall.yaml\n(.*?)```").FindSubmatch(page)
	drain(t, n.Name())
	mustKubectl(t, "label", "node", n.Name(), "flock.fritzlab.net/agent-")
	agentGone(t, n.Name())
	if out, err := kubectl(strings.ReplaceAll(string(uninstall[1]), "node1", n.Name()), "create", "--filename=-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	mustKubectl(t, "--namespace=flock-system", "wait", "pod/flock-uninstall", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
	mustKubectl(t, "--namespace=kube-system", "rollout", "status", "daemonset/kube-router", servicePatience)
	kubeRouterServes(t, n)
	uncordon(t, n.Name())
	spread(t)
}

// kubeRouterServes returns when the router has the routes to a node's pods: kube-router's pod is
// Ready, and wires pods, before it has sessions. It fails if the node's bridge takes the hardware
// address of one of its ports: then all of its pods are without IPv6 for up to a minute when one
// comes or goes, which is not flock's.
func kubeRouterServes(t *testing.T, n plan.Node) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		for _, p := range n.OtherPods().All() {
			family := "-6"
			if p.Addr().Is4() {
				family = "-4"
			}
			if route := mustLab(t, "exec", plan.Tor, "--", "ip", family, "route", "show", p.String()); route == "" {
				return fmt.Errorf("the router has no route to %v", p)
			}
		}
		return nil
	})
	const set = "3" // NET_ADDR_SET of linux/netdevice.h
	if kind := mustLab(t, "exec", n.Name(), "--", "cat", "/sys/class/net/"+kuberouter.Bridge+"/addr_assign_type"); strings.TrimSpace(kind) != set {
		t.Errorf("%s: addr_assign_type of %s is %q, want %s", n.Name(), kuberouter.Bridge, kind, set)
	}
}

func drain(t *testing.T, node string) {
	t.Helper()
	mustKubectl(t, "cordon", node)
	mustKubectl(t, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", servicePatience)
}

// uncordon returns when the node takes pods again.
func uncordon(t *testing.T, node string) {
	t.Helper()
	mustKubectl(t, "uncordon", node)
	eventually(t, time.Minute, func() error {
		if taints := mustKubectl(t, "get", "node", node, "--output=jsonpath={.spec.taints}"); taints != "" {
			return fmt.Errorf("%s has taints: %s", node, taints)
		}
		return nil
	})
	mustKubectl(t, "wait", "node", node, "--for=condition=Ready", "--timeout=60s")
}

// spread brings a pod of each Deployment back to each node.
func spread(t *testing.T) {
	t.Helper()
	for _, name := range movingDeployments {
		mustKubectl(t, "--namespace="+movingNamespace, "rollout", "restart", "deployment/"+name)
	}
	for _, name := range movingDeployments {
		mustKubectl(t, "--namespace="+movingNamespace, "rollout", "status", "deployment/"+name, servicePatience)
		eventually(t, time.Minute, func() error {
			on := strings.Fields(mustKubectl(t, "--namespace="+movingNamespace, "get", "pods", "--selector=app="+name, "--output=jsonpath={.items[*].spec.nodeName}"))
			if slices.Sort(on); strings.Join(on, " ") != "node1 node2 node3" {
				return fmt.Errorf("the pods of %s are on %q, want one on each node", name, on)
			}
			return nil
		})
	}
}

// leftOn is what flock finds on a node that is in its way or may be.
func leftOn(t *testing.T, node string) string {
	t.Helper()
	// It fails when it finds something; the program is there since the last lab flockctl.
	out, _ := lab("exec", node, "--", labDir(t).Path("flockctl"), "check", "--local")
	return out
}

// keepEvidence keeps of a test that failed what decides about packets between the nodes: a file
// for each member of the lab and for each pod of the test, where go test -artifacts keeps files.
func keepEvidence(t *testing.T, c *podClient, loads []*load) {
	t.Helper()
	for _, l := range loads {
		for _, f := range l.failures(t, "what failed", time.Now()) {
			t.Logf("meanwhile a request to %s failed %v", l.url, f)
		}
	}
	keep := func(name string, argv ...string) {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			out = fmt.Appendf(out, "%v\n", err)
		}
		if err := os.WriteFile(filepath.Join(t.ArtifactDir(), name), out, 0o644); err != nil {
			t.Log(err)
		}
	}
	for _, m := range []string{plan.Tor, plan.Outside, "node1", "node2", "node3"} {
		keep(m, program, "--name", labName, "exec", m, "--", "sh", "-c", evidence)
	}
	for _, app := range []string{"client", "stranger", "web", "guarded"} {
		list, err := c.CoreV1().Pods(movingNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			t.Log(err)
			continue
		}
		for _, p := range slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return !isReady(p) }) {
			keep(p.Name, "nsenter", "--net="+c.netns(t, p), "sh", "-c", evidence)
		}
	}
	keep("pods", program, "--name", labName, "kubectl", "get", "pods", "--all-namespaces", "--output=wide")
	keep("kube-router", program, "--name", labName, "kubectl", "--namespace=kube-system", "logs", "--selector=k8s-app=kube-router", "--prefix", "--tail=-1")
	keep("flock", program, "--name", labName, "kubectl", "--namespace=flock-system", "logs", "--selector=app.kubernetes.io/name=flock", "--all-containers", "--prefix", "--tail=-1")
	t.Logf("evidence: %s", t.ArtifactDir())
}

// evidence is a script that shows it of one network namespace. Not all programs are on each machine.
const evidence = `date --iso-8601=ns
for c in 'ip -d address' 'ip -4 route show table all' 'ip -6 route show table all' 'ip -4 rule' 'ip -6 rule' 'ip -6 nexthop' \
	'ip -4 neighbor' 'ip -6 neighbor' '/usr/sbin/bridge fdb' 'nstat -asz' 'nft list ruleset' 'ip6tables-save -c' 'iptables-save -c' 'ipset save' \
	'conntrack -L -f ipv6' 'birdc show protocols all' 'birdc show route all' \
	'birdc -s /run/flock/bird/bird.ctl show protocols all' 'birdc -s /run/flock/bird/bird.ctl show route all'; do
	printf '\n# %s\n' "$c"; $c 2>&1
done
printf '\n# sysctl\n'; sysctl -a 2>/dev/null | grep -e forwarding -e accept_ra -e rp_filter -e hash_policy -e proxy_ndp -e bridge-nf
`

// movingRate is how many requests each client makes in a second, and movingPatience how long it
// waits for an answer.
const (
	movingRate     = 15.0
	movingPatience = 5 * time.Second
)

// askIn is askAtRate in a pod's network.
func askIn(t *testing.T, c *podClient, pod corev1.Pod, url string, patience time.Duration) *load {
	t.Helper()
	l := &load{}
	l.url = url
	l.start(t, pod.Spec.NodeName, "nsenter", "--net="+c.netns(t, pod), echoProgram, "get", "-n", "10000000", "-rate", fmt.Sprint(movingRate), "-timeout", patience.String(), url)
	return l
}

// movingManifest is a Service of the pods web, which all may ask, and a policy for the pods
// guarded, which one pod of movingPod may ask and another may not. There is no ipBlock in it:
// with one, kube-router 2.1.0 stops in the middle of its rules.
const movingManifest = `
apiVersion: v1
kind: Namespace
metadata: {name: moving}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: moving}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guarded, namespace: moving}
spec:
  podSelector: {matchLabels: {app: guarded}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
`

// movingPod is one on the node that does not move.
const movingPod = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: moving, labels: {app: %[1]s}}
spec:
  nodeName: node3
  containers: [{name: echo, image: "echo:dev", imagePullPolicy: Never, resources: {requests: {cpu: 100m}}, readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}}]
`

// movingDeployment is a pod on each node.
const movingDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: moving}
spec:
  replicas: 3
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 3}}
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, nodeTaintsPolicy: Honor, labelSelector: {matchLabels: {app: %[1]s}}, matchLabelKeys: [pod-template-hash]}
      terminationGracePeriodSeconds: 30
      containers:
      - name: echo
        image: echo:dev
        imagePullPolicy: Never
        resources: {requests: {cpu: 100m}} # without, it waits for seconds on a busy machine
        lifecycle: {preStop: {sleep: {seconds: 8}}}
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
`
