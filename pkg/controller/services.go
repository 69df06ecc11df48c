package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/keylock"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/service"
)

const (
	// passPause is between two passes, so that changes that come together are one pass.
	passPause = 20 * time.Millisecond
	// lookPause is how late a pass may be that only nodes or pods have caused.
	lookPause = time.Second
	// settleTime is how long a pass waits for the caches to have the writes of the last one.
	settleTime = 5 * time.Second
	// writers write at the same time.
	writers = 16
)

// source is what services knows of the API server: newer or older copies of everything.
type source interface {
	observe(classless bool) observed
	service(service.Key) (*corev1.Service, bool)
	claim(name string) (*v1alpha1.AddressClaim, bool)
	// notify wakes wants when what Services ask for or may have has changed, and has when it
	// is what nodes and pods have.
	notify(wants, has chan<- struct{})
}

// eventer reports to people.
type eventer interface {
	ObjectEvent(of kube.ObjectKind, namespace, name string, uid types.UID, kind kube.EventType, reason, action, note string)
}

// serviceAPI is what services needs of the API server.
type serviceAPI interface {
	GetService(ctx context.Context, namespace, name string) (*corev1.Service, error)
	PatchServiceStatus(ctx context.Context, svc *corev1.Service, ingress []corev1.LoadBalancerIngress, conditions []metav1.Condition) (version string, err error)
	MakeClaim(ctx context.Context, claim *v1alpha1.AddressClaim) (*v1alpha1.AddressClaim, error)
	UpdateClaim(ctx context.Context, claim *v1alpha1.AddressClaim) (*v1alpha1.AddressClaim, error)
	DropClaim(ctx context.Context, claim *v1alpha1.AddressClaim) error
}

// services gives Services their addresses.
//
// The status of a Service says which addresses it has, and the AddressClaim of an address
// which Services have it, for which ports. The claim is always at least what the statuses
// say: an address is claimed before it is in a status, and it is released after it was taken
// out of it. That holds with any number of instances, each with an old copy of anything:
//
//   - assign: the Service as it is in version V is entered in the claim, with V, which never
//     replaces a newer one; then its status is written over V.
//   - release: the claim is read in version C; then the Service's status is written without
//     the address, or it is read without the address and in another version than the claim
//     names; then the claim is changed over C.
//
// Let a claim be released for a Service whose status is yet to be written with the address
// over V. If the claim was written for that after C, the release fails. If before, it names
// V: then the Service was no longer in version V when it was written or read for the release,
// and the write over V fails.
type services struct {
	world     source
	api       serviceAPI
	classless bool
	events    eventer
	log       *slog.Logger
	metrics   *metrics

	unsettled []func() bool // whether the caches have a write
	retries   retries[service.Key]
	releases  retries[netip.Addr]
}

// retries are the Services that could not be written, or the addresses that could not be
// released.
type retries[K comparable] map[K]*retry

// retry is when one of them is tried again.
type retry struct {
	backoff backoff.Backoff
	at      time.Time
	version string // of the object; another one is tried at once
}

// waits says whether it is too early to try.
func (r retries[K]) waits(key K, version string, now time.Time) bool {
	one := r[key]
	return one != nil && now.Before(one.at) && one.version == version
}

// note takes in what came of a try, and returns the delay until the next one.
func (r retries[K]) note(key K, version string, err error, now time.Time) (delay time.Duration) {
	if err == nil {
		delete(r, key)
		return 0
	}
	one := r[key]
	if one == nil {
		one = &retry{backoff: backoff.Backoff{First: 50 * time.Millisecond, Last: 30 * time.Second, Jitter: 0.2}}
		r[key] = one
	}
	delay = one.backoff.Next()
	if outdated(err) {
		delay = min(delay, staleRetry)
	}
	one.at, one.version = now.Add(delay), version
	return delay
}

// times are when the next tries are due.
func (r retries[K]) times() (all []time.Time) {
	for _, one := range r {
		all = append(all, one.at)
	}
	return all
}

// staleRetry is after how long what was refused because a copy was old is tried again, at
// the latest.
const staleRetry = 500 * time.Millisecond

// Run works until ctx ends.
func (s *services) Run(ctx context.Context) {
	wants, has := cell.Signal(), cell.Signal()
	s.world.notify(wants, has)
	var look <-chan time.Time // of what nodes and pods have
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-has:
			if look == nil {
				look = time.After(lookPause)
			}
			continue
		case <-look:
			look = nil
		case <-wants:
		case <-timer.C:
		}
		if !s.settle(ctx) {
			return
		}
		again := s.pass(ctx)
		if again >= 0 {
			timer.Reset(again)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(passPause):
		}
	}
}

// settle waits until the caches have what was written, for some time: without it the next
// pass would try the same again, and the API server would refuse.
func (s *services) settle(ctx context.Context) bool {
	deadline := time.Now().Add(settleTime)
	for {
		s.unsettled = slices.DeleteFunc(s.unsettled, func(there func() bool) bool { return there() })
		if len(s.unsettled) == 0 || time.Now().After(deadline) {
			s.unsettled = nil
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// pass brings statuses and claims to what is decided, and says in how long to look again; -1
// if nothing is left to do.
func (s *services) pass(ctx context.Context) time.Duration {
	if s.retries == nil {
		s.retries, s.releases = retries[service.Key]{}, retries[netip.Addr]{}
	}
	p := &pass{services: s, observed: s.world.observe(s.classless), written: map[netip.Addr]*v1alpha1.AddressClaim{}, wrote: map[types.UID][]corev1.LoadBalancerIngress{}, failed: map[service.Key]error{}, kept: map[netip.Addr]error{}}
	p.decisions = service.Assign(p.World)
	s.metrics.decided(p.decisions)

	now := time.Now()
	var keys []service.Key
	for key, svc := range p.objects {
		if !s.retries.waits(key, svc.ResourceVersion, now) && p.due(key, svc) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b service.Key) int { return strings.Compare(a.String(), b.String()) })
	inParallel(keys, func(key service.Key) { p.fail(key, p.bring(ctx, key)) })

	var addrs []netip.Addr
	for addr, c := range p.claims {
		if len(c.Spec.Services) > 0 && !s.releases.waits(addr, c.ResourceVersion, now) {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	inParallel(addrs, func(addr netip.Addr) {
		err := p.release(ctx, addr)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.kept[addr] = err
	})
	return s.next(p, now)
}

// next notes what has failed, and says when the next pass is due.
func (s *services) next(p *pass, now time.Time) time.Duration {
	for key, err := range p.failed {
		version := ""
		if svc := p.objects[key]; svc != nil {
			version = svc.ResourceVersion
		}
		if delay := s.retries.note(key, version, err, now); err != nil && !outdated(err) {
			s.metrics.failures.Inc()
			s.log.Error("cannot write the addresses of a Service, will retry", "service", key, "error", err, "retry", delay)
		}
	}
	for addr, err := range p.kept {
		if delay := s.releases.note(addr, p.claims[addr].ResourceVersion, err, now); err != nil && !outdated(err) {
			s.metrics.failures.Inc()
			s.log.Error("cannot release the address of a Service, will retry", "address", addr, "error", err, "retry", delay)
		}
	}
	maps.DeleteFunc(s.retries, func(key service.Key, _ *retry) bool { return p.objects[key] == nil })
	maps.DeleteFunc(s.releases, func(addr netip.Addr, _ *retry) bool { return p.claims[addr] == nil })
	s.unsettled = p.unsettled
	again := time.Duration(-1)
	if len(p.unsettled) > 0 {
		again = passPause
	}
	for _, at := range slices.Concat(s.retries.times(), s.releases.times()) {
		if wait := max(passPause, at.Sub(now)); again < 0 || wait < again {
			again = wait
		}
	}
	return again
}

// outdated says that an object is not as the caches have it: the next pass sees it anew.
func outdated(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) || errors.Is(err, errTaken) || errors.Is(err, errBehind) || errors.Is(err, context.Canceled)
}

// errBehind says that the caches do not have the newest version of an object.
var errBehind = errors.New("the caches are behind")

// errTaken says that others have an address by a claim that the decision did not know.
var errTaken = errors.New("the address is claimed by others")

// pass is one pass: what it has seen, and what it has done.
type pass struct {
	*services
	observed
	decisions map[service.Key]service.Decision
	locks     keylock.Map[netip.Addr]

	mu        sync.Mutex                                 // guards below
	written   map[netip.Addr]*v1alpha1.AddressClaim      // claims as this pass has written them
	wrote     map[types.UID][]corev1.LoadBalancerIngress // statuses as this pass has written them
	failed    map[service.Key]error                      // nil where it was done
	kept      map[netip.Addr]error                       // of addresses that may be to be released; nil where it was done
	unsettled []func() bool
}

func (p *pass) fail(key service.Key, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.failed[key]; !ok || old == nil {
		p.failed[key] = err
	}
}

// inParallel calls do for each, some at the same time.
func inParallel[T any](all []T, do func(T)) {
	next := make(chan T)
	var done sync.WaitGroup
	for range min(writers, len(all)) {
		done.Go(func() {
			for item := range next {
				do(item)
			}
		})
	}
	for _, item := range all {
		next <- item
	}
	close(next)
	done.Wait()
}

// status is what a Service's status is to be.
func (p *pass) status(key service.Key, svc *corev1.Service) (ingress []corev1.LoadBalancerIngress, conditions []metav1.Condition) {
	conditions = slices.Clone(svc.Status.Conditions)
	ingress = svc.Status.LoadBalancer.Ingress
	if d, managed := p.decisions[key]; managed {
		ingress = service.Ingress(d.Holdings)
		meta.SetStatusCondition(&conditions, d.Condition(svc.Generation))
	} else {
		meta.RemoveStatusCondition(&conditions, v1alpha1.ServiceAddressAssigned)
	}
	if c, some := p.externalIPs(key, svc); some {
		meta.SetStatusCondition(&conditions, c)
	} else {
		meta.RemoveStatusCondition(&conditions, v1alpha1.ServiceExternalIPsAdmitted)
	}
	return ingress, conditions
}

// externalIPs is the condition of a Service with addresses of a pool in spec.externalIPs.
func (p *pass) externalIPs(key service.Key, svc *corev1.Service) (c metav1.Condition, some bool) {
	var pools, faults []string
	for _, a := range service.ExternalIPs(svc) {
		pool, why, covered := service.ExternalIP(a, svc.Namespace, p.Namespaces[svc.Namespace], p.Pools)
		if !covered {
			continue
		}
		some = true
		if claim := p.Claims[a]; why == "" && claim.Pod != "" {
			why = "it is an address of " + claim.Pod
		} else if why == "" && len(claim.Services) > 0 && !slices.ContainsFunc(claim.Services, func(s service.Share) bool { return s.UID == svc.UID }) {
			why = "it is held by Service " + claim.Services[0].Key.String()
		}
		if why != "" {
			faults = append(faults, fmt.Sprintf("%s: %s", a, why))
		} else {
			pools = append(pools, fmt.Sprintf("%s of AddressPool %s", a, pool))
		}
	}
	c = metav1.Condition{Type: v1alpha1.ServiceExternalIPsAdmitted, Status: metav1.ConditionTrue, Reason: "Admitted", Message: strings.Join(pools, ", "), ObservedGeneration: svc.Generation}
	if len(faults) > 0 {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "NotAdmitted", strings.Join(faults, "; ")
	}
	return c, some
}

// due says whether something of the Service is not as it is to be.
func (p *pass) due(key service.Key, svc *corev1.Service) bool {
	ingress, conditions := p.status(key, svc)
	if !equality.Semantic.DeepEqual(ingress, svc.Status.LoadBalancer.Ingress) || !equality.Semantic.DeepEqual(conditions, svc.Status.Conditions) {
		return true
	}
	return slices.ContainsFunc(p.decisions[key].Holdings, func(h service.Holding) bool {
		return !claimed(p.claims[h.Addr], svc, h.Ports, "")
	})
}

// claimed says whether the claim has the Service with all of these ports, and for this version
// of it; "" if that does not matter.
func claimed(c *v1alpha1.AddressClaim, svc *corev1.Service, ports []service.Port, version string) bool {
	if c == nil {
		return false
	}
	for _, share := range c.Spec.Services {
		if share.UID == string(svc.UID) {
			has := shareOf(share).Ports
			return (version == "" || share.ResourceVersion == version) && !slices.ContainsFunc(ports, func(p service.Port) bool { return !slices.Contains(has, p) })
		}
	}
	return false
}

// bring claims what the Service is to have, and then writes its status.
func (p *pass) bring(ctx context.Context, key service.Key) error {
	svc, d := p.objects[key], p.decisions[key]
	for _, h := range d.Holdings {
		if err := p.claim(ctx, svc, h); err != nil {
			return fmt.Errorf("claim %s: %w", h.Addr, err)
		}
	}
	ingress, conditions := p.status(key, svc)
	if equality.Semantic.DeepEqual(ingress, svc.Status.LoadBalancer.Ingress) && equality.Semantic.DeepEqual(conditions, svc.Status.Conditions) {
		return nil
	}
	if err := p.write(ctx, key, ingress, conditions); err != nil {
		return err
	}
	p.report(key, svc)
	return nil
}

// write writes the status.
func (p *pass) write(ctx context.Context, key service.Key, ingress []corev1.LoadBalancerIngress, conditions []metav1.Condition) error {
	svc := p.objects[key]
	version, err := p.api.PatchServiceStatus(ctx, svc, ingress, conditions)
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	p.mu.Lock()
	p.wrote[svc.UID] = ingress
	if version != svc.ResourceVersion {
		p.unsettled = append(p.unsettled, func() bool {
			now, ok := p.world.service(key)
			return !ok || now.ResourceVersion != svc.ResourceVersion
		})
	}
	p.mu.Unlock()
	return nil
}

// report makes Events and counts, after the status was written.
func (p *pass) report(key service.Key, svc *corev1.Service) {
	event := func(kind kube.EventType, reason, action, note string) {
		p.events.ObjectEvent(kube.Service, key.Namespace, key.Name, svc.UID, kind, reason, action, note)
	}
	if d, managed := p.decisions[key]; managed {
		had := service.Held(svc)
		has := func(list []service.Holding, a netip.Addr) bool {
			return slices.ContainsFunc(list, func(h service.Holding) bool { return h.Addr == a })
		}
		var gained []string
		for _, h := range d.Holdings {
			if !has(had, h.Addr) {
				gained = append(gained, h.Addr.String())
				p.metrics.assigned.Inc()
			}
		}
		for _, h := range had {
			if !has(d.Holdings, h.Addr) {
				p.metrics.released.Inc()
				p.log.Info("released an address of a Service", "service", key, "address", h.Addr)
			}
		}
		if len(gained) > 0 {
			p.log.Info("assigned addresses to a Service", "service", key, "addresses", strings.Join(gained, ","))
		}
		for _, why := range d.Lost {
			event(kube.Warning, "AddressLost", "Assign", why)
		}
		before := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ServiceAddressAssigned)
		switch {
		case !d.Complete && d.Reason != service.Waiting && (before == nil || before.Reason != d.Reason || before.Message != d.Message):
			event(kube.Warning, d.Reason, "Assign", d.Message)
		case d.Complete && len(gained) > 0:
			event(kube.Normal, d.Reason, "Assign", d.Message)
		}
	}
	if c, some := p.externalIPs(key, svc); some && c.Status == metav1.ConditionFalse {
		if before := meta.FindStatusCondition(svc.Status.Conditions, c.Type); before == nil || before.Message != c.Message {
			event(kube.Warning, "ExternalIPNotAdmitted", "Admit", c.Message)
		}
	}
}

// claim enters the Service in the claim of an address.
func (p *pass) claim(ctx context.Context, svc *corev1.Service, h service.Holding) error {
	unlock, err := p.locks.Lock(ctx, h.Addr)
	if err != nil {
		return err
	}
	defer unlock()
	current := p.current(h.Addr)
	ports, version := h.Ports, svc.ResourceVersion
	for _, had := range service.Held(svc) {
		if had.Addr == h.Addr {
			// Those that the status has stay claimed until it is written.
			ports = union(h.Ports, had.Ports)
			if slices.Equal(had.Ports, h.Ports) {
				version = "" // the status will not be written for them
			}
		}
	}
	if claimed(current, svc, ports, version) {
		return nil
	}
	if current == nil {
		c := &v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: h.Addr.String(), Services: []v1alpha1.ServiceClaim{shareFor(svc, ports)}}}
		c.Name = v1alpha1.AddressClaimName(h.Addr)
		return p.note(h.Addr)(p.api.MakeClaim(ctx, c))
	}
	if len(current.Spec.Services) == 0 {
		return errTaken
	}
	c := current.DeepCopy()
	at := -1
	for i, other := range c.Spec.Services {
		has := shareOf(other).Ports
		switch {
		case other.UID == string(svc.UID):
			at, ports = i, union(ports, has) // only release takes ports away
		case slices.ContainsFunc(ports, func(port service.Port) bool { return slices.Contains(has, port) }):
			return errTaken
		}
	}
	if at < 0 {
		c.Spec.Services = append(c.Spec.Services, shareFor(svc, ports))
		return p.note(h.Addr)(p.api.UpdateClaim(ctx, c))
	}
	// A write of the status that is yet to come may rely on the version in the claim: only
	// a newer one may replace it.
	now, err := p.api.GetService(ctx, svc.Namespace, svc.Name)
	if err != nil {
		return err
	}
	if now.UID != svc.UID || now.ResourceVersion != svc.ResourceVersion {
		return errBehind
	}
	c.Spec.Services[at] = shareFor(svc, ports)
	return p.note(h.Addr)(p.api.UpdateClaim(ctx, c))
}

func shareFor(svc *corev1.Service, ports []service.Port) v1alpha1.ServiceClaim {
	share := v1alpha1.ServiceClaim{Namespace: svc.Namespace, Name: svc.Name, UID: string(svc.UID), ResourceVersion: svc.ResourceVersion}
	for _, port := range ports {
		share.Ports = append(share.Ports, port.String())
	}
	return share
}

func union(a, b []service.Port) []service.Port {
	out := slices.Clone(a)
	for _, p := range b {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// current is the claim of an address as far as this pass knows; nil if there is none.
func (p *pass) current(addr netip.Addr) *v1alpha1.AddressClaim {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.written[addr]; ok {
		return c
	}
	return p.claims[addr]
}

// note keeps what a write has made of the claim of an address.
func (p *pass) note(addr netip.Addr) func(*v1alpha1.AddressClaim, error) error {
	return func(now *v1alpha1.AddressClaim, err error) error {
		if err != nil {
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.written[addr] = now
		was, name := p.claims[addr], v1alpha1.AddressClaimName(addr)
		p.unsettled = append(p.unsettled, func() bool {
			c, there := p.world.claim(name)
			switch {
			case was == nil:
				return there
			case now == nil:
				return !there || c.UID != was.UID
			}
			return !there || c.ResourceVersion != was.ResourceVersion
		})
		return nil
	}
}

// release takes from a claim the Services that do not have the address and are not to have
// it, and the ports that they do not have any more.
func (p *pass) release(ctx context.Context, addr netip.Addr) error {
	c := p.current(addr).DeepCopy()
	var keep []v1alpha1.ServiceClaim
	var errs []error
	for _, share := range c.Spec.Services {
		stays, err := p.stays(ctx, addr, &share)
		if err != nil {
			errs = append(errs, fmt.Errorf("share of Service %s/%s: %w", share.Namespace, share.Name, err))
		}
		if stays || err != nil {
			keep = append(keep, share)
		}
	}
	if equality.Semantic.DeepEqual(keep, c.Spec.Services) {
		return joined(errs)
	}
	var err error
	if len(keep) == 0 {
		err = p.note(addr)(nil, p.api.DropClaim(ctx, c))
	} else {
		c.Spec.Services = keep
		err = p.note(addr)(p.api.UpdateClaim(ctx, c))
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("AddressClaim %s: %w", c.Name, err))
	}
	return joined(errs)
}

// joined is all of errs, or only those that are not outdated: they are to be told and take
// longer.
func joined(errs []error) error {
	if refused := slices.DeleteFunc(slices.Clone(errs), outdated); len(refused) > 0 {
		errs = refused
	}
	return errors.Join(errs...)
}

// stays says whether a Service's share of a claim is to stay, and sets its ports.
func (p *pass) stays(ctx context.Context, addr netip.Addr, share *v1alpha1.ServiceClaim) (bool, error) {
	key := service.Key{Namespace: share.Namespace, Name: share.Name}
	at := func(list []service.Holding) (ports []service.Port, has bool) {
		i := slices.IndexFunc(list, func(h service.Holding) bool { return h.Addr == addr })
		if i < 0 {
			return nil, false
		}
		return list[i].Ports, true
	}
	var wanted []service.Port
	wants := false
	svc := p.objects[key]
	if svc != nil && string(svc.UID) == share.UID {
		wanted, wants = at(p.decisions[key].Holdings)
	}
	if wants && slices.Equal(wanted, shareOf(*share).Ports) {
		return true, nil
	}
	// It is to change, so what the Service has must be known for certain.
	p.mu.Lock()
	ingress, wrote := p.wrote[types.UID(share.UID)]
	p.mu.Unlock()
	now := &corev1.Service{}
	now.Status.LoadBalancer.Ingress = ingress
	if !wrote {
		var err error
		now, err = p.api.GetService(ctx, key.Namespace, key.Name)
		if apierrors.IsNotFound(err) || err == nil && string(now.UID) != share.UID {
			return false, nil
		}
		if err != nil {
			return true, err
		}
	}
	held, has := at(service.Held(now))
	switch {
	case wants && has && slices.Equal(held, wanted):
		if !wrote && now.ResourceVersion == share.ResourceVersion {
			return true, p.touch(ctx, key, now)
		}
		share.Ports = nil
		for _, port := range held {
			share.Ports = append(share.Ports, port.String())
		}
		return true, nil
	case wants, has:
		return true, nil // its status is still to be written
	case wrote || now.ResourceVersion != share.ResourceVersion || now.Spec.Type != corev1.ServiceTypeLoadBalancer:
		return false, nil
	}
	// Its status may be about to be written with the address, by another instance or by a
	// write that this one does not know the end of.
	return true, p.touch(ctx, key, now)
}

// touch writes the status of a Service as it is, so that writes over its version are refused,
// and the next pass may release.
func (p *pass) touch(ctx context.Context, key service.Key, now *corev1.Service) error {
	svc := p.objects[key]
	if svc == nil || svc.ResourceVersion != now.ResourceVersion {
		return errBehind
	}
	if _, managed := p.decisions[key]; !managed {
		return nil // an instance that is set to take Services without a class may have it
	}
	conditions := slices.Clone(svc.Status.Conditions)
	at := metav1.Now().Rfc3339Copy()
	if c := meta.FindStatusCondition(conditions, v1alpha1.ServiceAddressAssigned); c == nil {
		conditions = append(conditions, service.Decision{Reason: service.Waiting, Message: "addresses that it does not get are being released"}.Condition(svc.Generation))
		conditions[len(conditions)-1].LastTransitionTime = at
	} else if c.LastTransitionTime.Before(&at) {
		c.LastTransitionTime = at
	} else {
		c.LastTransitionTime = metav1.NewTime(c.LastTransitionTime.Add(time.Second))
	}
	return p.write(ctx, key, svc.Status.LoadBalancer.Ingress, conditions)
}
