package service

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// World is everything that decisions depend on. It must be complete: what is missing is
// taken to be free.
type World struct {
	// Services are those that are flock's.
	Services []Service
	Pools    []config.Pool
	// Namespaces are the labels of every namespace. A Service in a namespace that is
	// missing keeps what it has and gets nothing.
	Namespaces map[string]labels.Set
	// Claims are the AddressClaims.
	Claims map[netip.Addr]Claim
	// Taken says who else has an address, as in "an address of node node1".
	Taken map[netip.Addr]string
	// Ranges are prefixes of others, as pod CIDRs.
	Ranges []Range
}

// Range is a prefix with all of its addresses, and what it is, as in "the pod CIDR
// 10.1.0.0/24 of node node1".
type Range struct {
	Prefix netip.Prefix
	What   string
}

// Claim is who has an address by its AddressClaim: a pod, or Services.
type Claim struct {
	// Pod says which one, as in "pod shop/web-0 on node node1"; "" if Services have it.
	Pod      string
	Services []Share
}

// Share is a Service's part of a claim.
type Share struct {
	Key
	UID   types.UID
	Ports []Port
}

// Reasons of decisions. They are the reasons of the condition, and labels of metrics.
const (
	// Assigned: the Service has an address of each family.
	Assigned = "Assigned"
	// PartlyAssigned: ipFamilyPolicy is PreferDualStack, and it has one of one family.
	PartlyAssigned = "PartlyAssigned"
	// InvalidRequest: an annotation or a field is wrong.
	InvalidRequest = "InvalidRequest"
	// NoPool: no pool admits the namespace, or the pool that is named does not exist.
	NoPool = "NoPool"
	// PoolExhausted: the pools that admit the namespace have no free address.
	PoolExhausted = "PoolExhausted"
	// NotAdmitted: the pool of the address that is asked for does not grant it.
	NotAdmitted = "NotAdmitted"
	// AddressInUse: the address that is asked for is something else's.
	AddressInUse = "AddressInUse"
	// NotShared: the Services at the address and this one may not share it.
	NotShared = "NotShared"
	// PortInUse: they may, but both have the same port.
	PortInUse = "PortInUse"
	// LimitReached: the Services of the namespace have as many addresses of the pool as one
	// namespace may have.
	LimitReached = "LimitReached"
	// Waiting: something is not known yet.
	Waiting = "Waiting"
)

// Decision is what a Service is to have.
type Decision struct {
	// Holdings in the order of the Service's families.
	Holdings []Holding
	// Lost says of each address that another has a better right to, why.
	Lost []string
	// Complete: it has what its ipFamilyPolicy asks for.
	Complete bool
	// Reason is one of the constants; Message is for people.
	Reason, Message string
}

// refusal is why a Service does not get an address.
type refusal struct{ reason, message string }

func refuse(reason, format string, args ...any) *refusal {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}

// Assign decides about all Services. The same world has the same decisions.
func Assign(w World) map[Key]Decision {
	a := &assigner{
		World: w, byUID: map[types.UID]*Service{}, byKey: map[Key]*Service{}, namedBy: map[Key][]*Service{},
		sharers: map[netip.Addr][]*sharer{}, at: map[types.UID][]netip.Addr{}, used: map[poolNamespace]map[netip.Addr]bool{}, searches: map[netip.Prefix]*search{},
	}
	a.Services = slices.Clone(w.Services)
	slices.SortFunc(a.Services, func(s, t Service) int { return s.compare(&t) })
	a.Pools = slices.Clone(w.Pools)
	slices.SortFunc(a.Pools, func(p, q config.Pool) int { return cmp.Compare(p.Name, q.Name) })
	for i := range a.Services {
		s := &a.Services[i]
		a.byUID[s.UID], a.byKey[s.Key] = s, s
		for _, other := range s.SharedWith {
			a.namedBy[other] = append(a.namedBy[other], s)
		}
	}
	a.observe()

	plans := make([]*plan, len(a.Services))
	for i := range a.Services {
		plans[i] = a.keep(&a.Services[i])
	}
	// Those that name an address come first: others may take any, or share theirs.
	for _, named := range []bool{true, false} {
		for _, p := range plans {
			if (len(p.Addresses) > 0) == named {
				a.complete(p)
			}
		}
	}
	decisions := make(map[Key]Decision, len(plans))
	for _, p := range plans {
		decisions[p.Key] = a.decision(p)
	}
	return decisions
}

// compare orders Services by age: of two, the older has the better right.
func (s *Service) compare(t *Service) int {
	return cmp.Or(s.Created.Compare(t.Created), cmp.Compare(s.Namespace, t.Namespace), cmp.Compare(s.Name, t.Name), cmp.Compare(s.UID, t.UID))
}

type assigner struct {
	World
	byUID map[types.UID]*Service
	byKey map[Key]*Service
	// namedBy are the Services that agree to share with one.
	namedBy map[Key][]*Service
	// sharers are the Services that have an address, by claim, by status or by now, and
	// at is the reverse.
	sharers map[netip.Addr][]*sharer
	at      map[types.UID][]netip.Addr
	// used are the addresses of each pool with a limit that Services of a namespace have.
	used map[poolNamespace]map[netip.Addr]bool
	// searches are for free addresses, by CIDR.
	searches map[netip.Prefix]*search
}

type poolNamespace struct{ pool, namespace string }

// sharer is a Service at an address.
type sharer struct {
	Key
	uid types.UID
	// ports for which it has the address; recorded are those of the claim or the status.
	ports, recorded []Port
	// claimed: by the claim. service is nil if there is no such Service, or none of flock's.
	claimed bool
	service *Service
}

// plan is a decision in the making.
type plan struct {
	*Service
	has   map[corev1.IPFamily]Holding
	notes []string
	lost  []string
	fails map[corev1.IPFamily]*refusal
}

// observe enters who has which address.
func (a *assigner) observe() {
	for addr, claim := range a.Claims {
		for _, share := range claim.Services {
			a.enter(addr, &sharer{Key: share.Key, uid: share.UID, ports: share.Ports, recorded: share.Ports, claimed: true, service: a.byUID[share.UID]})
		}
	}
	for i := range a.Services {
		s := &a.Services[i]
		for _, h := range s.Held {
			if a.sharer(h.Addr, s) != nil {
				continue
			}
			ports := h.Ports
			if ports == nil {
				ports = s.Ports // of another controller, or an earlier version: it names none
			}
			a.enter(h.Addr, &sharer{Key: s.Key, uid: s.UID, ports: ports, recorded: ports, service: s})
		}
	}
	for _, list := range a.sharers {
		slices.SortFunc(list, func(x, y *sharer) int {
			return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name), cmp.Compare(x.uid, y.uid))
		})
	}
}

func (a *assigner) enter(addr netip.Addr, h *sharer) {
	a.sharers[addr] = append(a.sharers[addr], h)
	a.at[h.uid] = append(a.at[h.uid], addr)
	for _, p := range config.Deciding(a.Pools, addr) {
		if p.MaxPerNamespace > 0 {
			id := poolNamespace{p.Name, h.Namespace}
			if a.used[id] == nil {
				a.used[id] = map[netip.Addr]bool{}
			}
			a.used[id][addr] = true
		}
	}
}

// full says whether the Services of a namespace have as many addresses of the pool as it
// allows.
func (a *assigner) full(pool *config.Pool, namespace string) *refusal {
	if n := pool.MaxPerNamespace; n > 0 && len(a.used[poolNamespace{pool.Name, namespace}]) >= n {
		return refuse(LimitReached, "the Services of namespace %s have %d addresses of AddressPool %s, as many as one namespace may have (spec.maxAddressesPerNamespace): share one, delete Services, or ask the cluster's operator to raise the limit", namespace, n, pool.Name)
	}
	return nil
}

func (a *assigner) sharer(addr netip.Addr, s *Service) *sharer {
	for _, h := range a.sharers[addr] {
		if h.uid == s.UID {
			return h
		}
	}
	return nil
}

// keep finds out what s keeps of what its status and its claims have.
func (a *assigner) keep(s *Service) *plan {
	p := &plan{Service: s, has: map[corev1.IPFamily]Holding{}, fails: map[corev1.IPFamily]*refusal{}}
	held := slices.Clone(s.Held)
	// What was claimed for it before the status could be written. One that is being
	// deleted gets nothing new.
	if !s.Terminating {
		for _, addr := range slices.SortedFunc(slices.Values(a.at[s.UID]), netip.Addr.Compare) {
			if h := a.sharer(addr, s); h.claimed && !slices.ContainsFunc(held, func(h Holding) bool { return h.Addr == addr }) {
				held = append(held, Holding{Addr: addr, Ports: h.recorded})
			}
		}
	}
	// The one that it asks for, if it has that already, goes before others of the family.
	slices.SortStableFunc(held, func(x, y Holding) int {
		rank := func(h Holding) int {
			if slices.Contains(s.Addresses, h.Addr) {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(x), rank(y))
	})
	for _, h := range held {
		family := familyOf(h.Addr)
		if _, has := p.has[family]; has || !slices.Contains(s.Families, family) {
			continue
		}
		ports, lost := a.retain(s, h.Addr)
		if lost != nil {
			p.lost = append(p.lost, lost.message)
			continue
		}
		p.has[family] = Holding{h.Addr, ports}
		a.take(s, h.Addr, ports)
	}
	return p
}

// retain says for which ports s keeps addr, or why it loses it.
func (a *assigner) retain(s *Service, addr netip.Addr) (ports []Port, lost *refusal) {
	claim, claimed := a.Claims[addr]
	if claimed && claim.Pod != "" {
		return nil, refuse(AddressInUse, "%s is claimed by %s", addr, claim.Pod)
	}
	me := a.sharer(addr, s)
	for _, other := range a.sharers[addr] {
		if other == me {
			continue
		}
		for _, port := range s.Ports {
			if !slices.Contains(other.ports, port) {
				continue
			}
			switch mine := slices.Contains(me.recorded, port); {
			case mine && me.claimed && !other.claimed,
				mine && me.claimed == other.claimed && other.service != nil && s.compare(other.service) < 0:
				// It was here first.
			case other.service == nil:
				// The other is gone, and its claim goes too in a moment.
				return me.recorded, nil
			default:
				return nil, refuse(PortInUse, "port %s of %s is that of Service %s: change the port of one of them, or delete the annotation %s to get another address", port, addr, other.Key, v1alpha1.ServiceSharedWithAnnotation)
			}
		}
	}
	return s.Ports, nil
}

// take enters that s is to have addr for these ports.
func (a *assigner) take(s *Service, addr netip.Addr, ports []Port) {
	me := a.sharer(addr, s)
	if me == nil {
		me = &sharer{Key: s.Key, uid: s.UID, service: s}
		a.enter(addr, me)
	}
	me.ports = sortPorts(slices.Concat(me.ports, ports))
}

// complete gives the Service what it does not have yet.
func (a *assigner) complete(p *plan) {
	if p.Terminating {
		return
	}
	found := map[corev1.IPFamily]netip.Addr{}
	for _, family := range p.Families {
		current, has := p.has[family]
		if has && !a.asksForAnother(p, family, current.Addr) {
			continue
		}
		addr, why := a.obtain(p, family)
		switch {
		case why == nil:
			found[family] = addr
			a.take(p.Service, addr, p.Ports)
		case has:
			p.notes = append(p.notes, fmt.Sprintf("it keeps %s because it cannot have what it asks for: %s", current.Addr, why.message))
		default:
			p.fails[family] = why
		}
	}
	both := p.Policy != corev1.IPFamilyPolicyRequireDualStack || len(p.fails) == 0
	for family, addr := range found {
		if !both {
			a.giveBack(p.Service, addr)
			continue
		}
		p.has[family] = Holding{addr, p.Ports}
	}
}

// giveBack undoes take of a new address.
func (a *assigner) giveBack(s *Service, addr netip.Addr) {
	a.sharers[addr] = slices.DeleteFunc(a.sharers[addr], func(h *sharer) bool { return h.uid == s.UID })
	a.at[s.UID] = slices.DeleteFunc(a.at[s.UID], func(other netip.Addr) bool { return other == addr })
	if slices.ContainsFunc(a.sharers[addr], func(h *sharer) bool { return h.Namespace == s.Namespace }) {
		return
	}
	for id, addrs := range a.used {
		if id.namespace == s.Namespace {
			delete(addrs, addr)
		}
	}
}

// asksForAnother says whether the Service asks for another address than it has.
func (a *assigner) asksForAnother(p *plan, family corev1.IPFamily, has netip.Addr) bool {
	if p.Invalid != "" {
		return false
	}
	for _, want := range p.Addresses {
		if familyOf(want) == family {
			return want != has
		}
	}
	if p.Pool == "" {
		return false
	}
	pool := a.pool(p.Pool)
	if pool == nil {
		return true // and the answer is why it cannot be had
	}
	_, within := pool.Covering(has)
	return !within && slices.ContainsFunc(pool.CIDRs, func(c netip.Prefix) bool { return familyOf(c.Addr()) == family })
}

func (a *assigner) pool(name string) *config.Pool {
	i := slices.IndexFunc(a.Pools, func(p config.Pool) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &a.Pools[i]
}

// obtain finds an address of the family that the Service may have.
func (a *assigner) obtain(p *plan, family corev1.IPFamily) (netip.Addr, *refusal) {
	var none netip.Addr
	if p.Invalid != "" {
		return none, refuse(InvalidRequest, "%s", p.Invalid)
	}
	namespace, known := a.Namespaces[p.Namespace]
	if !known {
		return none, refuse(Waiting, "the labels of namespace %s are not known yet", p.Namespace)
	}
	for _, want := range p.Addresses {
		if familyOf(want) == family {
			if why := a.grant(p, want, namespace); why != nil {
				return none, refuse(why.reason, "%s: %s", p.AddressesBy, why.message)
			}
			return want, nil
		}
	}
	var firstWhy *refusal
	for _, partner := range a.partners(p.Service) {
		for _, addr := range a.addressesOf(partner, family) {
			why := a.grant(p, addr, namespace)
			if why == nil {
				return addr, nil
			}
			if firstWhy == nil {
				firstWhy = refuse(why.reason, "annotation %s: %s", v1alpha1.ServiceSharedWithAnnotation, why.message)
			}
		}
	}
	if firstWhy != nil {
		return none, firstWhy
	}
	return a.any(p, family, namespace)
}

// partners are the Services that s may share with by what both say, those first that it
// names itself.
func (a *assigner) partners(s *Service) (out []*Service) {
	for _, key := range s.SharedWith {
		if t := a.byKey[key]; t != nil {
			out = append(out, t)
		}
	}
	for _, t := range a.namedBy[s.Key] {
		if t.Namespace == s.Namespace && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// addressesOf are the addresses of the family that a Service has, or is to have.
func (a *assigner) addressesOf(s *Service, family corev1.IPFamily) (out []netip.Addr) {
	for _, addr := range a.at[s.UID] {
		if familyOf(addr) == family {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// grant says why the Service may not have this very address, or nil.
func (a *assigner) grant(p *plan, addr netip.Addr, namespace labels.Set) *refusal {
	deciding := config.Deciding(a.Pools, addr)
	if len(deciding) == 0 {
		return refuse(NotAdmitted, "no AddressPool covers %s: choose an address of a pool with use service that admits namespace %s, or ask the cluster's operator for one", addr, p.Namespace)
	}
	var against []string
	var pool *config.Pool
	for i := range deciding {
		if why := a.against(&deciding[i], p, namespace); why != "" {
			against = append(against, why)
		} else if pool == nil {
			pool = &deciding[i]
		}
	}
	if pool == nil {
		return refuse(NotAdmitted, "%s is granted to namespace %s by no AddressPool: %s: choose an address of another pool, or ask the cluster's operator", addr, p.Namespace, strings.Join(against, "; "))
	}
	if !a.used[poolNamespace{pool.Name, p.Namespace}][addr] {
		if why := a.full(pool, p.Namespace); why != nil {
			return why
		}
	}
	if what := a.others(addr); what != "" {
		return refuse(AddressInUse, "%s is %s: choose another address", addr, what)
	}
	sharers := 0
	for _, other := range a.sharers[addr] {
		if other.uid == p.UID {
			continue // it had the address until now
		}
		sharers++
		if why := a.share(p.Service, other, addr, pool); why != nil {
			return why
		}
	}
	if sharers >= MaxSharers {
		return refuse(NotShared, "%s is shared by %d Services, and an AddressClaim holds no more: choose another address", addr, sharers)
	}
	return nil
}

// against says why a pool does not grant its addresses to the Service; "" if it does.
func (a *assigner) against(pool *config.Pool, p *plan, namespace labels.Set) string {
	switch {
	case !pool.Admits(namespace):
		return fmt.Sprintf("AddressPool %s admits only namespaces with %s", pool.Name, config.Admission(pool.Namespaces))
	case !pool.Service:
		return fmt.Sprintf("AddressPool %s does not allow use %q", pool.Name, v1alpha1.UseService)
	case p.Pool != "" && p.Pool != pool.Name:
		return fmt.Sprintf("annotation %s asks for AddressPool %s, and this is one of AddressPool %s", v1alpha1.ServicePoolAnnotation, p.Pool, pool.Name)
	}
	return ""
}

// others says who has addr and is no Service of flock's; "" if nobody.
func (a *assigner) others(addr netip.Addr) string {
	if claim := a.Claims[addr]; claim.Pod != "" {
		return "an address of " + claim.Pod
	}
	if what := a.Taken[addr]; what != "" {
		return what
	}
	for _, r := range a.Ranges {
		if r.Prefix.Contains(addr) {
			return "in " + r.What
		}
	}
	return ""
}

// share says why s may not have addr together with another Service that has it, or nil.
func (a *assigner) share(s *Service, other *sharer, addr netip.Addr, pool *config.Pool) *refusal {
	held := fmt.Sprintf("%s is held by Service %s", addr, other.Key)
	if other.service == nil {
		return refuse(AddressInUse, "%s, which is being released: it will be free in a moment", held)
	}
	here, there := slices.Contains(s.SharedWith, other.Key), slices.Contains(other.service.SharedWith, s.Key)
	const key = v1alpha1.ServiceSharedWithAnnotation
	if s.Namespace == other.Namespace {
		if !a.agreed(s, other, addr) {
			return refuse(AddressInUse, "%s: choose another address, or share it by annotation %s: %s", held, key, other.Name)
		}
	} else {
		switch {
		case !here && !there:
			return refuse(AddressInUse, "%s: choose another address", held)
		case pool.Services.Sharing != v1alpha1.SharingPool:
			return refuse(NotShared, "%s, and AddressPool %s does not allow that Services of different namespaces share (spec.services.sharing: pool): choose another address", held, pool.Name)
		case !here:
			return refuse(NotShared, "%s, which agrees to share it: add %s to annotation %s", held, other.Key, key)
		case !there:
			return refuse(NotShared, "%s, which does not name Service %s in its annotation %s: choose another address, or ask the owner of the other Service", held, s.Key, key)
		}
	}
	if pool.Services.Sharing == v1alpha1.SharingNone {
		return refuse(NotShared, "%s, and AddressPool %s does not allow sharing (spec.services.sharing: none): choose another address", held, pool.Name)
	}
	for _, port := range s.Ports {
		if slices.Contains(other.ports, port) {
			return refuse(PortInUse, "%s for port %s: change the port of one of them, or choose another address", held, port)
		}
	}
	// A node announces an address with Local where it has a pod of the Service. Packets to
	// another Service's port would come there too, and be dropped.
	if t := other.service; s.Local != t.Local || s.Local && (len(s.Selector) == 0 || !maps.Equal(s.Selector, t.Selector)) {
		return refuse(NotShared, "%s, and the same nodes must serve both: to share, both need externalTrafficPolicy Cluster, or both need Local and the same selector", held)
	}
	return nil
}

// agreed says whether s and another Service at addr share it by what their annotations say now.
func (a *assigner) agreed(s *Service, other *sharer, addr netip.Addr) bool {
	here, there := slices.Contains(s.SharedWith, other.Key), slices.Contains(other.service.SharedWith, s.Key)
	if s.Namespace != other.Namespace {
		return here && there
	}
	return here || there || a.sharesWithAny(s, addr)
}

// sharesWithAny says whether a Service of the same namespace at addr and s name each other,
// in either direction.
func (a *assigner) sharesWithAny(s *Service, addr netip.Addr) bool {
	return slices.ContainsFunc(a.sharers[addr], func(h *sharer) bool {
		return h.Namespace == s.Namespace && h.service != nil && (slices.Contains(s.SharedWith, h.Key) || slices.Contains(h.service.SharedWith, s.Key))
	})
}

// any finds a free address of the first pool that has one.
func (a *assigner) any(p *plan, family corev1.IPFamily, namespace labels.Set) (netip.Addr, *refusal) {
	var full, against []string
	var limit *refusal
	for i := range a.Pools {
		pool := &a.Pools[i]
		if p.Pool != "" && pool.Name != p.Pool || p.Pool == "" && !pool.Service {
			continue
		}
		if why := a.against(pool, p, namespace); why != "" {
			against = append(against, why)
			continue
		}
		if p.Pool == "" && !pool.Services.AutoAssign {
			against = append(against, fmt.Sprintf("AddressPool %s is only for Services that name it by annotation %s (spec.services.autoAssign: false)", pool.Name, v1alpha1.ServicePoolAnnotation))
			continue
		}
		some := false
		if why := a.full(pool, p.Namespace); why != nil {
			limit = cmp.Or(limit, why)
			continue
		}
		for _, cidr := range pool.CIDRs {
			if familyOf(cidr.Addr()) != family {
				continue
			}
			some = true
			if addr, ok := a.free(cidr); ok {
				return addr, nil
			}
		}
		if some {
			full = append(full, pool.Name)
		} else {
			against = append(against, fmt.Sprintf("AddressPool %s has no %s CIDR", pool.Name, family))
		}
	}
	var none netip.Addr
	switch {
	case limit != nil:
		return none, limit
	case len(full) > 0:
		return none, refuse(PoolExhausted, "there is no free %s address in AddressPool %s: ask the cluster's operator for more, or delete Services that are not needed", family, strings.Join(full, ", "))
	case p.Pool != "" && len(against) == 0:
		return none, refuse(NoPool, "annotation %s: there is no valid AddressPool %s: kubectl get addresspools shows those that there are", v1alpha1.ServicePoolAnnotation, p.Pool)
	case len(against) > 0:
		return none, refuse(NoPool, "no AddressPool grants an %s address to namespace %s: %s", family, p.Namespace, strings.Join(against, "; "))
	}
	return none, refuse(NoPool, "there is no AddressPool with use %q: ask the cluster's operator for one that admits namespace %s", v1alpha1.UseService, p.Namespace)
}

// search is for free addresses of one CIDR of a pool. As nothing becomes free while Assign
// runs, it never goes back.
type search struct {
	next    netip.Addr // invalid once the end is reached
	last    netip.Addr
	blocked []netip.Prefix // parts that are others'
}

func (a *assigner) newSearch(cidr netip.Prefix) *search {
	s := &search{next: cidr.Addr(), last: last(cidr)}
	if cidr.Addr().BitLen()-cidr.Bits() > 1 {
		// The network's own address, or the subnet-router anycast address (RFC 4291 section
		// 2.6.1), and the broadcast address: hosts may refuse them. A Service can ask for one.
		s.next = s.next.Next()
		if s.last.Is4() {
			s.last = s.last.Prev()
		}
	}
	for _, r := range a.Ranges {
		if r.Prefix.Overlaps(cidr) {
			s.blocked = append(s.blocked, r.Prefix)
		}
	}
	for i := range a.Pools {
		for _, c := range a.Pools[i].CIDRs {
			if c.Bits() > cidr.Bits() && c.Overlaps(cidr) {
				s.blocked = append(s.blocked, c)
			}
		}
	}
	return s
}

// free returns the lowest address of a pool's CIDR that nothing has and about which no
// longer prefix decides.
func (a *assigner) free(cidr netip.Prefix) (netip.Addr, bool) {
	s := a.searches[cidr]
	if s == nil {
		s = a.newSearch(cidr)
		a.searches[cidr] = s
	}
	for s.next.IsValid() && !s.last.Less(s.next) {
		if i := slices.IndexFunc(s.blocked, func(b netip.Prefix) bool { return b.Contains(s.next) }); i >= 0 {
			s.next = last(s.blocked[i]).Next()
			continue
		}
		if _, claimed := a.Claims[s.next]; claimed || a.Taken[s.next] != "" || len(a.sharers[s.next]) > 0 {
			s.next = s.next.Next()
			continue
		}
		return s.next, true
	}
	return netip.Addr{}, false
}

// last is the highest address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		switch bits := p.Bits() - 8*i; {
		case bits <= 0:
			b[i] = 0xff
		case bits < 8:
			b[i] |= 0xff >> bits
		}
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// decision is what comes of the plan.
func (a *assigner) decision(p *plan) Decision {
	d := Decision{Lost: p.lost}
	var got, missing []string
	reason := ""
	for _, family := range p.Families {
		h, has := p.has[family]
		if has {
			d.Holdings = append(d.Holdings, h)
			got = append(got, a.describe(p, h))
			continue
		}
		if p.Terminating {
			continue
		}
		why := p.fails[family]
		if why == nil {
			continue // the other family fails, and both are required
		}
		reason = cmp.Or(reason, why.reason)
		if len(missing) == 0 || missing[len(missing)-1] != why.message {
			missing = append(missing, why.message)
		}
	}
	text := strings.Join(got, ", ")
	prefer := p.Policy == corev1.IPFamilyPolicyPreferDualStack
	switch {
	case reason == "":
		d.Complete, d.Reason = len(got) > 0, Assigned
		if p.Invalid != "" {
			p.notes = append(p.notes, "its request is ignored: "+p.Invalid)
		}
		if len(got) == 0 {
			d.Reason, text = Waiting, "it is being deleted, or has no ipFamilies yet"
		}
	case prefer && len(got) > 0:
		d.Complete, d.Reason = true, PartlyAssigned
		text += "; no address of the other family, which ipFamilyPolicy prefers: " + strings.Join(missing, "; ")
	default:
		d.Reason = reason
		if p.Policy == corev1.IPFamilyPolicyRequireDualStack {
			missing = append(missing, "ipFamilyPolicy RequireDualStack needs both families: set PreferDualStack to take what there is")
		}
		if text != "" {
			text += ", but: "
		}
		text += strings.Join(missing, "; ")
	}
	if len(p.notes) > 0 {
		text += "; " + strings.Join(p.notes, "; ")
	}
	d.Message = text
	return d
}

// describe is an address for people, with what is to be known of it.
func (a *assigner) describe(p *plan, h Holding) string {
	text := h.Addr.String()
	var pool *config.Pool
	deciding := config.Deciding(a.Pools, h.Addr)
	for i := range deciding {
		if deciding[i].Service && (pool == nil || !pool.Admits(a.Namespaces[p.Namespace])) {
			pool = &deciding[i]
		}
	}
	switch {
	case pool == nil:
		text += " (kept, though no AddressPool with use service covers it any more)"
	case a.Namespaces[p.Namespace] != nil && !pool.Admits(a.Namespaces[p.Namespace]):
		text += fmt.Sprintf(" of AddressPool %s (it keeps it, though the pool does not admit namespace %s any more)", pool.Name, p.Namespace)
	default:
		text += " of AddressPool " + pool.Name
	}
	if what := a.others(h.Addr); what != "" {
		text += fmt.Sprintf(" (which is also %s: change one of them)", what)
	}
	var with []string
	for _, other := range a.sharers[h.Addr] {
		if other.uid != p.UID && other.service != nil {
			text := other.Key.String()
			if !a.agreed(p.Service, other, h.Addr) {
				text += fmt.Sprintf(" (to which annotation %s does not agree: it stays until one of them gets another address, by annotation %s)", v1alpha1.ServiceSharedWithAnnotation, v1alpha1.ServiceAddressesAnnotation)
			}
			with = append(with, text)
		}
	}
	if len(with) > 0 {
		slices.Sort(with)
		text += " shared with " + strings.Join(with, ", ")
	}
	return text
}
