//go:build cluster && services

package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
)

const (
	poolAnnotation    = "flock.fritzlab.net/pool"
	loadBalancerClass = "flock.fritzlab.net/bgp"
)

func init() {
	serviceOutages = append(serviceOutages, noPodsForAWhile, drained, serviceWithoutAPIServer, otherProxyMode, manyServices)
}

// TestServices is the story of Services' addresses alone, with what takes minutes.
func TestServices(t *testing.T) {
	mustLab(t, "down") // what an earlier run may have left
	t.Cleanup(func() { mustLab(t, "down") })
	part(t, "up", func(t *testing.T) { mustLab(t, "up") })
	part(t, "services", serviceStory)
}

// noPodsForAWhile: requests fail only while the router has no route to the address.
func noPodsForAWhile(t *testing.T, clients *serviceClients) {
	// The monitor shows a change when it gets its turn.
	const late = 500 * time.Millisecond
	router := watchOn(t, plan.Tor)
	began := time.Now()
	mustKubectl(t, "--namespace=services", "scale", serviceRollout, "--replicas=0")
	eventually(t, 60*time.Second, func() error {
		for _, addr := range clients.all() {
			if by := routedBy(t, addr); len(by) > 0 {
				return fmt.Errorf("%s is announced by the nodes %v, and there is no pod", addr, by)
			}
		}
		return nil
	})
	serviceRolledOut(t)
	mustKubectl(t, "--namespace=services", "scale", serviceRollout, "--replicas=3")
	serviceRolledOut(t)
	clients.announcedBy(t, "cluster", 1, 2, 3)
	clients.announcedSomewhere(t, "local")
	time.Sleep(time.Second) // some requests after it
	said := router.stop(t)
	for i, addr := range clients.all() {
		gone, back := absence(t, said, addr)
		lost := clients.loads[i].failures(t, "no pods", began)
		for _, f := range lost {
			if f.start.Before(gone.Add(-late)) || f.start.After(back) {
				t.Errorf("%s: a request of %s failed %s, and the router had no route from %s to %s only", addr, f.start.Format(stampFormat), f, gone.Format(stampFormat), back.Format(stampFormat))
			}
		}
		t.Logf("%s: %d requests failed while no node announced it, from %s to %s", addr, len(lost), gone.Format(stampFormat), back.Format(stampFormat))
		if len(lost) == 0 {
			t.Errorf("%s: no request failed, and there was no pod", addr)
		}
	}
}

const stampFormat = "15:04:05.000"

// absence is when the router's kernel has lost the route to an address, and has got it again,
// by what ip -timestamp monitor says.
func absence(t *testing.T, said, addr string) (gone, back time.Time) {
	t.Helper()
	var at time.Time
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if stamp, ok := strings.CutPrefix(line, "Timestamp: "); ok {
			f := strings.Fields(stamp) // Thu Nov 26 22:03:11 2026 123456 usec
			if len(f) < 6 {
				t.Fatalf("timestamp %q", line)
			}
			day, err := time.ParseInLocation("Mon Jan 2 15:04:05 2006", strings.Join(f[:5], " "), time.Local)
			if err != nil {
				t.Fatal(err)
			}
			usec, err := time.ParseDuration(f[5] + "us")
			if err != nil {
				t.Fatal(err)
			}
			at = day.Add(usec)
			continue
		}
		switch {
		case strings.HasPrefix(line, "Deleted "+addr+" "):
			gone, back = at, time.Time{}
		case strings.HasPrefix(line, addr+" ") && back.IsZero() && !gone.IsZero():
			back = at
		}
	}
	if gone.IsZero() || back.IsZero() {
		t.Fatalf("the router did not lose %s and get it again:\n%s", addr, said)
	}
	return gone, back
}

// drained: the pod of a node is evicted.
func drained(t *testing.T, clients *serviceClients) {
	began := time.Now()
	mustKubectl(t, "drain", "node3", "--ignore-daemonsets", "--pod-selector=app=web", servicePatience)
	t.Cleanup(func() { mustKubectl(t, "uncordon", "node3") })
	serviceRolledOut(t)
	eventually(t, 60*time.Second, func() error {
		for _, addr := range clients.addrs["local"] {
			for _, n := range routedBy(t, addr) {
				if n == 3 {
					return fmt.Errorf("node3 announces %s and has no pod", addr)
				}
			}
		}
		return nil
	})
	mustKubectl(t, "uncordon", "node3")
	clients.failed(t, "a drain", began)
}

func serviceWithoutAPIServer(t *testing.T, clients *serviceClients) {
	began := time.Now()
	if killed := killOn(t, plan.ControlPlane, "kube-apiserver"); killed != 1 {
		t.Errorf("%d API servers killed", killed)
	}
	time.Sleep(10 * time.Second)
	mustLab(t, "up")
	clients.failed(t, "an outage of the API server", began)
}

// otherProxyMode: with kube-proxy's rules in iptables on one node and in nftables on another,
// the route does what it has to from everywhere.
func otherProxyMode(t *testing.T, clients *serviceClients) {
	back := withIPTables(t, "node1")
	clients.announcedBy(t, "cluster", 1, 2, 3)
	clients.announcedSomewhere(t, "local")
	for _, l := range clients.loads {
		l.failures(t, "the change of kube-proxy's mode, in which it takes its rules away", time.Now())
	}
	began := time.Now()
	routeCases(t, clients, "node1")
	routeCases(t, clients, "node2")
	clients.failed(t, "kube-proxy in iptables mode", began)
	back()
	clients.announcedBy(t, "cluster", 1, 2, 3)
	routeCases(t, clients, "node1")
	for _, l := range clients.loads {
		l.failures(t, "the change back", time.Now())
	}
}

// routeCases: a port of the Services is reached from the node itself and from outside, another
// port is refused at once.
func routeCases(t *testing.T, clients *serviceClients, node string) {
	t.Helper()
	for _, addr := range clients.all() {
		host := addr
		if strings.Contains(addr, ":") {
			host = "[" + addr + "]"
		}
		for _, from := range []string{node, plan.Outside} {
			out, err := lab("exec", from, "--", echoProgram, "get", "-n", "5", "-timeout", "5s", "http://"+host+":8080/")
			if err != nil || strings.Count(out, `"ok":true`) != 5 {
				t.Errorf("%s from %s: %v\n%s", addr, from, err, out)
			}
			began := time.Now()
			out, err = lab("exec", from, "--", echoProgram, "get", "-timeout", "20s", "http://"+host+":8081/")
			if err == nil || !strings.Contains(out, "connection refused") {
				t.Errorf("%s, another port, from %s: %v after %s\n%s", addr, from, err, time.Since(began), out)
			}
		}
	}
}

// manyServices creates, changes and deletes Services of 20 pools while controllers are killed:
// FLOCK_SERVICES says how many. No address is two Services', none is left, nodes announce all
// that are given and nothing else, BIRD is not configured and no session ends.
func manyServices(t *testing.T, _ *serviceClients) {
	const pools = 20
	n, _ := strconv.Atoi(os.Getenv("FLOCK_SERVICES"))
	if n == 0 {
		t.Log("not asked for: FLOCK_SERVICES=1000")
		return
	}
	c := newPodClient(t)
	var manifest strings.Builder
	for i := range pools {
		fmt.Fprintf(&manifest, `
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: many-%[1]d}
spec:
  cidrs: ["2001:db8:a0%02[1]x::/64", 10.98.%[1]d.0/24]
  uses: [service]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: services}}
---`, i)
	}
	apply(t, manifest.String())
	t.Cleanup(func() {
		for i := range pools {
			mustKubectl(t, "delete", "addresspool", fmt.Sprintf("many-%d", i), "--wait=false")
		}
	})
	sessions, configured := sessionTimes(t), configuredTimes(t)

	// Each is killed at most twice: the kubelet starts it again later each time.
	killed, stop := 0, make(chan struct{})
	var killing sync.WaitGroup
	killing.Go(func() {
		for killed < 4 {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Second):
				for _, n := range plan.Nodes(3) {
					if pids := running(t, n.Name(), "/usr/local/bin/flock-controller"); len(pids) > 0 && (killed+n.Number)%2 == 0 {
						killed += killOn(t, n.Name(), "/usr/local/bin/flock-controller")
						break
					}
				}
			}
		}
	})
	random := rand.New(rand.NewPCG(1, uint64(n)))
	services := c.CoreV1().Services("services")
	all := map[string]*corev1.Service{}
	began := time.Now()
	var mu sync.Mutex
	each(t, n, func(i int) error {
		mu.Lock()
		pool := random.IntN(pools)
		mu.Unlock()
		svc, err := services.Create(t.Context(), manyService(i, pool), metav1.CreateOptions{})
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			all[svc.Name] = svc
		}
		return err
	})
	created := time.Since(began)
	settled := settle(t, c, all)
	t.Logf("%d Services over %d pools created in %s, all of their %d addresses at the router %s after the first", n, pools, created.Round(10*time.Millisecond), settled, time.Since(began).Round(10*time.Millisecond))

	began = time.Now()
	names := slices.Sorted(maps.Keys(all))
	random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	deleted, moved, turned := names[:n/5], names[n/5:2*n/5], names[2*n/5:3*n/5]
	each(t, len(deleted), func(i int) error {
		return services.Delete(t.Context(), deleted[i], metav1.DeleteOptions{})
	})
	for _, name := range deleted {
		delete(all, name)
	}
	change := func(name, patch string) error {
		svc, err := services.Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			all[name] = svc
		}
		return err
	}
	each(t, len(moved), func(i int) error {
		return change(moved[i], fmt.Sprintf(`{"metadata":{"annotations":{%q:"many-%d"}}}`, poolAnnotation, i%pools))
	})
	each(t, len(turned), func(i int) error {
		policy := corev1.ServiceExternalTrafficPolicyLocal
		if all[turned[i]].Spec.ExternalTrafficPolicy == policy {
			policy = corev1.ServiceExternalTrafficPolicyCluster
		}
		return change(turned[i], fmt.Sprintf(`{"spec":{"externalTrafficPolicy":%q}}`, policy))
	})
	settled = settle(t, c, all)
	t.Logf("%d deleted, %d moved to other pools, %d given another policy; %d addresses at the router %s after", len(deleted), len(moved), len(turned), settled, time.Since(began).Round(10*time.Millisecond))

	began = time.Now()
	mustKubectl(t, "--namespace=services", "delete", "services", "--selector=many=yes", "--wait=false")
	clear(all)
	settle(t, c, all)
	t.Logf("nothing is left %s after the end of all", time.Since(began).Round(10*time.Millisecond))
	close(stop)
	killing.Wait()
	t.Logf("%d controllers were killed meanwhile", killed)
	if killed == 0 {
		t.Error("no controller was killed")
	}
	unchanged(t, "the last reconfiguration of BIRD", configured, configuredTimes(t))
	unchanged(t, "the session", sessions, sessionTimes(t))
}

// manyService is the i-th: each second one has both families, each third has Local.
func manyService(i, pool int) *corev1.Service {
	class, families := string(loadBalancerClass), corev1.IPFamilyPolicySingleStack
	if i%2 == 0 {
		families = corev1.IPFamilyPolicyRequireDualStack
	}
	policy, no := corev1.ServiceExternalTrafficPolicyCluster, false
	if i%3 == 0 {
		policy = corev1.ServiceExternalTrafficPolicyLocal
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("many-%d", i), Labels: map[string]string{"many": "yes"},
			Annotations: map[string]string{poolAnnotation: fmt.Sprintf("many-%d", pool)},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, ExternalTrafficPolicy: policy,
			IPFamilyPolicy: &families, AllocateLoadBalancerNodePorts: &no,
			Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 8080}},
		},
	}
}

// each calls f for each of n, a few at a time.
func each(t *testing.T, n int, f func(int) error) {
	t.Helper()
	next := make(chan int)
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	running.Wait()
}

// settle waits until each Service has its addresses, by status, claims and router, and nothing
// else has any; it returns their number.
func settle(t *testing.T, c *podClient, all map[string]*corev1.Service) (addresses int) {
	t.Helper()
	eventually(t, 5*time.Minute, func() error {
		list, err := c.CoreV1().Services("services").List(t.Context(), metav1.ListOptions{LabelSelector: "many=yes"})
		if err != nil {
			return err
		}
		if len(list.Items) != len(all) {
			return fmt.Errorf("%d Services, want %d", len(list.Items), len(all))
		}
		has := map[string]string{}
		for _, svc := range list.Items {
			if got, want := len(svc.Status.LoadBalancer.Ingress), len(svc.Spec.IPFamilies); got != want {
				return fmt.Errorf("Service %s has %d addresses, want %d", svc.Name, got, want)
			}
			pool := svc.Annotations[poolAnnotation]
			for _, in := range svc.Status.LoadBalancer.Ingress {
				if other := has[in.IP]; other != "" {
					t.Fatalf("%s is of the Services %s and %s", in.IP, svc.Name, other)
				}
				has[in.IP] = svc.Name
				if !inPool(in.IP, pool) {
					return fmt.Errorf("Service %s has %s, which is not of AddressPool %s", svc.Name, in.IP, pool)
				}
			}
		}
		claimed := map[string]bool{}
		for line := range strings.Lines(mustKubectl(t, "get", "addressclaims", `--output=jsonpath={range .items[*]}{.spec.address} {.spec.services[*].name}{"\n"}{end}`)) {
			addr, by, _ := strings.Cut(strings.TrimSpace(line), " ")
			if strings.HasPrefix(by, "many-") {
				claimed[addr] = true
				if has[addr] != by {
					return fmt.Errorf("%s is claimed for Service %s, and %q has it", addr, by, has[addr])
				}
			}
		}
		routed := map[string]bool{}
		for _, family := range []string{"-6", "-4"} {
			for line := range strings.Lines(mustLab(t, "exec", plan.Tor, "--", "ip", family, "route", "show")) {
				addr, _, _ := strings.Cut(line, " ")
				if strings.HasPrefix(addr, "2001:db8:a0") || strings.HasPrefix(addr, "10.98.") {
					routed[addr] = true
					if has[addr] == "" {
						return fmt.Errorf("%s is announced, and no Service has it", addr)
					}
				}
			}
		}
		if len(claimed) != len(has) || len(routed) != len(has) {
			return fmt.Errorf("%d addresses, %d claimed, %d at the router", len(has), len(claimed), len(routed))
		}
		addresses = len(has)
		return nil
	})
	return addresses
}

// inPool says whether an address is of the pool many-N.
func inPool(addr, pool string) bool {
	n, err := strconv.Atoi(strings.TrimPrefix(pool, "many-"))
	return err == nil && (strings.HasPrefix(addr, fmt.Sprintf("2001:db8:a0%02x:", n)) || strings.HasPrefix(addr, fmt.Sprintf("10.98.%d.", n)))
}

// configuredTimes is when the BIRD of each node has read its configuration.
func configuredTimes(t *testing.T) map[string]time.Time {
	t.Helper()
	all := map[string]time.Time{}
	for _, n := range plan.Nodes(3) {
		for line := range strings.Lines(mustLab(t, "exec", n.Name(), "--", "birdc", "-s", "/run/flock/bird/bird.ctl", "show", "status")) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "Last reconfiguration on "); ok {
				at, err := fabric.BirdTime(text)
				if err != nil {
					t.Fatal(err)
				}
				all[n.Name()] = at
			}
		}
	}
	return all
}

// sessionTimes is since when the router has each session.
func sessionTimes(t *testing.T) map[string]time.Time {
	t.Helper()
	sessions := fabric.ParseSessions(mustLab(t, "exec", plan.Tor, "--", "birdc", "show", "protocols", "all"))
	all := map[string]time.Time{}
	for _, s := range sessions {
		all[s.Name] = s.Since
	}
	return all
}

// unchanged: the times of all are what they were.
func unchanged(t *testing.T, what string, before, now map[string]time.Time) {
	t.Helper()
	if len(before) == 0 || len(now) != len(before) {
		t.Errorf("%s: %v, before %v", what, now, before)
	}
	for name, at := range before {
		if now[name].Sub(at).Abs() >= fabric.BirdJitter {
			t.Errorf("%s of %s: %s, before %s", what, name, now[name], at)
		}
	}
}
