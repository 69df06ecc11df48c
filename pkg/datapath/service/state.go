package service

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// LingerTime is for how long the node refuses what still arrives for an address that no
// Service has any more: far longer than routers need to learn of the withdrawal.
const LingerTime = 30 * time.Second

// State is everything that is known, and what follows from it for each address of each
// Service. It has no clock and no lock: its owner passes the time.
type State struct {
	node          Node
	services      map[Ref]*serviceState
	servicesKnown bool
	byNamespace   map[string]map[Ref]*serviceState
	at            map[netip.Addr]map[*path]struct{}
	inside        map[netip.Prefix]map[*path]struct{} // of aggregates
	moving        map[*path]struct{}                  // those with former prefixes
	edited        map[*path]struct{}                  // those whose Service has got other ports lately
	slices        map[Ref][]Slice
	slicesOf      map[string]bool // the names of Services for which they are known; nil: all
	taken         map[netip.Addr]string
	rules         map[proxy.Key]proxy.Rule
	asked         map[proxy.Key]bool
	mode          proxy.Mode

	pods       map[pod.UID]*podState
	podsSynced bool
	owner      map[string]*podState // of containers
	orphans    map[string]time.Time // exits of containers that no report has named yet
	deleting   map[pod.UID]bool
	gone       map[pod.UID]time.Time
	new        map[*podState]struct{} // those that kube-proxy may not know yet

	// kept is what the kernel had at the start, for addresses of Services that are not
	// known yet, and keptInterim the same of translations.
	kept        map[netip.Prefix]Entry
	keptInterim Interim
	// left are the ends of the translations that an earlier run left, by target.
	left map[proxy.Target]time.Time
	now  time.Time // of the last Apply
	// offlineSince is when the API server ceased to answer, if it does not.
	offlineSince time.Time
	wasOffline   bool
	// translated are the paths with connections that flock translates.
	translated map[*path]struct{}
	cannot     bool                       // the kernel cannot translate
	linger     map[netip.Prefix]time.Time // when the entry ends

	touched     map[Ref]struct{} // Services to decide about
	dirty       map[netip.Prefix]struct{}
	transitions []Transition
	changed     bool // a reason, or its detail
}

type serviceState struct {
	*Service
	paths map[netip.Addr]*path
}

// path is an address of a Service.
type path struct {
	service    *serviceState
	address    Address
	kept       Entry    // what the kernel had for the address at the start
	decision   Decision // of the Service alone
	announced  bool
	reason     Reason // with what others at the address are like
	detail     string
	interim    Interim
	ports      []Port         // that the Service had before, see Facts.Former
	edited     time.Time      // when it got others
	aggregates []netip.Prefix // by which State.inside has it
	former     former
	since      time.Time
	withdrawn  time.Time // last, by this run of the agent
	flaps      int
}

// Path is an address of a Service on the node, as status shows it.
type Path struct {
	Service Ref
	Addr    netip.Addr
	Kind    Kind
	// Prefix is what is announced for the address: a host route, or the aggregate.
	Prefix    netip.Prefix
	Announced bool
	Reason    Reason
	// Detail explains the reason to people; often empty.
	Detail string
	// Since is when the reason began to hold.
	Since time.Time
	// Flaps is how many times the address was withdrawn.
	Flaps int
}

// Transition is a path that has become announced, or was withdrawn.
type Transition struct {
	Path
	// Cause is when what led to it was learned, Applied when it was in the kernel.
	Cause, Applied time.Time
}

// Latency is the node's own part of the time that a transition took.
func (t Transition) Latency() time.Duration { return t.Applied.Sub(t.Cause) }

// NewState starts from what the kernel has of an earlier run.
func NewState(kernel map[netip.Prefix]Entry, interim Interim) *State {
	left := map[proxy.Target]time.Time{}
	for target, t := range interim {
		left[target] = t.Until
	}
	return &State{
		services: map[Ref]*serviceState{}, byNamespace: map[string]map[Ref]*serviceState{},
		at: map[netip.Addr]map[*path]struct{}{}, inside: map[netip.Prefix]map[*path]struct{}{}, moving: map[*path]struct{}{}, edited: map[*path]struct{}{},
		slices: map[Ref][]Slice{}, slicesOf: map[string]bool{}, taken: map[netip.Addr]string{}, rules: map[proxy.Key]proxy.Rule{}, asked: map[proxy.Key]bool{},
		pods: map[pod.UID]*podState{}, owner: map[string]*podState{}, orphans: map[string]time.Time{}, deleting: map[pod.UID]bool{}, gone: map[pod.UID]time.Time{},
		new: map[*podState]struct{}{}, translated: map[*path]struct{}{},
		kept: maps.Clone(kernel), keptInterim: maps.Clone(interim), left: left, linger: map[netip.Prefix]time.Time{},
		touched: map[Ref]struct{}{}, dirty: map[netip.Prefix]struct{}{},
	}
}

// Apply processes events, and decides what follows. Arrived is when the first of them came.
func (s *State) Apply(now, arrived time.Time, events ...Event) {
	s.now = now
	for _, e := range events {
		switch e := e.(type) {
		case Services:
			s.setServices(now, arrived, e.All)
		case Slices:
			s.setSlices(e)
		case NodeChanged:
			s.setOffline(now, e.Node.Offline)
			if s.node != e.Node {
				s.node = e.Node
				s.touchAll()
			}
		case Held:
			s.setHeld(e.By)
		case PodReported:
			s.report(now, e.PodReport)
		case PodDeleting:
			s.terminate(e.UID)
		case PodGone:
			s.forget(now, e.UID)
		case PodsSynced:
			for uid := range s.pods {
				if !slices.Contains(e.All, uid) {
					s.forget(now, uid)
				}
			}
			if !s.podsSynced {
				s.podsSynced = true
				s.touchAll()
			}
		case Exited:
			s.exit(now, e.ContainerID)
		case Looked:
			s.look(e)
		}
	}
	s.decide(now, arrived)
}

func (s *State) touchAll() {
	for ref := range s.services {
		s.touched[ref] = struct{}{}
	}
}

func (s *State) touchNamespace(namespace string) {
	for ref := range s.byNamespace[namespace] {
		s.touched[ref] = struct{}{}
	}
}

func (s *State) setServices(now, arrived time.Time, all []*Service) {
	listed := make(map[Ref]bool, len(all))
	unclaimed := s.unclaimed(all)
	for _, svc := range all {
		listed[svc.Ref] = true
		have := s.services[svc.Ref]
		if have != nil && (have.Service == svc || reflect.DeepEqual(have.Service, svc)) {
			continue
		}
		if have == nil {
			have = &serviceState{paths: map[netip.Addr]*path{}}
			s.services[svc.Ref] = have
			if s.byNamespace[svc.Namespace] == nil {
				s.byNamespace[svc.Namespace] = map[Ref]*serviceState{}
			}
			s.byNamespace[svc.Namespace][svc.Ref] = have
		}
		before := announcedBy(have)
		s.keepPorts(now, have, svc)
		have.Service = svc
		s.setAddresses(now, arrived, have, before, unclaimed)
		s.touched[svc.Ref] = struct{}{}
	}
	for ref, have := range s.services {
		if listed[ref] {
			continue
		}
		for _, p := range have.paths {
			s.drop(now, arrived, p)
		}
		delete(s.services, ref)
		delete(s.touched, ref)
		delete(s.byNamespace[ref.Namespace], ref)
		if len(s.byNamespace[ref.Namespace]) == 0 {
			delete(s.byNamespace, ref.Namespace)
		}
	}
	if !s.servicesKnown {
		s.servicesKnown = true
		// What nothing accounts for is withdrawn, and lingers.
		for prefix := range s.kept {
			s.linger[prefix] = now.Add(LingerTime)
			s.dirty[prefix] = struct{}{}
		}
		s.kept, s.keptInterim = nil, nil
	}
}

// formerPorts bounds how many ports that a Service does not have any more are remembered.
const formerPorts = 64

// keepPorts remembers the ports that a Service has before it has others.
func (s *State) keepPorts(now time.Time, have *serviceState, svc *Service) {
	if have.Service == nil || reflect.DeepEqual(have.Ports, svc.Ports) {
		return
	}
	for _, p := range have.paths {
		if !p.announced {
			continue
		}
		former := slices.Clone(p.ports)
		for _, port := range have.Ports {
			if !slices.Contains(former, port) {
				former = append(former, port)
			}
		}
		p.ports, p.edited = former[max(0, len(former)-formerPorts):], now
		s.edited[p] = struct{}{}
	}
}

func (s *State) forgetPorts(p *path) {
	p.ports = nil
	delete(s.edited, p)
}

// isRenamed says of a port that kube-proxy may not know it yet, as the Service was edited, and until
// when. kube-proxy joins a port and its endpoints by its name. So for a moment it has no endpoints for
// a new one, and refuses connections.
func (s *State) isRenamed(p *path, key proxy.Key) (until time.Time, is bool) {
	known := slices.ContainsFunc(p.ports, func(port Port) bool { return p.service.key(port, p.address.Addr) == key })
	if s.cannot || len(p.ports) == 0 || known {
		return until, false
	}
	until = p.edited.Add(InterimTime)
	return until, s.now.Before(until)
}

// tickEdited ends what has lasted long enough since an edit.
func (s *State) tickEdited(now time.Time) {
	for p := range s.edited {
		if !now.Before(p.edited.Add(InterimTime)) {
			delete(s.edited, p)
			s.touched[p.service.Ref] = struct{}{}
		}
	}
}

// nextEdited is when tickEdited has something to do, or zero if never.
func (s *State) nextEdited() (next time.Time) {
	for p := range s.edited {
		next = earliest(next, p.edited.Add(InterimTime))
	}
	return next
}

// setAddresses makes the paths of a Service those of its addresses. Before are the prefixes by
// which those that it has are announced, and unclaimed those by which an earlier run announced some
// and this one announces none.
func (s *State) setAddresses(now, arrived time.Time, svc *serviceState, before map[*path][]netip.Prefix, unclaimed []netip.Prefix) {
	want := map[netip.Addr]Address{}
	for _, a := range svc.Addresses {
		want[a.Addr] = a
	}
	for addr, p := range svc.paths {
		if _, ok := want[addr]; !ok {
			s.drop(now, arrived, p)
		}
	}
	for addr, a := range want {
		p := svc.paths[addr]
		if p == nil {
			p = &path{service: svc, since: now}
			p.kept = s.kept[hostPrefix(addr)]
			// Of an earlier run it is announced until all is known.
			by := s.keptBy(addr, a, unclaimed)
			p.announced = len(by) > 0
			p.decision.Announce = p.announced
			kept := maps.Clone(s.keptInterim)
			maps.DeleteFunc(kept, func(t proxy.Target, _ Translation) bool {
				return t.Addr != addr || !svc.has(t.Protocol, t.Port) // another Service's
			})
			s.translate(p, kept)
			svc.paths[addr] = p
			if s.at[addr] == nil {
				s.at[addr] = map[*path]struct{}{}
			}
			s.at[addr][p] = struct{}{}
			before[p] = by
		}
		p.address = a
		s.replace(now, p, before[p])
		s.touchAddr(addr)
		for other := range s.at[addr] { // its ports may clash with these
			s.touched[other.service.Ref] = struct{}{}
		}
	}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// touchAddr marks the prefixes that an address is announced by.
func (s *State) touchAddr(a netip.Addr) {
	s.dirty[hostPrefix(a)] = struct{}{}
	for p := range s.at[a] {
		for _, aggregate := range p.aggregates {
			s.dirty[aggregate] = struct{}{}
		}
	}
}

// drop removes a path. What still arrives for its address is refused for a while.
func (s *State) drop(now, arrived time.Time, p *path) {
	addr := p.address.Addr
	s.touchAddr(addr)
	s.move(now, arrived, p, false, Deleted, "")
	s.translate(p, nil)
	if e := s.entry(hostPrefix(addr)); e.Local || e.Announced {
		s.linger[hostPrefix(addr)] = now.Add(LingerTime)
	}
	s.forgetPorts(p)
	delete(p.service.paths, addr)
	delete(s.at[addr], p)
	if len(s.at[addr]) == 0 {
		delete(s.at, addr)
	}
	s.index(now, p, nil)
	for other := range s.at[addr] {
		s.touched[other.service.Ref] = struct{}{}
	}
}

func (s *State) setSlices(e Slices) {
	before, of := s.slicesOf, s.slices
	s.slicesOf, s.slices = e.Names, e.Of
	for ref := range s.services {
		if knows(before, ref) != knows(e.Names, ref) || !reflect.DeepEqual(of[ref], e.Of[ref]) {
			s.touched[ref] = struct{}{}
		}
	}
}

// knows says whether EndpointSlices are known for a Service.
func knows(names map[string]bool, ref Ref) bool { return names == nil || names[ref.Name] }

func (s *State) setHeld(by map[netip.Addr]string) {
	for addr, paths := range s.at {
		if s.taken[addr] != by[addr] {
			s.touchAddr(addr)
			for p := range paths {
				s.touched[p.service.Ref] = struct{}{}
			}
		}
	}
	s.taken = by
}

// look takes in what the kernel has of kube-proxy's rules.
func (s *State) look(e Looked) {
	modeChanged := s.mode != e.Look.Mode
	s.mode = e.Look.Mode
	for _, svc := range s.services {
		for addr, p := range svc.paths {
			for _, port := range p.allPorts() {
				key := svc.key(port, addr)
				here, ok := e.Asked[key]
				if !ok {
					continue
				}
				if before, ok := s.asked[key]; modeChanged || !ok || before != here || !reflect.DeepEqual(s.rules[key], e.Look.At[key]) {
					s.touched[svc.Ref] = struct{}{}
				}
			}
		}
	}
	s.asked, s.rules = e.Asked, e.Look.At
}

// Questions are what is to be asked of kube-proxy's rules.
func (s *State) Questions() (all []proxy.Question) {
	for _, svc := range s.services {
		for addr, p := range svc.paths {
			if p.address.Refused != "" {
				continue
			}
			for _, port := range p.allPorts() {
				all = append(all, proxy.Question{Key: svc.key(port, addr), Here: svc.policy(p.address) == Local})
			}
		}
	}
	return all
}

// NeedSlices says whether a Service's EndpointSlices matter.
func (s *Service) NeedSlices() bool {
	return slices.ContainsFunc(s.Addresses, func(a Address) bool {
		return a.Refused == "" && (s.Selector == nil || s.policy(a) == Cluster)
	})
}

// NeedPods says whether pods of the node decide about a Service.
func (s *Service) NeedPods() bool {
	return s.Selector != nil && slices.ContainsFunc(s.Addresses, func(a Address) bool {
		return a.Refused == "" && s.policy(a) == Local
	})
}

// decide decides about the Services that were touched.
func (s *State) decide(now, arrived time.Time) {
	addrs := map[netip.Addr]struct{}{}
	for ref := range s.touched {
		svc := s.services[ref]
		if svc == nil {
			continue
		}
		for addr, p := range svc.paths {
			p.decision = Decide(s.facts(svc.Service, p))
			if d := p.decision; !d.Announce || d.Reason == Serving && !d.Former && len(d.Interim) == 0 {
				s.forgetPorts(p)
			}
			addrs[addr] = struct{}{}
		}
	}
	clear(s.touched)
	// Services that share an address are announced together.
	for addr := range addrs {
		var blocks *path
		for p := range s.at[addr] {
			if p.decision.Elsewhere && (blocks == nil || blocks.service.String() > p.service.String()) {
				blocks = p
			}
		}
		for p := range s.at[addr] {
			announced, reason, detail := p.decision.Announce, p.decision.Reason, p.decision.Detail
			if announced && blocks != nil {
				announced, reason, detail = false, SharedBlocked, "Service "+blocks.service.String()+": "+string(blocks.decision.Reason)
			}
			s.move(now, arrived, p, announced, reason, detail)
			switch {
			case announced && reason == Kept:
				s.translate(p, s.staying(now, p))
			case announced:
				s.translate(p, p.decision.Interim)
			default:
				s.translate(p, s.draining(now, p))
			}
		}
	}
}

// facts are what a decision depends on.
func (s *State) facts(svc *Service, p *path) Facts {
	f := Facts{
		Service: svc, Address: p.address, Node: s.node, Taken: s.taken[p.address.Addr],
		PodsKnown: s.podsSynced, Slices: s.slices[svc.Ref], SlicesKnown: knows(s.slicesOf, svc.Ref),
		Gone: func(uid pod.UID) bool { return s.doesNotServe(svc, uid) },
		New: func(uid pod.UID, key proxy.Key) (time.Time, bool) {
			if until, is := s.isNew(uid, key); is {
				return until, true
			}
			return s.isRenamed(p, key)
		},
		Stale: s.isStale, Clashes: func(port Port) bool { return s.clashes(p, port) },
		Rules: map[proxy.Key]proxy.Rule{}, Mode: s.mode, ProxyKnown: len(svc.Ports) > 0,
		Announced: p.decision.Announce, Led: p.interim, Former: p.ports,
	}
	var here []proxy.Rule
	var seen []proxy.Key
	for i, port := range p.allPorts() {
		key := svc.key(port, p.address.Addr)
		// Before the traffic policy became Local, the endpoints on the node were not asked for.
		withHere, asked := s.asked[key]
		asked = asked && (withHere || svc.policy(p.address) != Local)
		f.ProxyKnown = f.ProxyKnown && (asked || i >= len(svc.Ports))
		if asked {
			seen = append(seen, key)
		}
		if rule, ok := s.rules[key]; ok {
			f.Rules[key] = rule
			here = append(here, rule)
		}
	}
	if svc.policy(p.address) != Local || svc.Selector == nil {
		return f
	}
	for _, candidate := range s.pods {
		// The kubelet does not report a change of labels by itself. Then kube-proxy knows
		// of the pod before this agent does.
		drifted := !candidate.HostNetwork && candidate.Namespace == svc.Namespace && slices.ContainsFunc(here, func(r proxy.Rule) bool {
			return slices.ContainsFunc(candidate.Addrs, r.IsHere)
		})
		if selected := svc.selects(candidate.Namespace, candidate.Labels); drifted || selected {
			for _, key := range seen {
				s.learn(candidate, key, s.rules[key])
			}
			p := candidate.pod()
			p.Selected = selected
			f.Pods = append(f.Pods, p)
		}
	}
	slices.SortFunc(f.Pods, func(a, b Pod) int { return cmp.Compare(a.Name, b.Name) })
	return f
}

// move puts a path into the state that was decided.
func (s *State) move(now, arrived time.Time, p *path, announced bool, reason Reason, detail string) {
	if p.reason != reason || p.announced != announced {
		p.since = now
	}
	s.changed = s.changed || p.reason != reason || p.detail != detail
	was := p.announced
	p.announced, p.reason, p.detail = announced, reason, detail
	if !announced && len(p.former.prefixes) > 0 {
		s.keepFormer(now, p, nil)
	}
	// A path that is refused has no route, whether it was announced or not.
	s.touchAddr(p.address.Addr)
	if was == announced {
		return
	}
	if was {
		p.flaps++
		p.withdrawn = now
	}
	s.transitions = append(s.transitions, Transition{Path: p.status(), Cause: arrived})
}

// entry is what the kernel has to have for a prefix.
func (s *State) entry(prefix netip.Prefix) (e Entry) {
	if !s.servicesKnown {
		return s.kept[prefix]
	}
	paths := s.inside[prefix]
	if prefix.IsSingleIP() {
		paths = s.at[prefix.Addr()]
	}
	for p := range paths {
		if p.address.Refused != "" || s.taken[p.address.Addr] != "" {
			continue
		}
		if p.address.Undecided != "" && !p.announced && !p.kept.Local {
			continue // it may be none of flock's addresses
		}
		e.Local = true
		e.Announced = e.Announced || p.announced && (slices.Contains(p.prefixes(), prefix) || slices.Contains(p.former.prefixes, prefix))
	}
	if _, ok := s.linger[prefix]; ok && !(prefix.IsSingleIP() && s.taken[prefix.Addr()] != "") {
		e.Local = true
	}
	return e
}

// Tick makes what is due because time has passed.
func (s *State) Tick(now time.Time) {
	for prefix, end := range s.linger {
		if !now.Before(end) {
			delete(s.linger, prefix)
			s.dirty[prefix] = struct{}{}
		}
	}
	s.tickFormer(now)
	s.tickEdited(now)
	s.tickInterim(now)
	s.tickDrain(now)
}

// Next returns when Tick has something to do, or zero if never.
func (s *State) Next() (next time.Time) {
	for _, end := range s.linger {
		next = earliest(next, end)
	}
	return earliest(next, earliest(earliest(s.nextFormer(), s.nextEdited()), earliest(s.nextInterim(), s.nextDrain())))
}

// earliest is the earlier of two times, of which zero is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Changed says whether a path's reason, or its detail, has changed since the last call.
func (s *State) Changed() bool {
	was := s.changed
	s.changed = false
	return was
}

// Wanted returns the entries of the prefixes that may have changed since its last call, and
// the transitions since then.
func (s *State) Wanted() (map[netip.Prefix]Entry, []Transition) {
	want := make(map[netip.Prefix]Entry, len(s.dirty))
	for prefix := range s.dirty {
		want[prefix] = s.entry(prefix)
	}
	transitions := s.transitions
	clear(s.dirty)
	s.transitions = nil
	return want, transitions
}

// Desired is what the kernel has to have, as a whole.
func (s *State) Desired() map[netip.Prefix]Entry {
	all := map[netip.Prefix]Entry{}
	add := func(prefix netip.Prefix) {
		if e := s.entry(prefix); e != (Entry{}) {
			all[prefix] = e
		}
	}
	for prefix := range s.kept {
		add(prefix)
	}
	for addr := range s.at {
		add(hostPrefix(addr))
	}
	for prefix := range s.inside {
		add(prefix)
	}
	for prefix := range s.linger {
		add(prefix)
	}
	return all
}

// Paths are all addresses of all Services, by Service and address.
func (s *State) Paths() []Path {
	var all []Path
	for _, svc := range s.services {
		for _, p := range svc.paths {
			all = append(all, p.status())
		}
	}
	slices.SortFunc(all, func(a, b Path) int {
		return cmp.Or(cmp.Compare(a.Service.Namespace, b.Service.Namespace), cmp.Compare(a.Service.Name, b.Service.Name), a.Addr.Compare(b.Addr))
	})
	return all
}

func (p *path) status() Path {
	out := Path{
		Service: p.service.Ref, Addr: p.address.Addr, Kind: p.address.Kind, Prefix: hostPrefix(p.address.Addr),
		Announced: p.announced, Reason: p.reason, Detail: p.detail, Since: p.since, Flaps: p.flaps,
	}
	if p.address.Aggregate.IsValid() && p.service.policy(p.address) == Cluster {
		out.Prefix = p.address.Aggregate
	}
	return out
}
