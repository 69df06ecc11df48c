//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/keylock"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/datapath/hostport"
	"flock.fritzlab.net/flock/pkg/datapath/sourceguard"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

// attacher is the CNI backend. It takes a call through allocation, record and
// wiring in the order that survives a kill at any point.
type attacher struct {
	attacherConfig
	reaper     *wiring.Reaper
	again      chan struct{}       // has a value when all links are to be looked at
	containers keylock.Map[string] // held while a container's link or record is changed
}

type attacherConfig struct {
	node       string
	listener   *cni.Listener
	retired    *cell.Topic // when ledger.Retired may have changed
	state      cell.Reader[nodeState]
	gate       *gate
	pods       source.Source
	pools      cell.Reader[poolSet]
	namespaces *kube.Namespaces
	ledger     *ledger.Ledger
	claims     *claim.Keeper
	host       *wiring.Host
	guard      *sourceguard.Guard
	ports      *hostport.Ports
	policies   *policies
	announcer  *announcer
	events     *kube.Recorder
	stopwatch  *stopwatch
	log        *slog.Logger
}

func newAttacher(c attacherConfig) *attacher {
	return &attacher{
		attacherConfig: c,
		again:          make(chan struct{}, 1),
		reaper:         wiring.NewReaper(c.host, c.log),
	}
}

// Run serves the plugin's calls.
func (a *attacher) Run(ctx context.Context) error {
	return together(ctx,
		func(ctx context.Context) error { return a.listener.Serve(ctx, a, a.log) },
		func(ctx context.Context) error { a.reaper.Run(ctx); return nil },
		a.followLinks)
}

// Add implements cni.Backend: plan, promise, wire, commit, answer.
func (a *attacher) Add(ctx context.Context, c *cni.Call) (_ *cni.Result, err error) {
	t := a.stopwatch.start(c)
	defer t.end(&err)
	t.enter(phaseWait)
	if state := a.state.Get(); state.inForce == nil {
		return nil, cni.TryAgainLater("%s", state.unavailable)
	}
	if missing := a.gate.missing.Get(); missing != "" {
		a.log.InfoContext(ctx, "a pod waits until the node takes pods", "pod", c.Pod, "missing", missing)
	}
	if missing := a.gate.await(ctx); missing != "" {
		return nil, cni.TryAgainLater("pod %s: node %s takes no pods yet: %s", c.Pod, a.node, missing)
	}
	record, pod, err := a.promise(ctx, a.state.Get().inForce, c, &t)
	if err != nil {
		if later := (*cni.Error)(nil); !errors.As(err, &later) {
			a.events.Event(c.Pod, kube.Warning, "AddressRefused", "Attach", err.Error())
		}
		return nil, err
	}
	t.enter(phasePolicies) // before the link is there, so that no packet gets past them
	unprepared := a.policies.prepare(ctx, record, pod)
	t.fail(unprepared)
	t.enter(phaseContainer)
	defer a.lock(c.ContainerID)()
	if now, ok := a.ledger.Lookup(record.ID); !ok || now.State == ledger.Released {
		a.policies.forget(record.ID)
		err = cni.TryAgainLater("pod %s: the link of an earlier ADD for container %s was just deleted", c.Pod, c.ContainerID)
		t.fail(err)
		return nil, err
	}
	undo := func() error {
		t.enter(phaseUndo)
		err := a.release(ctx, record.ID)
		t.fail(err)
		return err
	}
	abandoned := func() error {
		if errors.Is(context.Cause(ctx), cni.ErrCallerGone) {
			return fmt.Errorf("ADD undone: %w", cni.ErrCallerGone)
		}
		return nil
	}
	if err = abandoned(); err == nil {
		err = unprepared
	} else {
		t.fail(err)
	}
	if err == nil { // before the link is there, so that the pod's first packet is its own
		t.enter(phaseGuard)
		err = a.guard.Set(binding(record))
		t.fail(err)
	}
	var attached wiring.Attached
	if err == nil {
		t.enter(phaseLink)
		attached, err = a.host.Attach(c.NetNS, attachment(record))
		t.fail(err)
	}
	if err == nil {
		t.enter(phasePorts)
		err = a.ports.Set(hostPorts(record))
		t.fail(err)
	}
	if err != nil {
		err = fmt.Errorf("pod %s: %w", c.Pod, err)
		if record.State == ledger.Pending {
			err = errors.Join(err, undo())
		}
		return nil, err
	}
	t.enter(phaseCommit)
	if err := a.ledger.Commit(record.ID); err != nil {
		t.fail(err)
		return nil, fmt.Errorf("pod %s: %w", c.Pod, errors.Join(err, undo()))
	}
	if len(record.Anycast) > 0 {
		a.announcer.attached(record, attached.HostIfIndex)
	}
	a.log.InfoContext(ctx, "pod attached", "pod", c.Pod, "container", c.ContainerID, "hostIf", record.HostIf, "addresses", addrs(record))
	if err := abandoned(); err != nil && record.State == ledger.Pending { // not that of an earlier ADD, which somebody may use
		t.fail(err)
		return nil, fmt.Errorf("pod %s: %w", c.Pod, errors.Join(err, undo()))
	}
	return result(record, attached), nil
}

// promise returns the attachment's record, a new one with the pod, or that of an
// earlier ADD.
func (a *attacher) promise(ctx context.Context, in *inForce, c *cni.Call, t *timing) (ledger.Record, *source.Pod, error) {
	if known, ok := a.ledger.Lookup(id(c)); ok && known.State != ledger.Released {
		return known, nil, nil
	}
	t.enter(phaseLookup)
	if err := guardOf(in).CheckHostPorts(c.Config.HostPorts); err != nil {
		return ledger.Record{}, nil, fmt.Errorf("pod %s: %w", c.Pod, err)
	}
	plan, pod, err := a.plan(ctx, in, c)
	if err != nil {
		return ledger.Record{}, nil, err
	}
	t.enter(phaseHold)
	for _, earlier := range a.ledger.HeldByPod(c.Pod.UID, id(c), plan.Held()) {
		a.log.InfoContext(ctx, "releasing the pod's earlier sandbox, which has an address that the pod asks for by name", "earlier", earlier.ContainerID)
		unlock := a.lock(earlier.ContainerID)
		err := a.release(ctx, earlier.ID)
		unlock()
		if err != nil {
			return ledger.Record{}, nil, cni.TryAgainLater("pod %s: its earlier sandbox %s cannot be released: %w", c.Pod, earlier.ContainerID, err)
		}
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := a.ledger.AwaitFree(wait, plan.Held()); err != nil {
		return ledger.Record{}, nil, cni.TryAgainLater("pod %s: an address that it asks for is still held: %w", c.Pod, err)
	}
	attachment, claims := id(c), claim.Of(c.Pod, workload(pod).App, plan.Held())
	if err := a.claims.Acquire(ctx, attachment.String(), claims, claim.LimitsOf(claims, a.pools.Get().pools)...); errors.Is(err, claim.ErrUnavailable) {
		return ledger.Record{}, nil, cni.TryAgainLater("pod %s: %w", c.Pod, err)
	} else if err != nil {
		return ledger.Record{}, nil, fmt.Errorf("pod %s: annotation %s: %w", c.Pod, annotation.Addresses, err)
	}
	mtu := in.mtu
	if c.Config.MTU != 0 {
		mtu = c.Config.MTU
	}
	t.enter(phaseRecord)
	record, _, err := a.ledger.Promise(ledger.Record{
		ID:        attachment,
		Pod:       c.Pod,
		HostIf:    wiring.HostIfName(c.ContainerID),
		MTU:       mtu,
		HostPorts: c.Config.HostPorts,
	}, plan, workload(pod))
	if err != nil {
		a.claims.Release(attachment.String())
	}
	if taken := (*ledger.HostIfError)(nil); errors.As(err, &taken) {
		if taken.Holder.ContainerID == c.ContainerID {
			return record, nil, cni.InvalidEnvironment("CNI_IFNAME=%s: container %s of pod %s already has interface %s from flock: flock gives a pod one interface, so let its networks name flock once", c.IfName, c.ContainerID, c.Pod, taken.Holder.IfName)
		}
		return record, nil, cni.TryAgainLater("pod %s: %w; the pod's next sandbox has another", c.Pod, err)
	}
	if errors.Is(err, ledger.ErrReleasing) {
		return record, nil, cni.TryAgainLater("container %s: %w", c.ContainerID, err)
	}
	if err != nil {
		return record, nil, fmt.Errorf("pod %s: %w", c.Pod, err)
	}
	return record, pod, nil
}

// Del implements cni.Backend. It is done when the release is recorded and no
// packet reaches the pod any more; the link is deleted later.
func (a *attacher) Del(ctx context.Context, c *cni.Call) (err error) {
	t := a.stopwatch.start(c)
	defer t.end(&err)
	t.enter(phaseContainer)
	defer a.lock(c.ContainerID)()
	if c.IfName != "" {
		return a.releaseTimed(ctx, id(c), &t)
	}
	var errs []error
	for _, r := range a.ledger.Records() {
		if r.ContainerID == c.ContainerID && (c.Config.Name == "" || r.Network == "" || r.Network == c.Config.Name) {
			errs = append(errs, a.releaseTimed(ctx, r.ID, &t))
		}
	}
	return errors.Join(errs...)
}

// Check implements cni.Backend.
func (a *attacher) Check(_ context.Context, c *cni.Call) error {
	record, ok := a.ledger.Lookup(id(c))
	if !ok || record.State != ledger.Committed {
		return cni.UnknownContainer("pod %s: container %s has no attachment %s on this node: delete the pod, its successor gets one", c.Pod, c.ContainerID, c.IfName)
	}
	if err := a.host.Check(c.NetNS, attachment(record)); err != nil {
		return fmt.Errorf("pod %s: %w", c.Pod, err)
	}
	return c.ComparePrevResult(result(record, wiring.Attached{HostMAC: wiring.HostMAC, PodMAC: wiring.PodMAC(record.ContainerID)}))
}

// GC implements cni.Backend. What another network attached is not its business, nor
// what is not known to be of this one: that goes with its link.
func (a *attacher) GC(ctx context.Context, c *cni.Call, valid []cni.AttachmentID) error {
	keep := make(map[ledger.ID]bool, len(valid))
	for _, v := range valid {
		keep[ledger.ID{Network: c.Config.Name, ContainerID: v.ContainerID, IfName: v.IfName}] = true
	}
	var errs []error
	for _, r := range a.ledger.Records() {
		if !keep[r.ID] && r.Network == c.Config.Name && (r.State == ledger.Committed || r.State == ledger.Released) {
			if r.State == ledger.Committed { // else a release did not come to its end, or is about to
				a.log.InfoContext(ctx, "GC: releasing an attachment that the runtime no longer knows", "pod", r.Pod, "container", r.ContainerID)
			}
			unlock := a.lock(r.ContainerID)
			errs = append(errs, a.release(ctx, r.ID))
			unlock()
		}
	}
	return errors.Join(errs...)
}

// Status implements cni.Backend.
func (a *attacher) Status(context.Context) error {
	switch state := a.state.Get(); {
	case state.inForce == nil:
		return cni.NotAvailable("%s", state.unavailable)
	case state.fault != "":
		return cni.LimitedConnectivity("node %s cannot be reached as it should be: %s", a.node, state.fault)
	}
	return nil
}

// lock takes a container's lock: the kernel reports a link's end at any time, in the
// middle of an ADD too. Its holders wait only for the kernel.
func (a *attacher) lock(containerID string) (unlock func()) {
	unlock, _ = a.containers.Lock(context.Background(), containerID)
	return unlock
}

// release gives an attachment up: recorded first, so that a crash finishes it;
// then nothing flows; then the link goes, and with it the hold on the addresses. The
// caller holds the container's lock.
func (a *attacher) release(ctx context.Context, id ledger.ID) error {
	return a.releaseTimed(ctx, id, nil)
}

func (a *attacher) releaseTimed(ctx context.Context, id ledger.ID, t *timing) error {
	t.enter(phaseRecord)
	r, ok := a.ledger.Release(id)
	if !ok {
		return nil
	}
	a.announcer.detached(id.ContainerID)
	t.enter(phaseLink)
	link, there, err := a.host.TakeDown(id.ContainerID)
	t.fail(err)
	t.enter(phasePorts)
	portsErr := a.ports.Remove(r.HostIf)
	t.fail(portsErr)
	if err := errors.Join(err, portsErr); err != nil {
		return err
	}
	t.enter(phasePolicies)
	a.policies.forget(r.ID)
	if !there {
		t.enter(phaseRecord)
		err := a.free(ctx, id.ContainerID)
		t.fail(err)
		return err
	}
	a.reaper.Reap(link)
	return nil
}

// free is called when a container's link is gone, with the container's lock held.
// Its addresses may be another pod's after their quarantine.
func (a *attacher) free(ctx context.Context, containerID string) error {
	for _, r := range a.ledger.Records() {
		// A pending one's link was undone; who does that decides what follows.
		if r.ContainerID != containerID || r.State == ledger.Pending {
			continue
		}
		// First the claim, or the release might meet that of the next pod, which waits
		// for the ledger.
		a.claims.Release(r.ID.String())
		a.policies.forget(r.ID)
		// Where there was no DEL its ports still lead to it, and would to the next pod
		// with its addresses.
		if err := a.ports.Remove(r.HostIf); err != nil {
			return err
		}
		if err := a.ledger.Free(r.ID); err != nil {
			return err
		}
		a.announcer.freed()
		if err := a.guard.Remove(r.HostIf); err != nil {
			a.log.ErrorContext(ctx, "cannot remove a pod's source addresses from nftables, will retry at the next sync", "pod", r.Pod, "container", containerID, "hostIf", r.HostIf, "error", err)
		}
		a.log.InfoContext(ctx, "pod detached", "pod", r.Pod, "container", containerID, "hostIf", r.HostIf, "addresses", addrs(r))
	}
	return nil
}

// Notify implements Follower.
func (a *attacher) Notify(ch chan<- struct{}) { a.retired.Notify(ch) }

// Report implements Reporter.
func (a *attacher) Report(_ context.Context, status *v1alpha1.NodeConfigStatus) {
	const most = 64
	status.RetiredCIDRs = nil
	retired := slices.SortedFunc(slices.Values(a.ledger.Retired()), comparePrefixes)
	for _, p := range retired[:min(len(retired), most)] {
		status.RetiredCIDRs = append(status.RetiredCIDRs, p.String())
	}
}

var (
	attachmentsMetric = metric.New(metric.Gauge, "flock_attachments",
		"Pods' attachments by state: pending (an ADD is running), committed (the pod has its link), released (its link is being deleted) or unknown (recorded by a newer release, and held).",
		"pending or released for long: an ADD hangs, or the kernel does not delete links.", "state")
	addressesMetric = metric.New(metric.Gauge, "flock_addresses",
		"Addresses of a pod CIDR by state: held, or in quarantine after their release.",
		"The sum comes near the size of the CIDR: pods will be refused. Give the node another CIDR, or a shorter quarantine.", "cidr", "state")
	capacityMetric = metric.New(metric.Gauge, "flock_address_capacity",
		"Addresses that a pod CIDR has in all, excluded ones among them.",
		"It is the base of flock_addresses: above 90 percent in use, pods will soon be refused.", "cidr")
	spoofedMetric = metric.New(metric.Counter, "flock_pod_spoofed_packets_total",
		"Packets of a pod that were dropped because their source address is not the pod's.",
		"Rising: the pod forges addresses, or uses one that flock did not give it. See docs/antispoofing.md.", "namespace", "pod")
)

// Describe implements prometheus.Collector.
func (a *attacher) Describe(ch chan<- *prometheus.Desc) {
	metric.Describe(ch, attachmentsMetric, addressesMetric, capacityMetric, spoofedMetric)
}

// Collect implements prometheus.Collector.
func (a *attacher) Collect(ch chan<- prometheus.Metric) {
	spoofed := map[string]uint64{} // by link
	if drops, _, err := a.guard.Counters(); err == nil {
		for _, d := range drops {
			spoofed[d.HostIf] = d.Packets
		}
	}
	states := map[string]int{}
	type pod struct{ namespace, name string }
	byPod := map[pod]uint64{} // which may have two sandboxes
	for _, r := range a.ledger.Records() {
		states[string(r.State)]++
		if n, ok := spoofed[r.HostIf]; ok && r.State == ledger.Committed && r.Pod.Name != "" {
			byPod[pod{r.Pod.Namespace, r.Pod.Name}] += n
		}
	}
	for p, n := range byPod {
		ch <- spoofedMetric.Value(float64(n), p.namespace, p.name)
	}
	for state, n := range states {
		ch <- attachmentsMetric.Value(float64(n), state)
	}
	for _, u := range a.ledger.Usage() {
		ch <- capacityMetric.Value(math.Exp2(float64(u.CIDR.Addr().BitLen()-u.CIDR.Bits())), u.CIDR.String())
		ch <- addressesMetric.Value(float64(u.Held), u.CIDR.String(), "held")
		ch <- addressesMetric.Value(float64(u.Quarantined), u.CIDR.String(), "quarantine")
	}
}
