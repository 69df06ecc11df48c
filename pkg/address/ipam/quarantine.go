package ipam

import (
	"fmt"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/pkg/address"
)

// QuarantineError says that another owner has just released an address.
type QuarantineError struct {
	Addr netip.Addr
	Free time.Time // the end of the quarantine
}

func (e *QuarantineError) Error() string {
	return fmt.Sprintf("%s is in quarantine until %s, because packets to the workload that had it may still come", e.Addr, e.Free.UTC().Format(time.RFC3339))
}

// release is an address in quarantine, and who released it when.
type release struct {
	addr  netip.Addr
	owner Owner
	at    time.Duration
}

// quarantine knows the owners of the addresses in quarantine. What is in quarantine at
// all, and since when, is in the trie.
type quarantine struct {
	owners map[netip.Addr]Owner
	byOwn  map[Owner]map[netip.Addr]bool
	order  []release // in the order of their release, some of them outdated
}

func (q *quarantine) add(r release) {
	q.remove(r.addr)
	if r.owner == "" {
		return
	}
	if q.owners == nil {
		q.owners, q.byOwn = map[netip.Addr]Owner{}, map[Owner]map[netip.Addr]bool{}
	}
	q.owners[r.addr] = r.owner
	if q.byOwn[r.owner] == nil {
		q.byOwn[r.owner] = map[netip.Addr]bool{}
	}
	q.byOwn[r.owner][r.addr] = true
	q.order = append(q.order, r)
}

func (q *quarantine) remove(addr netip.Addr) {
	owner, ok := q.owners[addr]
	if !ok {
		return
	}
	delete(q.owners, addr)
	if delete(q.byOwn[owner], addr); len(q.byOwn[owner]) == 0 {
		delete(q.byOwn, owner)
	}
}

// expire forgets the owners of what was released up to a time, unless released(addr)
// says that it was released again since.
func (q *quarantine) expire(before time.Duration, released func(netip.Addr) time.Duration) {
	for len(q.order) > 0 && q.order[0].at <= before {
		if r := q.order[0]; q.owners[r.addr] == r.owner {
			if at := released(r.addr); at == never || at <= before {
				q.remove(r.addr)
			}
		}
		q.order = q.order[1:]
	}
	if len(q.order) == 0 {
		q.order = nil
	}
}

// ReserveFor is Reserve for an owner that comes now: the error is a *QuarantineError if
// another owner released the address so short a time ago that it is in quarantine.
func (a *Allocator) ReserveFor(l address.Granted, owner Owner, now time.Time) error {
	if at := a.released(l.Addr); at != never && !a.due(at, now) && (owner == "" || a.quarantine.owners[l.Addr] != owner) {
		return &QuarantineError{Addr: l.Addr, Free: a.epoch.Add(at + a.cfg.Quarantine)}
	}
	return a.Reserve(l)
}

// released is when an address in quarantine was released; never if it is in none.
func (a *Allocator) released(addr netip.Addr) time.Duration {
	if !addr.IsValid() {
		return never
	}
	trie, length := a.trie(FamilyOf(addr))
	k := keyOf(addr)
	n, _ := (*trie).below(k.first(length-blockBits), length-blockBits)
	digit := lastDigit(k, length)
	if n == nil || n.block == nil || n.block.quarantined>>digit&1 == 0 {
		return never
	}
	return n.block.released[digit]
}

// ownNearest returns the address nearest to near of those in a prefix that the owner
// itself has in quarantine.
func (a *Allocator) ownNearest(owner Owner, within netip.Prefix, near key) (nearest key, ok bool) {
	for addr := range a.quarantine.byOwn[owner] {
		if !within.Contains(addr) || a.released(addr) == never || a.cfg.KeptBack(addr) != "" {
			continue
		}
		if k := keyOf(addr); !ok || k.nearer(nearest, near) {
			nearest, ok = k, true
		}
	}
	return nearest, ok
}

// nearer says whether k is nearer to near than o, by the distance a XOR b.
func (k key) nearer(o, near key) bool {
	dk, do := key{k.hi ^ near.hi, k.lo ^ near.lo}, key{o.hi ^ near.hi, o.lo ^ near.lo}
	return dk.hi < do.hi || dk.hi == do.hi && dk.lo < do.lo
}
