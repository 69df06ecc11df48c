//go:build linux

package agent

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/kube"
)

// poolSet are the valid AddressPools, by name.
type poolSet struct {
	pools []config.Pool
	// retained are the addresses in use that pools have granted and would not any more,
	// with the attributes that their routes keep, see grant.Retained.
	retained []config.Pool
	// synced: they are the API server's. Before, they are this node's copy, by which
	// routes keep their attributes, but nothing is granted.
	synced bool
}

// pools follows the AddressPools and parses each once when it changes.
type pools struct {
	path, gonePath string // of the copies
	cache          *kube.Cache[*v1alpha1.AddressPool]
	changed        *cell.Topic // of cache
	ledger         *ledger.Ledger
	granted        *cell.Topic                        // of ledger
	services       cell.Reader[map[netip.Addr]string] // by which pool Services have theirs
	log            *slog.Logger

	cell.Cell[poolSet]
	// What follows is Run's alone.
	kept     *kube.Kept[[]*v1alpha1.AddressPool]
	keptGone *kube.Kept[[]*v1alpha1.AddressPool] // of those that are still in use
	parsed   map[string]parsedPool
	gone     map[string]*v1alpha1.AddressPool // the last valid versions of those that are not any more
}

type parsedPool struct {
	object *v1alpha1.AddressPool
	pool   config.Pool
	err    error
}

// open reads the copies. Without them nothing is said of pools: routes would lose their
// attributes.
func (p *pools) open() (err error) {
	if p.kept, err = kube.OpenKept(p.path, samePools, p.log); err != nil {
		return err
	}
	if p.keptGone, err = kube.OpenKept(p.gonePath, samePools, p.log); err != nil {
		return err
	}
	p.gone = map[string]*v1alpha1.AddressPool{}
	for _, ap := range p.keptGone.Get() {
		p.gone[ap.Name] = ap
	}
	p.update(p.kept.Get(), false)
	return nil
}

func samePools(a, b []*v1alpha1.AddressPool) bool {
	return len(a) == len(b) && (len(a) == 0 || reflect.DeepEqual(a, b))
}

// Run follows the API server and what pods and Services hold.
func (p *pools) Run(ctx context.Context) error {
	changed := cell.Signal()
	p.changed.Notify(changed)
	p.granted.Notify(changed)
	p.services.Notify(changed)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.kept.Due():
			p.kept.Retry()
			continue
		case <-p.keptGone.Due():
			p.keptGone.Retry()
			continue
		case <-changed:
		}
		if !p.cache.Synced() {
			p.update(p.kept.Get(), false)
			continue
		}
		all := p.cache.List()
		slices.SortFunc(all, func(a, b *v1alpha1.AddressPool) int { return cmp.Compare(a.Name, b.Name) })
		p.keep(all)
		p.update(all, true)
	}
}

// update makes what others see of all pools. A pool that is in use and is deleted, or
// made invalid, is kept for the routes of its users.
func (p *pools) update(all []*v1alpha1.AddressPool, synced bool) {
	before := p.parsed
	now := p.parse(all)
	for name, was := range before {
		if is, ok := p.parsed[name]; was.err == nil && (!ok || is.err != nil) {
			p.gone[name] = was.object
		}
	}
	if synced {
		p.ledger.NamePools(func(addr netip.Addr, anycast bool) string { return grant.PoolOf(addr, anycast, now) })
	}
	var gone []config.Pool
	for name, ap := range p.gone {
		if is, ok := p.parsed[name]; ok && is.err == nil {
			delete(p.gone, name)
		} else if pool, err := config.ParsePool(ap); err == nil {
			gone = append(gone, pool)
		}
	}
	retained := grant.Retained(slices.Concat(p.ledger.Granted(), grantedOf(p.services.Get())), now, gone)
	p.keepGone(retained)
	if len(retained) > 0 && !reflect.DeepEqual(retained, p.Get().retained) {
		p.log.Warn("addresses in use are no longer granted by an AddressPool; their routes keep its attributes until their pods and Services are gone", "pools", addressesOf(retained))
	}
	p.Set(poolSet{pools: now, retained: retained, synced: synced})
}

// addressesOf is for the log: each pool with the addresses.
func addressesOf(retained []config.Pool) map[string][]netip.Prefix {
	all := map[string][]netip.Prefix{}
	for _, r := range retained {
		all[r.Name] = r.CIDRs
	}
	return all
}

// keepGone writes the copy of those pools that are not any more and that routes follow.
func (p *pools) keepGone(retained []config.Pool) {
	var used []*v1alpha1.AddressPool
	for _, r := range retained {
		if ap, ok := p.gone[r.Name]; ok {
			used = append(used, copyOf(ap))
		}
	}
	p.keptGone.Save(used)
}

func copyOf(ap *v1alpha1.AddressPool) *v1alpha1.AddressPool {
	return &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: ap.Name}, Spec: ap.Spec}
}

// keep writes the copy, by which a start of the agent changes no announcement.
func (p *pools) keep(all []*v1alpha1.AddressPool) {
	copied := make([]*v1alpha1.AddressPool, len(all))
	for i, ap := range all {
		copied[i] = copyOf(ap)
	}
	p.kept.Save(copied)
}

// parse returns the valid ones of all.
func (p *pools) parse(all []*v1alpha1.AddressPool) (valid []config.Pool) {
	before := p.parsed
	p.parsed = make(map[string]parsedPool, len(all))
	for _, ap := range all {
		is, ok := before[ap.Name]
		if !ok || is.object != ap {
			is = parsedPool{object: ap}
			if is.pool, is.err = config.ParsePool(ap); is.err != nil {
				p.log.Error("ignoring invalid AddressPool", "error", is.err)
			}
		}
		p.parsed[ap.Name] = is
		if is.err == nil {
			valid = append(valid, is.pool)
		}
	}
	return valid
}
