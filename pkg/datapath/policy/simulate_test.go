package policy_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 is another one each time")

// maker prints its seed, to have the same again with -seed.
func maker(t testing.TB) policytest.Maker {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("random seed %d", s)
	return policytest.Maker{Rand: rand.New(rand.NewPCG(s, 0))}
}

// A scene is a world that changes, with an Index that follows it.
type scene struct {
	policytest.World
	m      policytest.Maker
	x      *policy.Index
	logged []string // namespaces
	n      int      // objects made so far
	slots  int      // how many links the node has; 0 is as many as there are pods
}

func newScene(m policytest.Maker) *scene {
	return &scene{m: m, x: policy.NewIndex(), World: policytest.World{Namespaces: m.Namespaces(), Nodes: m.Nodes()}}
}

// fill takes the whole world into the Index.
func (s *scene) fill() {
	for _, n := range s.Namespaces {
		s.x.SetNamespace(*n)
	}
	for _, p := range s.Pods {
		s.x.SetPod(*p)
	}
	for _, n := range s.Nodes {
		s.x.SetNode(*n)
	}
	for _, np := range s.NetworkPolicies {
		s.x.SetNetworkPolicy(np)
	}
	for _, cnp := range s.ClusterNetworkPolicies {
		s.x.SetClusterNetworkPolicy(cnp)
	}
}

// Input is the world for [policy.Compile].
func (s *scene) Input() policy.Input {
	in := s.World.Input()
	in.Logged = s.logged
	return in
}

// addPod adds a pod of this node or of another. Where links are few, it is of another
// if none is free.
func (s *scene) addPod(local bool) *policy.Pod {
	p := s.pod()
	switch slot := s.freeSlot(); {
	case local && s.slots == 0:
		p.Links = []string{fmt.Sprintf("flock%08x", s.n)}
	case local && slot >= 0:
		p.Links, p.Addrs = []string{fmt.Sprintf("flock%08x", slot)}, policytest.PodAddrs(slot)
	case s.m.IntN(8) == 0:
		p.HostNetwork, p.Addrs = true, policytest.Outside[0][:1:1]
		p.Addrs = append(p.Addrs, policytest.Outside[1][0])
	default:
		p.Addrs = policytest.PodAddrs(100 + s.n)
	}
	if s.m.IntN(8) == 0 {
		p.Addrs = append(p.Addrs, policytest.PodAddrs(anycast)...)
	}
	s.n++
	s.Pods = append(s.Pods, p)
	return p
}

// pod is one in a namespace that is there.
func (s *scene) pod() *policy.Pod {
	p := s.m.Pod(s.n)
	if !slices.ContainsFunc(s.Namespaces, func(n *policy.Namespace) bool { return n.Name == p.Namespace }) {
		p.Namespace = s.Namespaces[0].Name
	}
	return p
}

// anycast is the number of the pod, which is none, with addresses that others share.
const anycast = 1000

func (s *scene) freeSlot() int {
	for i := range s.slots {
		if !slices.ContainsFunc(s.Pods, func(p *policy.Pod) bool { return slices.Contains(p.Links, fmt.Sprintf("flock%08x", i)) }) {
			return i
		}
	}
	return -1
}

func (s *scene) addPolicy() *networkingv1.NetworkPolicy {
	np := s.m.NetworkPolicy(s.n)
	s.n++
	s.NetworkPolicies = append(s.NetworkPolicies, np)
	return np
}

func (s *scene) addClusterPolicy() *policyv1beta1.ClusterNetworkPolicy {
	cnp := s.m.ClusterNetworkPolicy(s.n)
	s.n++
	s.ClusterNetworkPolicies = append(s.ClusterNetworkPolicies, cnp)
	return cnp
}

// change changes one thing in the world, and in the Index. What is changed is made
// new, as caches do it.
func (s *scene) change() {
	if s.m.IntN(12) == 0 {
		s.logged = nil
		for _, n := range s.Namespaces {
			if s.m.IntN(3) == 0 {
				s.logged = append(s.logged, n.Name)
			}
		}
		s.x.SetLogged(s.logged...)
	}
	i := s.m.IntN(max(1, len(s.Pods)))
	replace := func(f func(*policy.Pod)) {
		p := *s.Pods[i]
		f(&p)
		s.Pods[i] = &p
		s.x.SetPod(p)
	}
	switch kind := s.m.IntN(19); {
	case kind == 15 && len(s.Pods) > 0:
		// Another pod of the same name, as of a StatefulSet; the kubelet and the API server
		// report the end of the old one and the new one in either order.
		old := *s.Pods[i]
		p := old
		p.UID, p.Labels = fmt.Sprint("uid", s.n), s.m.PodLabels()
		s.n++
		s.Pods[i] = &p
		if s.m.IntN(2) == 0 {
			s.x.SetPod(p)
			s.x.DeletePod(old.Namespace, old.Name, old.UID)
			s.x.SetPod(p)
		} else {
			s.x.DeletePod(old.Namespace, old.Name, old.UID)
			s.x.SetPod(p)
		}
	case kind == 16:
		// A namespace goes when it has no pods any more, and comes again; policies may be late.
		name := s.m.Namespaces()[s.m.IntN(3)].Name
		used := slices.ContainsFunc(s.Pods, func(p *policy.Pod) bool { return p.Namespace == name })
		if j := slices.IndexFunc(s.Namespaces, func(n *policy.Namespace) bool { return n.Name == name }); j >= 0 && len(s.Namespaces) > 1 && !used {
			s.Namespaces = slices.Delete(slices.Clone(s.Namespaces), j, j+1)
			s.x.DeleteNamespace(name)
		} else if j < 0 {
			n := &policy.Namespace{Name: name, Labels: s.m.NamespaceLabels(name)}
			s.Namespaces = append(s.Namespaces, n)
			s.x.SetNamespace(*n)
		}
	case kind == 17 && len(s.NetworkPolicies) > 0:
		// Deleted, and created again at once.
		j := s.m.IntN(len(s.NetworkPolicies))
		old := s.NetworkPolicies[j]
		np := s.m.NetworkPolicy(0)
		np.Namespace, np.Name = old.Namespace, old.Name
		s.NetworkPolicies[j] = np
		s.x.DeletePolicy(policy.PolicyRef{Namespace: old.Namespace, Name: old.Name})
		s.x.SetNetworkPolicy(np)
	case kind == 18 && len(s.Pods) > 0:
		// A pod that takes the address of one that has gone.
		if p := s.Pods[i]; len(p.Links) == 0 {
			other := s.pod()
			s.n++
			other.Addrs = p.Addrs
			s.Pods[i] = other
			s.x.DeletePod(p.Namespace, p.Name, p.UID)
			s.x.SetPod(*other)
		}
	case kind == 0 || len(s.Pods) < 4:
		s.x.SetPod(*s.addPod(s.m.IntN(2) == 0))
	case kind == 1 && len(s.Pods) > 8:
		p := s.Pods[i]
		s.Pods = slices.Delete(s.Pods, i, i+1)
		s.x.DeletePod(p.Namespace, p.Name, p.UID)
	case kind == 2:
		replace(func(p *policy.Pod) { p.Labels = s.m.PodLabels() })
	case kind == 3:
		replace(func(p *policy.Pod) { p.Ports = s.m.PodPorts() })
	case kind == 4:
		replace(func(p *policy.Pod) { p.Finished = !p.Finished && s.m.IntN(3) == 0 })
	case kind == 5:
		replace(func(p *policy.Pod) {
			p.Addrs = slices.Concat(p.Addrs[:2:2], policytest.PodAddrs(anycast)[:s.m.IntN(3)])
		})
	case kind == 6:
		i := s.m.IntN(len(s.Namespaces))
		n := *s.Namespaces[i]
		n.Labels = s.m.NamespaceLabels(n.Name)
		s.Namespaces[i] = &n
		s.x.SetNamespace(n)
	case kind == 12:
		i := s.m.IntN(len(s.Nodes))
		s.Nodes[i] = s.m.Nodes()[i]
		s.x.SetNode(*s.Nodes[i])
	case kind == 13 && len(s.ClusterNetworkPolicies) > 0:
		i := s.m.IntN(len(s.ClusterNetworkPolicies))
		old := s.ClusterNetworkPolicies[i]
		if s.m.IntN(2) == 0 {
			s.ClusterNetworkPolicies = slices.Delete(s.ClusterNetworkPolicies, i, i+1)
			s.x.DeletePolicy(policy.PolicyRef{Name: old.Name})
			break
		}
		cnp := s.m.ClusterNetworkPolicy(0)
		cnp.Name, cnp.Spec.Priority = old.Name, old.Spec.Priority
		s.ClusterNetworkPolicies[i] = cnp
		s.x.SetClusterNetworkPolicy(cnp)
	case kind >= 12 && len(s.ClusterNetworkPolicies) < 4:
		s.x.SetClusterNetworkPolicy(s.addClusterPolicy())
	case kind <= 8 || len(s.NetworkPolicies) < 3:
		s.x.SetNetworkPolicy(s.addPolicy())
	case kind == 9 || len(s.NetworkPolicies) > 25:
		i := s.m.IntN(len(s.NetworkPolicies))
		np := s.NetworkPolicies[i]
		s.NetworkPolicies = slices.Delete(s.NetworkPolicies, i, i+1)
		s.x.DeletePolicy(policy.PolicyRef{Namespace: np.Namespace, Name: np.Name})
	default:
		i := s.m.IntN(len(s.NetworkPolicies))
		np := s.m.NetworkPolicy(0)
		np.Namespace, np.Name = s.NetworkPolicies[i].Namespace, s.NetworkPolicies[i].Name
		if s.m.IntN(2) == 0 {
			np.Spec.PodSelector = s.NetworkPolicies[i].Spec.PodSelector
		}
		s.NetworkPolicies[i] = np
		s.x.SetNetworkPolicy(np)
	}
}

// packet makes one between two pods, or a pod and the world outside.
func (s *scene) packet() (p policytest.Packet, inLink, outLink string) {
	family := s.m.IntN(2)
	end := func() (*policy.Pod, policytest.Packet, string) {
		i := s.m.IntN(len(s.Pods) + 2)
		if i >= len(s.Pods) {
			return nil, policytest.Packet{Src: policytest.Outside[family][i-len(s.Pods)]}, ""
		}
		pod := s.Pods[i]
		addr := pod.Addrs[family]
		if len(pod.Addrs) > 2+family && s.m.IntN(3) == 0 {
			addr = pod.Addrs[2+family]
		}
		if len(pod.Links) == 0 {
			return nil, policytest.Packet{Src: addr}, ""
		}
		return pod, policytest.Packet{Src: addr}, pod.Links[0]
	}
	from, src, inLink := end()
	to, dst, outLink := end()
	p = policytest.Packet{From: from, To: to, Src: src.Src, Dst: dst.Src, Protocol: s.m.Protocol(family == 1)}
	switch p.Protocol {
	case 6, 17, 132:
		p.Port = policytest.Ports[s.m.IntN(len(policytest.Ports))]
	}
	return p, inLink, outLink
}

func (s *scene) check(t *testing.T, packets int) {
	t.Helper()
	for range packets {
		p, in, out := s.packet()
		want := policytest.Allowed(&s.World, p)
		if got := policy.Simulate(s.x.Ruleset(), in, out, p.Src, p.Dst, p.Protocol, p.Port); got != want {
			t.Fatalf("packet %s %+v %s: passes %v, want %v", in, p, out, got, want)
		}
		if got, why := s.explain(p); got != want {
			t.Fatalf("packet %+v: explained as %v by %+v, want %v", p, got, why, want)
		}
	}
}

// explain is what Explain says of a packet's ends on this node.
func (s *scene) explain(p policytest.Packet) (allowed bool, why []policy.Verdict) {
	var questions []policy.Question
	ask := func(pod *policy.Pod, d policy.Direction, peer netip.Addr) {
		if pod != nil && p.From != p.To {
			questions = append(questions, policy.Question{
				Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Direction: d, Peer: peer, Protocol: p.Protocol, Port: p.Port,
			})
		}
	}
	ask(p.From, policy.Egress, p.Dst)
	ask(p.To, policy.Ingress, p.Src)
	why = s.x.Explain(questions...)
	return !slices.ContainsFunc(why, func(v policy.Verdict) bool { return !v.Allowed }), why
}

// The compiled ruleset decides as the reference does, whatever the world is.
func TestCompileAgainstReference(t *testing.T) {
	t.Parallel()
	m := maker(t)
	for range 150 {
		s := newScene(m)
		for range 4 + m.IntN(12) {
			s.addPod(m.IntN(2) == 0)
		}
		for range m.IntN(16) {
			s.addPolicy()
		}
		for range m.IntN(5) {
			s.addClusterPolicy()
		}
		s.fill()
		s.x.Flush()
		s.check(t, 100)
	}
}

// An Index that followed changes has what Compile makes of the same world from
// nothing, and its changes lead from one ruleset to the next.
func TestIncrementalIsCompile(t *testing.T) {
	t.Parallel()
	m := maker(t)
	for range 10 {
		s := newScene(m)
		s.fill()
		mirror := policy.NewMirror()
		for i := range 100 {
			for range 1 + m.IntN(3) {
				s.change()
			}
			if err := mirror.Apply(s.x.Flush()); err != nil {
				t.Fatalf("change %d: %v", i, err)
			}
			want, findings := policy.Compile(s.Input())
			if d := s.x.Ruleset().Diff(want); d != "" {
				t.Fatalf("after change %d the index and a compilation differ: %s", i, d)
			}
			if d := mirror.Diff(want); d != "" {
				t.Fatalf("change %d does not lead to the ruleset: %s", i, d)
			}
			if got := s.x.Findings(); !slices.Equal(got, findings) {
				t.Fatalf("findings %v, want %v", got, findings)
			}
			s.check(t, 30)
		}
	}
}
