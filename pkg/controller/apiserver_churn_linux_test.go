//go:build apiserver

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/service"
)

// process is a controller as it is deployed.
type process struct {
	name  string
	ended <-chan struct{}
	*os.Process
}

// build makes the program.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "flock-controller")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/flock-controller").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

func (s *server) start(t *testing.T, program, name string, args ...string) process {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(filepath.Dir(program), name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p, ended := s.Process(log, program, append([]string{"--name=" + name, "--kubeconfig=" + s.ControllerKubeconfig(), "--health-address=", "--lease-duration=3s"}, args...)...)
	return process{name, ended, p}
}

// holder is the instance with the Lease; "" if none has it.
func (s *server) holder(t *testing.T) string {
	t.Helper()
	return s.Kubectl("", "get", "lease", LeaseName, "--namespace=flock-system", "--ignore-not-found", "--output=jsonpath={.spec.holderIdentity}")
}

func (s *server) holds(t *testing.T, name string) time.Duration {
	t.Helper()
	began := time.Now()
	for s.holder(t) != name {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("the Lease is %q's, not %s's", s.holder(t), name)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}

// lease: one of two instances works. When it ends it gives up the Lease at once, and when it
// is killed the other takes it when it has expired; addresses stay.
func lease(t *testing.T, s *server) {
	s.apply(t, pool("web", `"2001:db8:80::/64"`))
	program := build(t)
	a := s.start(t, program, "a")
	s.holds(t, "a")
	b := s.start(t, program, "b")
	s.apply(t, svc("shop/one"))
	s.has(t, "shop/one", "2001:db8:80::1", service.Assigned)
	_ = a.Signal(syscall.SIGTERM)
	select {
	case <-a.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end on SIGTERM")
	}
	if h := s.holder(t); h == "a" {
		t.Error("it has ended, and still has the Lease")
	}
	t.Logf("after SIGTERM the other has the Lease %s later", s.holds(t, "b").Round(10*time.Millisecond))
	s.apply(t, svc("shop/two"))
	s.has(t, "shop/two", "2001:db8:80::2", service.Assigned)

	a = s.start(t, program, "a")
	_ = b.Signal(syscall.SIGKILL)
	<-b.ended
	t.Logf("after SIGKILL the other has the Lease %s later", s.holds(t, "a").Round(10*time.Millisecond))
	// One that is paused loses the Lease, and stands by when it goes on.
	b = s.start(t, program, "b")
	_ = a.Signal(syscall.SIGSTOP)
	s.holds(t, "b")
	_ = a.Signal(syscall.SIGCONT)
	s.apply(t, svc("shop/three"))
	s.has(t, "shop/three", "2001:db8:80::3", service.Assigned)
	_ = b.Signal(syscall.SIGTERM)
	<-b.ended
	s.holds(t, "a")
	s.apply(t, svc("shop/four"))
	s.has(t, "shop/four", "2001:db8:80::4", service.Assigned)
	for key, want := range map[string]string{"shop/one": "2001:db8:80::1", "shop/two": "2001:db8:80::2", "shop/three": "2001:db8:80::3"} {
		s.has(t, key, want, service.Assigned)
	}
	_ = a.Signal(syscall.SIGTERM)
	<-a.ended

	// Its probes.
	e, err := newElection(Config{API: s.Controller(), Name: "probed", Namespace: "flock-system", Log: discard}, func(ctx context.Context) { <-ctx.Done() })
	if err != nil {
		t.Fatal(err)
	}
	ctrl := newController(Config{API: s.Controller(), Name: "probed", Log: discard}, s.flock)
	probe := func(path string) int {
		w := &recorder{header: http.Header{}}
		r, _ := http.NewRequest("GET", path, nil)
		ctrl.handler(e).ServeHTTP(w, r)
		return w.code
	}
	if probe("/healthz") != 200 || probe("/readyz") != 503 {
		t.Errorf("before it knows who has the Lease: healthz %d, readyz %d", probe("/healthz"), probe("/readyz"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); e.run(ctx) }()
	s.holds(t, "probed")
	ctrl.synced.Store(true)
	for deadline := time.Now().Add(20 * time.Second); probe("/readyz") != 200 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
	}
	if probe("/healthz") != 200 || probe("/readyz") != 200 || probe("/metrics") != 200 {
		t.Errorf("with the Lease: healthz %d, readyz %d, metrics %d", probe("/healthz"), probe("/readyz"), probe("/metrics"))
	}
	cancel()
	<-done
	if h := s.holder(t); h != "" {
		t.Errorf("the Lease is still %s's", h)
	}
}

type recorder struct {
	header http.Header
	code   int
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
}
func (r *recorder) Write(b []byte) (int, error) { r.WriteHeader(200); return len(b), nil }

// twoAtOnce: two controllers that both work, as an old one that does not know yet that it has
// lost the Lease, do no harm.
func twoAtOnce(t *testing.T, s *server) {
	stop := s.record(t)
	s.run(t, func(c *Config) { c.Log = discard })
	s.run(t, func(c *Config) { c.Log = discard })
	w := newWorkload(t, s, 60, 10)
	w.run(8 * time.Second)
	w.settles()
	r := stop()
	t.Logf("%d versions, %d of statuses with an address, %s", len(r.events), r.check(t), w)
}

// churn: Services and pools are created, changed and deleted at random while controllers are
// killed and paused. FLOCK_SERVICES sets how many Services there are.
func churn(t *testing.T, s *server) {
	services := 200
	if text := os.Getenv("FLOCK_SERVICES"); text != "" {
		var err error
		if services, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	program := build(t)
	stop := s.record(t)
	var running [2]process
	for i := range running {
		running[i] = s.start(t, program, fmt.Sprint("c", i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	kills, pauses := 0, 0
	go func() {
		defer close(ended)
		rnd := rand.New(rand.NewPCG(1, 2))
		wait := func(d time.Duration) {
			select {
			case <-ctx.Done():
			case <-time.After(d):
			}
		}
		for ctx.Err() == nil {
			wait(time.Duration(500+rnd.IntN(2000)) * time.Millisecond)
			i := rnd.IntN(2)
			if rnd.IntN(2) == 0 {
				_ = running[i].Signal(syscall.SIGKILL)
				<-running[i].ended
				running[i] = s.start(t, program, running[i].name)
				kills++
			} else {
				_ = running[i].Signal(syscall.SIGSTOP)
				wait(time.Duration(rnd.IntN(6000)) * time.Millisecond)
				_ = running[i].Signal(syscall.SIGCONT)
				pauses++
			}
		}
	}()
	w := newWorkload(t, s, services, 20)
	began := time.Now()
	w.create()
	w.run(time.Duration(10+services/20) * time.Second)
	cancel()
	<-ended
	quiet := time.Now()
	w.settles()
	t.Logf("settled %s after the last change", time.Since(quiet).Round(10*time.Millisecond))
	r := stop()
	t.Logf("%d Services over 20 pools, %s: %s; %d kills and %d pauses; %d versions, %d of statuses with an address",
		services, time.Since(began).Round(time.Second), w, kills, pauses, len(r.events), r.check(t))

	// All at once, with nobody in the way: how long that takes.
	for _, ns := range []string{"shop", "dns", "evil"} {
		if err := s.deleteServices(t, ns); err != nil {
			t.Fatal(err)
		}
	}
	w.settles()
	for _, name := range w.pools {
		w.set(name, true)
	}
	began = time.Now()
	w.create()
	created := time.Since(began)
	w.settles()
	t.Logf("%d Services were created in %s, and all had their addresses %s later", services, created.Round(10*time.Millisecond), (time.Since(began) - created).Round(10*time.Millisecond))
	for _, p := range running {
		_ = p.Signal(syscall.SIGTERM)
		<-p.ended
	}
}

// workload is what users do with Services and pools.
type workload struct {
	t     *testing.T
	s     *server
	most  int
	pools []string
	world *world

	made, changed, deleted atomic.Int64
}

func (w *workload) String() string {
	return fmt.Sprintf("%d created, %d changed, %d deleted", w.made.Load(), w.changed.Load(), w.deleted.Load())
}

func newWorkload(t *testing.T, s *server, services, pools int) *workload {
	t.Helper()
	w := &workload{t: t, s: s, most: services, world: newWorld(s.flock, discard)}
	for i := range pools {
		w.pools = append(w.pools, fmt.Sprintf("pool%02d", i))
		w.set(w.pools[i], true)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var caches sync.WaitGroup
	for _, run := range w.world.caches() {
		caches.Go(func() { run(ctx) })
	}
	t.Cleanup(func() { cancel(); caches.Wait() })
	return w
}

// set makes a pool what it is to be: every third for one namespace, every fourth with sharing
// between namespaces, wide or narrow.
func (w *workload) set(name string, wide bool) {
	i, _ := strconv.Atoi(strings.TrimPrefix(name, "pool"))
	bits6, bits4 := 118, 26
	if !wide {
		bits6, bits4 = 125, 30
	}
	ap := &v1alpha1.AddressPool{Spec: v1alpha1.AddressPoolSpec{
		CIDRs:             []v1alpha1.CIDR{v1alpha1.CIDR(fmt.Sprintf("2001:db8:90:%x::/%d", i, bits6)), v1alpha1.CIDR(fmt.Sprintf("10.200.%d.0/%d", i, bits4))},
		Uses:              []v1alpha1.PoolUse{v1alpha1.UseService, v1alpha1.UseStatic},
		NamespaceSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: metav1.LabelSelectorOpExists}}},
		Services:          &v1alpha1.PoolServices{Sharing: v1alpha1.SharingNamespace},
	}}
	ap.Name = name
	if i%3 == 1 {
		ap.Spec.NamespaceSelector = metav1.LabelSelector{MatchLabels: map[string]string{"team": "dns"}}
	}
	if i%4 == 2 {
		ap.Spec.Services.Sharing = v1alpha1.SharingPool
	}
	body, err := json.Marshal(ap)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.s.flock.Flock().Patch(types.ApplyPatchType).Resource("addresspools").Name(name).Param("fieldManager", "test").Param("force", "true").
		Body(withKind(body)).Do(w.t.Context()).Error(); err != nil {
		w.t.Error(err)
	}
}

func withKind(object []byte) []byte {
	return append([]byte(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"AddressPool",`), object[1:]...)
}

// random is a Service of a name, as users write it.
func (w *workload) random(rnd *rand.Rand, key service.Key) *corev1.Service {
	class, no := v1alpha1.LoadBalancerClass, false
	policy := []corev1.IPFamilyPolicy{corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack}[rnd.IntN(3)]
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, AllocateLoadBalancerNodePorts: &no,
			IPFamilyPolicy: &policy, Selector: map[string]string{"app": "x"},
		},
	}
	for _, port := range rnd.Perm(6)[:1+rnd.IntN(3)] {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", port), Port: int32(80 + port/2), Protocol: []corev1.Protocol{"TCP", "UDP"}[port%2]})
	}
	switch rnd.IntN(8) {
	case 0:
		svc.Annotations[v1alpha1.ServiceAddressesAnnotation] = w.address(rnd)
	case 1:
		svc.Annotations[v1alpha1.ServicePoolAnnotation] = w.pools[rnd.IntN(len(w.pools))]
	case 2, 3:
		svc.Annotations[v1alpha1.ServiceSharedWithAnnotation] = w.key(rnd).String() + "," + w.key(rnd).String()
	}
	return svc
}

func (w *workload) address(rnd *rand.Rand) string {
	return fmt.Sprintf("2001:db8:90:%x::%x", rnd.IntN(len(w.pools)), 1+rnd.IntN(8))
}

func (w *workload) key(rnd *rand.Rand) service.Key {
	n := rnd.IntN(w.most)
	return service.Key{Namespace: []string{"shop", "dns", "evil"}[n%3], Name: fmt.Sprint("s", n)}
}

// create makes all Services that are missing.
func (w *workload) create() {
	next := make(chan int)
	var done sync.WaitGroup
	for i := range 8 {
		done.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 3))
			for n := range next {
				w.make(rnd, service.Key{Namespace: []string{"shop", "dns", "evil"}[n%3], Name: fmt.Sprint("s", n)})
			}
		})
	}
	for n := range w.most {
		next <- n
	}
	close(next)
	done.Wait()
}

func (w *workload) make(rnd *rand.Rand, key service.Key) {
	_, err := w.s.core.Services(key.Namespace).Create(w.t.Context(), w.random(rnd, key), metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		w.t.Error(err)
	}
	if err == nil {
		w.made.Add(1)
	}
}

// run does things at random for so long.
func (w *workload) run(long time.Duration) {
	ctx, cancel := context.WithTimeout(w.t.Context(), long)
	defer cancel()
	var done sync.WaitGroup
	for i := range 4 {
		done.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 4))
			for ctx.Err() == nil {
				w.act(rnd)
				time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond)
			}
		})
	}
	done.Wait()
}

func (w *workload) act(rnd *rand.Rand) {
	ctx := w.t.Context()
	key := w.key(rnd)
	switch n := rnd.IntN(20); {
	case n < 8:
		w.make(rnd, key)
	case n < 14:
		svc, err := w.s.core.Services(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
		if err != nil {
			return
		}
		other := w.random(rnd, key)
		svc.Annotations, svc.Spec.Ports = other.Annotations, other.Spec.Ports
		if rnd.IntN(3) == 0 {
			svc.Spec.IPFamilyPolicy = other.Spec.IPFamilyPolicy
			if *svc.Spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack {
				svc.Spec.IPFamilies, svc.Spec.ClusterIPs = svc.Spec.IPFamilies[:1], svc.Spec.ClusterIPs[:1]
			}
		}
		_, err = w.s.core.Services(key.Namespace).Update(ctx, svc, metav1.UpdateOptions{})
		if err == nil {
			w.changed.Add(1)
		} else if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			w.t.Error(err)
		}
	case n < 18:
		if err := w.s.core.Services(key.Namespace).Delete(ctx, key.Name, metav1.DeleteOptions{}); err == nil {
			w.deleted.Add(1)
		}
	case n < 19: // a pool is narrowed or widened
		w.set(w.pools[rnd.IntN(len(w.pools))], rnd.IntN(2) == 0)
	default: // a pod claims an address for a while
		c := &v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: w.address(rnd), PodNamespace: "shop", PodName: "pod", PodUID: "u", NodeName: "node1"}}
		c.Name = v1alpha1.AddressClaimName(netip.MustParseAddr(c.Spec.Address))
		if made, err := w.s.flock.MakeClaim(ctx, c); err == nil {
			time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
			_ = w.s.flock.DropClaim(ctx, made)
		}
	}
}

// settles waits until every Service has what is decided, with the condition that says so, and
// every claim is what the statuses have: nothing is missing, and nothing leaked.
func (w *workload) settles() {
	w.t.Helper()
	if !w.world.await(w.t.Context(), discard) {
		w.t.Fatal("the test does not see the objects")
	}
	var why string
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if why = w.unsettled(); why == "" {
			return
		}
	}
	w.t.Fatalf("it does not settle: %s", why)
}

func (w *workload) unsettled() string {
	o := w.world.observe(false)
	want := map[netip.Addr][]string{}
	for key, d := range service.Assign(o.World) {
		svc := o.objects[key]
		if in := service.Ingress(d.Holdings); !equality.Semantic.DeepEqual(in, svc.Status.LoadBalancer.Ingress) {
			return fmt.Sprintf("%s has %+v, want %+v", key, svc.Status.LoadBalancer.Ingress, in)
		}
		c, now := d.Condition(0), meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ServiceAddressAssigned)
		if now == nil || now.Status != c.Status || now.Reason != c.Reason || now.Message != c.Message {
			return fmt.Sprintf("%s says %+v, want %+v", key, now, c)
		}
		for _, h := range d.Holdings {
			want[h.Addr] = append(want[h.Addr], string(svc.UID)+fmt.Sprint(h.Ports))
		}
	}
	for addr, c := range o.claims {
		var has []string
		for _, s := range c.Spec.Services {
			share := shareOf(s)
			has = append(has, string(share.UID)+fmt.Sprint(share.Ports))
		}
		slices.Sort(has)
		slices.Sort(want[addr])
		if c.Spec.PodUID == "" && !slices.Equal(has, want[addr]) {
			return fmt.Sprintf("the claim of %s has %v, want %v", addr, has, want[addr])
		}
	}
	for addr := range want {
		if o.claims[addr] == nil {
			return fmt.Sprintf("%s is not claimed", addr)
		}
	}
	// What was looked at is what there is.
	services, err := w.s.core.Services("").List(w.t.Context(), metav1.ListOptions{})
	if err != nil || len(services.Items) != len(o.objects) {
		return fmt.Sprintf("the cache has %d Services of %d: %v", len(o.objects), len(services.Items), err)
	}
	for _, svc := range services.Items {
		if seen := o.objects[service.Key{Namespace: svc.Namespace, Name: svc.Name}]; seen == nil || seen.ResourceVersion != svc.ResourceVersion {
			return fmt.Sprintf("the cache is behind with Service %s/%s", svc.Namespace, svc.Name)
		}
	}
	return ""
}
