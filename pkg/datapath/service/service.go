package service

import (
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Ref names a Service.
type Ref struct{ Namespace, Name string }

// String returns namespace/name, as kubectl users write it.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Service is what decisions need of a Service. It is shared: it and what it refers to must
// not be changed.
type Service struct {
	Ref
	Addresses []Address
	Ports     []Port
	// Selector selects pods of the namespace by their labels. nil: others make the
	// Service's EndpointSlices.
	Selector map[string]string
	// External and Internal are the traffic policies, for load balancers and external IPs and
	// for ClusterIPs.
	External, Internal Policy
	// PublishNotReady: pods count whether they are Ready or not (publishNotReadyAddresses).
	PublishNotReady bool
	// Plain: connections from outside go to any pod, whoever makes them, and kube-proxy sees
	// to them. There is no session affinity, there are no loadBalancerSourceRanges, and no
	// label names another proxy.
	Plain bool
}

// Policy is a traffic policy.
type Policy bool

// The policies.
const (
	// Cluster: connections go to endpoints of all nodes.
	Cluster Policy = false
	// Local: connections go to endpoints of the node that gets them.
	Local Policy = true
)

// Kind is a kind of address.
type Kind string

// The kinds, as in spec.services.announce of a NodeConfig.
const (
	LoadBalancer Kind = "LoadBalancer"
	ExternalIP   Kind = "ExternalIP"
	ClusterIP    Kind = "ClusterIP"
)

// Address is one of a Service's.
type Address struct {
	Addr netip.Addr
	Kind Kind
	// Aggregate is the prefix that is announced in place of the address; invalid: none.
	Aggregate netip.Prefix
	// Refused is why no node announces it, with its Detail; empty: they may.
	Refused Reason
	Detail  string
	// Undecided is what is not known yet that could refuse it; empty: nothing.
	Undecided Reason
}

// Port is one of a Service's.
type Port struct {
	Name     string
	Protocol byte // IANA's number
	Number   uint16
	// TargetName is the name of the pods' port; empty: it is TargetNumber of all of them.
	TargetName   string
	TargetNumber uint16
}

// key is what is asked of kube-proxy's rules for a port of the Service at an address.
func (s *Service) key(p Port, a netip.Addr) proxy.Key {
	return proxy.Key{
		Target: proxy.Target{Addr: a, Protocol: p.Protocol, Port: p.Number},
		Owner:  proxy.Owner{Namespace: s.Namespace, Name: s.Name, PortName: p.Name},
	}
}

// has says whether the Service has a port.
func (s *Service) has(protocol byte, number uint16) bool {
	return slices.ContainsFunc(s.Ports, func(p Port) bool { return p.Protocol == protocol && p.Number == number })
}

// policy is the traffic policy for connections to an address from outside.
func (s *Service) policy(a Address) Policy {
	if a.Kind == ClusterIP {
		return s.Internal
	}
	return s.External
}

// selects reports whether a pod with these labels in this namespace is one of the Service's.
func (s *Service) selects(namespace string, labels map[string]string) bool {
	if s.Selector == nil || s.Namespace != namespace {
		return false
	}
	for k, v := range s.Selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// Slice is one EndpointSlice of a Service.
type Slice struct {
	// Ports are the names of the Service's ports that it is about.
	Ports     []string
	Endpoints []Endpoint
}

// Endpoint is one of a slice's.
type Endpoint struct {
	Addr netip.Addr
	// Ready: it gets new connections. One that is being deleted is not, unless the Service
	// publishes what is not ready.
	Ready bool
	// Here: it is on this node.
	Here bool
	// Pod is its pod, if it has one.
	Pod pod.UID
}
