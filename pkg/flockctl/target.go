package flockctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// A target is what the command line names: a pod, a Service, or an address and who
// holds it.
type target struct {
	pods    []*corev1.Pod
	service *corev1.Service
	slices  []discoveryv1.EndpointSlice
	addr    netip.Addr
	node    string // whose address it is, if no pod holds it
}

func (t target) String() string {
	switch {
	case t.service != nil:
		return "Service " + t.service.Namespace + "/" + t.service.Name
	case t.addr.IsValid() && t.node != "":
		return fmt.Sprintf("%s of node %s", t.addr, t.node)
	case t.addr.IsValid() && len(t.pods) > 0:
		return fmt.Sprintf("%s of %s", t.addr, podNames(t.pods))
	case t.addr.IsValid():
		return fmt.Sprintf("%s outside of the cluster", t.addr)
	}
	return "pod " + podNames(t.pods)
}

func podNames(pods []*corev1.Pod) string {
	var names []string
	for _, p := range pods {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	return strings.Join(names, ", ")
}

// policyFacts are what an answer about policies is made of.
type policyFacts struct {
	networkPolicies []*networkingv1.NetworkPolicy
	clusterPolicies []*policyv1beta1.ClusterNetworkPolicy
	namespaces      []corev1.Namespace
	nodes           []corev1.Node
	configs         []v1alpha1.NodeConfig
	claims          []v1alpha1.AddressClaim
	pools           []config.Pool          // those that are valid
	agents          map[string]*corev1.Pod // by node; nil if they are not known
	policies        map[string]bool        // the namespaces whose NetworkPolicies are known
}

// A reading reads from the API server what an answer about policies is made of.
type reading struct {
	*cluster
	facts policyFacts
}

func (r *reading) readCluster(ctx context.Context) (err error) {
	f := &r.facts
	if f.configs, err = r.nodeConfigs(ctx); err != nil {
		return err
	}
	claims := &v1alpha1.AddressClaimList{}
	if err := r.list(ctx, r.flock, "addressclaims", "", "", "", claims); err != nil {
		return err
	}
	f.claims = claims.Items
	pools, err := r.pools(ctx)
	if err != nil {
		return err
	}
	for i := range pools {
		if pool, err := config.ParsePool(&pools[i]); err == nil {
			f.pools = append(f.pools, pool)
		}
	}
	namespaces := &corev1.NamespaceList{}
	if err := r.list(ctx, r.core, "namespaces", "", "", "", namespaces); err != nil {
		return err
	}
	f.namespaces = namespaces.Items
	nodes := &corev1.NodeList{}
	if err := r.list(ctx, r.core, "nodes", "", "", "", nodes); err != nil {
		return err
	}
	f.nodes = nodes.Items
	f.agents, _ = r.agents(ctx, "") // who may not read them sees the rest
	return nil
}

// readPolicies reads the policies that can be about the targets' pods.
func (r *reading) readPolicies(ctx context.Context, targets ...target) error {
	f := &r.facts
	for _, t := range targets {
		for _, p := range t.pods {
			if f.policies[p.Namespace] {
				continue
			}
			f.policies[p.Namespace] = true
			list := &networkingv1.NetworkPolicyList{}
			if err := r.listJSON(ctx, "/apis/networking.k8s.io/v1", "networkpolicies", p.Namespace, "", list); err != nil {
				return err
			}
			for i := range list.Items {
				f.networkPolicies = append(f.networkPolicies, &list.Items[i])
			}
		}
	}
	list := &policyv1beta1.ClusterNetworkPolicyList{}
	err := errNoResource
	for _, version := range []string{"v1beta1", "v1alpha2"} { // whichever is served; the schema is the same
		if errors.Is(err, errNoResource) {
			err = r.listJSON(ctx, "/apis/policy.networking.k8s.io/"+version, "clusternetworkpolicies", "", "", list)
		}
	}
	if err != nil && !errors.Is(err, errNoResource) {
		return err
	}
	for i := range list.Items {
		f.clusterPolicies = append(f.clusterPolicies, &list.Items[i])
	}
	return nil
}

// target finds what an argument names.
func (r *reading) target(ctx context.Context, what, text string) (target, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return r.addressTarget(ctx, addr.Unmap().WithZone(""))
	}
	kind, namespace, name := "", r.namespace, text
	parts := strings.Split(text, "/")
	if len(parts) > 1 {
		switch strings.ToLower(parts[0]) {
		case "pod", "pods", "po":
			kind = "pod"
		case "service", "services", "svc":
			kind = "svc"
		}
		if kind != "" {
			parts = parts[1:]
		}
	}
	switch len(parts) {
	case 1:
		name = parts[0]
	case 2:
		namespace, name = parts[0], parts[1]
	}
	if len(parts) > 2 || namespace == "" || name == "" {
		return target{}, usageError(fmt.Sprintf("%s %q: want [NAMESPACE/]NAME of a pod, svc/[NAMESPACE/]NAME, or an address", what, text))
	}
	if kind != "svc" {
		pod := &corev1.Pod{}
		err := r.get(ctx, r.core, "pods", namespace, name, pod)
		if err == nil {
			return target{pods: []*corev1.Pod{pod}}, nil
		}
		if !errors.Is(err, errNotFound) {
			return target{}, err
		}
		if kind == "pod" {
			return target{}, r.absent(ctx, "no pod", "pods", namespace, name)
		}
	}
	service := &corev1.Service{}
	err := r.get(ctx, r.core, "services", namespace, name, service)
	if errors.Is(err, errNotFound) {
		if kind == "" {
			return target{}, r.absent(ctx, "neither a pod nor a Service", "pods,services", namespace, name)
		}
		return target{}, r.absent(ctx, "no Service", "services", namespace, name)
	}
	if err != nil {
		return target{}, err
	}
	return r.serviceTarget(ctx, service)
}

func (r *reading) serviceTarget(ctx context.Context, service *corev1.Service) (target, error) {
	t := target{service: service}
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return t, fmt.Errorf("service %s/%s is the name %s of something else: give that one's address", service.Namespace, service.Name, service.Spec.ExternalName)
	}
	list := &discoveryv1.EndpointSliceList{}
	if err := r.listJSON(ctx, "/apis/discovery.k8s.io/v1", "endpointslices", service.Namespace, discoveryv1.LabelServiceName+"="+service.Name, list); err != nil {
		return t, err
	}
	t.slices = list.Items
	known := map[string]bool{}
	for _, s := range t.slices {
		for _, e := range s.Endpoints {
			if e.TargetRef == nil || e.TargetRef.Kind != "Pod" || known[e.TargetRef.Name] {
				continue
			}
			known[e.TargetRef.Name] = true
			pod := &corev1.Pod{}
			err := r.get(ctx, r.core, "pods", or(e.TargetRef.Namespace, service.Namespace), e.TargetRef.Name, pod)
			if errors.Is(err, errNotFound) {
				continue // it has just gone
			}
			if err != nil {
				return t, err
			}
			t.pods = append(t.pods, pod)
		}
	}
	return t, nil
}

// addressTarget finds who holds an address: pods, a Service, a node, or nobody here.
func (r *reading) addressTarget(ctx context.Context, addr netip.Addr) (target, error) {
	t := target{addr: addr}
	names := map[string]bool{}
	for _, nc := range r.facts.configs {
		for _, a := range nc.Status.Anycast {
			if a.Address == addr.String() {
				names[a.Pod] = true
			}
		}
	}
	for _, c := range r.facts.claims {
		if c.Spec.Address == addr.String() && c.Spec.PodUID != "" {
			names[c.Spec.PodNamespace+"/"+c.Spec.PodName] = true
		}
	}
	for name := range names {
		pod := &corev1.Pod{}
		namespace, name, _ := strings.Cut(name, "/")
		err := r.get(ctx, r.core, "pods", namespace, name, pod)
		if err != nil && !errors.Is(err, errNotFound) {
			return t, err
		}
		if err == nil {
			t.pods = append(t.pods, pod)
		}
	}
	// Pods with hostNetwork have their node's address.
	for _, n := range r.facts.nodes {
		for _, a := range n.Status.Addresses {
			if got, err := netip.ParseAddr(a.Address); err == nil && got.Unmap() == addr {
				t.node = n.Name
				return t, nil
			}
		}
	}
	list := &corev1.PodList{}
	if err := r.list(ctx, r.core, "pods", "", "", r.podsOf(addr), list); err != nil {
		return t, err
	}
	for i := range list.Items {
		p := &list.Items[i]
		if slices.Contains(r.facts.podAddresses(p), addr) && !finished(p) && !names[p.Namespace+"/"+p.Name] {
			t.pods = append(t.pods, p)
		}
	}
	slices.SortFunc(t.pods, func(a, b *corev1.Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	if len(t.pods) > 0 {
		return t, nil
	}
	services := &corev1.ServiceList{}
	if err := r.list(ctx, r.core, "services", "", "", "", services); err != nil {
		return t, err
	}
	for i := range services.Items {
		s := &services.Items[i]
		if slices.Contains(serviceAddresses(s), addr.String()) {
			return r.serviceTarget(ctx, s)
		}
	}
	return t, nil
}

// podsOf is the field selector for the pods among which one may hold the address: those
// of the node that announces the prefix around it. If none does, the API server knows
// pods by their first address.
func (r *reading) podsOf(addr netip.Addr) string {
	for i := range r.facts.configs {
		if n, err := config.ParseNode(&r.facts.configs[i]); err == nil {
			for _, p := range n.Summaries() {
				if p.Contains(addr) {
					return "spec.nodeName=" + r.facts.configs[i].Name
				}
			}
		}
	}
	return "status.podIP=" + addr.String()
}

func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// podAddresses are all that a pod holds, its primary ones first. What its annotations
// ask for counts as far as it is granted, as for the agents: a static address by its
// AddressClaim, an anycast address by an AddressPool that admits the namespace.
func (f *policyFacts) podAddresses(p *corev1.Pod) (out []netip.Addr) {
	out = primaryAddresses(p)
	if p.Spec.HostNetwork {
		return out
	}
	static, anycast := annotation.Lists(p.Annotations)
	for _, a := range static {
		if !slices.Contains(out, a) && slices.ContainsFunc(f.claims, func(c v1alpha1.AddressClaim) bool {
			return c.Spec.Address == a.String() && c.Spec.QuarantinedUntil == nil && c.Spec.PodNamespace == p.Namespace && c.Spec.PodName == p.Name
		}) {
			out = append(out, a)
		}
	}
	for _, a := range anycast {
		if !slices.Contains(out, a) && (f.holdsAnycast(p, a) || f.admits(p.Namespace, a)) {
			out = append(out, a)
		}
	}
	return out
}

// holdsAnycast says whether a node reports the pod at an anycast address.
func (f *policyFacts) holdsAnycast(p *corev1.Pod, a netip.Addr) bool {
	nc := f.config(p.Spec.NodeName)
	return nc != nil && slices.ContainsFunc(nc.Status.Anycast, func(s v1alpha1.AnycastStatus) bool {
		return s.Address == a.String() && s.Pod == p.Namespace+"/"+p.Name
	})
}

func (f *policyFacts) admits(namespace string, a netip.Addr) bool {
	for _, ns := range f.namespaces {
		if ns.Name == namespace {
			return grant.Admits(a, v1alpha1.UseAnycast, ns.Labels, f.pools)
		}
	}
	return false
}

func primaryAddresses(p *corev1.Pod) (out []netip.Addr) {
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// serviceAddresses are those at which a Service is reached.
func serviceAddresses(s *corev1.Service) (out []string) {
	for _, a := range slices.Concat(s.Spec.ClusterIPs, s.Spec.ExternalIPs) {
		if a != "" && a != corev1.ClusterIPNone {
			out = append(out, a)
		}
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IP != "" {
			out = append(out, i.IP)
		}
	}
	return out
}

// ends are a target's, one for each address.
func (f *policyFacts) ends(t target) (out []end) {
	if t.addr.IsValid() && len(t.pods) == 0 {
		return []end{{Node: t.node, Address: t.addr.String(), addr: t.addr}}
	}
	for _, p := range t.pods {
		for _, a := range primaryAddresses(p) {
			if !t.addr.IsValid() {
				out = append(out, podEnd(p, a))
			}
		}
		if t.addr.IsValid() {
			out = append(out, podEnd(p, t.addr))
		}
	}
	return out
}

func podEnd(p *corev1.Pod, a netip.Addr) end {
	return end{Pod: p.Namespace + "/" + p.Name, Node: p.Spec.NodeName, Address: a.String(), pod: p, addr: a, hostNetwork: p.Spec.HostNetwork}
}

// serviceFlows are the connections to the endpoints of a Service.
func (f *policyFacts) serviceFlows(a *traceAnswer, from, to target, w want) (flows []flow, err error) {
	s := to.service
	a.Service = &serviceAnswer{Name: s.Namespace + "/" + s.Name, Addresses: serviceAddresses(s)}
	var names []string
	var chosen []corev1.ServicePort
	for _, p := range s.Spec.Ports {
		text := fmt.Sprintf("%d/%s", p.Port, or(string(p.Protocol), "TCP"))
		names = append(names, strings.TrimSpace(p.Name+" "+text))
		proto := protocols[or(string(p.Protocol), "TCP")]
		if w == (want{}) || (w.proto == 0 || w.proto == proto) && (w.number == uint16(p.Port) || w.name != "" && w.name == p.Name) {
			chosen = append(chosen, p)
			a.Service.Ports = append(a.Service.Ports, strings.TrimSpace(p.Name+" "+text))
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("%s has no such port: it has %s", to, or(strings.Join(names, ", "), "none"))
	}
	sources := f.ends(from)
	seen := map[string]bool{}
	waiting := 0
	for _, port := range chosen {
		for _, slice := range to.slices {
			number := endpointPort(slice, port)
			if number == 0 {
				continue
			}
			ready := usable(to.slices)
			for _, e := range slice.Endpoints {
				if !ready(e) {
					waiting++
					continue
				}
				for _, text := range e.Addresses {
					t := f.endpointEnd(to, e, text)
					for _, source := range sources {
						key := fmt.Sprint(source.Address, t.Address, port.Protocol, number)
						if source.addr.Is4() != t.addr.Is4() || seen[key] {
							continue
						}
						if local := s.Spec.InternalTrafficPolicy; local != nil && *local == corev1.ServiceInternalTrafficPolicyLocal && source.Node != "" && source.Node != t.Node {
							continue
						}
						seen[key] = true
						flows = append(flows, flow{
							from: source, to: t, proto: protocols[or(string(port.Protocol), "TCP")], port: number,
							servicePort: fmt.Sprintf("%d/%s", port.Port, or(string(port.Protocol), "TCP")),
						})
					}
				}
			}
		}
	}
	if waiting > 0 {
		a.note("%d endpoint(s) get no connections, because they are not ready: kubectl -n %s get endpointslices -l %s=%s", waiting, s.Namespace, discoveryv1.LabelServiceName, s.Name)
	}
	if local := s.Spec.InternalTrafficPolicy; local != nil && *local == corev1.ServiceInternalTrafficPolicyLocal {
		a.note("internalTrafficPolicy is Local: pods reach the endpoints of their own node only")
	}
	if len(flows) == 0 {
		return nil, fmt.Errorf("%s has no endpoint that %s can be sent to", to, from)
	}
	if slices.ContainsFunc(sources, func(e end) bool { return e.pod == nil && e.Node == "" }) {
		a.note("from outside, the endpoint's node may see the address of another node in the client's place: with externalTrafficPolicy Cluster")
	}
	return flows, nil
}

// usable says which endpoints get connections: those that are ready, or if there are
// none those that still serve while they end, as kube-proxy does it.
func usable(all []discoveryv1.EndpointSlice) func(discoveryv1.Endpoint) bool {
	isReady := func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }
	for _, s := range all {
		if slices.ContainsFunc(s.Endpoints, isReady) {
			return isReady
		}
	}
	return func(e discoveryv1.Endpoint) bool {
		return e.Conditions.Serving != nil && *e.Conditions.Serving && e.Conditions.Terminating != nil && *e.Conditions.Terminating
	}
}

// endpointPort is the port of a slice's endpoints that a Service's port leads to.
func endpointPort(slice discoveryv1.EndpointSlice, port corev1.ServicePort) uint16 {
	for _, p := range slice.Ports {
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if name == port.Name && string(proto) == or(string(port.Protocol), "TCP") && p.Port != nil {
			return uint16(*p.Port)
		}
	}
	return 0
}

func (f *policyFacts) endpointEnd(t target, e discoveryv1.Endpoint, text string) end {
	addr, _ := netip.ParseAddr(text)
	addr = addr.Unmap()
	for _, p := range t.pods {
		if e.TargetRef != nil && e.TargetRef.Name == p.Name {
			return podEnd(p, addr)
		}
	}
	out := end{Address: text, addr: addr}
	if e.NodeName != nil {
		out.Node = *e.NodeName
	}
	return out
}

// index has the policies that were read, and the targets' pods with links of their
// own, so that it can explain what is decided about them.
func (f *policyFacts) index(targets ...target) *policy.Index {
	x := policy.NewIndex()
	for _, n := range f.namespaces {
		x.SetNamespace(policy.Namespace{Name: n.Name, Labels: n.Labels})
	}
	for _, n := range f.nodes {
		x.SetNode(policy.NodeOf(&n))
	}
	for _, t := range targets {
		for _, p := range t.pods {
			pod := policy.PodOf(p, f.podAddresses(p))
			pod.Links = []string{p.Namespace + "/" + p.Name}
			x.SetPod(pod)
		}
	}
	for _, np := range f.networkPolicies {
		x.SetNetworkPolicy(np)
	}
	for _, cnp := range f.clusterPolicies {
		x.SetClusterNetworkPolicy(cnp)
	}
	return x
}

// config is the NodeConfig of a node; nil if it is not flock's.
func (f *policyFacts) config(node string) *v1alpha1.NodeConfig {
	for i := range f.configs {
		if f.configs[i].Name == node {
			return &f.configs[i]
		}
	}
	return nil
}

// agentNotes are what keeps the nodes of the connections from having this in force.
func (f *policyFacts) agentNotes(all []attempt) (notes []string) {
	var nodes []string
	for _, c := range all {
		for _, e := range []struct {
			end
			judged bool
		}{{c.From, c.Egress.Judged}, {c.To, c.Ingress.Judged}} {
			if e.judged && !slices.Contains(nodes, e.Node) {
				nodes = append(nodes, e.Node)
			}
		}
	}
	for _, name := range nodes {
		switch config := f.config(name); {
		case name == "":
			notes = append(notes, "a pod is not on a node yet: this is what the policies will say")
			continue
		case config == nil:
			notes = append(notes, fmt.Sprintf("node %s is not flock's: this is what the policies say, another network plugin may enforce something else", name))
			continue
		default:
			if c := meta.FindStatusCondition(config.Status.Conditions, "PoliciesEnforced"); c != nil && c.Status != metav1.ConditionTrue {
				notes = append(notes, fmt.Sprintf("node %s does not have this in force: %s", name, or(c.Message, c.Reason)))
			}
		}
		n := node{name: name, agent: f.agents[name], agentsUnknown: f.agents == nil}
		if state := n.agentState(); state != "Ready" && state != "?" {
			notes = append(notes, fmt.Sprintf("the agent of %s is %s: what is in force there may be older", name, state))
		}
	}
	return notes
}
