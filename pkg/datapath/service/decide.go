package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Reason says in one word why a node does or does not announce an address. Status, metrics
// and log use the same word.
type Reason string

const (
	// Serving: announced. The node can serve the address.
	Serving Reason = "Serving"
	// Kept: announced, because it was when the agent started, and something that the
	// decision needs is not known yet.
	Kept Reason = "Kept"

	// NotAnnounced: spec.services.announce of the NodeConfig does not name the kind.
	NotAnnounced Reason = "NotAnnounced"
	// NotAdmitted: no AddressPool admits the external IP for the Service.
	NotAdmitted Reason = "NotAdmitted"
	// NamespaceUnknown: the labels of the Service's namespace, by which AddressPools admit
	// it, are not known yet.
	NamespaceUnknown Reason = "NamespaceUnknown"
	// AddressInUse: a pod holds the address.
	AddressInUse Reason = "AddressInUse"
	// NodeExcluded: the Node has the label node.kubernetes.io/exclude-from-external-load-balancers.
	NodeExcluded Reason = "NodeExcluded"
	// NodeDeparting: the node is about to leave the network.
	NodeDeparting Reason = "NodeDeparting"
	// NodeNotServing: the node does not take pods yet.
	NodeNotServing Reason = "NodeNotServing"
	// ProxyUnhealthy: kube-proxy says that it cannot keep its rules up to date.
	ProxyUnhealthy Reason = "ProxyUnhealthy"
	// ProxyUnknown: the kernel's rules could not be read yet.
	ProxyUnknown Reason = "ProxyUnknown"
	// ProxyMissing: the kernel has no rules of kube-proxy.
	ProxyMissing Reason = "ProxyMissing"
	// NotProgrammed: an endpoint is Ready, but kube-proxy has not made the rules yet.
	NotProgrammed Reason = "NotProgrammed"
	// NoLocalEndpoint: the traffic policy is Local, and the node has no pod of the Service.
	NoLocalEndpoint Reason = "NoLocalEndpoint"
	// LocalEndpointNotReady: it has pods, and none is Ready.
	LocalEndpointNotReady Reason = "LocalEndpointNotReady"
	// LocalEndpointTerminating: all that are Ready are being deleted.
	LocalEndpointTerminating Reason = "LocalEndpointTerminating"
	// NoEndpoint: the traffic policy is Cluster, and no node has a Ready endpoint.
	NoEndpoint Reason = "NoEndpoint"
	// EndpointsUnknown: pods or EndpointSlices have not been reported yet.
	EndpointsUnknown Reason = "EndpointsUnknown"
	// SharedBlocked: what comes for a Service that shares the address would reach none of its
	// endpoints: they are on other nodes only, or kube-proxy does not know the node's yet.
	SharedBlocked Reason = "SharedBlocked"
	// Deleted: the Service is gone, or does not have the address any more. Only in
	// transitions.
	Deleted Reason = "Deleted"
)

// Node is what decisions need of the node.
type Node struct {
	// Known: all below is known.
	Known bool
	// Excluded: the Node has the label that excludes it from load balancers.
	Excluded bool
	// Departing is why the node is about to leave the network; empty: it is not.
	Departing string
	// NotServing is why the node takes no pods yet; empty: it does.
	NotServing string
	// ProxyUnhealthy is what kube-proxy reports of itself; empty: nothing is wrong.
	ProxyUnhealthy string
	// Offline: the API server cannot be reached. So kube-proxy learns nothing of pods.
	Offline bool
}

// Facts are what a decision about one address of one Service depends on.
type Facts struct {
	Service *Service
	Address Address
	Node    Node
	// Taken is the pod that holds the address; empty: none.
	Taken string
	// Pods are those of the node that the Service selects, or that kube-proxy translates
	// connections to; PodsKnown: a source of pods has reported all.
	Pods      []Pod
	PodsKnown bool
	// Gone says of a pod of the node that it does not serve any more, whatever the slices
	// say.
	Gone func(pod.UID) bool
	// Slices are the Service's; SlicesKnown: they are all.
	Slices      []Slice
	SlicesKnown bool
	// Rules are kube-proxy's for the ports at the address; ProxyKnown: the kernel was
	// read since the Service is known.
	Rules      map[proxy.Key]proxy.Rule
	Mode       proxy.Mode
	ProxyKnown bool
	// Announced: the address is announced for this Service so far.
	Announced bool
	// New says of a pod that kube-proxy may not know yet that it is Ready, for the port that
	// is asked for by its key, and until when. Stale says of kube-proxy's rule that leads to
	// a pod that it may be about to go.
	New   func(pod.UID, proxy.Key) (until time.Time, is bool)
	Stale func(pod.UID, proxy.Key) bool
	// Led are the connections that flock translates so far.
	Led Interim
	// Clashes says whether another Service at the address has the port, too.
	Clashes func(Port) bool
	// Former are ports that the Service had while the address was announced. kube-proxy and
	// those who make EndpointSlices may not know of the present ones yet.
	Former []Port
}

// Pod is a pod of the node, as a decision sees it.
type Pod struct {
	UID   pod.UID
	Name  string
	Addrs []netip.Addr
	Ports []PodPort
	// HostNetwork: its addresses are the node's.
	HostNetwork bool
	// Selected: the Service selects it, by the labels that the agent knows.
	Selected bool
	// Ready is what the last report says that knew it.
	Ready       pod.Readiness
	Terminating bool
	// Detail is why it is not Ready.
	Detail string
}

// PodPort is a port of a pod that has a name.
type PodPort struct {
	Name     string
	Protocol byte // IANA's number
	Number   uint16
}

// has says whether the pod has the port that a Service's leads to.
func (p Pod) has(port Port) bool { return port.TargetName == "" || len(p.targets(port)) > 0 }

// targets are the numbers of the ports of the pod that a Service's may lead to.
func (p Pod) targets(port Port) (all []uint16) {
	if port.TargetName == "" {
		return []uint16{port.TargetNumber}
	}
	for _, own := range p.Ports {
		if own.Name == port.TargetName && own.Protocol == port.Protocol {
			all = append(all, own.Number)
		}
	}
	return all
}

// Decision is what follows from facts.
type Decision struct {
	Announce bool
	Reason   Reason
	// Detail explains the reason to people; often empty.
	Detail string
	// Elsewhere: connections that come to this node would be dropped, though the Service has
	// endpoints on other nodes.
	Elsewhere bool
	// Interim are the connections from outside that flock translates itself, because
	// kube-proxy does not yet.
	Interim Interim
	// Former: the node serves the ports that the Service had before, and not yet those that it has.
	Former bool
}

// Decide is the whole policy. An edit of a Service's ports changes nothing of what is announced
// until those who act by it have done so: until then the node serves the ports of before.
func Decide(f Facts) Decision {
	d := decide(f, false)
	switch {
	case d.Announce || !f.Announced || len(f.Former) == 0:
		return d
	case d.Reason != NotProgrammed && d.Reason != NoEndpoint && d.Reason != NoLocalEndpoint:
		return d
	}
	svc := *f.Service
	svc.Ports = slices.Concat(svc.Ports, f.Former)
	f.Service = &svc
	if former := decide(f, true); former.Announce {
		return Decision{Announce: true, Reason: Serving, Former: true, Interim: former.Interim, Detail: "the ports of before the last edit, until kube-proxy has those of now"}
	}
	return d
}

// decide is the policy: the first reason that holds. In the midst of an edit, one port may be served
// and another one be programmed.
func decide(f Facts, edit bool) Decision {
	no := func(r Reason, format string, args ...any) Decision {
		return Decision{Reason: r, Detail: fmt.Sprintf(format, args...)}
	}
	unknown := func(r Reason) Decision {
		if f.Announced {
			return Decision{Announce: true, Reason: Kept, Detail: string(r)}
		}
		return Decision{Reason: r}
	}
	policy := f.Service.policy(f.Address)
	switch {
	case f.Address.Refused != "":
		return Decision{Reason: f.Address.Refused, Detail: f.Address.Detail}
	case f.Taken != "":
		return no(AddressInUse, "pod %s holds it", f.Taken)
	case f.Node.Departing != "":
		return no(NodeDeparting, "%s", f.Node.Departing)
	case f.Node.Excluded:
		return no(NodeExcluded, "")
	case policy == Cluster && f.Node.NotServing != "":
		return no(NodeNotServing, "%s", f.Node.NotServing)
	case policy == Cluster && f.Node.ProxyUnhealthy != "":
		return no(ProxyUnhealthy, "%s", f.Node.ProxyUnhealthy)
	case !f.Node.Known:
		return unknown(EndpointsUnknown)
	}
	var d Decision
	var served []Port
	if policy == Local {
		served, d = f.servedHere()
	} else {
		served, d = f.servedAnywhere()
	}
	switch {
	case d.Reason == EndpointsUnknown:
		return unknown(d.Reason)
	case len(served) == 0:
		return d
	case !f.ProxyKnown:
		return unknown(ProxyUnknown)
	case f.Mode == proxy.None:
		return no(ProxyMissing, "the kernel has no rules of kube-proxy")
	}
	if edit {
		served = f.Service.Ports
	}
	var missing, translated []string
	elsewhere := false
	interim := Interim{}
	for _, p := range served {
		known, lasting := f.programmed(p, policy)
		if lasting {
			continue
		}
		name := fmt.Sprintf("%s port %d", protocolName(p.Protocol), p.Number)
		if to, ok := f.interim(p); ok {
			interim[f.Service.key(p, f.Address.Addr).Target] = to
			translated = append(translated, name)
		} else if !known {
			missing = append(missing, name)
			elsewhere = elsewhere || policy == Local && f.loses(p)
		}
	}
	// What is announced stays while a port works: a port that is added must not take the
	// others away.
	if len(missing) == len(served) || len(missing) > 0 && !f.Announced {
		if policy == Local && f.Service.Selector != nil && !f.PodsKnown { // it may have others
			return unknown(EndpointsUnknown)
		}
		d := no(NotProgrammed, "kube-proxy has no rule for %s yet", strings.Join(missing, ", "))
		d.Elsewhere = elsewhere
		return d
	}
	if f.Address.Undecided != "" {
		return unknown(f.Address.Undecided)
	}
	if len(interim) > 0 {
		return Decision{Announce: true, Reason: Serving, Interim: interim, Detail: "flock translates " + strings.Join(translated, ", ") + " until kube-proxy does"}
	}
	return Decision{Announce: true, Reason: Serving}
}

func protocolName(protocol byte) string {
	for name, number := range pod.Protocols {
		if number == protocol {
			return name
		}
	}
	return fmt.Sprint(protocol)
}

// serves says whether a pod gets new connections now.
func (f Facts) serves(p Pod) bool {
	return f.Service.PublishNotReady || p.Ready == pod.Ready && !p.Terminating
}

// servedHere are the ports for which the node has an endpoint that is Ready, and if there
// are none, why.
func (f Facts) servedHere() (served []Port, d Decision) {
	if f.Service.Selector == nil {
		return f.servedBySlices()
	}
	var mine []Pod
	for _, p := range f.Pods {
		if slices.ContainsFunc(p.Addrs, f.sameFamily) {
			mine = append(mine, p)
		}
	}
	for _, port := range f.Service.Ports {
		if slices.ContainsFunc(mine, func(p Pod) bool {
			return f.serves(p) && p.has(port)
		}) {
			served = append(served, port)
		}
	}
	if len(served) > 0 {
		return served, d
	}
	// A kubelet that has just started has not looked at its pods yet.
	if !f.PodsKnown || slices.ContainsFunc(mine, func(p Pod) bool { return p.Ready == pod.Unknown && !p.Terminating }) {
		return nil, Decision{Reason: EndpointsUnknown}
	}
	d = Decision{Reason: NoLocalEndpoint, Elsewhere: f.translatedAnyhow()}
	for _, p := range f.Pods {
		switch {
		case f.serves(p):
			d.Reason, d.Detail = NoLocalEndpoint, fmt.Sprintf("pod %s has no address of this family, or no port of the name that the Service wants", p.Name)
		case p.Ready == pod.Ready: // and terminating
			d.Reason, d.Detail = LocalEndpointTerminating, "pod "+p.Name
		case d.Reason != LocalEndpointTerminating:
			d.Reason, d.Detail = LocalEndpointNotReady, strings.TrimSuffix(fmt.Sprintf("pod %s: %s", p.Name, p.Detail), ": ")
		}
	}
	return nil, d
}

// servedBySlices is servedHere for a Service without a selector. While EndpointSlices are not
// known, kube-proxy's rules say the same.
func (f Facts) servedBySlices() (served []Port, d Decision) {
	for _, port := range f.Service.Ports {
		here := func(a netip.Addr) bool { return f.rule(port).IsHere(a) }
		switch {
		case !f.SlicesKnown && len(f.rule(port).Here) > 0:
			served = append(served, port)
		case f.hasReady(port, func(e Endpoint) bool { return e.Here || here(e.Addr) }):
			served = append(served, port)
		}
	}
	switch {
	case len(served) > 0:
	case !f.SlicesKnown && !f.ProxyKnown:
		d.Reason = EndpointsUnknown
	default:
		d = Decision{Reason: NoLocalEndpoint, Elsewhere: f.translatedAnyhow()}
	}
	return served, d
}

// servedAnywhere are the ports for which a node has an endpoint that is ready, and if there
// are none, why.
func (f Facts) servedAnywhere() (served []Port, d Decision) {
	if !f.SlicesKnown {
		return nil, Decision{Reason: EndpointsUnknown}
	}
	for _, port := range f.Service.Ports {
		if f.hasReady(port, func(Endpoint) bool { return true }) {
			served = append(served, port)
		}
	}
	return served, Decision{Reason: NoEndpoint}
}

// hasReady says whether an endpoint for a port is ready. What the node knows of its own pods is
// newer than what their slices say.
func (f Facts) hasReady(port Port, which func(Endpoint) bool) bool {
	for _, s := range f.Slices {
		if !slices.Contains(s.Ports, port.Name) {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Ready && f.sameFamily(e.Addr) && which(e) && !(e.Here && e.Pod != "" && f.Gone != nil && f.Gone(e.Pod)) {
				return true
			}
		}
	}
	return false
}

// rule is kube-proxy's for a port.
func (f Facts) rule(p Port) proxy.Rule { return f.Rules[f.Service.key(p, f.Address.Addr)] }

// programmed says whether kube-proxy translates connections to a port to an endpoint that is
// Ready, and whether it does so knowing that it is.
func (f Facts) programmed(port Port, policy Policy) (is, lasting bool) {
	rule := f.rule(port)
	switch {
	case policy == Cluster:
		is = rule.Translated
	case rule.Anywhere && f.Announced: // kube-proxy does not know yet that the policy is Local
		is = true
	case f.Service.Selector == nil && !f.SlicesKnown:
		is = len(rule.Here) > 0
	case f.Service.Selector == nil:
		is = f.hasReady(port, func(e Endpoint) bool { return rule.IsHere(e.Addr) })
	default:
		for _, p := range f.Pods {
			if f.serves(p) && slices.ContainsFunc(p.Addrs, rule.IsHere) {
				is = true
				lasting = lasting || f.Stale == nil || !f.Stale(p.UID, f.Service.key(port, f.Address.Addr))
			}
		}
		return is, lasting
	}
	return is, is
}

// translatedAnyhow says whether kube-proxy knows of endpoints, on whichever node.
func (f Facts) translatedAnyhow() bool {
	return slices.ContainsFunc(f.Service.Ports, func(p Port) bool { return f.rule(p).Translated })
}

// loses says whether kube-proxy knows of endpoints for a port, and connections that come to this
// node would reach none of them. Of a pod that is being deleted they reach one as long as it runs.
func (f Facts) loses(port Port) bool {
	rule := f.rule(port)
	if f.Service.Selector == nil {
		return rule.Translated && !rule.Anywhere && len(rule.Here) == 0
	}
	return rule.Translated && !rule.Anywhere && !slices.ContainsFunc(f.Pods, func(p Pod) bool {
		return p.Ready == pod.Ready && slices.ContainsFunc(p.Addrs, rule.IsHere)
	})
}

func (f Facts) sameFamily(a netip.Addr) bool { return a.Is4() == f.Address.Addr.Is4() }
