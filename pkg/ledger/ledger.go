// Package ledger keeps the promises of a node: which attachment holds which
// addresses. It moves the allocator and the store together.
//
// Its invariants: an address is recorded before anybody can use it, and is free
// only after the record says that nobody does; whatever the process was doing
// when it was killed, opening the ledger again holds every address that a pod
// may have. It never touches the network.
package ledger

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"flock.fritzlab.net/flock/pkg/embed"
	"flock.fritzlab.net/flock/pkg/grant"
	"flock.fritzlab.net/flock/pkg/ipam"
	"flock.fritzlab.net/flock/pkg/store"
)

// ErrReleasing says that an attachment was given up and is not gone yet.
var ErrReleasing = errors.New("the attachment was released and its link is still being deleted")

// ErrNotHeld says that an attachment has no addresses, or has given them up.
var ErrNotHeld = errors.New("the attachment holds no addresses any more")

// HostIfError says that another attachment has the host interface, and all that goes
// by its name.
type HostIfError struct{ Holder store.Record }

func (e *HostIfError) Error() string {
	return fmt.Sprintf("host interface %s is that of pod %s (container %s, interface %s)", e.Holder.HostIf, e.Holder.Pod(), e.Holder.ContainerID, e.Holder.IfName)
}

// Ledger is safe for concurrent use.
type Ledger struct {
	now        func() time.Time
	quarantine time.Duration

	mu      sync.Mutex // guards all below, and each write to the store
	store   *store.Store
	alloc   *ipam.Allocator
	records map[store.ID]store.Record
	resting []store.Record // by RestsSince
	freed   chan struct{}  // closed, and replaced, when an attachment is gone
}

// Open reads the ledger in dir, or begins one. Until Configure it gives out
// nothing. now is time.Now but for tests.
func Open(dir string, now func() time.Time) (*Ledger, error) {
	s, records, err := store.Open(dir)
	if err != nil {
		return nil, err
	}
	l := &Ledger{
		now:     now,
		store:   s,
		alloc:   ipam.New(ipam.Config{}, rand.Reader),
		records: map[store.ID]store.Record{},
		freed:   make(chan struct{}),
	}
	// In the order of their rest, so that the allocator sees it too; and before
	// what is in use, because an address may be in both.
	slices.SortStableFunc(records, func(a, b store.Record) int { return a.RestsSince.Compare(b.RestsSince) })
	opened := now()
	for _, r := range records {
		if r.State == store.Resting {
			// What was written is the host's clock, which may have been set since; from
			// here on it is measured by one that only runs.
			r.RestsSince = opened.Add(-max(0, opened.Sub(r.RestsSince)))
			l.hold(r)
			l.rest(r)
		}
	}
	for _, r := range records {
		if r.State != store.Resting {
			if err := l.hold(r); err != nil {
				return nil, fmt.Errorf("attachment %s: %w", r.ID, err)
			}
			l.records[r.ID] = r
		}
	}
	return l, nil
}

// Configure sets what addresses are handed out of from now on. Promises stay.
func (l *Ledger) Configure(c ipam.Config) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.quarantine = c.Quarantine
	l.alloc.Configure(c)
}

// Promise takes the addresses that plan grants to a pod that is w, and records
// them, with what r says of the attachment, as pending. Asked again for an
// attachment that it has promised, it returns that promise: created is false then.
// The errors are those of [grant.Plan.Take], ErrReleasing and *HostIfError.
func (l *Ledger) Promise(r store.Record, plan grant.Plan, w embed.Workload) (promised store.Record, created bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.records[r.ID]; ok {
		if known.State == store.Released {
			return store.Record{}, false, ErrReleasing
		}
		return known, false, nil
	}
	for _, other := range l.records {
		if other.HostIf == r.HostIf {
			return store.Record{}, false, &HostIfError{Holder: other}
		}
	}
	now := l.now()
	l.expire(now)
	taken, err := plan.Take(l.alloc, w, l.holderFor(r.ID), now)
	if err != nil {
		return store.Record{}, false, err
	}
	r.State, r.RestsSince = store.Pending, time.Time{}
	r.Addrs, r.Further, r.Anycast = addresses(taken.Own), addresses(taken.Further), nil
	for _, a := range taken.Anycast {
		r.Anycast = append(r.Anycast, store.Anycast{Addr: a.Addr, Pool: a.Pool})
	}
	if err := l.store.Put(r); err != nil {
		for _, a := range r.Held() {
			l.alloc.Release(a.Addr, time.Time{}) // never used: no rest
		}
		return store.Record{}, false, err
	}
	l.records[r.ID] = r
	return r, true, nil
}

// Commit records that the attachment is wired. The error is ErrNotHeld if there is no
// promise, or it was given up: the addresses may be another's by now.
func (l *Ledger) Commit(id store.ID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r, ok := l.records[id]; !ok || r.State == store.Released {
		return fmt.Errorf("attachment %s: %w", id, ErrNotHeld)
	}
	return l.move(id, store.Committed)
}

// Release records that the attachment is given up. Its addresses stay held until
// Free. False: there is no such attachment.
func (l *Ledger) Release(id store.ID) (store.Record, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.move(id, store.Released); err != nil {
		return store.Record{}, false, err
	}
	r, ok := l.records[id]
	return r, ok, nil
}

// Free records that the attachment's link is gone; its addresses rest from now.
func (l *Ledger) Free(id store.ID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.records[id]
	if !ok {
		return nil
	}
	r.State, r.RestsSince = store.Resting, l.now()
	if err := l.store.Put(r); err != nil {
		// No room perhaps. Without a record only the rest of the quarantine is lost, and
		// only over a restart; a release that stays would keep the address from all.
		if gone := l.store.Delete(id); gone != nil {
			return errors.Join(err, gone)
		}
	}
	delete(l.records, id)
	close(l.freed)
	l.freed = make(chan struct{})
	l.rest(r)
	l.expire(r.RestsSince)
	return nil
}

// Records returns the attachments that are not gone, by ID.
func (l *Ledger) Records() []store.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]store.Record, 0, len(l.records))
	for _, r := range l.records {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b store.Record) int {
		return cmp.Or(strings.Compare(a.ContainerID, b.ContainerID), strings.Compare(a.IfName, b.IfName))
	})
	return out
}

// Lookup returns the record of id, unless it is gone.
func (l *Ledger) Lookup(id store.ID) (store.Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.records[id]
	return r, ok
}

// Retired returns the CIDRs that are no longer configured but in which an
// attachment still holds an address.
func (l *Ledger) Retired() []netip.Prefix {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.alloc.Retired()
}

// Usage reports on each configured CIDR.
func (l *Ledger) Usage() []ipam.Usage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.alloc.Usage()
}

// HolderFor tells who has an address already that the attachment id is to get. One
// that was given up is none: its link is on the way out, see AwaitFree.
func (l *Ledger) HolderFor(id store.ID) func(netip.Addr) (grant.Holder, bool) {
	return func(addr netip.Addr) (grant.Holder, bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.holderFor(id)(addr)
	}
}

func (l *Ledger) holderFor(id store.ID) func(netip.Addr) (grant.Holder, bool) {
	return func(addr netip.Addr) (grant.Holder, bool) {
		for _, r := range l.records {
			if r.ID == id || r.State == store.Released {
				continue
			}
			if slices.ContainsFunc(r.Held(), func(a store.Address) bool { return a.Addr == addr }) {
				return grant.Holder{Pod: r.Pod()}, true
			}
			if slices.ContainsFunc(r.Anycast, func(a store.Anycast) bool { return a.Addr == addr }) {
				return grant.Holder{Pod: r.Pod(), Anycast: true}, true
			}
		}
		return grant.Holder{}, false
	}
}

// AwaitFree waits while an attachment that was given up still holds one of addrs:
// a pod with a static address is often followed by one with the same, before the
// old one's link is gone.
func (l *Ledger) AwaitFree(ctx context.Context, addrs []netip.Addr) error {
	for {
		l.mu.Lock()
		freed := l.freed
		var held *store.Record
		for _, r := range l.records {
			if r.State == store.Released && slices.ContainsFunc(r.Held(), func(a store.Address) bool { return slices.Contains(addrs, a.Addr) }) {
				held = &r
			}
		}
		l.mu.Unlock()
		if held == nil {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("pod %s: %w", held.Pod(), ErrReleasing)
		}
	}
}

func addresses(leases []ipam.Lease) []store.Address {
	var out []store.Address
	for _, l := range leases {
		out = append(out, store.Address(l))
	}
	return out
}

// move writes first: what the record says is what is remembered.
func (l *Ledger) move(id store.ID, to store.State) error {
	r, ok := l.records[id]
	if !ok || r.State == to {
		return nil
	}
	r.State = to
	if err := l.store.Put(r); err != nil {
		return err
	}
	l.records[id] = r
	return nil
}

func (l *Ledger) hold(r store.Record) error {
	for _, a := range r.Held() {
		if err := l.alloc.Reserve(ipam.Lease(a)); err != nil {
			return err
		}
	}
	return nil
}

func (l *Ledger) rest(r store.Record) {
	for _, a := range r.Held() {
		l.alloc.Release(a.Addr, r.RestsSince)
	}
	l.resting = append(l.resting, r)
}

// expire forgets those that have rested. What cannot be deleted is tried again
// when the ledger is opened next: it holds up nobody.
func (l *Ledger) expire(now time.Time) {
	for len(l.resting) > 0 && !now.Before(l.resting[0].RestsSince.Add(l.quarantine)) {
		id := l.resting[0].ID
		if _, again := l.records[id]; !again {
			l.store.Delete(id)
		}
		l.resting = l.resting[1:]
	}
}
