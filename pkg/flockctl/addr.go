package flockctl

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

var addrCommand = command{
	name: "addr", args: "ADDRESS",
	short: "Show an address: who has it, where it is announced, what may give it, what its identifier says",
	long: `The pods or Services that have the address, the claim on it, the nodes that announce it,
the pod CIDR and the AddressPools that contain it. For an IPv6 address made of its workload
(annotation ip-algo) it also says which workload, as far as pods that are there now can
tell: so it names the workload of an address that nobody has any more.`,
	examples: `flockctl addr 2001:db8:100:1::7
flockctl addr 203.0.113.53 -o yaml`,
	flags: []string{"output", "watch"}, min: 1, max: 1,
	run: runAddr,
}

// addrAnswer is what there is to say of an address.
type addrAnswer struct {
	Address string   `json:"address"`
	Pods    []string `json:"pods,omitempty"`
	// PodsUnknown: whoever asks may not see pods.
	PodsUnknown bool `json:"podsUnknown,omitempty"`
	// Services have it, each as which kind of address, and where it is announced.
	Services []addrService `json:"services,omitempty"`
	// Node is the node that has the address itself.
	Node string `json:"node,omitempty"`
	// CIDR is the pod CIDR with the address, and OfNode the node that assigns from it.
	CIDR    string `json:"cidr,omitempty"`
	OfNode  string `json:"cidrOfNode,omitempty"`
	Retired bool   `json:"cidrRetired,omitempty"`
	Claim   string `json:"claim,omitempty"`
	Anycast []path `json:"anycast,omitempty"`
	// Pools say which AddressPools may give it.
	Pools []string `json:"pools,omitempty"`
	// Identifier is what the interface identifier may say, one reading a line.
	Identifier []string `json:"identifier,omitempty"`
}

type addrService struct {
	Service string        `json:"service"`
	Kind    string        `json:"kind"`
	Nodes   []serviceNode `json:"nodes,omitempty"`
}

func runAddr(ctx context.Context, s *session, args []string) error {
	addr, err := netip.ParseAddr(args[0])
	if err != nil || addr.Zone() != "" {
		return usageError(fmt.Sprintf("%q is not an address: want one as in 2001:db8:100:1::7 or 203.0.113.7", args[0]))
	}
	addr = addr.Unmap()
	c, err := s.connect()
	if err != nil {
		return err
	}
	configs, err := c.nodeConfigs(ctx)
	if err != nil {
		return err
	}
	pools, err := c.pools(ctx)
	if err != nil {
		return err
	}
	claims := &v1alpha1.AddressClaimList{}
	if err := c.list(ctx, c.flock, "addressclaims", "", "", "", claims); err != nil {
		return err
	}
	pods, podsUnknown := &corev1.PodList{}, false
	if err := c.list(ctx, c.core, "pods", "", "", "", pods); err != nil {
		fmt.Fprintf(s.remarks, "pods are not looked at: %v\n", err)
		podsUnknown = true
	}
	services := &corev1.ServiceList{}
	if err := c.list(ctx, c.core, "services", "", "", "", services); err != nil {
		fmt.Fprintf(s.remarks, "Services are not looked at: %v\n", err)
	}
	nodes, err := c.nodeAddresses(ctx)
	if err != nil {
		fmt.Fprintf(s.remarks, "the nodes' addresses are not looked at: %v\n", err)
	}
	answer := answerAddr(addr, configs, pools, claims.Items, pods.Items, nodes)
	answer.PodsUnknown = podsUnknown
	answer.Services = servicesAt(addr, services.Items, configs, pools)
	if s.output != "" {
		return s.structured(answer)
	}
	c.remarkSilent(ctx, s.remarks, configs)
	s.printAddr(s.out, answer)
	return nil
}

// servicesAt are those that have addr, or for which a node reports it. It is pure.
func servicesAt(addr netip.Addr, objects []corev1.Service, configs []v1alpha1.NodeConfig, pools []v1alpha1.AddressPool) (found []addrService) {
	for _, info := range servicesOf(objects, configs, pools) {
		i := slices.IndexFunc(info.Addresses, func(a serviceAddressInfo) bool { return a.Address == addr.String() })
		if i < 0 {
			if kind := info.kindOf(objects, addr.String()); kind != "" {
				found = append(found, addrService{Service: info.Service, Kind: kind})
			}
			continue
		}
		a := info.Addresses[i]
		found = append(found, addrService{info.Service, a.Kind, a.Nodes})
	}
	return found
}

// answerAddr is pure.
func answerAddr(addr netip.Addr, configs []v1alpha1.NodeConfig, pools []v1alpha1.AddressPool, claims []v1alpha1.AddressClaim, pods []corev1.Pod, nodes map[string][]netip.Addr) addrAnswer {
	is := func(text string) bool {
		a, err := netip.ParseAddr(text)
		return err == nil && a == addr
	}
	a := addrAnswer{Address: addr.String()}
	for i := range pods {
		p := &pods[i]
		if !p.Spec.HostNetwork && slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return is(ip.IP) }) {
			a.Pods = append(a.Pods, fmt.Sprintf("%s/%s on %s, %s", p.Namespace, p.Name, or(p.Spec.NodeName, "no node"), phase(p)))
		}
	}
	for name, all := range nodes {
		if slices.Contains(all, addr) {
			a.Node = name
		}
	}
	for _, claim := range claims {
		if is(claim.Spec.Address) {
			a.Claim = fmt.Sprintf("%s/%s on %s", claim.Spec.PodNamespace, claim.Spec.PodName, claim.Spec.NodeName)
			if until := claim.Spec.QuarantinedUntil; until != nil {
				a.Claim += ", in quarantine until " + until.UTC().Format(time.RFC3339)
			}
			if services := claim.Spec.Services; len(services) > 0 {
				var names []string
				for _, s := range services {
					names = append(names, s.Namespace+"/"+s.Name)
				}
				a.Claim = "Service " + strings.Join(names, ", ")
			}
		}
	}
	var of netip.Prefix
	for i := range configs {
		nc := &configs[i]
		for _, text := range nc.Status.RetiredCIDRs {
			if p, err := netip.ParsePrefix(text); err == nil && p.Contains(addr) && !of.IsValid() {
				of, a.OfNode, a.Retired = p, nc.Name, true
			}
		}
		parsed, err := config.ParseNode(nc)
		if err != nil {
			continue
		}
		for _, p := range parsed.Summaries() {
			if p.Contains(addr) {
				of, a.OfNode, a.Retired = p, nc.Name, false
			}
		}
	}
	if of.IsValid() {
		a.CIDR = of.String()
		if addr.Is6() {
			a.Identifier = readings(addr, of, pods, configs)
		}
	} else {
		a.Pools = describePools(pools, addr)
	}
	a.Anycast = slices.DeleteFunc(pathsOf(configs), func(p path) bool { return p.Address != addr.String() })
	return a
}

// readings are what the interface identifier says, with the workloads of the pods that
// there are.
func readings(addr netip.Addr, cidr netip.Prefix, pods []corev1.Pod, configs []v1alpha1.NodeConfig) (out []string) {
	var known []embed.Pod
	for i := range pods {
		p := &pods[i]
		defaults := config.Defaults{IPv6: true}
		for j := range configs {
			if configs[j].Name == p.Spec.NodeName {
				if node, err := config.ParseNode(&configs[j]); err == nil {
					defaults = node.Defaults
				}
			}
		}
		request, _, err := annotation.Parse(p.Annotations, defaults)
		if err != nil || len(request.IPAlgo) == 0 {
			continue
		}
		w := embed.Pod{Name: p.Namespace + "/" + p.Name, Algo: request.IPAlgo, Workload: embed.Workload{Namespace: p.Namespace, App: embed.AppOf(p.Name, p.Labels, p.OwnerReferences)}}
		if len(p.Spec.Containers) > 0 {
			w.Image = p.Spec.Containers[0].Image
		}
		known = append(known, w)
	}
	all, err := embed.Explain(addr, cidr, known)
	if err != nil {
		return nil
	}
	for _, r := range all {
		out = append(out, r.String())
	}
	return out
}

func (s *session) printAddr(w io.Writer, a addrAnswer) {
	rows := [][]string{{"Address", a.Address}}
	add := func(what string, values ...string) {
		for _, v := range values {
			rows = append(rows, []string{what, v})
		}
	}
	switch {
	case a.Node != "":
		add("Held by", "node "+a.Node+" itself")
	case len(a.Pods) > 0:
		add("Held by", a.Pods...)
	case len(a.Services) > 0:
	case a.PodsUnknown:
		add("Held by", "? (pods cannot be read)")
	case len(a.Anycast) == 0:
		add("Held by", "no pod now")
	}
	for _, svc := range a.Services {
		add("Held by", "Service "+svc.Service+", as "+or(svc.Kind, "an address that it does not have any more"))
	}
	if a.Claim != "" {
		add("Claimed by", a.Claim)
	}
	switch {
	case a.CIDR != "" && a.Retired:
		add("Pod CIDR", fmt.Sprintf("%s, retired on node %s, which routes it until its last pods have gone", a.CIDR, a.OfNode))
	case a.CIDR != "":
		add("Pod CIDR", fmt.Sprintf("%s of node %s, which announces it", a.CIDR, a.OfNode))
	default:
		add("Pools", a.Pools...)
	}
	add("Identifier", a.Identifier...)
	table(w, "", rows)
	rows = nil
	for _, svc := range a.Services {
		for _, n := range svc.Nodes {
			why := n.Reason
			if n.Message != "" {
				why += ": " + n.Message
			}
			announced := yesNo(n.Announced)
			if n.Announced && n.Prefix != "" {
				announced += ", as " + n.Prefix
			}
			rows = append(rows, []string{svc.Service, n.Node, announced, s.age(n.Since), why})
		}
	}
	if len(rows) > 0 {
		fmt.Fprintln(w, "\nServices")
		table(w, "  ", slices.Insert(rows, 0, []string{"SERVICE", "NODE", "ANNOUNCED", "SINCE", "WHY"}))
	}
	if len(a.Anycast) > 0 {
		fmt.Fprintln(w, "\nAnycast")
		table(w, "  ", s.pathRows(a.Anycast, "POD", "NODE"))
	}
}
