package service

import (
	"maps"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Interim are connections from outside that flock translates itself, each to a pod of the
// node, by where they go. kube-proxy learns of a pod that has become Ready by way of the API
// server and of EndpointSlices, some hundred milliseconds after the node. The address is
// announced at once where flock can bridge that time: where any pod that is Ready may have
// any connection.
type Interim map[proxy.Target]netip.AddrPort

// InterimTime is for how long flock does so after a pod became Ready. It is far longer than
// kube-proxy takes. What kube-proxy does not have after it is missing for another reason: it
// does not run, or it knows better, because the Service does not select the pod any more.
const InterimTime = time.Minute

// at are those to an address.
func (i Interim) at(addr netip.Addr) Interim {
	out := Interim{}
	for target, to := range i {
		if target.Addr == addr {
			out[target] = to
		}
	}
	return out
}

// interim is the pod that gets the connections to a port until kube-proxy has its rule.
func (f Facts) interim(port Port) (to netip.AddrPort, ok bool) {
	// Several Services may have one external IP and port, of which kube-proxy serves one.
	if !f.Service.Plain || f.Service.PublishNotReady || f.Service.Selector == nil || f.Address.Kind != LoadBalancer || f.New == nil {
		return to, false
	}
	key := f.Service.key(port, f.Address.Addr)
	for _, p := range f.Pods {
		targets := p.targets(port)
		// Of two ports of one name, kube-proxy's choice depends on their containers.
		if !f.serves(p) || p.HostNetwork || len(targets) != 1 || !f.New(p.UID, key) {
			continue
		}
		for _, addr := range p.Addrs {
			if f.sameFamily(addr) {
				return netip.AddrPortFrom(addr, targets[0]), true
			}
		}
	}
	return to, false
}

// becomes takes in that a pod's readiness was another before.
func (s *State) becomes(now time.Time, p *podState, was pod.Readiness) {
	switch is := p.pod().Ready; {
	case is == pod.NotReady:
		s.notNew(p)
	case is == pod.Ready && was != pod.Ready && (s.podsSynced || s.keptInterim.leadsTo(p.Addrs) || s.leadsTo(p.Addrs)):
		// Before all pods are known, those that are Ready became so before this run of the
		// agent, but for those that the last one has left.
		p.since, p.known = now, map[proxy.Key]bool{}
		s.new[p] = struct{}{}
	}
}

func (s *State) notNew(p *podState) {
	p.since, p.known = time.Time{}, nil
	delete(s.new, p)
}

// leadsTo says whether connections are translated to one of these addresses.
func (i Interim) leadsTo(addrs []netip.Addr) bool {
	for _, to := range i {
		for _, addr := range addrs {
			if to.Addr() == addr {
				return true
			}
		}
	}
	return false
}

func (s *State) leadsTo(addrs []netip.Addr) bool {
	for p := range s.translated {
		if p.interim.leadsTo(addrs) {
			return true
		}
	}
	return false
}

// isNew says of a pod that kube-proxy may not know yet that it is Ready.
func (s *State) isNew(uid pod.UID, key proxy.Key) bool {
	p := s.pods[uid]
	return !s.cannot && p != nil && !p.since.IsZero() && !p.known[key]
}

// knownBy takes in that kube-proxy has these rules. Once it has had one that leads to the pod,
// it knows better than this agent if the rule goes.
func (p *podState) knownBy(rules map[proxy.Key]proxy.Rule) {
	if p.since.IsZero() {
		return
	}
	for key, rule := range rules {
		for _, addr := range p.Addrs {
			if rule.IsHere(addr) {
				p.known[key] = true
			}
		}
	}
}

// SetTranslates says whether the kernel can translate, as long as nothing else is said. The
// next Apply decides again.
func (s *State) SetTranslates(can bool) {
	if s.cannot == can {
		s.cannot = !can
		s.touchAll()
	}
}

// translate makes these the connections to a path's address that flock translates.
func (s *State) translate(p *path, interim Interim) {
	p.interim = interim
	if len(interim) > 0 {
		s.translated[p] = struct{}{}
	} else {
		delete(s.translated, p)
	}
}

// Interim are all connections that flock has to translate.
func (s *State) Interim() Interim {
	all := Interim{}
	if !s.servicesKnown {
		maps.Copy(all, s.keptInterim)
	}
	for p := range s.translated {
		maps.Copy(all, p.interim)
	}
	return all
}
