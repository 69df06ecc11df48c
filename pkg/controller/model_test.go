package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/service"
)

// Several controllers work at the same time, none of which knows of the others: as instances
// during a hand-over do. Each has copies of Services and of claims that are old by different
// times, stops in the middle of what it does, and loses requests and answers. Whatever they
// do, no address and port is ever two Services', a status has nothing that is not claimed,
// and nothing is in the end that is not as decided. FLOCK_SEEDS sets how often.
func TestModel(t *testing.T) {
	seeds := 80
	if text := os.Getenv("FLOCK_SEEDS"); text != "" {
		var err error
		if seeds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runModel(t, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

// model is an API server, as far as Services and claims go.
type model struct {
	t   *testing.T
	mu  sync.Mutex // guards below
	rnd *rand.Rand
	rev int
	// services and claims by name, all versions with the newest last; nil once it is deleted.
	services map[service.Key][]version[*corev1.Service]
	claims   map[string][]version[*v1alpha1.AddressClaim]
	pools    []config.Pool
	faults   bool
	writes   int
	history  []string // what was written, for when it is wrong
}

func (m *model) note(format string, args ...any) {
	m.history = append(m.history, fmt.Sprintf("%4d ", m.rev)+fmt.Sprintf(format, args...))
}

type version[T any] struct {
	rev    int
	object T
}

func newest[T any](versions []version[T], rev int) (object T) {
	for _, v := range versions {
		if v.rev <= rev {
			object = v.object
		}
	}
	return object
}

func (m *model) pick(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rnd.IntN(n)
}

var errLost = errors.New("connection reset")

// trouble takes time, and loses a request or its answer.
func (m *model) trouble(ctx context.Context) error {
	pause := time.Duration(m.pick(30)) * time.Millisecond
	if m.pick(40) == 0 {
		pause = time.Duration(m.pick(20)) * time.Second // it is stopped here
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.faults && m.rnd.IntN(20) == 0 {
		return errLost
	}
	return nil
}

// request does something at the API server.
func (m *model) request(ctx context.Context, do func() error) error {
	if err := m.trouble(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	m.mu.Lock()
	err := do()
	m.check()
	m.mu.Unlock()
	if lost := m.trouble(ctx); err == nil && lost != nil {
		return lost
	}
	return err
}

var (
	serviceResource = schema.GroupResource{Resource: "services"}
	claimResource   = schema.GroupResource{Resource: "addressclaims"}
)

func (m *model) put(key service.Key, svc *corev1.Service) {
	m.rev++
	if svc == nil {
		m.note("%s is deleted", key)
	} else {
		svc.ResourceVersion = strconv.Itoa(m.rev)
		m.note("%s %s %s %v %v has %v", key, svc.UID, svc.Spec.Type, service.Parse(svc).Ports, svc.Annotations, service.Held(svc))
	}
	m.services[key] = append(m.services[key], version[*corev1.Service]{m.rev, svc})
}

func (m *model) putClaim(name string, c *v1alpha1.AddressClaim) {
	m.rev++
	if c == nil {
		m.note("claim %s is deleted", name)
	} else {
		c.ResourceVersion = strconv.Itoa(m.rev)
		m.note("claim %s: %s%v", name, c.Spec.PodName, c.Spec.Services)
	}
	m.claims[name] = append(m.claims[name], version[*v1alpha1.AddressClaim]{m.rev, c})
}

func (m *model) GetService(ctx context.Context, namespace, name string) (svc *corev1.Service, err error) {
	err = m.request(ctx, func() error {
		if svc = newest(m.services[service.Key{Namespace: namespace, Name: name}], m.rev).DeepCopy(); svc == nil {
			return apierrors.NewNotFound(serviceResource, name)
		}
		return nil
	})
	return svc, err
}

func (m *model) PatchServiceStatus(ctx context.Context, svc *corev1.Service, ingress []corev1.LoadBalancerIngress, conditions []metav1.Condition) (now string, err error) {
	key := service.Key{Namespace: svc.Namespace, Name: svc.Name}
	err = m.request(ctx, func() error {
		current := newest(m.services[key], m.rev)
		switch {
		case current == nil:
			return apierrors.NewNotFound(serviceResource, key.Name)
		case current.UID != svc.UID || current.ResourceVersion != svc.ResourceVersion:
			return apierrors.NewConflict(serviceResource, key.Name, errors.New("it has changed"))
		case current.Spec.Type != corev1.ServiceTypeLoadBalancer && len(ingress) > 0:
			return apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, key.Name, nil)
		}
		next := current.DeepCopy()
		next.Status.LoadBalancer.Ingress, next.Status.Conditions = ingress, conditions
		m.put(key, next)
		m.writes++
		now = next.ResourceVersion
		return nil
	})
	return now, err
}

func (m *model) MakeClaim(ctx context.Context, c *v1alpha1.AddressClaim) (now *v1alpha1.AddressClaim, err error) {
	err = m.request(ctx, func() error {
		if newest(m.claims[c.Name], m.rev) != nil {
			return apierrors.NewAlreadyExists(claimResource, c.Name)
		}
		next := c.DeepCopy()
		next.UID = types.UID(fmt.Sprint("claim", m.rev))
		m.putClaim(c.Name, next)
		now = next.DeepCopy()
		return nil
	})
	return now, err
}

func (m *model) current(c *v1alpha1.AddressClaim) error {
	current := newest(m.claims[c.Name], m.rev)
	switch {
	case current == nil:
		return apierrors.NewNotFound(claimResource, c.Name)
	case current.UID != c.UID || current.ResourceVersion != c.ResourceVersion:
		return apierrors.NewConflict(claimResource, c.Name, errors.New("it has changed"))
	}
	return nil
}

func (m *model) UpdateClaim(ctx context.Context, c *v1alpha1.AddressClaim) (now *v1alpha1.AddressClaim, err error) {
	err = m.request(ctx, func() error {
		if err := m.current(c); err != nil {
			return err
		}
		next := c.DeepCopy()
		m.putClaim(c.Name, next)
		now = next.DeepCopy()
		return nil
	})
	return now, err
}

func (m *model) DropClaim(ctx context.Context, c *v1alpha1.AddressClaim) error {
	return m.request(ctx, func() error {
		if err := m.current(c); err != nil {
			return err
		}
		m.putClaim(c.Name, nil)
		return nil
	})
}

// check holds what there is against the invariants. m.mu must be held.
func (m *model) check() {
	if m.t.Failed() {
		return // the first is the cause of the others
	}
	type at struct {
		netip.Addr
		service.Port
	}
	holders := map[at]service.Key{}
	for key, versions := range m.services {
		svc := newest(versions, m.rev)
		if svc == nil {
			continue
		}
		for _, h := range service.Held(svc) {
			c := newest(m.claims[v1alpha1.AddressClaimName(h.Addr)], m.rev)
			if !claimed(c, svc, h.Ports, "") {
				m.t.Errorf("version %d: %s has %s for %v, which is not claimed", m.rev, key, h.Addr, h.Ports)
			}
			for _, p := range h.Ports {
				if other, taken := holders[at{h.Addr, p}]; taken {
					m.t.Errorf("version %d: port %s of %s is that of %s and of %s", m.rev, p, h.Addr, key, other)
				}
				holders[at{h.Addr, p}] = key
			}
		}
	}
	if m.t.Failed() {
		m.t.Log("\n" + strings.Join(m.history[max(0, len(m.history)-60):], "\n"))
	}
}

// view is what one instance sees: Services and claims, each as they were some time ago.
type view struct {
	*model
	mu               sync.Mutex // guards below
	services, claims int        // versions
}

// forward has the view see more, up to now if all.
func (v *view) forward(all bool) {
	v.model.mu.Lock()
	defer v.model.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, to := range []*int{&v.services, &v.claims} {
		*to += v.rnd.IntN(v.rev - *to + 1)
		if all || v.rnd.IntN(2) == 0 {
			*to = v.rev
		}
	}
}

func (v *view) observe(bool) observed {
	v.model.mu.Lock()
	defer v.model.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	o := observed{
		World: service.World{
			Pools: v.pools, Namespaces: map[string]labels.Set{"shop": {"team": "shop"}, "dns": {"team": "dns"}},
			Claims: map[netip.Addr]service.Claim{}, Taken: map[netip.Addr]string{},
		},
		objects: map[service.Key]*corev1.Service{}, claims: map[netip.Addr]*v1alpha1.AddressClaim{},
	}
	for key, versions := range v.model.services {
		if svc := newest(versions, v.services); svc != nil {
			o.objects[key] = svc
			if service.Managed(svc, false) {
				o.Services = append(o.Services, service.Parse(svc))
			}
		}
	}
	for _, versions := range v.model.claims {
		if c := newest(versions, v.claims); c != nil {
			addr := netip.MustParseAddr(c.Spec.Address)
			o.claims[addr], o.Claims[addr] = c, claimOf(c)
		}
	}
	return o
}

func (v *view) service(key service.Key) (*corev1.Service, bool) {
	v.model.mu.Lock()
	defer v.model.mu.Unlock()
	svc := newest(v.model.services[key], v.services)
	return svc, svc != nil
}

func (v *view) claim(name string) (*v1alpha1.AddressClaim, bool) {
	v.model.mu.Lock()
	defer v.model.mu.Unlock()
	c := newest(v.model.claims[name], v.claims)
	return c, c != nil
}

func (v *view) notify(wants, has chan<- struct{}) {}

func (v *view) ObjectEvent(kube.ObjectKind, string, string, types.UID, kube.EventType, string, string, string) {
}

func (m *model) instance() (*services, *view) {
	v := &view{model: m}
	return &services{world: v, api: m, events: v, log: slog.New(slog.DiscardHandler), metrics: newMetrics()}, v
}

func runModel(t *testing.T, rnd *rand.Rand) {
	m := &model{t: t, rnd: rnd, faults: true, services: map[service.Key][]version[*corev1.Service]{}, claims: map[string][]version[*v1alpha1.AddressClaim]{}}
	m.user()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for ctx.Err() == nil {
				s, v := m.instance() // as after a crash
				life, end := context.WithTimeout(ctx, time.Duration(1+m.pick(40))*time.Second)
				for life.Err() == nil {
					v.forward(false)
					s.unsettled = nil
					s.pass(life)
					time.Sleep(time.Duration(m.pick(300)) * time.Millisecond)
				}
				end()
			}
		})
	}
	all.Go(func() {
		for ctx.Err() == nil {
			m.user()
			time.Sleep(time.Duration(m.pick(400)) * time.Millisecond)
		}
	})
	all.Wait()

	// One is left, and nothing is lost any more.
	m.mu.Lock()
	m.faults = false
	m.mu.Unlock()
	s, v := m.instance()
	for range 30 {
		v.forward(true)
		if s.pass(t.Context()) < 0 {
			break
		}
		time.Sleep(time.Minute)
	}
	o := v.observe(false)
	for key, d := range service.Assign(o.World) {
		if got, want := fmt.Sprint(service.Held(o.objects[key])), fmt.Sprint(d.Holdings); got != want {
			t.Errorf("in the end %s has %s, want %s", key, got, want)
		}
	}
	for addr, c := range o.claims {
		for _, share := range c.Spec.Services {
			svc := o.objects[service.Key{Namespace: share.Namespace, Name: share.Name}]
			if svc == nil || string(svc.UID) != share.UID || !slices.ContainsFunc(service.Held(svc), func(h service.Holding) bool {
				return h.Addr == addr && slices.Equal(h.Ports, shareOf(share).Ports)
			}) {
				t.Errorf("in the end the claim of %s is %+v", addr, c.Spec)
			}
		}
	}
	if m.writes < 20 {
		t.Errorf("only %d statuses were written", m.writes)
	}
}

// user is somebody who changes Services, pools, or a pod that claims an address.
func (m *model) user() {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.rnd.IntN(6)
	key := service.Key{Namespace: []string{"shop", "dns"}[n%2], Name: fmt.Sprint("s", n)}
	svc := newest(m.services[key], m.rev).DeepCopy()
	address := fmt.Sprintf("2001:db8::%x", 1+m.rnd.IntN(5))
	what := m.rnd.IntN(10)
	if len(m.pools) == 0 {
		what = 0
	}
	switch {
	case what == 0:
		p := config.Pool{Name: "p", CIDRs: []netip.Prefix{netip.MustParsePrefix([]string{"2001:db8::/125", "2001:db8::/126", "2001:db8::4/126"}[m.rnd.IntN(3)])}, Namespaces: labels.Everything(), Service: true, Static: true}
		p.Services = config.PoolServices{AutoAssign: true, Sharing: v1alpha1.SharingPool}
		if m.rnd.IntN(3) == 0 {
			p.Namespaces, _ = labels.Parse("team=shop")
		}
		m.pools = []config.Pool{p}
	case what == 1:
		name := v1alpha1.AddressClaimName(netip.MustParseAddr(address))
		if c := newest(m.claims[name], m.rev); c == nil {
			c = &v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: address, PodNamespace: "shop", PodName: "pod", PodUID: "u", NodeName: "n"}}
			c.Name, c.UID = name, types.UID(fmt.Sprint("claim", m.rev))
			m.putClaim(name, c)
		} else if c.Spec.PodUID != "" {
			m.putClaim(name, nil)
		}
	case svc == nil:
		class := v1alpha1.LoadBalancerClass
		svc = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, UID: types.UID(fmt.Sprint("service", m.rev)), CreationTimestamp: metav1.Now()}}
		svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, IPFamilies: []corev1.IPFamily{corev1.IPv6Protocol}, Ports: m.ports()}
		svc.Annotations = m.annotations(address)
		m.put(key, svc)
	case what < 4:
		m.put(key, nil)
	case what < 7:
		svc.Spec.Ports = m.ports()
		m.put(key, svc)
	case what < 8:
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			svc.Spec.Type, svc.Spec.LoadBalancerClass, svc.Status.LoadBalancer = corev1.ServiceTypeClusterIP, nil, corev1.LoadBalancerStatus{}
		} else {
			class := v1alpha1.LoadBalancerClass
			svc.Spec.Type, svc.Spec.LoadBalancerClass = corev1.ServiceTypeLoadBalancer, &class
		}
		m.put(key, svc)
	default:
		svc.Annotations = m.annotations(address)
		m.put(key, svc)
	}
	m.check()
}

func (m *model) ports() (ports []corev1.ServicePort) {
	for _, p := range m.rnd.Perm(4)[:1+m.rnd.IntN(2)] {
		ports = append(ports, corev1.ServicePort{Port: int32(80 + p), Protocol: corev1.ProtocolTCP})
	}
	return ports
}

func (m *model) annotations(address string) map[string]string {
	a := map[string]string{}
	if m.rnd.IntN(3) == 0 {
		a[v1alpha1.ServiceAddressesAnnotation] = address
	}
	if m.rnd.IntN(2) == 0 {
		a[v1alpha1.ServiceSharedWithAnnotation] = strings.Join(slices.Sorted(maps.Keys(map[string]bool{"shop/s0": true, "dns/s1": true, "shop/s2": true, "dns/s3": true})), ",")
	}
	return a
}
