//go:build cluster

package e2e

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/plan"
)

// Addresses of the anycast tests' pool: those of one node's pods, and that of a
// Deployment's on all nodes.
const (
	oneNode6, oneNode4 = "2001:db8:53::1", "203.0.113.1"
	allNodes6          = "2001:db8:53::2"
)

// longOutages are what else clients must not notice: make test-anycast.
var longOutages []func(*testing.T, *load)

// anycastStory: addresses are announced while their pods are Ready; and whatever
// happens to flock, kubelets, API server and nodes meanwhile, clients notice
// nothing.
func anycastStory(t *testing.T) {
	anycastPool(t)
	part(t, "announced while Ready, by any of two pods", announcedWhileReady)
	part(t, "clients notice nothing", clientsNoticeNothing)
}

// anycastPool makes the namespace and the pool of the anycast tests.
func anycastPool(t *testing.T) {
	t.Helper()
	apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: anycast}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: anycast}
spec:
  cidrs: ["2001:db8:53::/64", "203.0.113.0/24"]
  uses: [anycast]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: anycast}}
`)
	t.Cleanup(func() {
		mustKubectl(t, "delete", "namespace", "anycast", "--wait=false")
		mustKubectl(t, "delete", "addresspool", "anycast")
	})
	eventually(t, 30*time.Second, func() error {
		out, err := kubectl("", "--namespace=anycast", "get", "serviceaccount", "default")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func apply(t *testing.T, manifest string) {
	t.Helper()
	if out, err := kubectl(manifest, "apply", "--filename=-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// announcedWhileReady opens and shuts a readiness gate, which needs no waiting
// for probes.
func announcedWhileReady(t *testing.T) {
	const gate = "test.fritzlab.net/open"
	for _, name := range []string{"a", "b"} {
		apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: anycast
  annotations: {flock.fritzlab.net/anycast: "%s,%s"}
spec:
  nodeName: node1
  readinessGates: [{conditionType: %s}]
  containers: [{name: echo, image: "echo:dev", imagePullPolicy: Never}]
`, name, oneNode6, oneNode4, gate))
	}
	open := func(pod, status string) {
		t.Helper()
		mustKubectl(t, "--namespace=anycast", "patch", "pod", pod, "--subresource=status", "--type=strategic",
			fmt.Sprintf(`--patch={"status":{"conditions":[{"type":%q,"status":%q}]}}`, gate, status))
	}
	// The group of the IPv6 address: weights of the pods' links, 255 for one that
	// is announced, and 1 for one that drains.
	members := func(want ...string) {
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			route := mustLab(t, "exec", "node1", "--", "ip", "-6", "-d", "route", "show", oneNode6, "metric", "512")
			id := regexp.MustCompile(`nhid (\d+)`).FindStringSubmatch(route)
			if id == nil {
				return fmt.Errorf("no route on a nexthop: %q", route)
			}
			group := mustLab(t, "exec", "node1", "--", "ip", "nexthop", "show", "id", id[1])
			var got []string
			_, list, _ := strings.Cut(group, " group ")
			list, _, _ = strings.Cut(list, " ")
			for _, m := range strings.Split(list, "/") {
				_, weight, more := strings.Cut(m, ",")
				if !more {
					weight = "1" // which ip leaves out
				}
				got = append(got, weight)
			}
			slices.Sort(got)
			if !slices.Equal(got, want) || !strings.Contains(group, "type resilient") {
				return fmt.Errorf("group %q of route %q: want a resilient one with weights %q", group, route, want)
			}
			return nil
		})
	}

	mustKubectl(t, "--namespace=anycast", "wait", "--for=condition=ContainersReady", "pod/a", "pod/b", "--timeout=60s")
	if on := announcing(t, oneNode6) + announcing(t, oneNode4); on != "" {
		t.Errorf("announced, and no pod is Ready:\n%s", on)
	}
	router := watchOn(t, plan.Tor)
	open("a", "True")
	routedToNode1(t, true)
	members("255")
	open("b", "True")
	members("255", "255")
	var held []*streams
	for _, addr := range []string{"[" + oneNode6 + "]", oneNode4} {
		s := openStreams(t, 16, "http://"+addr+":8080/tick")
		if s.of("a") == 0 || s.of("b") == 0 {
			t.Logf("all streams to %s are one pod's", addr)
		}
		held = append(held, s)
	}
	open("a", "False")
	members("1", "255")
	// Of both families, and also to the pod that is withdrawn.
	for _, s := range held {
		s.unbroken(t, "")
		s.stop(t)
	}
	if said := router.said(); strings.Contains(said, "Deleted "+oneNode6) || strings.Contains(said, "Deleted "+oneNode4) {
		t.Errorf("withdrawn while a pod was Ready:\n%s", said)
	}
	open("b", "False")
	routedToNode1(t, false)
	open("b", "True")
	routedToNode1(t, true)
	mustKubectl(t, "--namespace=anycast", "delete", "pod", "b", "--wait=false")
	routedToNode1(t, false)
	mustKubectl(t, "--namespace=anycast", "delete", "pod", "a", "b", "--ignore-not-found")
	if left := mustLab(t, "exec", "node1", "--", "ip", "nexthop", "show", "proto", "85"); left != "" {
		t.Errorf("pods are gone and nexthops left:\n%s", left)
	}
}

// announcing is what the router's kernel has for an address.
func announcing(t *testing.T, addr string) string {
	t.Helper()
	family := "-4"
	if strings.Contains(addr, ":") {
		family = "-6"
	}
	return mustLab(t, "exec", plan.Tor, "--", "ip", family, "route", "show", addr)
}

// routedToNode1 waits until the router has both addresses, by way of node1, or none.
func routedToNode1(t *testing.T, want bool) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		for _, addr := range []string{oneNode6, oneNode4} {
			route := announcing(t, addr)
			if via := strings.Contains(route, "2001:db8:0:1::11") || strings.Contains(route, "192.0.2.11"); via != want || !want && route != "" {
				return fmt.Errorf("route to %s at the router: %q; announced: want %t", addr, route, want)
			}
		}
		return nil
	})
}

// clientsNoticeNothing of a rolling update, of agents that are killed, of a kubelet
// and an API server that are, of the end of somebody else's pod, and of a drain.
func clientsNoticeNothing(t *testing.T) {
	const rollout, patience = "deployment/anycast", "--timeout=120s"
	apply(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: anycast, namespace: anycast}
spec:
  replicas: 6
  selector: {matchLabels: {app: anycast}}
  template:
    metadata:
      labels: {app: anycast}
      annotations: {flock.fritzlab.net/anycast: "%s"}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: anycast}}}
      terminationGracePeriodSeconds: 30
      containers:
      - name: echo
        image: echo:dev
        imagePullPolicy: Never
        lifecycle: {preStop: {sleep: {seconds: 6}}}
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
`, allNodes6))
	mustKubectl(t, "--namespace=anycast", "rollout", "status", rollout, patience)
	viaNodes(t, 1, 2, 3)
	router := watchOn(t, plan.Tor)
	client := ask200(t, router, "http://["+allNodes6+"]:8080/")

	began := time.Now()
	mustKubectl(t, "--namespace=anycast", "rollout", "restart", rollout)
	mustKubectl(t, "--namespace=anycast", "rollout", "status", rollout, patience)
	// The last ones to end still serve.
	eventually(t, time.Minute, func() error {
		pods := strings.Fields(mustKubectl(t, "--namespace=anycast", "get", "pods", "--output=name"))
		if len(pods) != 6 {
			return fmt.Errorf("%d pods, want 6", len(pods))
		}
		return nil
	})
	client.failed(t, "a rolling update", began)

	// What the nodes have the BIRDs announce never changes.
	var nodes []*routeWatch
	for _, n := range plan.Nodes(3) {
		nodes = append(nodes, watchOn(t, n.Name()))
	}
	viaNodes(t, 1, 2, 3)
	long := openStreams(t, 24, "http://["+allNodes6+"]:8080/tick")
	began = time.Now()
	restarts := func() (ready, sum int) {
		all := agentPods(t, "--output=jsonpath={range .items[*].status.containerStatuses[?(@.name=='agent')]}{.ready} {.restartCount} {end}")
		for f := range strings.FieldsSeq(all) {
			if n, err := strconv.Atoi(f); err == nil {
				sum += n
			} else if f == "true" {
				ready++
			}
		}
		return ready, sum
	}
	_, before := restarts()
	for _, n := range plan.Nodes(3) {
		if killed := killOn(t, n.Name(), "/usr/local/bin/flock-agent"); killed != 1 {
			t.Errorf("%d agents killed on %s", killed, n.Name())
		}
	}
	eventually(t, time.Minute, func() error {
		if ready, sum := restarts(); ready != 3 || sum != before+3 {
			return fmt.Errorf("%d agents are ready, %d restarts: want 3, %d", ready, sum, before+3)
		}
		return nil
	})
	client.failedStrictly(t, "the death of all agents", began)

	began = time.Now()
	if killed := killOn(t, "node1", "kubelet"); killed != 1 {
		t.Errorf("%d kubelets killed", killed)
	}
	mustLab(t, "up")
	// When a new pod is Ready, the kubelet has looked at the others too.
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: sign, namespace: anycast}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers: [{name: echo, image: "echo:dev", imagePullPolicy: Never}]
`)
	mustKubectl(t, "--namespace=anycast", "wait", "--for=condition=Ready", "pod/sign", "--timeout=60s")
	client.failedStrictly(t, "a kubelet's restart", began)

	withoutAPIServer(t, client, 10*time.Second)
	for i, w := range nodes {
		for line := range strings.Lines(w.stop(t)) {
			if strings.Contains(line, "Deleted "+allNodes6) && strings.Contains(line, "metric 512") {
				t.Errorf("node%d withdrew: %s", i+1, line)
			}
		}
	}

	long.unbroken(t, "")

	// A replica goes: no connection of the others does. New ones that share a bucket with a
	// long-lived one of the replica are moved with it (docs/anycast.md).
	mustKubectl(t, "--namespace=anycast", "rollout", "status", rollout, patience)
	began = time.Now()
	gone, on := oneOfTwo(t)
	node := watchOn(t, on, "nexthop")
	mustKubectl(t, "--namespace=anycast", "delete", "pod", gone)
	client.failedUnlessMoved(t, "the end of a replica", began, func() []time.Time { return departures(t, node.said()) })
	node.stop(t)
	t.Logf("%d of %d long-lived connections were with the replica that is gone", long.of(gone), long.n)
	long.unbroken(t, gone)
	long.stop(t)

	for _, outage := range longOutages {
		outage(t, client)
	}

	// A departure: flock is taken off a node, whose pods stay Ready. At most the request
	// that was on its way to the node is lost.
	mustKubectl(t, "--namespace=anycast", "rollout", "status", rollout, patience)
	began = time.Now()
	mustKubectl(t, "label", "node", "node3", "flock.fritzlab.net/agent-")
	t.Cleanup(startAgentOn(t, "node3"))
	viaNodes(t, 1, 2)
	t.Logf("the router has no way by node3 %s after flock was taken off it", time.Since(began).Round(10*time.Millisecond))
	if lost := client.count(t, "the departure of a node", began); len(lost) > 1 {
		t.Errorf("%d requests failed during the departure of a node: %q", len(lost), lost)
	}
	// The node would be back before the DaemonSet's controller has ended the pod, and
	// without an agent later.
	agentGone(t, "node3")
	startAgentOn(t, "node3")()
	viaNodes(t, 1, 2, 3)
	client.failed(t, "the return of a node", began)

	// Drained, a node is no way to the address any more. No withdrawal reaches the router
	// before BIRD has recovered from its start, and until then flock's pod is not Ready.
	mustKubectl(t, "--namespace=flock-system", "rollout", "status", "daemonset/flock", patience)
	mustKubectl(t, "--namespace=anycast", "rollout", "status", rollout, patience)
	began = time.Now()
	mustKubectl(t, "drain", "node3", "--ignore-daemonsets", "--pod-selector=app=anycast", patience)
	t.Cleanup(func() { mustKubectl(t, "uncordon", "node3") })
	viaNodes(t, 1, 2)
	client.failed(t, "a drain", began)
	router.stop(t)
}

// withoutAPIServer kills the API server, and brings it back after so long.
func withoutAPIServer(t *testing.T, client *load, outage time.Duration) {
	t.Helper()
	began := time.Now()
	if killed := killOn(t, plan.ControlPlane, "kube-apiserver"); killed != 1 {
		t.Errorf("%d API servers killed", killed)
	}
	time.Sleep(outage)
	mustLab(t, "up")
	client.failedStrictly(t, "an outage of the API server", began)
}

// oneOfTwo is a replica on a node that has another.
func oneOfTwo(t *testing.T) (pod, node string) {
	t.Helper()
	on := map[string]bool{}
	all := mustKubectl(t, "--namespace=anycast", "get", "pods", "--selector=app=anycast", "--output=jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName}{\"\\n\"}{end}")
	for line := range strings.Lines(all) {
		name, node, _ := strings.Cut(strings.TrimSpace(line), " ")
		if on[node] {
			return name, node
		}
		on[node] = true
	}
	t.Fatalf("no node has two replicas:\n%s", all)
	return "", ""
}

// viaNodes waits until the router's way to the Deployment leads to these nodes.
func viaNodes(t *testing.T, numbers ...int) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		route := announcing(t, allNodes6)
		for n := 1; n <= 3; n++ {
			if is, want := strings.Contains(route, fmt.Sprintf("2001:db8:0:1::1%d ", n)), slices.Contains(numbers, n); is != want {
				return fmt.Errorf("by node%d: %t, want %t: %s", n, is, want, route)
			}
		}
		return nil
	})
}

// load is the outside host asking an address by a new connection each time.
type load struct {
	asking
	read   int         // of what it has said
	router *routeWatch // shows each change of the router's routes
}

// ask200 asks some 200 times a second.
func ask200(t *testing.T, router *routeWatch, url string) *load {
	t.Helper()
	l := &load{router: router}
	l.url = url
	l.start(t, plan.Outside, echoProgram, "get", "-n", "1000000", "-interval", "3ms", "-timeout", "2s", url)
	return l
}

// askAtRate asks so many times a second, however long the answers take: as long as patience.
func askAtRate(t *testing.T, router *routeWatch, url string, rate float64, patience time.Duration) *load {
	t.Helper()
	l := &load{router: router}
	l.url = url
	l.start(t, plan.Outside, echoProgram, "get", "-n", "10000000", "-rate", fmt.Sprint(rate), "-timeout", patience.String(), url)
	return l
}

// failed fails for each request since the last call that did, but for a connection that was
// reset while the router's route to the address changed: the lab's router then hashes flows
// again, which moves some that are on their way to a node that does not know them
// (docs/services.md).
func (l *load) failed(t *testing.T, during string, began time.Time) {
	t.Helper()
	l.failedUnlessMoved(t, during, began, func() (all []time.Time) { return l.routeChanges(t) })
}

// routeChanges are when the router's route to the address changed.
func (l *load) routeChanges(t *testing.T) (all []time.Time) {
	t.Helper()
	for _, c := range routeChanges(t, l.router.said(), l.addr(t)) {
		all = append(all, c.at)
	}
	return all
}

// failedUnlessMoved fails for each request since the last call that did, but for a connection
// that was reset while flows were moved. It asks when that was after a failure.
func (l *load) failedUnlessMoved(t *testing.T, during string, began time.Time, moves func() []time.Time) {
	t.Helper()
	for _, f := range l.failures(t, during, began) {
		if f.moved(moves) {
			t.Logf("during %s, a connection was moved on its way: %v", during, f)
			continue
		}
		t.Errorf("during %s, a request of %s failed %v; flows were moved at %v", during, f.start.Format("15:04:05.000"), f, moves())
	}
}

// moved says whether the connection was reset while flows were moved.
func (f failure) moved(moves func() []time.Time) bool {
	// The monitor shows a change when it gets its turn.
	const late = 500 * time.Millisecond
	if !strings.Contains(f.error, "connection reset by peer") {
		return false
	}
	time.Sleep(time.Until(f.end.Add(late)))
	return slices.ContainsFunc(moves(), func(at time.Time) bool { return !at.Before(f.start) && at.Before(f.end.Add(late)) })
}

// failedStrictly is failed without an exception: the router's route has no reason to change meanwhile.
func (l *load) failedStrictly(t *testing.T, during string, began time.Time) {
	t.Helper()
	for _, lost := range l.count(t, during, began) {
		t.Errorf("during %s, %s", during, lost)
	}
}

// addr is the address that is asked.
func (l *load) addr(t *testing.T) string {
	t.Helper()
	u, err := url.Parse(l.url)
	if err != nil {
		t.Fatal(err)
	}
	return u.Hostname()
}

// count are the requests that failed since the last call, with time and error.
func (l *load) count(t *testing.T, during string, began time.Time) (lost []string) {
	t.Helper()
	for _, f := range l.failures(t, during, began) {
		lost = append(lost, f.String())
	}
	return lost
}

// failure is a request that failed.
type failure struct {
	start, end time.Time
	error      string
}

func (f failure) String() string {
	return fmt.Sprintf("at %s: %s", f.end.Format("15:04:05.000"), f.error)
}

// failures are the requests that failed since the last call.
func (l *load) failures(t *testing.T, during string, began time.Time) (lost []failure) {
	t.Helper()
	said := l.said()[l.read:]
	said = said[:strings.LastIndexByte(said, '\n')+1]
	l.read += len(said)
	n := 0
	slowest := 0.0
	pods := map[string]bool{}
	for line := range strings.Lines(said) {
		var r struct {
			OK           bool
			Error        string
			Milliseconds float64 `json:"ms"`
			Wall         time.Time
			Body         struct{ Pod string }
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		n++
		slowest = max(slowest, r.Milliseconds)
		pods[r.Body.Pod] = true
		if !r.OK {
			took := time.Duration(r.Milliseconds * float64(time.Millisecond))
			lost = append(lost, failure{r.Wall.Add(-took), r.Wall, r.Error})
		}
	}
	took := time.Since(began)
	t.Logf("during %s: %d requests to %s in %s, answered by %d pods, the slowest in %.0f ms", during, n, l.url, took.Round(100*time.Millisecond), len(pods), slowest)
	if n == 0 {
		t.Errorf("during %s: no requests", during)
	}
	return lost
}
