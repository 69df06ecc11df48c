//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

// conditionPolicies: the kernel has what the network policies say.
const conditionPolicies = "PoliciesEnforced"

// policyWaits is how long an ADD waits for the network policies to be known and in
// force. The plugin waits for the agent for 60 s.
const policyWaits = 30 * time.Second

// policies has the network policies of the node's pods enforced. It passes to the
// enforcer which pods the node has: links and addresses by the records, labels and
// ports by the source of pods.
type policies struct {
	*policy.Enforcer
	table *policy.Table
	pods  source.Source
	log   *slog.Logger

	mu       sync.Mutex // guards what follows, and in which order the enforcer learns of it
	attached map[pod.Ref]map[ledger.ID]ledger.Record
	of       map[ledger.ID]pod.Ref
	seen     map[pod.UID]*source.Pod // those of the source, and gone ones that are attached
	gone     map[pod.UID]bool        // of seen: those that the source does not have any more
	unseen   map[pod.Ref]bool        // pods of the start that no source has reported yet
}

func newPolicies(c policy.Config, table *policy.Table, pods source.Source, events *kube.Recorder) *policies {
	c.Table = table
	c.Report = func(findings []policy.Finding) {
		for _, f := range findings {
			kind := kube.NetworkPolicy
			if f.Policy.Namespace == "" {
				kind = kube.ClusterNetworkPolicy
			}
			events.ObjectEvent(kind, f.Policy.Namespace, f.Policy.Name, f.UID, kube.Warning, "PolicyNotEnforced", "Enforce", f.Message)
		}
	}
	return &policies{
		Enforcer: policy.New(c), table: table, pods: pods, log: c.Log,
		attached: map[pod.Ref]map[ledger.ID]ledger.Record{}, of: map[ledger.ID]pod.Ref{},
		seen: map[pod.UID]*source.Pod{}, gone: map[pod.UID]bool{}, unseen: map[pod.Ref]bool{},
	}
}

// open takes in the node's attachments as the agent starts. Their labels are not known yet: a pod
// without labels would be one that no policy selects.
func (p *policies) open(records []ledger.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range records {
		if r.Pod.Name != "" && r.State != ledger.Released {
			p.attach(r)
			p.unseen[r.Pod] = true
		}
	}
	for ref := range p.unseen {
		p.set(ref)
	}
	p.Enforcer.SetComplete()
}

func (p *policies) attach(r ledger.Record) {
	if p.attached[r.Pod] == nil {
		p.attached[r.Pod] = map[ledger.ID]ledger.Record{}
	}
	p.attached[r.Pod][r.ID] = r
	p.of[r.ID] = r.Pod
}

// prepare returns when the policies of a new attachment are in force: its link does not
// exist yet. The pod is as the source has it, nil if that was not asked.
func (p *policies) prepare(ctx context.Context, r ledger.Record, s *source.Pod) error {
	if r.Pod.Name == "" {
		return nil // of a runtime that is not Kubernetes': no policy selects it
	}
	ctx, cancel := context.WithTimeout(ctx, policyWaits)
	defer cancel()
	p.mu.Lock()
	_, known := p.of[r.ID]
	if !known && s == nil {
		if s = p.seen[r.Pod.UID]; s == nil {
			p.mu.Unlock()
			var err error
			if s, err = p.pods.Get(ctx, r.Pod); err != nil {
				return cni.TryAgainLater("its labels, which network policies select it by, are not known: %w", err)
			}
			p.mu.Lock()
		}
	}
	if !known {
		p.attach(r)
		p.see(r.Pod.UID, s)
		delete(p.unseen, r.Pod)
		p.set(r.Pod)
	}
	p.mu.Unlock()
	err := p.Enforcer.InForce(ctx)
	if errors.Is(err, policy.ErrUnknown) || errors.Is(err, context.DeadlineExceeded) {
		return cni.TryAgainLater("%w", err)
	}
	return err
}

// see takes in a pod as some source has it. An event and the answer to a question overtake
// each other: labels are those of the later version. The status is what came last, because
// a kubelet reports it before the API server gives it a version.
func (p *policies) see(uid pod.UID, s *source.Pod) {
	if s == nil {
		return
	}
	if seen := p.seen[uid]; seen != nil && 0 < s.Version && s.Version < seen.Version {
		later := *s
		later.Labels, later.Version = seen.Labels, seen.Version
		s = &later
	}
	p.seen[uid] = s
}

// forget takes in that an attachment is no more: no packet comes from it or gets to it.
func (p *policies) forget(id ledger.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ref, known := p.of[id]
	if !known {
		return
	}
	delete(p.of, id)
	delete(p.attached[ref], id)
	p.set(ref)
}

// set passes on what a pod is now.
func (p *policies) set(ref pod.Ref) {
	attached := p.attached[ref]
	if len(attached) == 0 {
		delete(p.attached, ref)
		delete(p.unseen, ref)
		if p.gone[ref.UID] {
			delete(p.seen, ref.UID)
			delete(p.gone, ref.UID)
		}
		p.Enforcer.Delete(ref.Namespace, ref.Name, string(ref.UID))
		return
	}
	out := policy.Pod{Namespace: ref.Namespace, Name: ref.Name, UID: string(ref.UID)}
	for _, r := range attached {
		out.Links = append(out.Links, r.HostIf)
		out.Addrs = append(out.Addrs, r.All()...)
	}
	slices.Sort(out.Links)
	slices.SortFunc(out.Addrs, compareAddrs)
	out.Addrs = slices.Compact(out.Addrs)
	if p.unseen[ref] {
		p.Enforcer.SetUnlabeled(out)
		return
	}
	if s := p.seen[ref.UID]; s != nil {
		out.Labels, out.Version = s.Labels, s.Version
		out.Finished = s.Status.Phase == source.Succeeded || s.Status.Phase == source.Failed
		for _, port := range slices.Concat(s.Ports, s.InitPorts) {
			out.Ports = append(out.Ports, policy.NamedPort(port))
		}
	}
	p.Enforcer.Set(out)
}

// podChanged is called with what the source of pods reports.
func (p *policies) podChanged(e source.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e.Type {
	case source.Synced:
		// What it does not have is a sandbox that is left of a pod that is gone. No
		// policy selects a pod that is not there.
		for _, ref := range slices.Collect(maps.Keys(p.unseen)) {
			delete(p.unseen, ref)
			p.set(ref)
		}
	case source.Deleted:
		if len(p.attached[e.Pod.Ref]) == 0 {
			delete(p.seen, e.Pod.UID)
			return
		}
		// Its labels stay in force until its sandbox is gone too.
		p.gone[e.Pod.UID] = true
		p.see(e.Pod.UID, e.Pod)
		p.set(e.Pod.Ref)
	default:
		p.identify(e.Pod.Ref)
		delete(p.gone, e.Pod.UID)
		delete(p.unseen, e.Pod.Ref)
		p.see(e.Pod.UID, e.Pod)
		if len(p.attached[e.Pod.Ref]) > 0 {
			p.set(e.Pod.Ref)
		}
	}
}

// identify gives the attachments of a pod whose UID their records do not have, because
// they were rebuilt, to the pod of that name.
func (p *policies) identify(ref pod.Ref) {
	nameless := pod.Ref{Namespace: ref.Namespace, Name: ref.Name}
	attached := p.attached[nameless]
	if len(attached) == 0 || ref == nameless {
		return
	}
	delete(p.attached, nameless)
	for _, r := range attached {
		r.Pod = ref
		p.attach(r)
	}
	delete(p.unseen, nameless)
	p.Enforcer.Identify(ref.Namespace, ref.Name, string(ref.UID))
}

// Run enforces the policies.
func (p *policies) Run(ctx context.Context) error {
	p.warnOfMarks()
	p.Enforcer.Run(ctx)
	return nil
}

// warnOfMarks warns of rules of other programs that write to the bits of the ct mark in
// which policies note who has judged a connection.
func (p *policies) warnOfMarks() {
	writers, err := p.table.MarkWriters()
	if err != nil {
		p.log.Warn("cannot look for rules of other programs that write to the ct mark", "error", err)
		return
	}
	for _, w := range writers {
		p.log.Warn("another program writes to bits of the ct mark that network policies use: connections are judged again and again, and the other program loses its mark; give one of them other bits (--policy-mark)",
			"chain", w.Chain.String(), "bits", fmt.Sprintf("%#x", w.Bits))
	}
}

// Close implements Closer. The table stays.
func (p *policies) Close() { p.table.Close() }

// Unready implements Readier.
func (p *policies) Unready() (reason, message string) {
	switch s := p.Status(); {
	case s.Missing != "":
		return "WaitingForPolicies", s.Missing
	case s.Refusal != nil:
		return "PoliciesNotEnforced", s.Refusal.Error()
	}
	return "", ""
}

// Conditions implements Conditioner.
func (p *policies) Conditions() []metav1.Condition {
	reason, message := p.Unready()
	if message == "" {
		reason, message = "OutOfDate", p.Status().Stale
	}
	if message == "" {
		reason, message = "WaitingForPeers", p.Status().Pending
	}
	if message == "" {
		reason, message = "OverBudget", p.Status().OverBudget
	}
	if message == "" {
		return []metav1.Condition{condition(conditionPolicies, nil, "InForce", "")}
	}
	return []metav1.Condition{condition(conditionPolicies, errors.New("network policies: "+message), "", reason)}
}

// podEvents passes on what the source of the node's pods reports. None of those that
// get it may wait.
type podEvents struct {
	source source.Source
	to     []func(source.Event)
}

// Run follows the source until ctx ends.
func (p podEvents) Run(ctx context.Context) error {
	return p.source.Watch(ctx, func(e source.Event) {
		for _, to := range p.to {
			to(e)
		}
	})
}
