package service

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// script drives a State, and has what the kernel has come to by it.
type script struct {
	*State
	t      *testing.T
	now    time.Time
	kernel map[netip.Prefix]Entry
	log    []string // transitions
	rules  proxy.Look
	// refuses: the kernel announces nothing that it does not announce already.
	refuses bool
}

func newScript(t *testing.T, kernel map[netip.Prefix]Entry) *script {
	if kernel == nil {
		kernel = map[netip.Prefix]Entry{}
	}
	return &script{State: NewState(kernel, nil), t: t, now: time.Unix(1000, 0), kernel: kernel, rules: proxy.Look{Mode: proxy.NFTables, At: map[proxy.Key]proxy.Rule{}}}
}

// do applies events, and checks that what changes is the whole difference.
func (s *script) do(events ...Event) {
	s.t.Helper()
	s.Tick(s.now)
	s.Apply(s.now, s.now, events...)
	want, transitions := s.Wanted()
	for p, e := range want {
		switch {
		case e == (Entry{}):
			delete(s.kernel, p)
		case s.refuses && e.Announced && !s.kernel[p].Announced: // and is asked again, as Routes does
			s.kernel[p] = Entry{Local: e.Local}
		default:
			s.kernel[p] = e
		}
	}
	if s.refuses {
		s.Confirm(s.now, s.kernel)
		return
	}
	for p, e := range s.Desired() { // what it had refused
		s.kernel[p] = e
	}
	s.Confirm(s.now, s.kernel)
	if all := s.Desired(); !maps.Equal(all, s.kernel) {
		s.t.Errorf("changes made %v, desired is %v", s.kernel, all)
	}
	for _, tr := range transitions {
		word := "withdraw"
		if tr.Announced {
			word = "announce"
		}
		s.log = append(s.log, fmt.Sprintf("%s %v for %v: %s", word, tr.Addr, tr.Service, tr.Reason))
	}
}

// wait lets time pass.
func (s *script) wait(d time.Duration) {
	s.t.Helper()
	s.now = s.now.Add(d)
	s.do()
}

// program has kube-proxy's rules lead from an address to endpoints of the node, or to none,
// as those of Service web.
func (s *script) program(addr netip.Addr, here ...netip.Addr) {
	s.t.Helper()
	s.programPort("web", addr, httpPort, here...)
}

func (s *script) programPort(name string, addr netip.Addr, port Port, here ...netip.Addr) {
	s.t.Helper()
	at := maps.Clone(s.rules.At)
	now := rules(name, addr, port, here...)
	for key := range now { // the kernel has one for each address and port
		maps.DeleteFunc(at, func(k proxy.Key, _ proxy.Rule) bool { return k.Target == key.Target })
	}
	maps.Copy(at, now)
	s.rules = proxy.Look{Mode: proxy.NFTables, At: at}
	s.looked()
}

func (s *script) looked() {
	s.t.Helper()
	asked := map[proxy.Key]bool{}
	for _, q := range s.Questions() {
		asked[q.Key] = q.Here
	}
	s.do(Looked{asked, s.rules})
}

func (s *script) want(what string, want ...string) {
	s.t.Helper()
	var have []string
	for p, e := range s.kernel {
		have = append(have, fmt.Sprintf("%v %v", p, e))
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		s.t.Errorf("%s: the kernel has %q, want %q", what, have, want)
	}
}

func (s *script) wantLog(want ...string) {
	s.t.Helper()
	slices.Sort(s.log)
	slices.Sort(want)
	if !slices.Equal(s.log, want) {
		s.t.Errorf("transitions %q, want %q", s.log, want)
	}
	s.log = nil
}

func (s *script) reason(addr netip.Addr, service string) (all string) {
	for _, p := range s.Paths() {
		if p.Addr == addr && p.Service.Name == service {
			return strings.TrimSpace(string(p.Reason) + " " + p.Detail)
		}
	}
	return "no such path"
}

func web(name string, policy Policy, addrs ...netip.Addr) *Service {
	svc := &Service{Ref: Ref{"shop", name}, Ports: []Port{httpPort}, Selector: map[string]string{"app": name}, External: policy}
	for _, a := range addrs {
		svc.Addresses = append(svc.Addresses, Address{Addr: a, Kind: LoadBalancer})
	}
	return svc
}

func report(name string, ready pod.Readiness, labels map[string]string, addrs ...netip.Addr) PodReported {
	return PodReported{PodReport{
		Ref: pod.Ref{Namespace: "shop", Name: name, UID: pod.UID(name)}, Labels: labels, Addrs: addrs, Ready: ready,
		Containers: []Container{{Name: "main", ID: "id-" + name}},
	}}
}

var (
	appWeb  = map[string]string{"app": "web"}
	fit     = NodeChanged{Node{Known: true}}
	healthy = []Event{fit, Slices{}}
)

func TestLocalFollowsReadiness(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{web("web", Local, v4, v6)}}, PodsSynced{})
	s.want("no pod", v4.String()+"/32 local", v6.String()+"/128 local")
	s.do(report("a", pod.Ready, appWeb, podA4, podA6))
	s.want("no rule", v4.String()+"/32 local", v6.String()+"/128 local")
	s.program(v4, podA4)
	s.want("a rule for one family", v4.String()+"/32 announced", v6.String()+"/128 local")
	s.program(v6, podA6)
	s.want("Ready", v4.String()+"/32 announced", v6.String()+"/128 announced")
	s.wantLog("announce 203.0.113.7 for shop/web: Serving", "announce 2001:db8:5::7 for shop/web: Serving")
	for what, e := range map[string]Event{
		"NotReady": report("a", pod.NotReady, appWeb, podA4, podA6), "exit": Exited{"id-a"},
		"another label": report("a", pod.Ready, map[string]string{"app": "db"}, podA4, podA6),
	} {
		if what == "another label" {
			// kube-proxy still has the pod: its EndpointSlice says so.
			s.do(e)
			s.want(what, v4.String()+"/32 announced", v6.String()+"/128 announced")
			s.program(v4)
			s.program(v6)
			s.want(what+", and kube-proxy knows", v4.String()+"/32 local", v6.String()+"/128 local")
			s.do(report("a", pod.Ready, appWeb, podA4, podA6))
			s.program(v4, podA4)
			s.program(v6, podA6)
		} else {
			s.do(e)
			s.want(what, v4.String()+"/32 local", v6.String()+"/128 local")
			s.do(report("a", pod.Ready, appWeb, podA4, podA6))
			if what == "exit" { // that report does not know of it
				s.want(what, v4.String()+"/32 local", v6.String()+"/128 local")
				again := report("a", pod.Ready, appWeb, podA4, podA6)
				again.Containers = []Container{{Name: "main", ID: "id-a2"}}
				s.do(again)
				again.Containers[0].ID = "id-a"
			}
		}
		s.want("after "+what, v4.String()+"/32 announced", v6.String()+"/128 announced")
	}
	// A kubelet that starts does not know, which changes nothing.
	s.do(report("a", pod.Unknown, appWeb, podA4, podA6))
	s.want("unknown", v4.String()+"/32 announced", v6.String()+"/128 announced")
	// A deletion is final.
	s.do(PodDeleting{"a"})
	s.do(report("a", pod.Ready, appWeb, podA4, podA6))
	s.want("deleting", v4.String()+"/32 local", v6.String()+"/128 local")
	if got := s.reason(v4, "web"); got != "LocalEndpointTerminating pod a" {
		t.Errorf("reason %s", got)
	}
	s.do(PodGone{"a"})
	s.log = nil
	s.do(Services{})
	s.want("deleted", v4.String()+"/32 local", v6.String()+"/128 local")
	s.wait(LingerTime)
	s.want("long after")
}

// What a pod of the namespace knows, and its Service does not select, does not matter.
func TestOthersPodsDoNotMatter(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{web("web", Local, v4)}}, PodsSynced{})
	other := report("b", pod.Ready, appWeb, podB4)
	other.Namespace = "elsewhere"
	s.do(other, report("c", pod.Ready, map[string]string{"app": "db"}, podA4))
	s.program(v4)
	s.want("others", v4.String()+"/32 local")
	if got := s.reason(v4, "web"); got != "NoLocalEndpoint" {
		t.Errorf("reason %s", got)
	}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(fit, Services{All: []*Service{web("web", Cluster, v4)}}, PodsSynced{})
	s.program(v4)
	s.want("slices are not known", v4.String()+"/32 local")
	ready := func(eps ...Endpoint) Slices {
		return Slices{Of: map[Ref][]Slice{{"shop", "web"}: {{Ports: []string{"http"}, Endpoints: eps}}}}
	}
	s.do(ready(Endpoint{Addr: remote4, Ready: true}))
	s.want("elsewhere", v4.String()+"/32 announced")
	s.do(NodeChanged{Node{Known: true, ProxyUnhealthy: "stuck"}})
	s.want("unhealthy", v4.String()+"/32 local")
	s.do(fit)
	s.want("healthy", v4.String()+"/32 announced")
	s.do(ready(Endpoint{Addr: remote4}))
	s.want("no endpoint", v4.String()+"/32 local")
	s.do(report("a", pod.Ready, appWeb, podA4), ready(Endpoint{Addr: podA4, Ready: true, Here: true, Pod: "a"}))
	s.want("here", v4.String()+"/32 announced")
	s.do(report("a", pod.NotReady, appWeb, podA4))
	s.want("here, and not Ready by the kubelet", v4.String()+"/32 local")
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.want("again", v4.String()+"/32 announced")
	s.do(PodGone{"a"})
	s.want("gone by the kubelet", v4.String()+"/32 local")
}

// Missing information changes nothing.
func TestStart(t *testing.T) {
	t.Parallel()
	host, announced := v4.String()+"/32", Entry{Announced: true, Local: true}
	s := newScript(t, map[netip.Prefix]Entry{netip.MustParsePrefix(host): announced, netip.MustParsePrefix("198.51.100.1/32"): announced})
	s.want("at the start", host+" announced", "198.51.100.1/32 announced")
	s.do(NodeChanged{}, Slices{})
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.want("Services are not known", host+" announced", "198.51.100.1/32 announced")
	s.do(Services{All: []*Service{web("web", Local, v4)}})
	s.want("what nothing accounts for", host+" announced", "198.51.100.1/32 local")
	if got := s.reason(v4, "web"); got != "Kept EndpointsUnknown" {
		t.Errorf("reason %s", got)
	}
	s.do(fit)
	if got := s.reason(v4, "web"); got != "Kept ProxyUnknown" {
		t.Errorf("reason %s", got)
	}
	s.do(PodsSynced{All: []pod.UID{"a"}})
	s.program(v4, podA4)
	s.want("all is known", host+" announced", "198.51.100.1/32 local")
	if got := s.reason(v4, "web"); got != "Serving" {
		t.Errorf("reason %s", got)
	}
	s.wantLog()
	s.wait(LingerTime)
	s.want("long after", host+" announced")
}

// While it is not known whether a pool admits an external IP, what the kernel has stays, as
// long as the node can serve it.
func TestUndecided(t *testing.T) {
	t.Parallel()
	undecided := func(policy Policy) *Service {
		svc := web("web", policy, v4, v6)
		for i := range svc.Addresses {
			svc.Addresses[i].Kind, svc.Addresses[i].Undecided = ExternalIP, NamespaceUnknown
		}
		return svc
	}
	s := newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
	s.do(fit, Services{All: []*Service{undecided(Local)}}, PodsSynced{}, report("a", pod.Ready, appWeb, podA4, podA6))
	s.program(v4, podA4)
	s.program(v6, podA6)
	s.wait(LingerTime)
	s.want("undecided", v4.String()+"/32 announced")
	if got := s.reason(v4, "web") + ", " + s.reason(v6, "web"); got != "Kept NamespaceUnknown, NamespaceUnknown" {
		t.Errorf("reasons %s", got)
	}
	s.do(report("a", pod.NotReady, appWeb, podA4, podA6))
	s.want("not Ready", v4.String()+"/32 local")
	s.do(report("a", pod.Ready, appWeb, podA4, podA6))
	s.want("Ready again", v4.String()+"/32 local")
	s.do(Services{All: []*Service{web("web", Local, v4, v6)}})
	s.want("admitted", v4.String()+"/32 announced", v6.String()+"/128 announced")
	refused := web("web", Local, v4, v6)
	for i := range refused.Addresses {
		refused.Addresses[i].Refused = NotAdmitted
	}
	s.do(Services{All: []*Service{refused}})
	s.want("not admitted")
}

// One address of two Services is announced by nodes that can serve both.
func TestShared(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	dns := web("dns", Local, v4)
	dns.Ports = []Port{{Name: "dns", Protocol: 17, Number: 53}}
	s.do(Services{All: []*Service{web("web", Local, v4), dns}}, PodsSynced{})
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.program(v4, podA4)
	s.want("the other has no endpoint anywhere", v4.String()+"/32 announced")
	s.programPort("dns", v4, dns.Ports[0])
	s.want("the other has endpoints elsewhere", v4.String()+"/32 local")
	if got := s.reason(v4, "web"); got != "SharedBlocked Service shop/dns: NoLocalEndpoint" {
		t.Errorf("reason %s", got)
	}
	s.do(report("b", pod.Ready, map[string]string{"app": "dns"}, podB4))
	s.programPort("dns", v4, dns.Ports[0], podB4)
	s.want("both", v4.String()+"/32 announced")
	s.do(Services{All: []*Service{dns}})
	s.want("one is gone", v4.String()+"/32 announced")
}

// While kube-proxy would drop what comes for one of two Services, because it does not know their
// pod yet, the address is not announced for the other, for which flock translates meanwhile.
func TestSharedWithOneThatFlockMayNotTranslate(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	api := web("api", Local, v4) // it has session affinity
	api.Selector, api.Ports = appWeb, []Port{{Name: "https", Protocol: 6, Number: 443, TargetNumber: 8443}}
	s.do(Services{All: []*Service{plain(v4), api}}, PodsSynced{})
	s.programPort("web", v4, httpPort)
	s.programPort("api", v4, api.Ports[0])
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.want("Ready", v4.String()+"/32 local")
	s.wantInterim("Ready", nil)
	if got, want := s.reason(v4, "web"), "SharedBlocked Service shop/api: NotProgrammed"; got != want {
		t.Errorf("reason %q, want %q", got, want)
	}
	s.wantLog()
	s.programPort("api", v4, api.Ports[0], podA4)
	s.want("kube-proxy has the pod for the one", v4.String()+"/32 announced")
	s.programPort("web", v4, httpPort, podA4)
	s.wantLog("announce 203.0.113.7 for shop/web: Serving", "announce 203.0.113.7 for shop/api: Serving")
	// Without endpoints on other nodes, kube-proxy refuses what comes.
	s.do(report("a", pod.NotReady, appWeb, podA4))
	s.wait(2 * InterimTime)
	s.rules.At = nil
	s.looked()
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.want("no endpoint elsewhere", v4.String()+"/32 announced")
}

// Of a Service whose traffic policy becomes Local kube-proxy has the rules of before for a while. They
// lead to endpoints of all nodes, so nothing is withdrawn where a pod is Ready.
func TestPolicyBecomesLocal(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{web("web", Cluster, v4)}}, PodsSynced{}, report("a", pod.Ready, appWeb, podA4))
	s.do(Slices{Of: map[Ref][]Slice{{"shop", "web"}: {{Ports: []string{"http"}, Endpoints: []Endpoint{{Addr: podA4, Ready: true, Here: true, Pod: "a"}}}}}})
	s.program(v4)
	s.wait(10 * time.Minute)
	s.want("Cluster", v4.String()+"/32 announced")
	s.do(Services{All: []*Service{plain(v4)}})
	s.want("Local, and the endpoints on the node were not asked for", v4.String()+"/32 announced")
	key := plain(v4).key(httpPort, v4)
	s.rules = proxy.Look{Mode: proxy.NFTables, At: map[proxy.Key]proxy.Rule{key: {Translated: true, Anywhere: true}}}
	s.looked()
	s.want("kube-proxy does not know yet", v4.String()+"/32 announced")
	s.do(report("a", pod.NotReady, appWeb, podA4))
	s.want("not Ready", v4.String()+"/32 local")
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.program(v4, podA4)
	s.want("kube-proxy knows", v4.String()+"/32 announced")
	s.wait(10 * time.Minute)
	s.log = nil
	s.program(v4)
	s.want("and knows of no endpoint here", v4.String()+"/32 local")
}

// A pod that was gone for its source is like any other once it is back.
func TestPodThatComesBack(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(fit, Services{All: []*Service{web("web", Cluster, v4)}}, PodsSynced{}, report("a", pod.Ready, appWeb, podA4))
	s.do(Slices{Of: map[Ref][]Slice{{"shop", "web"}: {{Ports: []string{"http"}, Endpoints: []Endpoint{{Addr: podA4, Ready: true, Here: true, Pod: "a"}}}}}})
	s.program(v4)
	s.do(PodGone{"a"})
	s.want("gone", v4.String()+"/32 local")
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.want("back", v4.String()+"/32 announced")
	s.do(PodDeleting{"a"})
	s.want("deleting", v4.String()+"/32 local")
}

// A pool that is aggregated is announced as a whole, while a node announces an address in it.
func TestAggregate(t *testing.T) {
	t.Parallel()
	pool := netip.MustParsePrefix("203.0.113.0/28")
	in := func(svc *Service) *Service {
		svc.Addresses[0].Aggregate = pool
		return svc
	}
	other := netip.MustParseAddr("203.0.113.8")
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{in(web("web", Local, v4)), in(web("db", Cluster, other))}}, PodsSynced{})
	s.want("none", "203.0.113.7/32 local", "203.0.113.8/32 local", "203.0.113.0/28 local")
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.program(v4, podA4)
	s.want("Local", "203.0.113.7/32 announced", "203.0.113.8/32 local", "203.0.113.0/28 announced")
	s.do(report("a", pod.NotReady, appWeb, podA4))
	s.programPort("db", other, httpPort)
	s.do(Slices{Of: map[Ref][]Slice{{"shop", "db"}: {{Ports: []string{"http"}, Endpoints: []Endpoint{{Addr: remote4, Ready: true}}}}}})
	s.want("Cluster", "203.0.113.7/32 local", "203.0.113.8/32 local", "203.0.113.0/28 announced")
	// The pool is not aggregated any more.
	s.do(Services{All: []*Service{web("web", Local, v4), web("db", Cluster, other)}})
	s.looked()
	s.want("no aggregate", "203.0.113.7/32 local", "203.0.113.8/32 announced", "203.0.113.0/28 announced")
	s.wait(overlapTime)
	s.want("routers have the address", "203.0.113.7/32 local", "203.0.113.8/32 announced", "203.0.113.0/28 local")
	s.wait(LingerTime)
	s.want("long after", "203.0.113.7/32 local", "203.0.113.8/32 announced")
}

// What an address is announced by changes, whatever it was and is: by both until the kernel has the
// new one and routers can have followed, over a start of the agent too, and by none once the node
// does not serve.
func TestOtherPrefix(t *testing.T) {
	t.Parallel()
	host, narrow, wide := hostPrefix(v4), netip.MustParsePrefix("203.0.113.0/28"), netip.MustParsePrefix("203.0.113.0/24")
	type form struct {
		aggregate netip.Prefix
		policy    Policy
	}
	forms := []form{{policy: Cluster}, {policy: Local}, {narrow, Cluster}, {narrow, Local}, {wide, Cluster}, {wide, Local}}
	announced := func(s *script) (all []netip.Prefix) {
		for p, e := range s.kernel {
			if e.Announced {
				all = append(all, p)
			}
		}
		slices.SortFunc(all, netip.Prefix.Compare)
		return all
	}
	by := func(all ...form) (prefixes []netip.Prefix) {
		for _, f := range all {
			if f.aggregate.IsValid() {
				prefixes = append(prefixes, f.aggregate)
			}
			if !f.aggregate.IsValid() || f.policy == Local {
				prefixes = append(prefixes, host)
			}
		}
		slices.SortFunc(prefixes, netip.Prefix.Compare)
		return slices.Compact(prefixes)
	}
	event := func(f form) Event {
		svc := web("web", f.policy, v4)
		svc.Addresses[0].Aggregate = f.aggregate
		return Services{All: []*Service{svc}}
	}
	know := func(s *script) {
		s.do(report("a", pod.Ready, appWeb, podA4), PodsSynced{All: []pod.UID{"a"}})
		s.do(Slices{Of: map[Ref][]Slice{{"shop", "web"}: {{Ports: []string{"http"}, Endpoints: []Endpoint{{Addr: podA4, Here: true, Ready: true}}}}}})
		s.program(v4, podA4)
	}
	for _, from := range forms {
		for _, to := range forms {
			if from == to {
				continue
			}
			check := func(s *script, what string, want []netip.Prefix) {
				t.Helper()
				if got := announced(s); !slices.Equal(got, want) {
					t.Errorf("%v to %v, %s: announced %v, want %v", from, to, what, got, want)
				}
			}
			serving := func() *script {
				s := newScript(t, nil)
				s.do(healthy...)
				s.do(event(from))
				know(s)
				check(s, "before", by(from))
				return s
			}
			s := serving()
			s.log = nil
			s.do(event(to))
			s.looked()
			check(s, "at once", by(from, to))
			s.wait(overlapTime - 1)
			check(s, "for a while", by(from, to))
			s.do(event(to)) // what changes nothing does not make it longer
			s.wait(1)
			check(s, "then", by(to))
			s.wantLog()

			s = serving()
			s.do(event(to))
			s.looked()
			s.do(report("a", pod.NotReady, appWeb, podA4), Slices{Of: map[Ref][]Slice{{"shop", "web"}: {}}})
			check(s, "it does not serve any more", nil)

			s = serving()
			s.refuses = true
			s.do(event(to))
			s.looked()
			s.wait(10 * overlapTime)
			if len(by(from, to)) > len(by(from)) { // something is to be announced
				check(s, "the kernel refuses", by(from))
				s.refuses = false
				s.do()
				check(s, "the kernel does not refuse any more", by(from, to))
			}
			s.refuses = false
			s.wait(overlapTime)
			check(s, "then", by(to))

			// The agent does not run meanwhile.
			s = newScript(t, serving().kernel)
			s.do(NodeChanged{Node{Known: true}}, Slices{Names: map[string]bool{}})
			s.do(event(to))
			check(s, "after a start", by(from, to))
			know(s)
			check(s, "all is known", by(from, to))
			s.wait(overlapTime)
			check(s, "long after the start", by(to))
		}
	}
}

// A Service that gets the address of another one is announced once kube-proxy's rules are its
// own, and not while they lead to the pods of the other.
func TestReusedAddress(t *testing.T) {
	t.Parallel()
	for _, policy := range []Policy{Local, Cluster} {
		s := newScript(t, nil)
		s.do(fit, PodsSynced{}, Slices{Of: map[Ref][]Slice{{"shop", "db"}: {{Ports: []string{"http"}, Endpoints: []Endpoint{{Addr: podB4, Ready: true, Here: true}}}}}})
		s.do(Services{All: []*Service{web("web", Local, v4)}}, report("a", pod.Ready, appWeb, podA4))
		s.program(v4, podA4)
		s.want("the first", v4.String()+"/32 announced")
		s.do(Services{All: []*Service{web("db", policy, v4)}}, report("b", pod.Ready, map[string]string{"app": "db"}, podB4))
		s.want("the second, before a look", v4.String()+"/32 local")
		s.looked()
		s.want("the second, by the rules of the first", v4.String()+"/32 local")
		if got := s.reason(v4, "db"); got != "NotProgrammed kube-proxy has no rule for tcp port 80 yet" {
			t.Errorf("reason %s", got)
		}
		s.programPort("db", v4, httpPort, podB4)
		s.want("the second", v4.String()+"/32 announced")
		// An external IP of two Services is that of the one that kube-proxy serves.
		s.do(Services{All: []*Service{web("db", policy, v4), web("web", Local, v4)}})
		s.looked()
		s.want("both", v4.String()+"/32 announced")
		if got := s.reason(v4, "web"); got != "NotProgrammed kube-proxy has no rule for tcp port 80 yet" {
			t.Errorf("reason %s", got)
		}
	}
}

// A pod's address is the pod's: neither route nor guard is in its way.
func TestTaken(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{web("web", Local, v4)}}, PodsSynced{}, report("a", pod.Ready, appWeb, podA4))
	s.program(v4, podA4)
	s.do(Held{By: map[netip.Addr]string{v4: "dns/x"}})
	s.want("taken")
	s.wantLog("announce 203.0.113.7 for shop/web: Serving", "withdraw 203.0.113.7 for shop/web: AddressInUse")
	s.do(Held{})
	s.want("free", v4.String()+"/32 announced")
}

func TestRefused(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	svc := web("web", Local, v4)
	svc.Addresses[0].Refused = NotAnnounced
	s.do(Services{All: []*Service{svc}})
	s.want("refused")
	if len(s.Questions()) > 0 || svc.NeedSlices() {
		t.Error("something is asked about what is refused")
	}
}
