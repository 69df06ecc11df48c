package bench

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
)

// hollow is the side of an agent that faces the API server: the agent's own caches, its
// keeper of claims, its enforcer of policies and its decisions about templates, without a
// node. It writes a NodeConfig and its status when the agent would.
type hollow struct {
	name       string
	client     *kube.Client
	policies   *policy.Enforcer
	claims     *claim.Keeper
	listed     listedClaims
	namespaces *kube.Namespaces
	// follows is the namespace that its pods need, empty if there is none.
	follows string
	wake    chan struct{}
	// overlapping is called with each status that is written: whether it says that another
	// node has pod CIDRs of this one.
	overlapping func(node string, is bool)
	// reported is called with each generation of the NodeConfig whose status is written, and of
	// which it has all that it follows.
	reported func(node string, generation int64)
	failed   func(error) // a write
}

const (
	// hollowGather is between two writes of a status, as in the agent.
	hollowGather = time.Second
	// hollowVersion is how often the API server is asked for its version, as in the agent.
	hollowVersion = 10 * time.Minute
)

func newHollow(name string, config *rest.Config) (*hollow, error) {
	kube.ConnectOnce(config)
	client, err := kube.NewClient(config)
	if err != nil {
		return nil, err
	}
	sources, err := policy.NewSources(config, name)
	if err != nil {
		return nil, err
	}
	log, wake := slog.New(slog.DiscardHandler), cell.Signal()
	listed := listedClaims{client, new(sync.Once), make(chan struct{})}
	return &hollow{
		name: name, client: client, wake: wake,
		policies:   policy.New(policy.Config{Table: noTable{}, Sources: sources, Log: log}),
		claims:     claim.New(claim.Config{Node: name, API: listed, Log: log}),
		listed:     listed,
		namespaces: client.Namespaces(func() { cell.Wake(wake) }),
	}, nil
}

// listedClaims says when the agent has the claims of its node.
type listedClaims struct {
	*kube.Client
	once *sync.Once
	done chan struct{}
}

// CachedClaimsOf is what the keeper of claims begins with.
func (l listedClaims) CachedClaimsOf(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error) {
	all, err := l.Client.CachedClaimsOf(ctx, node)
	if err == nil {
		l.once.Do(func() { close(l.done) })
	}
	return all, err
}

// await waits for what the agent has of others than its caches: the policies in force, the
// claims of its node, and the namespace that its pods need. It returns false if ctx ends before.
func (h *hollow) await(ctx context.Context) bool {
	if h.policies.InForce(ctx) != nil { // its table refuses nothing
		return false
	}
	select {
	case <-h.listed.done:
	case <-ctx.Done():
		return false
	}
	for h.follows != "" {
		if _, err := h.namespaces.Labels(ctx, h.follows); err == nil {
			break
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return false
		}
	}
	return true
}

// run works until ctx ends.
func (h *hollow) run(ctx context.Context) {
	changed := func() { cell.Wake(h.wake) }
	configs := h.client.NodeConfig(h.name, changed)
	node := h.client.Node(h.name, changed)
	templates := h.client.NodeConfigTemplates(changed)
	pools := h.client.AddressPools(changed)
	services := h.client.AnnouncedServices(false, changed, func(bool) {})
	var parts sync.WaitGroup
	defer parts.Wait()
	for _, run := range []func(context.Context){
		configs.Run, node.Run, templates.Run, pools.Run, h.namespaces.Run, services.Run,
		h.policies.Run, h.claims.Run, h.followVersion,
	} {
		parts.Go(func() { run(ctx) })
	}
	h.policies.SetComplete()
	others := make(chan struct{})
	parts.Go(func() {
		if h.await(ctx) {
			close(others)
		}
	})
	var complete bool  // it has all that it follows
	var reported int64 // generation that it has written before
	var written v1alpha1.NodeConfigStatus
	var earliest time.Time
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-again.C:
		case <-others:
			others = nil
			if complete = true; reported > 0 {
				h.reported(h.name, reported)
			}
			continue
		}
		n, ok := node.Get(h.name)
		if !ok || !configs.Synced() || !templates.Synced() || !pools.Synced() || !services.Synced() {
			continue
		}
		current, ok := configs.Get(h.name)
		if !ok {
			current = nil
		}
		v := fleet.Decide(fleet.NodeOf(n), current, templates.List()).InTurn(current)
		var err error
		switch v.Action {
		case fleet.Create:
			err = h.client.CreateNodeConfig(ctx, v.Object)
		case fleet.Update:
			err = h.client.UpdateNodeConfig(ctx, v.Object)
		case fleet.Leave:
		}
		if current != nil && err == nil && v.Action == fleet.Leave {
			if earliest.IsZero() { // BIRD is about to say the rest
				earliest = time.Now().Add(hollowGather)
			}
			if wait := time.Until(earliest); wait > 0 {
				again.Reset(wait)
				continue
			}
			status := hollowStatus(current, v)
			if !equality.Semantic.DeepEqual(status, written) {
				if err = h.client.PatchStatus(ctx, h.name, status); err == nil {
					written, earliest, reported = status, time.Now().Add(hollowGather), current.Generation
					if complete {
						h.reported(h.name, reported)
					}
					h.overlapping(h.name, len(current.Status.PodCIDROverlaps) > 0)
				}
			}
		}
		// Its own last write, of which it is about to hear, may have been quicker.
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			h.failed(err)
			again.Reset(time.Second) // the agent's first retry
		}
	}
}

// followVersion is what the agent does to know which API server it has.
func (h *hollow) followVersion(ctx context.Context) {
	for {
		if err := h.client.Core().Get().AbsPath("/version").Do(ctx).Error(); err != nil && ctx.Err() == nil {
			h.failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(hollowVersion):
		}
	}
}

// hollowStatus is as large as that of a node with two sessions on which all is well, unless another
// node has its pod CIDRs.
func hollowStatus(nc *v1alpha1.NodeConfig, v fleet.Decision) v1alpha1.NodeConfigStatus {
	status := v1alpha1.NodeConfigStatus{
		ObservedGeneration: nc.Generation, PodSource: "kubelet", ExitSource: "containerd",
		PasswordKey: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
	}
	since := nc.CreationTimestamp
	for _, peer := range []string{"tor1", "tor2"} {
		status.Sessions = append(status.Sessions, v1alpha1.SessionStatus{Protocol: "bgp", Peer: peer, Router: "2001:db8:ffff::1", Up: true, State: "Established", Since: &since, Sent: 2, Accepted: 1})
	}
	for _, c := range []struct{ kind, reason string }{
		{"Ready", "ServingPods"}, {"Accepted", "Valid"}, {"RoutingConfigured", "Configured"}, {"SessionsUp", "AllUp"}, {"KernelInSync", "InSync"},
		{"PoliciesEnforced", "Enforced"}, {"Supported", "AsRequired"},
	} {
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{Type: c.kind, Status: metav1.ConditionTrue, Reason: c.reason, LastTransitionTime: since})
	}
	templated := metav1.Condition{Type: "Templated", Status: metav1.ConditionTrue, Reason: string(v.Reason), Message: v.Message, LastTransitionTime: since}
	if v.Reason != fleet.FromTemplate {
		templated.Status = metav1.ConditionFalse
	}
	meta.SetStatusCondition(&status.Conditions, templated)
	if found := nc.Status.PodCIDROverlaps; len(found) > 0 {
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{Type: "PodCIDRsUnique", Status: metav1.ConditionFalse, Reason: "Overlap", Message: fmt.Sprint(found), LastTransitionTime: since})
	}
	for i := range status.Conditions {
		status.Conditions[i].ObservedGeneration = nc.Generation
	}
	return status
}

// noTable takes policies and has no kernel to put them into.
type noTable struct{}

func (noTable) Apply(*policy.Ruleset, policy.Change) error { return nil }

func (noTable) Sync(_ *policy.Ruleset, between func()) ([]datapath.Repair, error) {
	between()
	return nil, nil
}

func (noTable) Invalidate()                                           {}
func (noTable) Counts() (policy.Counts, error)                        { return policy.Counts{}, nil }
func (noTable) CountsOf([]*policy.Counter) (map[string]uint64, error) { return nil, nil }

// naive is an agent that follows all that it may need, by client-go's plain informers: all
// namespaces, all pods and all AddressClaims, and reads a Secret every minute. It writes
// nothing.
type naive struct {
	client kubernetes.Interface
	claims *kube.Client
	// namespace is called with each change of a namespace.
	namespace func()
	failed    func(error)
}

const (
	naiveSecret = "naive"
	naiveReads  = time.Minute
)

func newNaive(s *apiServer, t *traffic) (*naive, error) {
	config := s.admin(t)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	claims, err := kube.NewClient(config)
	return &naive{client: client, claims: claims}, err
}

// run works until ctx ends, and calls synced when it has all objects.
func (n *naive) run(ctx context.Context, synced func()) {
	all := informers.NewSharedInformerFactory(n.client, 0)
	namespaces := all.Core().V1().Namespaces().Informer()
	if _, err := namespaces.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(any, any) { n.namespace() }}); err != nil {
		n.failed(err)
		return
	}
	pods := all.Core().V1().Pods().Informer()
	claims := n.claims.AddressClaims(func() {})
	var parts sync.WaitGroup
	parts.Go(func() { claims.Run(ctx) })
	all.StartWithContext(ctx)
	defer func() { all.Shutdown(); parts.Wait() }()
	if !cache.WaitForCacheSync(ctx.Done(), namespaces.HasSynced, pods.HasSynced, claims.Synced) {
		return
	}
	synced()
	next := time.NewTimer(rand.N(naiveReads))
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		if _, err := n.client.CoreV1().Secrets(fleetNamespace(0)).Get(ctx, naiveSecret, metav1.GetOptions{}); err != nil && ctx.Err() == nil {
			n.failed(err)
		}
		next.Reset(naiveReads)
	}
}

// fleetClaim is an address that a pod of node elsewhere has claimed.
func fleetClaim(i int) *v1alpha1.AddressClaim {
	addr := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xc0, 14: byte(i >> 8), 15: byte(i)})
	c := &v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: addr.String(), PodNamespace: fleetNamespace(0), PodName: "elsewhere", PodUID: "elsewhere", NodeName: elsewhere}}
	c.Name = v1alpha1.AddressClaimName(addr)
	return c
}
