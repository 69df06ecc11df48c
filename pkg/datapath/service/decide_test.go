package service

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

var (
	v4, v6   = netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8:5::7")
	podA4    = netip.MustParseAddr("10.244.1.10")
	podA6    = netip.MustParseAddr("2001:db8:100:1::a")
	podB4    = netip.MustParseAddr("10.244.1.11")
	remote4  = netip.MustParseAddr("10.244.2.20")
	httpPort = Port{Name: "http", Protocol: 6, Number: 80, TargetNumber: 8080}
	dnsPort  = Port{Name: "dns", Protocol: 17, Number: 53, TargetName: "dns"}
)

// local is a Service with the policy Local, that is served by a pod that is Ready.
func local() Facts {
	return Facts{
		Service:   &Service{Ref: Ref{"shop", "web"}, Ports: []Port{httpPort}, Selector: map[string]string{"app": "web"}, External: Local},
		Address:   Address{Addr: v4, Kind: LoadBalancer},
		Node:      Node{Known: true},
		Pods:      []Pod{{Name: "a", Addrs: []netip.Addr{podA6, podA4}, Ready: pod.Ready}},
		PodsKnown: true, SlicesKnown: true, ProxyKnown: true, Mode: proxy.NFTables,
		Rules: rules("web", v4, httpPort, podA4),
	}
}

// rules are kube-proxy's for a port of a Service of namespace shop.
func rules(name string, addr netip.Addr, port Port, here ...netip.Addr) map[proxy.Key]proxy.Rule {
	r := proxy.Rule{Translated: true}
	for _, a := range here {
		r.Here = append(r.Here, netip.AddrPortFrom(a, 8080))
	}
	return map[proxy.Key]proxy.Rule{(&Service{Ref: Ref{"shop", name}}).key(port, addr): r}
}

// cluster is a Service with the policy Cluster, that is served by a pod of another node.
func cluster() Facts {
	f := local()
	svc := *f.Service
	svc.External = Cluster
	f.Service = &svc
	f.Pods = nil
	f.Rules = rules("web", v4, httpPort)
	f.Slices = []Slice{{Ports: []string{"http"}, Endpoints: []Endpoint{{Addr: remote4, Ready: true, Pod: "remote"}}}}
	return f
}

// selectorless is a Service with the policy Local whose EndpointSlices others make.
func selectorless() Facts {
	f := local()
	svc := *f.Service
	svc.Selector = nil
	f.Service = &svc
	f.Pods = nil
	f.Slices = []Slice{{Ports: []string{"http"}, Endpoints: []Endpoint{{Addr: podA4, Ready: true, Here: true}}}}
	return f
}

// fresh is local, of whose pod kube-proxy does not know yet.
func fresh() Facts {
	f := local()
	svc := *f.Service
	svc.Plain = true
	f.Service, f.Rules = &svc, nil
	f.Pods[0].UID, f.Pods[0].Selected = "a", true
	f.New = func(uid pod.UID, _ proxy.Key) (time.Time, bool) { return then, uid == "a" }
	return f
}

// translated is an announcement with connections that flock translates.
func translated(ports string, i Interim) Decision {
	return Decision{Announce: true, Reason: Serving, Interim: i, Detail: "flock translates " + ports + " until kube-proxy does"}
}

// lost is what follows where kube-proxy would drop what comes.
var lost = Decision{Reason: NotProgrammed, Detail: "kube-proxy has no rule for tcp port 80 yet", Elsewhere: true}

var notProgrammed = Decision{Reason: NotProgrammed, Detail: "kube-proxy has no rule for tcp port 80 yet"}

func target(p Port) proxy.Target { return proxy.Target{Addr: v4, Protocol: p.Protocol, Port: p.Number} }

func podA(port uint16) Translation { return Translation{netip.AddrPortFrom(podA4, port), then} }

func stale(pod.UID, proxy.Key) bool { return true }

var then = time.Unix(2000, 0)

func TestDecide(t *testing.T) {
	t.Parallel()
	published := func(f *Facts) {
		svc := *f.Service
		svc.PublishNotReady = true
		f.Service = &svc
	}
	for _, tc := range []struct {
		name   string
		from   func() Facts
		change func(*Facts)
		want   Decision
	}{
		{"local: a pod is Ready", local, func(*Facts) {}, Decision{Announce: true, Reason: Serving}},
		{"local: not Ready", local, func(f *Facts) { f.Pods[0].Ready, f.Pods[0].Detail = pod.NotReady, "probe" },
			Decision{Reason: LocalEndpointNotReady, Detail: "pod a: probe", Elsewhere: true}},
		{"local: not Ready, whatever kube-proxy has and however it was", local, func(f *Facts) { f.Pods[0].Ready, f.Announced = pod.NotReady, true },
			Decision{Reason: LocalEndpointNotReady, Detail: "pod a", Elsewhere: true}},
		{"local: terminating", local, func(f *Facts) { f.Pods[0].Terminating = true }, Decision{Reason: LocalEndpointTerminating, Detail: "pod a", Elsewhere: true}},
		{"local: the only endpoint of the cluster terminates", local, func(f *Facts) { f.Pods[0].Terminating, f.Rules = true, nil }, Decision{Reason: LocalEndpointTerminating, Detail: "pod a"}},
		{"local: one terminates, another is Ready", local, func(f *Facts) {
			f.Pods = append(f.Pods, Pod{Name: "b", Addrs: []netip.Addr{podB4}, Ready: pod.Ready, Terminating: true})
		}, Decision{Announce: true, Reason: Serving}},
		{"local: the Ready one is not programmed, the one that terminates is", local, func(f *Facts) {
			f.Pods = append(f.Pods, Pod{Name: "b", Addrs: []netip.Addr{podB4}, Ready: pod.Ready, Terminating: true})
			f.Rules = rules("web", v4, httpPort, podB4)
		}, Decision{Reason: NotProgrammed, Detail: "kube-proxy has no rule for tcp port 80 yet"}},
		{"local: the Ready one is not programmed, the one that was is not Ready any more", local, func(f *Facts) {
			f.Pods = append(f.Pods, Pod{Name: "b", Addrs: []netip.Addr{podB4}, Ready: pod.NotReady})
			f.Rules = rules("web", v4, httpPort, podB4)
		}, lost},
		{"local: no pod", local, func(f *Facts) { f.Pods = nil }, Decision{Reason: NoLocalEndpoint, Elsewhere: true}},
		{"local: no endpoint anywhere", local, func(f *Facts) { f.Pods, f.Rules = nil, nil }, Decision{Reason: NoLocalEndpoint}},
		{"local: Ready, kube-proxy has no rule", local, func(f *Facts) { f.Rules = nil }, Decision{Reason: NotProgrammed, Detail: "kube-proxy has no rule for tcp port 80 yet"}},
		{"local: Ready, kube-proxy knows of endpoints elsewhere only", local, func(f *Facts) { f.Rules = rules("web", v4, httpPort) }, lost},
		{"local: kube-proxy has the rule of policy Cluster still", local, func(f *Facts) {
			f.Rules = map[proxy.Key]proxy.Rule{f.Service.key(httpPort, v4): {Translated: true, Anywhere: true}}
			f.Announced = true
		}, Decision{Announce: true, Reason: Serving}},
		{"local: the same, and it was not announced", local, func(f *Facts) {
			f.Rules = map[proxy.Key]proxy.Rule{f.Service.key(httpPort, v4): {Translated: true, Anywhere: true}}
		}, notProgrammed},
		{"local: one port is programmed, of another kube-proxy knows endpoints elsewhere only", local, func(f *Facts) {
			svc := *f.Service
			svc.Ports = []Port{httpPort, {Name: "more", Protocol: 6, Number: 81}}
			f.Service = &svc
			maps.Copy(f.Rules, rules("web", v4, svc.Ports[1]))
		}, Decision{Reason: NotProgrammed, Detail: "kube-proxy has no rule for tcp port 81 yet", Elsewhere: true}},
		{"interim: Ready, and kube-proxy cannot know yet", fresh, func(*Facts) {}, translated("tcp port 80", Interim{target(httpPort): podA(8080)})},
		{"interim: kube-proxy has the rule", fresh, func(f *Facts) { f.Rules = rules("web", v4, httpPort, podA4) }, Decision{Announce: true, Reason: Serving}},
		{"interim: kube-proxy knows of endpoints elsewhere only", fresh, func(f *Facts) { f.Rules = rules("web", v4, httpPort) }, translated("tcp port 80", Interim{target(httpPort): podA(8080)})},
		{"interim: kube-proxy has another pod of the node", fresh, func(f *Facts) {
			f.Rules = rules("web", v4, httpPort, podB4)
			f.Pods = append(f.Pods, Pod{UID: "b", Name: "b", Addrs: []netip.Addr{podB4}, Ready: pod.Ready})
		}, Decision{Announce: true, Reason: Serving}},
		{"interim: kube-proxy knows the pod, and has no rule any more", fresh, func(f *Facts) { f.New = func(pod.UID, proxy.Key) (time.Time, bool) { return time.Time{}, false } }, notProgrammed},
		{"interim: not Ready", fresh, func(f *Facts) { f.Pods[0].Ready = pod.NotReady }, Decision{Reason: LocalEndpointNotReady, Detail: "pod a"}},
		{"interim: terminating", fresh, func(f *Facts) { f.Pods[0].Terminating = true }, Decision{Reason: LocalEndpointTerminating, Detail: "pod a"}},
		{"interim: there is no kube-proxy", fresh, func(f *Facts) { f.Mode = proxy.None }, Decision{Reason: ProxyMissing, Detail: "the kernel has no rules of kube-proxy"}},
		{"interim: session affinity, or source ranges", fresh, func(f *Facts) { f.Service.Plain = false }, notProgrammed},
		{"interim: published all the same", fresh, func(f *Facts) { f.Service.PublishNotReady = true }, notProgrammed},
		{"interim: of the host's network", fresh, func(f *Facts) { f.Pods[0].HostNetwork = true }, notProgrammed},
		{"interim: an external IP", fresh, func(f *Facts) { f.Address.Kind = ExternalIP }, notProgrammed},
		{"interim: a ClusterIP", fresh, func(f *Facts) { f.Address.Kind, f.Service.Internal = ClusterIP, Local }, notProgrammed},
		{"interim: policy Cluster", fresh, func(f *Facts) {
			f.Service.External = Cluster
			f.Slices = []Slice{{Ports: []string{"http"}, Endpoints: []Endpoint{{Addr: podA4, Ready: true, Pod: "a", Here: true}}}}
		}, notProgrammed},
		{"interim: a port by its name, of the right protocol", fresh, func(f *Facts) {
			f.Service.Ports = []Port{dnsPort}
			f.Pods[0].Ports = []PodPort{{"dns", 6, 5300}, {"dns", 17, 5301}}
		}, translated("udp port 53", Interim{target(dnsPort): podA(5301)})},
		{"interim: two ports of the name", fresh, func(f *Facts) {
			f.Service.Ports = []Port{dnsPort}
			f.Pods[0].Ports = []PodPort{{"dns", 17, 5300}, {"dns", 17, 5301}}
		}, Decision{Reason: NotProgrammed, Detail: "kube-proxy has no rule for udp port 53 yet"}},
		{"interim: one port of two is programmed", fresh, func(f *Facts) {
			f.Service.Ports = []Port{httpPort, dnsPort}
			f.Pods[0].Ports = []PodPort{{"dns", 17, 53}}
			f.Rules = rules("web", v4, dnsPort, podA4)
		}, translated("tcp port 80", Interim{target(httpPort): podA(8080)})},
		{"interim: SCTP", fresh, func(f *Facts) { f.Service.Ports = []Port{{Protocol: 132, Number: 80, TargetNumber: 8080}} },
			translated("sctp port 80", Interim{{Addr: v4, Protocol: 132, Port: 80}: podA(8080)})},
		{"interim: another Service at the address has the port", fresh, func(f *Facts) { f.Clashes = func(Port) bool { return true } }, notProgrammed},
		{"interim: kube-proxy's rule was there before", fresh, func(f *Facts) {
			f.Rules, f.Stale = rules("web", v4, httpPort, podA4), stale
		}, translated("tcp port 80", Interim{target(httpPort): podA(8080)})},
		{"interim: kube-proxy's rule was there before, and flock may not translate", fresh, func(f *Facts) {
			f.Rules, f.Stale, f.Service.Plain = rules("web", v4, httpPort, podA4), stale, false
		}, Decision{Announce: true, Reason: Serving}},
		{"interim: what else is not known decides", fresh, func(f *Facts) { f.Address.Undecided = NamespaceUnknown }, Decision{Reason: NamespaceUnknown}},
		{"local: Ready, of the other family", local, func(f *Facts) { f.Pods[0].Addrs = f.Pods[0].Addrs[:1] },
			Decision{Reason: NoLocalEndpoint, Detail: "pod a has no address of this family, or no port of the name that the Service wants", Elsewhere: true}},
		{"local: IPv6", local, func(f *Facts) { f.Address.Addr, f.Rules = v6, rules("web", v6, httpPort, podA6) }, Decision{Announce: true, Reason: Serving}},
		{"local: without endpoint slices", local, func(f *Facts) { f.SlicesKnown = false }, Decision{Announce: true, Reason: Serving}},
		{"local: kube-proxy is unhealthy and the node takes no pods", local, func(f *Facts) { f.Node.ProxyUnhealthy, f.Node.NotServing = "x", "y" }, Decision{Announce: true, Reason: Serving}},
		{"local: not Ready, published all the same", local, func(f *Facts) { published(f); f.Pods[0].Ready = pod.NotReady }, Decision{Announce: true, Reason: Serving}},
		{"local: terminating, published all the same", local, func(f *Facts) { published(f); f.Pods[0].Terminating = true }, Decision{Announce: true, Reason: Serving}},
		{"local: a port of a name that no pod has", local, func(f *Facts) {
			svc := *f.Service
			svc.Ports = []Port{httpPort, dnsPort}
			f.Service = &svc
		}, Decision{Announce: true, Reason: Serving}},
		{"local: a second port is not programmed", local, func(f *Facts) {
			svc := *f.Service
			svc.Ports = []Port{httpPort, dnsPort}
			f.Service, f.Pods[0].Ports = &svc, []PodPort{{"dns", 17, 53}}
		}, Decision{Reason: NotProgrammed, Detail: "kube-proxy has no rule for udp port 53 yet"}},
		{"local: a second port is added to what is announced", local, func(f *Facts) {
			svc := *f.Service
			svc.Ports = []Port{httpPort, dnsPort}
			f.Service, f.Pods[0].Ports, f.Announced = &svc, []PodPort{{"dns", 17, 53}}, true
		}, Decision{Announce: true, Reason: Serving}},
		{"local: no pods are known yet", local, func(f *Facts) { f.Pods, f.PodsKnown = nil, false }, Decision{Reason: EndpointsUnknown}},
		{"local: no pods are known yet, an earlier agent announced", local, func(f *Facts) { f.Pods, f.PodsKnown, f.Announced = nil, false, true },
			Decision{Announce: true, Reason: Kept, Detail: "EndpointsUnknown"}},
		{"local: the kubelet has just started", local, func(f *Facts) { f.Pods[0].Ready, f.Announced = pod.Unknown, true }, Decision{Announce: true, Reason: Kept, Detail: "EndpointsUnknown"}},
		{"local: the rules were not read yet", local, func(f *Facts) { f.Rules, f.ProxyKnown = nil, false }, Decision{Reason: ProxyUnknown}},
		{"local: the rules were not read yet, an earlier agent announced", local, func(f *Facts) { f.Rules, f.ProxyKnown, f.Announced = nil, false, true },
			Decision{Announce: true, Reason: Kept, Detail: "ProxyUnknown"}},
		{"local: somebody flushes the rules", local, func(f *Facts) { f.Rules, f.Mode, f.Announced = nil, proxy.None, true }, Decision{Reason: ProxyMissing, Detail: "the kernel has no rules of kube-proxy"}},

		{"selectorless: an endpoint is here", selectorless, func(*Facts) {}, Decision{Announce: true, Reason: Serving}},
		{"selectorless: its slice names no node, kube-proxy knows", selectorless, func(f *Facts) { f.Slices[0].Endpoints[0].Here = false }, Decision{Announce: true, Reason: Serving}},
		{"selectorless: not ready", selectorless, func(f *Facts) { f.Slices[0].Endpoints[0].Ready = false }, Decision{Reason: NoLocalEndpoint, Elsewhere: true}},
		{"selectorless: elsewhere", selectorless, func(f *Facts) { f.Slices[0].Endpoints[0] = Endpoint{Addr: remote4, Ready: true} }, Decision{Reason: NoLocalEndpoint, Elsewhere: true}},
		{"selectorless: kube-proxy knows of endpoints elsewhere only", selectorless, func(f *Facts) { f.Rules = rules("web", v4, httpPort) }, lost},
		{"selectorless: not programmed", selectorless, func(f *Facts) { f.Rules = nil }, Decision{Reason: NotProgrammed, Detail: "kube-proxy has no rule for tcp port 80 yet"}},
		{"selectorless: slices are not known, kube-proxy knows", selectorless, func(f *Facts) { f.Slices, f.SlicesKnown = nil, false }, Decision{Announce: true, Reason: Serving}},
		{"selectorless: nothing is known", selectorless, func(f *Facts) { f.Slices, f.SlicesKnown, f.ProxyKnown, f.Rules = nil, false, false, nil }, Decision{Reason: EndpointsUnknown}},

		{"cluster: an endpoint elsewhere", cluster, func(*Facts) {}, Decision{Announce: true, Reason: Serving}},
		{"cluster: not ready", cluster, func(f *Facts) { f.Slices[0].Endpoints[0].Ready = false }, Decision{Reason: NoEndpoint}},
		{"cluster: none, whatever kube-proxy has and however it was", cluster, func(f *Facts) { f.Slices, f.Announced = nil, true }, Decision{Reason: NoEndpoint}},
		{"cluster: of another port", cluster, func(f *Facts) { f.Slices[0].Ports[0] = "metrics" }, Decision{Reason: NoEndpoint}},
		{"cluster: of the other family", cluster, func(f *Facts) { f.Slices[0].Endpoints[0].Addr = podA6 }, Decision{Reason: NoEndpoint}},
		{"cluster: not programmed", cluster, func(f *Facts) { f.Rules = nil }, Decision{Reason: NotProgrammed, Detail: "kube-proxy has no rule for tcp port 80 yet"}},
		{"cluster: slices are not known", cluster, func(f *Facts) { f.Slices, f.SlicesKnown = nil, false }, Decision{Reason: EndpointsUnknown}},
		{"cluster: slices are not known, an earlier agent announced", cluster, func(f *Facts) { f.Slices, f.SlicesKnown, f.Announced = nil, false, true },
			Decision{Announce: true, Reason: Kept, Detail: "EndpointsUnknown"}},
		{"cluster: the only one is a pod of this node that is not Ready any more", cluster, func(f *Facts) {
			f.Slices[0].Endpoints[0] = Endpoint{Addr: podA4, Ready: true, Here: true, Pod: "a"}
			f.Gone = func(uid pod.UID) bool { return uid == "a" }
		}, Decision{Reason: NoEndpoint}},
		{"cluster: kube-proxy is unhealthy", cluster, func(f *Facts) { f.Node.ProxyUnhealthy = "stuck" }, Decision{Reason: ProxyUnhealthy, Detail: "stuck"}},
		{"cluster: the node takes no pods", cluster, func(f *Facts) { f.Node.NotServing = "no session" }, Decision{Reason: NodeNotServing, Detail: "no session"}},

		{"the node departs", local, func(f *Facts) { f.Node.Departing, f.Announced = "drained", true }, Decision{Reason: NodeDeparting, Detail: "drained"}},
		{"the node is excluded", cluster, func(f *Facts) { f.Node.Excluded = true }, Decision{Reason: NodeExcluded}},
		{"the node is not known", cluster, func(f *Facts) { f.Node = Node{} }, Decision{Reason: EndpointsUnknown}},
		{"the kind is not announced", cluster, func(f *Facts) { f.Address.Refused, f.Address.Detail = NotAnnounced, "spec" }, Decision{Reason: NotAnnounced, Detail: "spec"}},
		{"a pod holds it", cluster, func(f *Facts) { f.Taken = "dns/a" }, Decision{Reason: AddressInUse, Detail: "pod dns/a holds it"}},
		{"a ClusterIP goes by the internal policy", local, func(f *Facts) {
			f.Address.Kind = ClusterIP
			f.Slices = []Slice{{Ports: []string{"http"}, Endpoints: []Endpoint{{Addr: remote4, Ready: true}}}}
			f.Pods = nil
		}, Decision{Announce: true, Reason: Serving}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := tc.from()
			tc.change(&f)
			if got := Decide(f); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%+v\nwant %+v", got, tc.want)
			}
		})
	}
}

// Of any facts: what has no rule of kube-proxy's, or no endpoint that is Ready, is announced
// only while something is unknown and it was before.
func FuzzDecide(f *testing.F) {
	for i := range uint32(500) {
		f.Add(i*2654435761, i*2246822519)
	}
	f.Fuzz(func(t *testing.T, bits, more uint32) {
		next := func() bool {
			b := bits&1 != 0
			bits = bits>>1 | more<<31
			more >>= 1
			return b
		}
		facts := local()
		if next() {
			facts = cluster()
		} else if next() {
			facts = selectorless()
		}
		facts.Announced, facts.PodsKnown, facts.SlicesKnown, facts.ProxyKnown, facts.Node.Known = next(), next(), next(), next(), next()
		if next() {
			facts.Rules = nil
		}
		if next() {
			facts.Rules = rules("web", v4, httpPort)
		}
		if next() {
			facts.Mode = proxy.None
		}
		if next() {
			facts.Node.Departing = "x"
		}
		facts.Node.Excluded = next()
		for i := range facts.Pods {
			facts.Pods[i].Terminating = next()
			facts.Pods[i].Ready = []pod.Readiness{pod.Unknown, pod.NotReady, pod.Ready, pod.Ready}[b2i(next())+2*b2i(next())]
		}
		for _, s := range facts.Slices {
			s.Endpoints[0].Ready = next()
		}
		isNew := next()
		facts.New = func(pod.UID, proxy.Key) (time.Time, bool) { return then, isNew }
		isStale := next()
		facts.Stale = func(pod.UID, proxy.Key) bool { return isStale }
		svc := *facts.Service
		svc.Plain = next()
		facts.Service = &svc
		d := Decide(facts)
		if len(d.Interim) > 0 && (!d.Announce || d.Reason != Serving || !isNew || !svc.Plain || svc.External != Local || facts.Pods[0].Ready != pod.Ready || facts.Pods[0].Terminating) {
			t.Errorf("%+v for %+v", d, facts)
		}
		if d.Announce != (d.Reason == Serving || d.Reason == Kept) {
			t.Errorf("%+v", d)
		}
		if d.Reason == Kept && !facts.Announced {
			t.Errorf("kept, but it was not announced: %+v", facts)
		}
		everythingKnown := facts.PodsKnown && facts.SlicesKnown && facts.ProxyKnown && facts.Node.Known &&
			(len(facts.Pods) == 0 || facts.Pods[0].Ready != pod.Unknown)
		if d.Reason == Kept && everythingKnown {
			t.Errorf("kept, but all is known: %+v", facts)
		}
		if !d.Announce {
			return
		}
		if facts.Node.Departing != "" || facts.Node.Excluded {
			t.Errorf("announced by a node that departs or is excluded: %+v", facts)
		}
		if d.Reason == Serving && (len(facts.Rules) == 0 && len(d.Interim) == 0 || facts.Mode == proxy.None) {
			t.Errorf("announced without a rule: %+v", facts)
		}
		if len(facts.Pods) > 0 && d.Reason == Serving && facts.serves(facts.Pods[0]) != true {
			t.Errorf("announced for a pod that does not serve: %+v", facts)
		}
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func ExampleDecide() {
	f := local()
	f.Pods[0].Ready, f.Pods[0].Detail = pod.NotReady, "ContainersNotReady"
	d := Decide(f)
	fmt.Println(d.Announce, d.Reason, d.Detail)
	// Output: false LocalEndpointNotReady pod a: ContainersNotReady
}
