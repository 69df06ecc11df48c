//go:build cluster && services

package e2e

import (
	"context"
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
	"k8s.io/apimachinery/pkg/watch"

	"flock.fritzlab.net/flock/lab/plan"
)

const (
	// mixPools are the AddressPools of the mix, and mixRounds how often a fifth of the
	// Services change, each time with a look at the whole.
	mixPools, mixRounds = 20, 10
	mixSelector         = "many=yes"
	controllerProgram   = "/usr/local/bin/flock-controller"
)

// manyServices creates, changes and deletes Services of 20 pools in a random order while
// controllers are killed: FLOCK_SERVICES says how many, FLOCK_SEED repeats an order. At no time
// an address is two Services'. After each round none is left over, nodes announce all that are
// given and nothing else, BIRD is not configured, no session ends, and clients of other
// Services notice nothing.
func manyServices(t *testing.T, clients *serviceClients) {
	n, _ := strconv.Atoi(os.Getenv("FLOCK_SERVICES"))
	if n == 0 {
		t.Log("not asked for: FLOCK_SERVICES=1000")
		return
	}
	seed, err := strconv.ParseUint(os.Getenv("FLOCK_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("FLOCK_SEED=%d repeats this order", seed)
	var manifest strings.Builder
	for i := range mixPools {
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
		for i := range mixPools {
			mustKubectl(t, "delete", "addresspool", fmt.Sprintf("many-%d", i), "--wait=false")
		}
	})
	sessions, configured := sessionTimes(t), configuredTimes(t)
	m := &mix{podClient: newPodClient(t), random: rand.New(rand.NewPCG(seed, 0)), all: map[string]*corev1.Service{}}
	for i := range n {
		m.names = append(m.names, fmt.Sprintf("many-%d", i))
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	killed := 0
	running.Go(func() { m.noAddressTwice(ctx, t) })
	running.Go(func() { killed = killControllers(ctx, t, rand.New(rand.NewPCG(seed, 1))) })
	defer func() { stop(); running.Wait() }()

	start := time.Now()
	began := start
	m.do(t, m.names, func(string) change { return create })
	created := time.Since(began)
	settled := m.settle(t)
	t.Logf("%d Services over %d pools created in %s, all of their %d addresses at the router %s after the first", n, mixPools, created.Round(10*time.Millisecond), settled, time.Since(began).Round(10*time.Millisecond))
	for round := range mixRounds {
		began := time.Now()
		names := slices.Clone(m.names)
		m.random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		made := m.do(t, names[:max(1, n/5)], m.next)
		settled := m.settle(t)
		t.Logf("round %d: %v; %d Services have %d addresses, at the router %s after the first change", round+1, made, len(m.all), settled, time.Since(began).Round(10*time.Millisecond))
	}
	began = time.Now()
	mustKubectl(t, "--namespace=services", "delete", "services", "--selector="+mixSelector, "--wait=false")
	clear(m.all)
	m.settle(t)
	t.Logf("nothing is left %s after the end of all", time.Since(began).Round(10*time.Millisecond))
	stop()
	running.Wait()
	t.Logf("%d controllers were killed in %s", killed, time.Since(start).Round(time.Second))
	if killed == 0 {
		t.Error("no controller was killed")
	}
	unchanged(t, "the last reconfiguration of BIRD", configured, configuredTimes(t))
	unchanged(t, "the session", sessions, sessionTimes(t))
	clients.failed(t, "changes of many Services", start)
}

// killControllers kills one of the two controllers every few seconds, and has it be replaced
// at once: the kubelet would start it again later each time.
func killControllers(ctx context.Context, t *testing.T, random *rand.Rand) (killed int) {
	for {
		select {
		case <-ctx.Done():
			return killed
		case <-time.After(5*time.Second + time.Duration(random.Int64N(int64(10*time.Second)))):
		}
		for _, i := range random.Perm(3) {
			node := plan.Nodes(3)[i].Name()
			if killOn(t, node, controllerProgram) == 0 {
				continue
			}
			killed++
			if out, err := kubectl("", "--namespace=flock-system", "delete", "pods", "--selector=app.kubernetes.io/name=flock-controller", "--field-selector=spec.nodeName="+node, "--grace-period=0", "--force", "--wait=false"); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			break
		}
	}
}

// change is what happens to a Service in the mix.
type change string

const (
	create   change = "created"
	remove   change = "deleted"
	move     change = "moved to another pool"
	turn     change = "given the other policy"
	widen    change = "given both families"
	narrow   change = "given one family"
	park     change = "turned into ClusterIP"
	unpark   change = "turned into LoadBalancer"
	addPort  change = "given another port"
	portMost        = 3
)

// mix is the Services that there should be.
type mix struct {
	*podClient
	names []string // all that there may be

	mu     sync.Mutex // guards what follows
	random *rand.Rand
	all    map[string]*corev1.Service
}

// next is a random change that a Service can have.
func (m *mix) next(name string) change {
	m.mu.Lock()
	defer m.mu.Unlock()
	svc := m.all[name]
	if svc == nil {
		return create
	}
	can := []change{remove, remove}
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return append(can, unpark, unpark, unpark)[m.random.IntN(5)]
	}
	can = append(can, move, move, move, turn, turn, park)
	if len(svc.Spec.IPFamilies) > 1 {
		can = append(can, narrow)
	} else {
		can = append(can, widen)
	}
	if len(svc.Spec.Ports) < portMost {
		can = append(can, addPort)
	}
	return can[m.random.IntN(len(can))]
}

// do makes a change of each of the Services, a few at a time, and returns how many of each.
func (m *mix) do(t *testing.T, names []string, which func(name string) change) map[change]int {
	t.Helper()
	made := map[change]int{}
	type step struct {
		what change
		pool int
	}
	steps := make([]step, len(names))
	for i, name := range names { // in order, so that a seed repeats it
		steps[i] = step{which(name), m.random.IntN(mixPools)}
		made[steps[i].what]++
	}
	each(t, len(names), func(i int) error {
		if err := m.make(t.Context(), names[i], steps[i].what, steps[i].pool); err != nil {
			return fmt.Errorf("Service %s: to be %s: %w", names[i], steps[i].what, err)
		}
		return nil
	})
	return made
}

func (m *mix) make(ctx context.Context, name string, what change, pool int) error {
	services := m.CoreV1().Services("services")
	m.mu.Lock()
	have := m.all[name]
	m.mu.Unlock()
	var patch string
	switch what {
	case create:
		svc, err := services.Create(ctx, manyService(name, pool), metav1.CreateOptions{})
		return m.is(name, svc, err)
	case remove:
		return m.is(name, nil, services.Delete(ctx, name, metav1.DeleteOptions{}))
	case move:
		patch = fmt.Sprintf(`{"metadata":{"annotations":{%q:"many-%d"}}}`, poolAnnotation, pool)
	case turn:
		policy := corev1.ServiceExternalTrafficPolicyLocal
		if have.Spec.ExternalTrafficPolicy == policy {
			policy = corev1.ServiceExternalTrafficPolicyCluster
		}
		patch = fmt.Sprintf(`{"spec":{"externalTrafficPolicy":%q}}`, policy)
	case widen:
		patch = fmt.Sprintf(`{"spec":{"ipFamilyPolicy":%q}}`, corev1.IPFamilyPolicyRequireDualStack)
	case narrow:
		patch = fmt.Sprintf(`{"spec":{"ipFamilyPolicy":%q}}`, corev1.IPFamilyPolicySingleStack)
	case park:
		patch = fmt.Sprintf(`{"spec":{"type":%q}}`, corev1.ServiceTypeClusterIP)
	case unpark:
		patch = fmt.Sprintf(`{"spec":{"type":%q,"loadBalancerClass":%q,"allocateLoadBalancerNodePorts":false}}`, corev1.ServiceTypeLoadBalancer, loadBalancerClass)
	case addPort:
		port := 8080 + len(have.Spec.Ports)
		patch = fmt.Sprintf(`{"spec":{"ports":[{"name":"p%d","port":%d,"targetPort":8080}]}}`, port, port)
		svc, err := services.Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		return m.is(name, svc, err)
	}
	svc, err := services.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return m.is(name, svc, err)
}

// is notes what a Service is since a change that succeeded.
func (m *mix) is(name string, svc *corev1.Service, err error) error {
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all[name] = svc; svc == nil {
		delete(m.all, name)
	}
	return nil
}

// manyService has one family or two, and Cluster or Local, by its name.
func manyService(name string, pool int) *corev1.Service {
	i, _ := strconv.Atoi(strings.TrimPrefix(name, "many-"))
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
			Name: name, Labels: map[string]string{"many": "yes"},
			Annotations: map[string]string{poolAnnotation: fmt.Sprintf("many-%d", pool)},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, ExternalTrafficPolicy: policy,
			IPFamilyPolicy: &families, AllocateLoadBalancerNodePorts: &no,
			Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "p8080", Port: 8080}},
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

// noAddressTwice looks at each version of each Service, in the order of the API server, until
// the context ends.
func (m *mix) noAddressTwice(ctx context.Context, t *testing.T) {
	services := m.CoreV1().Services("services")
	for ctx.Err() == nil {
		list, err := services.List(ctx, metav1.ListOptions{LabelSelector: mixSelector})
		if err != nil {
			continue
		}
		has, of := map[string]string{}, map[string][]string{} // Service by address, addresses by Service
		see := func(svc *corev1.Service, gone bool) {
			for _, addr := range of[svc.Name] {
				delete(has, addr)
			}
			delete(of, svc.Name)
			if gone {
				return
			}
			for _, in := range svc.Status.LoadBalancer.Ingress {
				if other := has[in.IP]; other != "" {
					t.Errorf("%s is of the Services %s and %s at version %s", in.IP, svc.Name, other, svc.ResourceVersion)
				}
				has[in.IP] = svc.Name
				of[svc.Name] = append(of[svc.Name], in.IP)
			}
		}
		for _, svc := range list.Items {
			see(&svc, false)
		}
		w, err := services.Watch(ctx, metav1.ListOptions{LabelSelector: mixSelector, ResourceVersion: list.ResourceVersion})
		if err != nil {
			continue
		}
		for event := range w.ResultChan() {
			if svc, ok := event.Object.(*corev1.Service); ok {
				see(svc, event.Type == watch.Deleted)
			}
		}
	}
}

// settle waits until each Service has its addresses, by status, claims and router, and nothing
// else has any; it returns their number.
func (m *mix) settle(t *testing.T) (addresses int) {
	t.Helper()
	eventually(t, 5*time.Minute, func() error {
		list, err := m.CoreV1().Services("services").List(t.Context(), metav1.ListOptions{LabelSelector: mixSelector})
		if err != nil {
			return err
		}
		if len(list.Items) != len(m.all) {
			return fmt.Errorf("%d Services, want %d", len(list.Items), len(m.all))
		}
		has := map[string]string{}
		for _, svc := range list.Items {
			want := len(svc.Spec.IPFamilies)
			if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
				want = 0
			}
			if got := len(svc.Status.LoadBalancer.Ingress); got != want {
				return fmt.Errorf("Service %s has %d addresses, want %d: %v", svc.Name, got, want, svc.Status.Conditions)
			}
			pool := svc.Annotations[poolAnnotation]
			for _, in := range svc.Status.LoadBalancer.Ingress {
				has[in.IP] = svc.Name
				if !inPool(in.IP, pool) {
					return fmt.Errorf("Service %s has %s, which is not of AddressPool %s", svc.Name, in.IP, pool)
				}
				if ports := len(in.Ports); ports > 0 && ports != len(svc.Spec.Ports) {
					return fmt.Errorf("Service %s has %s for %d ports, want %d", svc.Name, in.IP, ports, len(svc.Spec.Ports))
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
		for _, addr := range slices.Sorted(maps.Keys(has)) {
			if !claimed[addr] || !routed[addr] {
				return fmt.Errorf("%s of Service %s is claimed: %t, at the router: %t; %d addresses, %d claimed, %d at the router", addr, has[addr], claimed[addr], routed[addr], len(has), len(claimed), len(routed))
			}
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
