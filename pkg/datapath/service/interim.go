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
		if !f.serves(p) || !p.Selected || p.HostNetwork || len(targets) != 1 {
			continue
		}
		until, is := f.New(p.UID, key)
		i := slices.IndexFunc(p.Addrs, f.sameFamily)
		if !is || i < 0 {
			continue
		}
		to := netip.AddrPortFrom(p.Addrs[i], targets[0])
		if led := f.Led[key.Target].To == to; !ok || led {
			out, ok = Translation{to, until}, true
			if led { // it stays with its pod
				break
			}
		}
	}
	return out, ok
}

// translatable says whether connections to an address may go to any pod of the node that is
// Ready. Several Services may have one external IP and port, of which kube-proxy serves one.
func (s *Service) translatable(a Address) bool {
	return s.Plain && !s.PublishNotReady && s.Selector != nil && a.Kind == LoadBalancer && s.policy(a) == Local
}

// doubtTime is for how long a rule of kube-proxy's that leads to a pod may be about to go, after
// the pod became Ready: kube-proxy has not heard yet that it was not.
const doubtTime = 10 * time.Second

// A mark is what has been seen of kube-proxy's rule for a key since a pod is Ready.
type mark struct {
	before bool // it led to the pod already
	was    bool // it has led to the pod
	gone   bool // it does not any more, or did not for a moment
	known  bool // it leads to the pod because the pod is Ready
}

// becomes takes in that a pod's readiness was another before.
func (s *State) becomes(now time.Time, p *podState, was pod.Readiness) {
	is := p.pod().Ready
	if was == pod.NotReady || is == pod.NotReady {
		p.early = false
	}
	switch {
	case is == pod.NotReady:
		if was == pod.Ready {
			p.ceased = now
			if now.Sub(p.became) >= InterimTime {
				p.flaps = 0
			}
		}
		s.notNew(p)
	case is == pod.Ready && was != pod.Ready && !p.early:
		p.became = now
		p.until, p.doubt = now.Add(InterimTime), now.Add(doubtTime)
		if !p.ceased.IsZero() && now.Sub(p.ceased) < InterimTime {
			p.flaps++
		} else {
			p.flaps = 0
		}
		p.marks = map[proxy.Key]mark{}
		for key, rule := range s.rules {
			if p.isHere(rule) {
				p.marks[key] = mark{before: true, was: true}
			}
		}
		s.new[p] = struct{}{}
	}
}

func (s *State) notNew(p *podState) {
	p.until, p.doubt, p.marks = time.Time{}, time.Time{}, nil
	delete(s.new, p)
}

// newUntil is until when kube-proxy may not know of a pod, for a key; zero if it is not new. Of
// pods that were Ready before this run of the agent, an earlier one has left for which keys.
func (s *State) newUntil(p *podState, key proxy.Key) time.Time {
	switch {
	case p.marks[key].known:
		return time.Time{}
	case !p.until.IsZero():
		return p.until
	case p.early:
		return s.left[key.Target]
	}
	return time.Time{}
}

// isNew says of a pod that kube-proxy may not know yet that it is Ready, and until when.
func (s *State) isNew(uid pod.UID, key proxy.Key) (until time.Time, is bool) {
	p := s.pods[uid]
	if s.cannot || p == nil {
		return until, false
	}
	until = s.newUntil(p, key)
	return until, !until.IsZero()
}

// isStale says of kube-proxy's rule that leads to a pod that it may be about to go.
func (s *State) isStale(uid pod.UID, key proxy.Key) bool {
	p := s.pods[uid]
	return p != nil && !s.node.Offline && s.doubts(p, p.marks[key]) // without API server it cannot go
}

// doubts says whether kube-proxy's rule may be there though kube-proxy does not know that the
// pod is Ready: it was there before, or the pod has just been Ready before. Once it has gone
// and come back, it is there because the pod is Ready, if that was so once only.
func (s *State) doubts(p *podState, m mark) bool {
	doubtful := s.now.Before(p.doubt) || s.node.Offline && !p.doubt.IsZero() // which kube-proxy does not hear
	return doubtful && (m.before || p.flaps > 0) && (!m.gone || p.flaps > 1)
}

// learn takes in which rule kube-proxy has. Once it has one because the pod is Ready, it knows
// better than this agent if the rule goes.
func (s *State) learn(p *podState, key proxy.Key, rule proxy.Rule) {
	if s.mode == proxy.None || s.newUntil(p, key).IsZero() { // it may change its mode
		return
	}
	here := p.isHere(rule)
	m, seen := p.marks[key]
	if !seen && p.early {
		m.before = here // perhaps
	}
	m.gone = m.gone || m.was && !here
	m.was = m.was || here
	m.known = here && !s.doubts(p, m)
	if p.marks == nil {
		p.marks = map[proxy.Key]mark{}
	}
	p.marks[key] = m
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
	if s.cannot || !p.service.translatable(p.address) {
		return out
	}
	for _, port := range p.service.Ports {
		key := p.service.key(port, p.address.Addr)
		t, ok := p.interim[key.Target]
		if !ok || s.clashes(p, port) {
			continue
		}
		serves, known := s.mayServe(t.To.Addr(), p.service.Service)
		if known != nil {
			t.Until = s.newUntil(known, key)
		} else {
			t.Until = s.left[key.Target]
		}
		if serves && now.Before(t.Until) {
			out[key.Target] = t
		}
	}
	return out
}

// unlead ends what leads to one of these addresses, of a pod that is gone.
func (s *State) unlead(addrs []netip.Addr) {
	other := func(addr netip.Addr) bool {
		for _, p := range s.pods {
			if slices.Contains(p.Addrs, addr) {
				return true
			}
		}
		return false
	}
	without := func(all Interim) Interim {
		all = maps.Clone(all)
		maps.DeleteFunc(all, func(_ proxy.Target, t Translation) bool {
			return slices.Contains(addrs, t.To.Addr()) && !other(t.To.Addr())
		})
		return all
	}
	s.keptInterim = without(s.keptInterim)
	for p := range s.translated {
		s.translate(p, without(p.interim))
		s.touched[p.service.Ref] = struct{}{}
	}
}

// mayServe says whether a pod with an address may serve a Service, nil: any; and which one, if
// it is known.
func (s *State) mayServe(addr netip.Addr, svc *Service) (may bool, known *podState) {
	for _, p := range s.pods {
		if !slices.Contains(p.Addrs, addr) {
			continue
		}
		known = p
		if is := p.pod(); is.Ready != pod.NotReady && !is.Terminating && (svc == nil || svc.selects(p.Namespace, p.Labels)) {
			return true, p
		}
	}
	return known == nil && !s.podsSynced, nil
}

// Interim are all connections that flock has to translate.
func (s *State) Interim() Interim {
	all := Interim{}
	for target, t := range s.keptInterim {
		t.Until = s.left[target]
		if may, _ := s.mayServe(t.To.Addr(), nil); may && !t.Until.IsZero() {
			all[target] = t
		}
	}
	for p := range s.translated {
		maps.Copy(all, p.interim)
	}
	return all
}

// setOffline takes in whether the API server answers. Once it does again after a while, kube-proxy
// needs time to learn: others that make EndpointSlices have to connect first.
func (s *State) setOffline(now time.Time, is bool) {
	switch {
	case is && !s.node.Offline:
		s.offlineSince = now
		if !s.wasOffline && len(s.left) > 0 { // perhaps since long before this run
			s.offlineSince = now.Add(-outage)
		}
		s.wasOffline = true
	case !is && s.node.Offline:
		// What kube-proxy had not heard before, it hears now.
		for _, p := range s.pods {
			if !p.doubt.IsZero() {
				p.doubt = now.Add(doubtTime)
			}
		}
		if now.Sub(s.offlineSince) >= outage {
			s.renew(now.Add(afterOutage))
		}
	}
}

// An outage of the API server is longer than the other interruptions. After one, a pod is new
// for a longer time.
const outage, afterOutage = 10 * time.Second, 2 * InterimTime

// renew has what is new be so until then at least.
func (s *State) renew(until time.Time) {
	for p := range s.new {
		if p.until.Before(until) {
			p.until = until
			s.touchNamespace(p.Namespace)
		}
	}
	if len(s.left) == 0 {
		return
	}
	for target, end := range s.left {
		if end.Before(until) {
			s.left[target] = until
		}
	}
	s.touchAll()
}

// tickInterim ends what has lasted long enough.
func (s *State) tickInterim(now time.Time) {
	for _, p := range s.pods { // also those that are new by what an earlier run left
		if !p.doubt.IsZero() && !now.Before(p.doubt) && !s.node.Offline {
			p.doubt = time.Time{}
			s.touchNamespace(p.Namespace)
		}
	}
	if next := s.nextEnd(); next.IsZero() || now.Before(next) {
		return
	}
	if s.node.Offline {
		s.renew(now.Add(InterimTime))
		return
	}
	for p := range s.new {
		if !now.Before(p.until) {
			s.notNew(p)
			s.touchNamespace(p.Namespace)
		}
	}
	for target, end := range s.left {
		if !now.Before(end) {
			delete(s.left, target)
			s.touchAll()
		}
	}
}

// nextInterim is when tickInterim has something to do, or zero if never.
func (s *State) nextInterim() time.Time {
	next := s.nextEnd()
	if s.node.Offline {
		return next
	}
	for _, p := range s.pods {
		next = earliest(next, p.doubt)
	}
	return next
}

// nextEnd is when something is not new any more, or has to be renewed; zero if never.
func (s *State) nextEnd() (next time.Time) {
	for p := range s.new {
		next = earliest(next, p.until)
	}
	for _, end := range s.left {
		next = earliest(next, end)
	}
	if !s.node.Offline || next.IsZero() {
		return next
	}
	// In time also for an agent that is started again and has to notice the outage first, which
	// may take half a minute. But not for an interruption.
	ahead, long := next.Add(-InterimTime*5/6), s.offlineSince.Add(outage)
	if ahead.Before(long) {
		ahead = long
	}
	return earliest(next, ahead)
}

// APIServerMatters says whether it matters what kube-proxy can learn from the API server: flock
// translates, or would if another pod did not serve.
func (s *State) APIServerMatters() bool {
	if len(s.translated) > 0 || len(s.left) > 0 {
		return true
	}
	for p := range s.new {
		for _, svc := range s.byNamespace[p.Namespace] {
			if !svc.selects(p.Namespace, p.Labels) {
				continue
			}
			for addr, path := range svc.paths {
				for _, port := range svc.Ports {
					if svc.translatable(path.address) && !s.newUntil(p, svc.key(port, addr)).IsZero() {
						return true
					}
				}
			}
		}
	}
	return false
}
