// Package config turns the API's objects into types that cannot hold a bad
// value. It is pure: strings are parsed here once, and everything behind it
// works on netip values. What the API server's validation lets through wrongly,
// or what was written past it, is refused here with the field's name.
package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

const (
	// DefaultQuarantine is how long a released address rests when
	// spec.podCIDRs.quarantineSeconds, or that of a pool, is absent.
	DefaultQuarantine = 60 * time.Second
	// DefaultMaxAddresses is how many addresses a pod may have when
	// spec.maxAddressesPerPod is absent, and mostAddresses the highest such number: what
	// one annotation may list.
	DefaultMaxAddresses = 8
	mostAddresses       = 1024
)

// Node is what a valid NodeConfig says.
type Node struct {
	// IPv6 and IPv4 are the pod CIDRs, masked, in the order given.
	IPv6, IPv4 []netip.Prefix
	// Exclude are the ranges in which no address is handed out.
	Exclude []netip.Prefix
	// Static grants addresses of the pod CIDRs to pods that ask for them by name. It is
	// nil where nobody may.
	Static *StaticGrant
	// Quarantine is how long an address rests after its release.
	Quarantine time.Duration
	// MaxAddresses is how many addresses a pod may have; 0: [DefaultMaxAddresses].
	MaxAddresses int
	// Defaults answer what a pod's annotations leave open.
	Defaults Defaults
	// MTU of the pods' links in bytes; 0: the uplink's.
	MTU int
	// BGP is nil where the node announces nothing by BGP.
	BGP *BGP
	// OSPF is nil where the node announces nothing by OSPF.
	OSPF *OSPF
	// StartupSessions is which routers must know the way to the node's pods
	// before it takes the first of a boot; never "".
	StartupSessions v1alpha1.StartupSessions
	// Services is which addresses of Services the node announces.
	Services ServiceAddresses
}

// ServiceAddresses are kinds of addresses of Services.
type ServiceAddresses struct {
	LoadBalancer, ExternalIP, ClusterIP bool
}

// StaticGrant is whose pods may ask for addresses of the pod CIDRs by name.
type StaticGrant struct {
	// Namespaces selects by the labels of a pod's namespace.
	Namespaces labels.Selector
	// MaxPerNamespace is how many addresses the pods of one namespace may hold by name
	// on this node; 0: no limit.
	MaxPerNamespace int
}

// Defaults are the node's answers for pods without annotations.
type Defaults struct {
	IPv6, IPv4 bool
	// IPAlgo lists what goes into the interface identifier; random if empty.
	IPAlgo []v1alpha1.IPAlgo
}

// Summaries are the prefixes that the node announces, IPv6 first.
func (n Node) Summaries() []netip.Prefix {
	return slices.Concat(n.IPv6, n.IPv4)
}

// ParseNode checks nc and returns it typed. The error joins everything that is
// wrong, each with the field, its value and what is wanted.
func ParseNode(nc *v1alpha1.NodeConfig) (Node, error) {
	spec := field.NewPath("spec")
	n := Node{
		Quarantine:   DefaultQuarantine,
		MaxAddresses: cmp.Or(int(nc.Spec.MaxAddressesPerPod), DefaultMaxAddresses),
		Defaults:     Defaults{IPAlgo: slices.Clone(nc.Spec.Defaults.IPAlgo)},
		MTU:          int(nc.Spec.MTU),
	}
	var errs field.ErrorList

	cidrs := spec.Child("podCIDRs")
	n.IPv6 = parseCIDRs(cidrs.Child("ipv6"), nc.Spec.PodCIDRs.IPv6, &errs)
	n.IPv4 = parseCIDRs(cidrs.Child("ipv4"), nc.Spec.PodCIDRs.IPv4, &errs)
	n.Exclude = parseCIDRs(cidrs.Child("exclude"), nc.Spec.PodCIDRs.Exclude, &errs)
	if len(nc.Spec.PodCIDRs.IPv6)+len(nc.Spec.PodCIDRs.IPv4) == 0 {
		errs = append(errs, field.Required(cidrs, "name at least one CIDR under ipv6 or ipv4"))
	}
	checkFamily(cidrs.Child("ipv6"), n.IPv6, netip.Addr.Is6, 48, 120, &errs)
	checkFamily(cidrs.Child("ipv4"), n.IPv4, netip.Addr.Is4, 8, 30, &errs)
	checkOverlap(cidrs.Child("ipv6"), n.IPv6, &errs)
	checkOverlap(cidrs.Child("ipv4"), n.IPv4, &errs)
	if q := nc.Spec.PodCIDRs.QuarantineSeconds; q != nil {
		if *q < 0 || *q > 86400 {
			errs = append(errs, field.Invalid(cidrs.Child("quarantineSeconds"), *q, "must be between 0 and 86400 seconds"))
		}
		n.Quarantine = time.Duration(*q) * time.Second
	}
	if s := nc.Spec.PodCIDRs.Static; s != nil {
		path := cidrs.Child("static")
		n.Static = &StaticGrant{
			Namespaces:      parseSelector(path.Child("namespaceSelector"), s.NamespaceSelector, &errs),
			MaxPerNamespace: parseMaxPerNamespace(path, s.MaxAddressesPerNamespace, &errs),
		}
	}
	if n.MaxAddresses < 2 || n.MaxAddresses > mostAddresses {
		errs = append(errs, field.Invalid(spec.Child("maxAddressesPerPod"), n.MaxAddresses, fmt.Sprintf("must be between 2, one of each family, and %d", mostAddresses)))
	}

	// Alone, IPv4 is what pods get: there is nothing else for them.
	some6, some4 := len(nc.Spec.PodCIDRs.IPv6) > 0, len(nc.Spec.PodCIDRs.IPv4) > 0
	n.Defaults.IPv6 = parseDefault(spec, "ipv6", nc.Spec.Defaults.IPv6, some6, some6, &errs)
	n.Defaults.IPv4 = parseDefault(spec, "ipv4", nc.Spec.Defaults.IPv4, !some6 && some4, some4, &errs)
	if (some6 || some4) && !n.Defaults.IPv6 && !n.Defaults.IPv4 {
		errs = append(errs, field.Invalid(spec.Child("defaults"), "ipv6: false, ipv4: false", "leave at least one family on, or no pod without annotations can start"))
	}
	if n.MTU != 0 && (n.MTU < 1280 || n.MTU > 65535) {
		errs = append(errs, field.Invalid(spec.Child("mtu"), n.MTU, "must be 0 (take the uplink's) or between 1280 and 65535"))
	}
	if nc.Spec.BGP != nil {
		n.BGP = parseBGP(spec.Child("bgp"), nc.Spec.BGP, &errs)
	}
	if nc.Spec.OSPF != nil {
		n.OSPF = parseOSPF(spec.Child("ospf"), nc.Spec.OSPF, &errs)
	}
	n.StartupSessions = nc.Spec.Startup.Sessions
	oneOf(spec.Child("startup", "sessions"), n.StartupSessions, &errs, "", v1alpha1.StartupNone, v1alpha1.StartupAny, v1alpha1.StartupAll)
	if n.StartupSessions == "" {
		n.StartupSessions = v1alpha1.StartupAny
	}
	n.Services = parseServiceAddresses(spec.Child("services", "announce"), nc.Spec.Services.Announce, &errs)
	if n.BGP != nil {
		checkRouters(cidrs, n, &errs)
	}
	if err := errs.ToAggregate(); err != nil {
		return Node{}, fmt.Errorf("nodeconfig %s: %w", nc.Name, err)
	}
	return n, nil
}

func parseServiceAddresses(path *field.Path, kinds []v1alpha1.ServiceAddress, errs *field.ErrorList) ServiceAddresses {
	if kinds == nil {
		return ServiceAddresses{LoadBalancer: true, ExternalIP: true}
	}
	var out ServiceAddresses
	for i, kind := range kinds {
		switch kind {
		case v1alpha1.ServiceLoadBalancer:
			out.LoadBalancer = true
		case v1alpha1.ServiceExternalIP:
			out.ExternalIP = true
		case v1alpha1.ServiceClusterIP:
			out.ClusterIP = true
		default:
			*errs = append(*errs, field.NotSupported(path.Index(i), kind, []v1alpha1.ServiceAddress{v1alpha1.ServiceLoadBalancer, v1alpha1.ServiceExternalIP, v1alpha1.ServiceClusterIP}))
		}
	}
	return out
}

// parseDefault reports whether pods without annotations get an address of a family of
// which there are some, or none.
func parseDefault(spec *field.Path, family string, given *bool, otherwise, some bool, errs *field.ErrorList) bool {
	if given == nil {
		return otherwise
	}
	if *given && !some {
		*errs = append(*errs, field.Invalid(spec.Child("defaults", family), true, fmt.Sprintf("without a CIDR in %s no pod without annotations could start: name one there, or leave this out", spec.Child("podCIDRs", family))))
	}
	return *given
}

func parseCIDRs(path *field.Path, cidrs []v1alpha1.CIDR, errs *field.ErrorList) []netip.Prefix {
	var ps []netip.Prefix
	for i, c := range cidrs {
		p, err := netip.ParsePrefix(string(c))
		switch {
		case err != nil || p.Addr().Is4In6():
			*errs = append(*errs, field.Invalid(path.Index(i), c, "not a CIDR: want an address, a slash and a prefix length, as in 2001:db8:1::/64 or 10.1.0.0/24"))
		case p != p.Masked():
			*errs = append(*errs, field.Invalid(path.Index(i), c, fmt.Sprintf("has bits set behind the prefix length: want %s", p.Masked())))
		default:
			ps = append(ps, p)
		}
	}
	return ps
}

func checkFamily(path *field.Path, ps []netip.Prefix, is func(netip.Addr) bool, minBits, maxBits int, errs *field.ErrorList) {
	for _, p := range ps {
		switch {
		case !is(p.Addr()):
			*errs = append(*errs, field.Invalid(path, p.String(), "is of the other family: list IPv6 CIDRs under ipv6 and IPv4 CIDRs under ipv4"))
		case p.Bits() < minBits || p.Bits() > maxBits:
			*errs = append(*errs, field.Invalid(path, p.String(), fmt.Sprintf("the prefix length must be between /%d and /%d", minBits, maxBits)))
		case netaddr.UnroutableReason(p.Addr()) != "":
			*errs = append(*errs, field.Invalid(path, p.String(), "must be of global unicast or unique local addresses: link-local, loopback and multicast addresses cannot be routed to a pod"))
		}
	}
}

// checkRouters refuses a pod CIDR around a router: its unreachable route would cut
// the node off, and the router's address could be given to a pod.
func checkRouters(path *field.Path, n Node, errs *field.ErrorList) {
	for _, c := range n.Summaries() {
		for _, p := range n.BGP.Peers {
			if p.Addr.IsValid() && c.Contains(p.Addr) {
				*errs = append(*errs, field.Invalid(path, c.String(), fmt.Sprintf("contains %s, the address of BGP peer %s: pods need prefixes in which no router is", p.Addr, p.Name)))
			}
		}
	}
}

func checkOverlap(path *field.Path, ps []netip.Prefix, errs *field.ErrorList) {
	for i, p := range ps {
		for _, q := range ps[:i] {
			if p.Overlaps(q) {
				*errs = append(*errs, field.Invalid(path, p.String(), fmt.Sprintf("overlaps %s: each prefix may be listed once and must not contain another", q)))
			}
		}
	}
}
