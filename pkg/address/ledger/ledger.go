// Package ledger keeps the promises of a node: which attachment holds which
// addresses, in memory and in files. It decides nothing about who may have them
// (package grant) and never touches the network.
//
// Its invariants: an address is recorded before anything can use it, and is free
// only after the record says that it is unused. Whatever the process was doing
// when it was killed, opening the ledger again holds every address that a pod
// may have. Records may be lost or be another release's: what the ledger does not
// know may still be in use, and Rebuild learns it from the kernel.
package ledger

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/address/ipam"
	"flock.fritzlab.net/flock/pkg/pod"
)

// ErrReleasing says that an attachment was released and its link is not gone yet.
var ErrReleasing = errors.New("the attachment was released and its link is still being deleted")

// ErrNotHeld says that an attachment has no addresses, or has given them up.
var ErrNotHeld = errors.New("the attachment holds no addresses any more")

// ErrUnknownState reports that a newer release recorded the attachment in a state that
// this one does not know.
var ErrUnknownState = errors.New("a newer release of flock recorded the attachment, and this one cannot read how far it has come: delete the pod, its successor gets a new attachment")

// HostIfError says that another attachment has the host interface, and all that goes
// by its name.
type HostIfError struct{ Holder Record }

func (e *HostIfError) Error() string {
	return fmt.Sprintf("host interface %s is that of pod %s (container %s, interface %s)", e.Holder.HostIf, e.Holder.Pod, e.Holder.ContainerID, e.Holder.IfName)
}

// longestQuarantine is the longest that a NodeConfig can ask for.
const longestQuarantine = 24 * time.Hour

// Config is what a Ledger is made of.
type Config struct {
	// Dir is the directory of the records. It is made if it is missing.
	Dir string
	// Now is time.Now if it is not set.
	Now func() time.Time
	// OnRetired is called when Promise or Free has changed what Retired returns: a
	// static address may be promised in the instant in which its CIDR is taken away.
	OnRetired func()
	// OnGranted is called when Promise or Free has changed what Granted returns.
	OnGranted func()
	Log       *slog.Logger
}

// Ledger is safe for concurrent use.
type Ledger struct {
	now       func() time.Time
	onRetired func()
	onGranted func()
	log       *slog.Logger

	mu          sync.Mutex // guards all below, and each write to the files
	quarantine  time.Duration
	files       files
	unreadable  []ID // set aside by Open; Rebuild finds out what they had
	alloc       *ipam.Allocator
	records     map[slot]Record // written by set and drop alone
	index       index           // of records
	quarantined []Record        // by QuarantinedSince
	freed       chan struct{}   // closed, and replaced, when an attachment is gone
}

// Open reads the ledger, or begins one. Files that cannot be read are logged and set
// aside. Until Configure it gives out nothing.
func Open(c Config) *Ledger {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.OnRetired == nil {
		c.OnRetired = func() {}
	}
	if c.OnGranted == nil {
		c.OnGranted = func() {}
	}
	l := &Ledger{
		now:       c.Now,
		onRetired: c.OnRetired,
		onGranted: c.OnGranted,
		log:       c.Log,
		files:     files{c.Dir, c.Log},
		// Until the quarantine is known none may end.
		quarantine: longestQuarantine,
		alloc:      ipam.New(ipam.Config{Quarantine: longestQuarantine}, rand.Reader),
		records:    map[slot]Record{},
		index:      index{},
		freed:      make(chan struct{}),
	}
	records, unreadable := l.files.open()
	l.unreadable = unreadable
	// In the order of their release, so that the allocator sees it too; and before
	// what is in use, because an address may be in both.
	slices.SortStableFunc(records, func(a, b Record) int { return a.QuarantinedSince.Compare(b.QuarantinedSince) })
	opened := l.now()
	for _, r := range records {
		if r.State == Quarantined {
			// What was written is the host's clock, which may have been set since; from
			// here on it is measured by one that only runs.
			r.QuarantinedSince = opened.Add(-max(0, opened.Sub(r.QuarantinedSince)))
			l.hold(r)
			l.startQuarantine(r)
		}
	}
	for _, r := range records {
		if r.State != Quarantined {
			l.hold(r)
			l.set(r)
		}
	}
	return l
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
// The errors are those of [grant.Plan.Take], ErrReleasing, ErrUnknownState and
// *HostIfError.
func (l *Ledger) Promise(r Record, plan grant.Plan, w embed.Workload) (promised Record, created bool, err error) {
	defer l.lock(&promised)()
	if known, ok := l.find(r.ID); ok {
		switch known.State {
		case Released:
			return Record{}, false, ErrReleasing
		case Unknown:
			return Record{}, false, ErrUnknownState
		}
		return known, false, nil
	}
	for _, other := range l.records {
		if other.HostIf == r.HostIf || other.ID.slot() == r.ID.slot() {
			return Record{}, false, &HostIfError{Holder: other}
		}
	}
	now := l.now()
	l.expire(now)
	if err := plan.Allowed(func() []address.Granted { return l.inNamespace(r.ID, r.Pod) }); err != nil {
		return Record{}, false, err
	}
	if w.App == "" { // a pod without a controller is its own workload
		w.Namespace, w.App = r.Pod.Namespace, r.Pod.Name
	}
	taken, err := plan.Take(l.alloc, w, l.holderFor(r.ID, r.Pod.UID), now)
	if err != nil {
		return Record{}, false, err
	}
	r.State, r.QuarantinedSince, r.Set, r.App = Pending, time.Time{}, taken, w.App
	if err := l.files.put(r); err != nil {
		for _, a := range r.Held() {
			l.alloc.Release(a.Addr, "", time.Time{}) // never used: no quarantine
		}
		return Record{}, false, err
	}
	l.set(r)
	return r, true, nil
}

// Commit records that the attachment is wired. The error is ErrNotHeld if there is no
// promise, or it was released: the addresses may be another's by now.
func (l *Ledger) Commit(id ID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.find(id)
	if !ok || r.State != Pending && r.State != Committed {
		return fmt.Errorf("attachment %s: %w", id, ErrNotHeld)
	}
	if r.State == Committed {
		return nil
	}
	// Written first: what the record says is what is remembered.
	r.State = Committed
	if err := l.files.put(r); err != nil {
		return err
	}
	l.set(r)
	return nil
}

// Release records that the attachment has ended. Its addresses stay held until
// Free. The result is false if there is no such attachment.
//
// A release that cannot be written, as on a full disk, is one all the same: the pod's
// end must not wait for that. After a restart the link says that it was released.
func (l *Ledger) Release(id ID) (Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.find(id)
	if !ok || r.State == Released {
		return r, ok
	}
	r.State = Released
	if err := l.files.put(r); err != nil {
		l.log.Error("cannot record that an attachment is released; continuing without", "attachment", r.ID, "pod", r.Pod, "error", err)
	}
	l.set(r)
	return r, true
}

// Free records that the attachment's link is gone; the quarantine of its addresses
// begins.
func (l *Ledger) Free(id ID) error {
	var r Record
	defer l.lock(&r)()
	r, ok := l.find(id)
	if !ok {
		return nil
	}
	r.State, r.QuarantinedSince = Quarantined, l.now()
	if err := l.files.put(r); err != nil {
		// No room perhaps. Without a record only the rest of the quarantine is lost, and
		// only over a restart; a release that stays would keep the address from all.
		if gone := l.files.delete(id); gone != nil {
			return errors.Join(err, gone)
		}
	}
	l.drop(id.slot())
	close(l.freed)
	l.freed = make(chan struct{})
	l.startQuarantine(r)
	l.expire(r.QuarantinedSince)
	return nil
}

// Records returns the attachments that are not gone, by ID.
func (l *Ledger) Records() []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Record, 0, len(l.records))
	for _, r := range l.records {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Record) int {
		return cmp.Or(strings.Compare(a.ContainerID, b.ContainerID), strings.Compare(a.IfName, b.IfName))
	})
	return out
}

// Lookup returns the record of id, unless it is gone.
func (l *Ledger) Lookup(id ID) (Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.find(id)
}

// find returns the record of id. l.mu must be held.
func (l *Ledger) find(id ID) (Record, bool) {
	if r, ok := l.records[id.slot()]; ok && r.ID.Matches(id) {
		return r, true
	}
	return Record{}, false
}

// Retired returns the CIDRs that are no longer configured but in which an
// attachment still holds an address.
func (l *Ledger) Retired() []netip.Prefix {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.alloc.Retired()
}

// lock locks the ledger for a change of r. The function that it returns unlocks it, and
// reports what has changed.
func (l *Ledger) lock(r *Record) (unlock func()) {
	l.mu.Lock()
	before, attachments := l.alloc.Retired(), len(l.records)
	return func() {
		retired := !slices.Equal(l.alloc.Retired(), before)
		granted := len(l.records) != attachments && len(r.granted()) > 0
		l.mu.Unlock()
		if retired {
			l.onRetired()
		}
		if granted {
			l.onGranted()
		}
	}
}

// granted returns the addresses that pools have granted.
func (r Record) granted() []address.Granted {
	return slices.DeleteFunc(slices.Concat(r.Primary, r.Secondary, r.Anycast), func(g address.Granted) bool { return !g.FromPool() })
}

// Granted returns the addresses from pools of all attachments that are not gone. One that
// several attachments share is there for each of them.
func (l *Ledger) Granted() []address.Granted {
	var all []address.Granted
	for _, r := range l.Records() {
		all = append(all, r.granted()...)
	}
	return all
}

// NamePools enters the names of the pools by which addresses were granted, where the
// records do not have them: those of earlier releases, and rebuilt ones. poolOf returns
// the name for an address, or "" if no pool has it.
func (l *Ledger) NamePools(poolOf func(addr netip.Addr, anycast bool) string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r.State != Committed {
			continue
		}
		named := false
		name := func(all []address.Granted, anycast bool) []address.Granted {
			all = slices.Clone(all) // records that were handed out do not change
			for i, g := range all {
				if g.FromPool() && g.Pool == "" {
					all[i].Pool = poolOf(g.Addr, anycast)
					named = named || all[i].Pool != ""
				}
			}
			return all
		}
		r.Primary, r.Secondary, r.Anycast = name(r.Primary, false), name(r.Secondary, false), name(r.Anycast, true)
		if !named {
			continue
		}
		if err := l.files.put(r); err != nil {
			l.log.Error("cannot write the pools of an attachment into its record; continuing without", "attachment", r.ID, "pod", r.Pod, "error", err)
		}
		l.set(r)
	}
}

// Usage reports on each configured CIDR.
func (l *Ledger) Usage() []ipam.Usage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.alloc.Usage()
}

// HolderFor returns who has an address already that the attachment id of a pod is to
// get. An attachment that was released is no holder: its link is on the way out, see
// AwaitFree. Nor is an earlier one of the same pod, see HeldByPod.
func (l *Ledger) HolderFor(id ID, uid pod.UID) func(netip.Addr) (grant.Holder, bool) {
	return func(addr netip.Addr) (grant.Holder, bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.holderFor(id, uid)(addr)
	}
}

func (l *Ledger) holderFor(id ID, uid pod.UID) func(netip.Addr) (grant.Holder, bool) {
	return func(addr netip.Addr) (grant.Holder, bool) {
		for key := range l.index[addr] {
			r := l.records[key]
			if !r.counts(id, uid) {
				continue
			}
			if has(r.Primary, addr) || has(r.Secondary, addr) {
				return grant.Holder{Pod: r.Pod.String()}, true
			}
			return grant.Holder{Pod: r.Pod.String(), Anycast: true}, true
		}
		return grant.Holder{}, false
	}
}

// counts says whether what r has counts as another's for the attachment id of a pod: it
// was not released, and is not an earlier one of the same pod.
func (r Record) counts(id ID, uid pod.UID) bool {
	return r.ID.slot() != id.slot() && r.State != Released && (r.Pod.UID != uid || uid == "")
}

// InNamespace returns the addresses that other pods have of the namespace of p, which is
// to get the attachment id. One that several share is there for each of them.
func (l *Ledger) InNamespace(id ID, p pod.Ref) []address.Granted {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inNamespace(id, p)
}

func (l *Ledger) inNamespace(id ID, p pod.Ref) (held []address.Granted) {
	for _, r := range l.records {
		if r.Pod.Namespace == p.Namespace && r.counts(id, p.UID) {
			held = slices.Concat(held, r.Primary, r.Secondary, r.Anycast)
		}
	}
	return held
}

// HeldByPod returns the attachments of a pod, but for one, that hold one of the
// addresses: those of its earlier sandboxes. A pod has one sandbox at a time, so the
// addresses are for the next one to have.
func (l *Ledger) HeldByPod(uid pod.UID, except ID, wanted []address.Granted) []Record {
	var held []Record
	for _, r := range l.Records() {
		if uid != "" && r.Pod.UID == uid && r.ID.slot() != except.slot() && r.State != Released && r.holdsAny(wanted) {
			held = append(held, r)
		}
	}
	return held
}

// AwaitFree waits while an attachment that was released still holds one of the
// addresses: a pod with a static address is often followed by one with the same,
// before the old one's link is gone.
func (l *Ledger) AwaitFree(ctx context.Context, wanted []address.Granted) error {
	for {
		l.mu.Lock()
		freed := l.freed
		var held *Record
		for _, w := range wanted {
			for key := range l.index[w.Addr] {
				if r := l.records[key]; r.State == Released && r.holdsAny([]address.Granted{w}) {
					held = &r
				}
			}
		}
		l.mu.Unlock()
		if held == nil {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("pod %s: %w", held.Pod, ErrReleasing)
		}
	}
}

// holdsAny says whether r keeps others from having one of the addresses.
func (r Record) holdsAny(wanted []address.Granted) bool {
	return slices.ContainsFunc(wanted, func(w address.Granted) bool { return has(r.Primary, w.Addr) || has(r.Secondary, w.Addr) })
}

func has(granted []address.Granted, addr netip.Addr) bool {
	return slices.ContainsFunc(granted, func(g address.Granted) bool { return g.Addr == addr })
}

// hold keeps r's addresses from others. An address that cannot be held is logged, as
// the other attachment's hold does the same.
func (l *Ledger) hold(r Record) {
	for _, a := range r.Held() {
		if err := l.alloc.Reserve(a); err != nil {
			l.log.Error("address of an attachment cannot be held", "attachment", r.ID, "pod", r.Pod, "address", a.Addr, "error", err)
		}
	}
}

func (l *Ledger) startQuarantine(r Record) {
	for _, a := range r.Held() {
		if !l.heldByOther(a) {
			l.alloc.Release(a.Addr, r.owner(), r.QuarantinedSince)
		}
	}
	l.quarantined = append(l.quarantined, r)
}

// heldByOther says whether an attachment holds a. There is none while what is recorded
// is true, and an address is free only if that is certain.
func (l *Ledger) heldByOther(a address.Granted) bool {
	for key := range l.index[a.Addr] {
		if r := l.records[key]; r.holdsAny([]address.Granted{a}) {
			return true
		}
	}
	return false
}

// expire forgets addresses at the end of their quarantine. If a record cannot be
// deleted, the next Open retries; until then it blocks nothing.
func (l *Ledger) expire(now time.Time) {
	for len(l.quarantined) > 0 && !now.Before(l.quarantined[0].QuarantinedSince.Add(l.quarantine)) {
		id := l.quarantined[0].ID
		if _, again := l.records[id.slot()]; !again {
			l.files.delete(id)
		}
		l.quarantined = l.quarantined[1:]
	}
}
