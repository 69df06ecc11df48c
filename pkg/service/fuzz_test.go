package service_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/service"
)

// Services, pools, claims of pods and nodes come, change and go at random, and only some
// decisions are carried out before the next. No address and port is ever two Services',
// nothing is given that a pool does not grant or that something else has, nobody loses an
// address for nothing, and in the end the decisions stay.
func FuzzAssign(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		s := newSimulation(t, rand.New(rand.NewPCG(seed, 0)))
		for range 40 {
			s.change()
			s.step(s.rnd.IntN(4) == 0)
		}
		for range 4 {
			s.step(true)
		}
		before := fmt.Sprint(service.Assign(s.world()))
		s.step(true)
		if after := fmt.Sprint(service.Assign(s.world())); after != before {
			t.Errorf("the decisions do not settle:\n%s\n%s", before, after)
		}
	})
}

type simulation struct {
	t        *testing.T
	rnd      *rand.Rand
	services map[string]*corev1.Service
	claims   map[netip.Addr]service.Claim
	taken    map[netip.Addr]string
	pools    []config.Pool
	made     int
}

func newSimulation(t *testing.T, rnd *rand.Rand) *simulation {
	return &simulation{t: t, rnd: rnd, services: map[string]*corev1.Service{}, claims: map[netip.Addr]service.Claim{}, taken: map[netip.Addr]string{}}
}

func (s *simulation) world() service.World {
	w := world{pools: s.pools, ranges: []service.Range{{Prefix: netip.MustParsePrefix("2001:db8:80::10/125"), What: "a pod CIDR"}}}
	for _, svc := range s.services {
		w.services = append(w.services, svc)
	}
	out := w.world()
	out.Claims, out.Taken = maps.Clone(s.claims), maps.Clone(s.taken)
	return out
}

func pickOne[T any](rnd *rand.Rand, of ...T) T { return of[rnd.IntN(len(of))] }

// address is one of a few, so that they meet.
func (s *simulation) address() string {
	return pickOne(s.rnd, fmt.Sprintf("2001:db8:80::%x", s.rnd.IntN(32)), fmt.Sprintf("203.0.113.%d", s.rnd.IntN(8)))
}

func (s *simulation) change() {
	key := func() string {
		return pickOne(s.rnd, "shop", "dns", "evil") + "/" + pickOne(s.rnd, "a", "b", "c", "d")
	}
	list := func() (out []int32) {
		for range 1 + s.rnd.IntN(3) {
			out = append(out, pickOne[int32](s.rnd, 53, -53, 80, 443, 8080))
		}
		return out
	}
	k := key()
	svc := s.services[k]
	switch s.rnd.IntN(9) {
	case 0, 1, 2:
		if svc == nil {
			s.made++
			svc = object(k, ports(list()...), age(s.made/2), pickOne(s.rnd, four, prefer, require))
			svc.UID = types.UID(fmt.Sprint(k, s.made))
			s.services[k] = svc
		}
	case 3:
		if svc != nil {
			delete(s.services, k)
		}
	case 4:
		if svc != nil {
			ports(list()...)(svc)
		}
	case 5:
		if svc != nil {
			pickOne(s.rnd, four, prefer, require)(svc)
		}
	case 6:
		if svc != nil {
			svc.Annotations = map[string]string{}
			if s.rnd.IntN(2) == 0 {
				annotated("addresses", s.address())(svc)
			}
			if s.rnd.IntN(2) == 0 {
				annotated("shared-with", key()+","+key())(svc)
			}
			if s.rnd.IntN(4) == 0 {
				annotated("pool", pickOne(s.rnd, "p", "q"))(svc)
			}
		}
	case 7:
		a := netip.MustParseAddr(s.address())
		if claim, ok := s.claims[a]; ok && claim.Pod != "" {
			delete(s.claims, a)
		} else if !ok {
			s.claims[a] = service.Claim{Pod: "a pod"}
		} else if _, taken := s.taken[a]; taken {
			delete(s.taken, a)
		} else {
			s.taken[a] = "a node"
		}
	case 8:
		s.pools = nil
		for _, name := range []string{"p", "q"} {
			if s.rnd.IntN(4) == 0 {
				continue
			}
			p := pool(name, pickOne(s.rnd, "", "team!=evil"), pickOne(s.rnd, "2001:db8:80::/122", "2001:db8:80::/123", "2001:db8:80::8/125"), "203.0.113.0/29")
			p.Service = s.rnd.IntN(5) > 0
			p.Services.Sharing = pickOne(s.rnd, v1alpha1.SharingNone, v1alpha1.SharingNamespace, v1alpha1.SharingPool)
			s.pools = append(s.pools, p)
		}
	}
}

// step decides and carries out some of it: claims first, then statuses, then what is to be
// released, as the controller does.
func (s *simulation) step(all bool) {
	w := s.world()
	decisions := service.Assign(w)
	for key, svc := range s.services {
		s.check(w, svc, decisions[service.Parse(svc).Key])
		_ = key
	}
	for key, svc := range s.services {
		if !all && s.rnd.IntN(3) == 0 {
			continue
		}
		parsed := service.Parse(svc)
		d := decisions[parsed.Key]
		ok := true
		for _, h := range d.Holdings {
			c := s.claims[h.Addr]
			if c.Pod != "" {
				ok = false
				continue
			}
			share := service.Share{Key: parsed.Key, UID: svc.UID, Ports: h.Ports}
			i := slices.IndexFunc(c.Services, func(x service.Share) bool { return x.UID == svc.UID })
			for _, other := range c.Services {
				if other.UID != svc.UID && slices.ContainsFunc(h.Ports, func(p service.Port) bool { return slices.Contains(other.Ports, p) }) {
					s.t.Fatalf("%s and %s are to have the same port of %s", key, other.Key, h.Addr)
				}
			}
			c.Services = slices.Clone(c.Services)
			if i < 0 {
				c.Services = append(c.Services, share)
			} else {
				c.Services[i] = share
			}
			s.claims[h.Addr] = c
		}
		if ok && (all || s.rnd.IntN(3) > 0) {
			svc.Status.LoadBalancer.Ingress = service.Ingress(d.Holdings)
		}
	}
	for a, c := range s.claims {
		if c.Pod != "" || !all && s.rnd.IntN(3) == 0 {
			continue
		}
		c.Services = slices.DeleteFunc(slices.Clone(c.Services), func(x service.Share) bool {
			svc := s.services[x.Key.String()]
			return svc == nil || svc.UID != x.UID || !slices.ContainsFunc(service.Held(svc), func(h service.Holding) bool { return h.Addr == a }) &&
				!slices.ContainsFunc(decisions[x.Key].Holdings, func(h service.Holding) bool { return h.Addr == a })
		})
		s.claims[a] = c
		if len(c.Services) == 0 {
			delete(s.claims, a)
		}
	}
	type at struct {
		netip.Addr
		service.Port
	}
	holders := map[at]string{}
	for key, svc := range s.services {
		for _, h := range service.Held(svc) {
			for _, p := range h.Ports {
				if other := holders[at{h.Addr, p}]; other != "" {
					s.t.Fatalf("port %s of %s is that of %s and of %s", p, h.Addr, other, key)
				}
				holders[at{h.Addr, p}] = key
			}
		}
	}
}

// check holds a decision against the rules, as docs/services.md has them.
func (s *simulation) check(w service.World, svc *corev1.Service, d service.Decision) {
	s.t.Helper()
	parsed := service.Parse(svc)
	key := parsed.Key
	before := service.Held(svc)
	had := func(a netip.Addr) bool {
		return slices.ContainsFunc(before, func(h service.Holding) bool { return h.Addr == a }) ||
			slices.ContainsFunc(w.Claims[a].Services, func(x service.Share) bool { return x.UID == svc.UID })
	}
	families := map[bool]int{}
	for _, h := range d.Holdings {
		families[h.Addr.Is4()]++
		if c := w.Claims[h.Addr]; c.Pod != "" {
			s.t.Fatalf("%s is to have %s, which a pod has", key, h.Addr)
		}
		if had(h.Addr) {
			continue
		}
		if w.Taken[h.Addr] != "" || w.Ranges[0].Prefix.Contains(h.Addr) {
			s.t.Fatalf("%s is to have %s, which is taken", key, h.Addr)
		}
		longest, granted := -1, false
		for _, p := range w.Pools {
			if c, ok := p.Covering(h.Addr); ok && c.Bits() >= longest {
				if c.Bits() > longest {
					granted = false
				}
				longest = c.Bits()
				granted = granted || p.Service && p.Namespaces.Matches(labels.Set{"team": key.Namespace})
			}
		}
		if !granted {
			s.t.Fatalf("%s is to have %s, which no pool grants", key, h.Addr)
		}
		for otherKey, other := range s.services {
			if other == svc || !slices.ContainsFunc(service.Held(other), func(x service.Holding) bool { return x.Addr == h.Addr }) {
				continue
			}
			here := strings.Contains(svc.Annotations[v1alpha1.ServiceSharedWithAnnotation], otherKey)
			there := strings.Contains(other.Annotations[v1alpha1.ServiceSharedWithAnnotation], key.String())
			if svc.Namespace != other.Namespace && (!here || !there) {
				s.t.Fatalf("%s is to share %s with %s: they do not both agree", key, h.Addr, otherKey)
			}
		}
	}
	if families[true] > 1 || families[false] > 1 {
		s.t.Fatalf("%s is to have %v", key, d.Holdings)
	}
	for _, h := range before {
		kept := slices.ContainsFunc(d.Holdings, func(x service.Holding) bool { return x.Addr == h.Addr })
		wantsFamily := slices.ContainsFunc(parsed.Families, func(f corev1.IPFamily) bool { return (f == corev1.IPv4Protocol) == h.Addr.Is4() })
		asks := svc.Annotations[v1alpha1.ServiceAddressesAnnotation] != "" || svc.Annotations[v1alpha1.ServicePoolAnnotation] != ""
		shared := len(w.Claims[h.Addr].Services) > 1 || len(d.Lost) > 0
		if !kept && wantsFamily && !asks && !shared && w.Claims[h.Addr].Pod == "" {
			s.t.Fatalf("%s loses %s for nothing: %+v", key, h.Addr, d)
		}
	}
	if d.Complete != (len(d.Holdings) == len(parsed.Families) || len(d.Holdings) > 0 && parsed.Policy == corev1.IPFamilyPolicyPreferDualStack) {
		s.t.Fatalf("%s: %+v of %v %v", key, d, parsed.Policy, parsed.Families)
	}
	if d.Message == "" || d.Reason == "" {
		s.t.Fatalf("%s: no reason: %+v", key, d)
	}
}
