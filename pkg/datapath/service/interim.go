package service

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Interim are connections from outside that flock translates itself, each to a pod of the
// node, by where they go. kube-proxy learns of a pod that has become Ready by way of the API
// server and of EndpointSlices, some hundred milliseconds after the node. The address is
// announced at once where flock can bridge that time: where any pod that is Ready may have
// any connection.
type Interim map[proxy.Target]Translation

// Translation is where flock leads connections.
type Translation struct {
	To netip.AddrPort
	// Until is when it ends. It is zero for one that the kernel has without an end.
	Until time.Time
}

// InterimTime is for how long flock does so after a pod became Ready. It is far longer than
// kube-proxy takes. What kube-proxy does not have after it is missing for another reason: it
// does not run, or it knows better, because the Service does not select the pod any more.
// While kube-proxy cannot learn anything, because there is no API server, it does not pass.
const InterimTime = time.Minute

// Equal says whether both are the same connections, led to the same pods for the same time.
func (i Interim) Equal(other Interim) bool {
	return maps.EqualFunc(i, other, func(a, b Translation) bool { return a.To == b.To && a.Until.Equal(b.Until) })
}

// interim is where flock leads connections to a port until kube-proxy does.
func (f Facts) interim(port Port) (out Translation, ok bool) {
	if f.New == nil || !f.Service.translatable(f.Address) || f.Clashes != nil && f.Clashes(port) {
		return out, false
	}
	key := f.Service.key(port, f.Address.Addr)
	for _, p := range f.Pods {
		targets := p.targets(port)
		// Of two ports of one name, kube-proxy's choice depends on their containers.
		if !f.serves(p) || p.HostNetwork || len(targets) != 1 {
			continue
		}
		until, is := f.New(p.UID, key)
		if !is {
			continue
		}
		for _, addr := range p.Addrs {
			if f.sameFamily(addr) {
				return Translation{netip.AddrPortFrom(addr, targets[0]), until}, true
			}
		}
	}
	return out, false
}

// translatable says whether connections to an address may go to any pod of the node that is
// Ready. Several Services may have one external IP and port, of which kube-proxy serves one.
func (s *Service) translatable(a Address) bool {
	return s.Plain && !s.PublishNotReady && s.Selector != nil && a.Kind == LoadBalancer && s.policy(a) == Local
}

// becomes takes in that a pod's readiness was another before.
func (s *State) becomes(now time.Time, p *podState, was pod.Readiness) {
	switch is := p.pod().Ready; {
	case is == pod.NotReady:
		s.notNew(p)
	case is == pod.Ready && was != pod.Ready && s.podsSynced:
		p.until, p.known, p.stale = now.Add(InterimTime), map[proxy.Key]bool{}, map[proxy.Key]bool{}
		for key, rule := range s.rules {
			if p.isHere(rule) {
				p.stale[key] = true
			}
		}
		s.new[p] = struct{}{}
	case is == pod.Ready && was != pod.Ready:
		// Before all pods are known, those that are Ready became so before this run of the
		// agent. An earlier one has left which of them are new.
		if until := s.endOf(p.Addrs); until.After(now) {
			p.until, p.known, p.stale = until, map[proxy.Key]bool{}, nil
			s.new[p] = struct{}{}
		}
	}
}

func (s *State) notNew(p *podState) {
	p.until, p.known, p.stale = time.Time{}, nil, nil
	delete(s.new, p)
}

// endOf is when the last translation to one of these addresses ends; zero if there is none.
func (s *State) endOf(addrs []netip.Addr) (end time.Time) {
	last := func(all Interim) {
		for _, t := range all {
			if slices.Contains(addrs, t.To.Addr()) && t.Until.After(end) {
				end = t.Until
			}
		}
	}
	last(s.keptInterim)
	for p := range s.translated {
		last(p.interim)
	}
	return end
}

// isNew says of a pod that kube-proxy may not know yet that it is Ready, and until when.
func (s *State) isNew(uid pod.UID, key proxy.Key) (until time.Time, is bool) {
	p := s.pods[uid]
	if s.cannot || p == nil || p.until.IsZero() || p.known[key] {
		return until, false
	}
	return p.until, true
}

// isStale says of kube-proxy's rule that leads to a pod that it was there when the pod became
// Ready.
func (s *State) isStale(uid pod.UID, key proxy.Key) bool {
	p := s.pods[uid]
	return p != nil && p.stale[key]
}

// learn takes in which rule kube-proxy has. Once it has had one that leads to the pod, it knows
// better than this agent if the rule goes. A rule that was there when the pod became Ready
// says nothing: kube-proxy is about to remove it if it has heard that the pod was not Ready.
func (p *podState) learn(key proxy.Key, rule proxy.Rule) {
	switch here := p.isHere(rule); {
	case p.until.IsZero():
	case !here:
		delete(p.stale, key)
	case !p.stale[key]:
		p.known[key] = true
	}
}

func (p *podState) isHere(rule proxy.Rule) bool { return slices.ContainsFunc(p.Addrs, rule.IsHere) }

// clashes says whether another Service has a port of a path's at its address. Until
// flock-controller has seen to it, only kube-proxy says which of them has the connections.
func (s *State) clashes(p *path, port Port) bool {
	for other := range s.at[p.address.Addr] {
		if other != p && other.service.has(port.Protocol, port.Number) {
			return true
		}
	}
	return false
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

// staying are those of a path's translations that may stay while something else is not known.
func (s *State) staying(now time.Time, p *path) Interim {
	out := Interim{}
	for target, t := range p.interim {
		if s.cannot || !now.Before(t.Until) || !p.service.translatable(p.address) || !s.mayServe(t.To.Addr(), p.service.Service) {
			continue
		}
		for _, port := range p.service.Ports {
			key := p.service.key(port, p.address.Addr)
			if key.Target == target && !s.clashes(p, port) && !s.rules[key].IsHere(t.To.Addr()) {
				out[target] = t
			}
		}
	}
	return out
}

// unlead ends what leads to one of these addresses, of a pod that is gone.
func (s *State) unlead(addrs []netip.Addr) {
	without := func(all Interim) Interim {
		all = maps.Clone(all)
		maps.DeleteFunc(all, func(_ proxy.Target, t Translation) bool { return slices.Contains(addrs, t.To.Addr()) })
		return all
	}
	s.keptInterim = without(s.keptInterim)
	for p := range s.translated {
		s.translate(p, without(p.interim))
	}
}

// mayServe says whether a pod with an address may serve a Service; nil: any.
func (s *State) mayServe(addr netip.Addr, svc *Service) bool {
	known := false
	for _, p := range s.pods {
		if !slices.Contains(p.Addrs, addr) {
			continue
		}
		known = true
		if is := p.pod(); is.Ready != pod.NotReady && !is.Terminating && (svc == nil || svc.selects(p.Namespace, p.Labels)) {
			return true
		}
	}
	return !known && !s.podsSynced
}

// Interim are all connections that flock has to translate.
func (s *State) Interim() Interim {
	all := Interim{}
	for target, t := range s.keptInterim {
		if s.mayServe(t.To.Addr(), nil) {
			all[target] = t
		}
	}
	for p := range s.translated {
		maps.Copy(all, p.interim)
	}
	return all
}

// tickInterim ends what has lasted long enough.
func (s *State) tickInterim(now time.Time) {
	maps.DeleteFunc(s.keptInterim, func(_ proxy.Target, t Translation) bool { return !now.Before(t.Until) })
	for p := range s.new {
		switch {
		case s.node.Offline && now.Before(s.renewal(p)):
		case s.node.Offline:
			p.until = now.Add(InterimTime)
			s.touchNamespace(p.Namespace)
		case !now.Before(p.until):
			s.notNew(p)
			s.touchNamespace(p.Namespace)
		}
	}
	for p := range s.translated {
		for _, t := range p.interim {
			if !now.Before(t.Until) {
				s.touched[p.service.Ref] = struct{}{}
			}
		}
	}
}

// renewal is when a new pod is new for another while, if there is no API server.
func (s *State) renewal(p *podState) time.Time { return p.until.Add(-InterimTime / 2) }

// nextInterim is when tickInterim has something to do, or zero if never.
func (s *State) nextInterim() (next time.Time) {
	for p := range s.new {
		if s.node.Offline {
			next = earliest(next, s.renewal(p))
		} else {
			next = earliest(next, p.until)
		}
	}
	end := func(all Interim) {
		for _, t := range all {
			next = earliest(next, t.Until)
		}
	}
	end(s.keptInterim)
	for p := range s.translated {
		end(p.interim)
	}
	return next
}
