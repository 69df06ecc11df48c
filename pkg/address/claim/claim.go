package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Of returns the claims that a pod needs on its addresses: on those that other nodes
// could give too. app is its workload, empty if it has none but itself.
func Of(p pod.Ref, app string, held []address.Granted) []Claim {
	var claims []Claim
	for _, g := range held {
		if g.FromPool() {
			claims = append(claims, Claim{g.Addr, p, cmp.Or(app, p.Name)})
		}
	}
	return claims
}

// Claim is a pod's hold on an address.
type Claim struct {
	Addr netip.Addr
	Pod  pod.Ref
	// Workload in the pod's namespace, whose pods may have the address in its quarantine.
	Workload string
}

// HeldError says that a pod or a Service holds the address.
type HeldError struct {
	Addr netip.Addr
	Pod  string // namespace/name
	Node string
	// Gone: the pod's object is gone. Its node has not released the claim yet.
	Gone bool
	// Until is the end of the quarantine, if the pod does not have the address any more.
	Until time.Time
	// Service that holds it, as namespace/name, in place of a pod.
	Service string
}

func (e *HeldError) Error() string {
	switch {
	case e.Service != "":
		return fmt.Sprintf("%s is held by Service %s: choose another address, or delete that Service", e.Addr, e.Service)
	case !e.Until.IsZero():
		return fmt.Sprintf("%s is in quarantine until %s, because packets to pod %s, which had it on node %s, may still come (quarantineSeconds of the AddressPool): choose another address, or wait", e.Addr, e.Until.UTC().Format(time.RFC3339), e.Pod, e.Node)
	case e.Gone:
		return fmt.Sprintf("%s is still claimed for pod %s on node %s, though that pod is gone: the agent of that node releases the claim, or flock-controller does once the Node is deleted or its condition Ready is Unknown", e.Addr, e.Pod, e.Node)
	}
	return fmt.Sprintf("%s is held by pod %s on node %s: choose another address, or wait until that pod has gone", e.Addr, e.Pod, e.Node)
}

// ErrUnavailable says that the API server gave no answer: the same call may well
// succeed later.
var ErrUnavailable = errors.New("the API server does not answer, so no address of an AddressPool can be claimed; running pods keep theirs")

// API is what claims need of the API server. The errors are those of
// k8s.io/apimachinery/pkg/api/errors; any other says that there was no answer.
type API interface {
	CreateClaim(context.Context, *v1alpha1.AddressClaim) error
	GetClaim(ctx context.Context, name string) (*v1alpha1.AddressClaim, error)
	// UpdateClaim replaces the claim, and DropClaim deletes it, if it is as it is here, by
	// UID and version; else the error is a conflict. An agent may do so with those of its own
	// node, and may make one that is in quarantine its own.
	UpdateClaim(context.Context, *v1alpha1.AddressClaim) (*v1alpha1.AddressClaim, error)
	DropClaim(context.Context, *v1alpha1.AddressClaim) error
	// ClaimsOf returns all claims that a node's agent has made.
	ClaimsOf(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error)
	// CachedClaimsOf is ClaimsOf of a moment ago, at less cost.
	CachedClaimsOf(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error)
	// ClaimsIn returns all claims of the pods of a namespace.
	ClaimsIn(ctx context.Context, namespace string) ([]v1alpha1.AddressClaim, error)
	GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
}

// Config is what a Keeper is made of.
type Config struct {
	Node string
	API  API
	// Quarantine is how long an address stays claimed after its pod; nil: not at all.
	Quarantine func(netip.Addr) time.Duration
	Log        *slog.Logger
}

// Keeper keeps the claims of one node's pods. Its methods may be called by any
// goroutine; Run does what they leave to be done later.
type Keeper struct {
	Config
	wake chan struct{}

	mu    sync.Mutex // guards below, and what the holds refer to
	holds map[key]*hold
}

// key is what a hold is known by: pods on the same node may follow one another.
type key struct {
	addr   netip.Addr
	podUID pod.UID
}

// hold is a claim that this node has, may have, or is about to have.
type hold struct {
	Claim
	// users are the attachments of the pod that need it, each true once it was
	// granted. With none of them left the claim is to be released.
	users map[string]bool
	state claimState
	// unwanted: to be released though the pod lives, as its Acquire failed.
	unwanted bool
	// inherited: it was in quarantine before, and is again if it is unwanted.
	inherited bool
	// due is when the release is tried next, and pause what comes after that.
	due   time.Time
	pause time.Duration
	// busy is closed when the release that is under way ends, and cancelRelease
	// ends it early; both are nil while no release is under way.
	busy          chan struct{}
	cancelRelease context.CancelFunc
}

// claimState is what is known of the claim at the API server.
type claimState int8

const (
	// unknown: it may or may not be there.
	unknown claimState = iota
	// ours: the claim existed, and this agent has not tried to delete it since.
	ours
	// deleting: a deletion was tried and may yet happen.
	deleting
)

// New returns a Keeper that knows of no claims.
func New(c Config) *Keeper {
	return &Keeper{Config: c, wake: make(chan struct{}, 1), holds: map[key]*hold{}}
}

// Restore enters the claims that an attachment got from an earlier process of this
// node. It must come before any Acquire of theirs. Where the pod's UID is not known, the
// claim on the address stays whoever's it is, as long as the attachment does.
func (k *Keeper) Restore(attachment string, claims []Claim) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range claims {
		h := k.holdOf(c)
		h.users[attachment] = true
		h.state = ours
	}
}

// Acquire claims addresses for an attachment of a pod: all of them or none. It asks
// the API server, but what the pod holds already it keeps without an answer.
//
// The errors are a *HeldError if another pod holds one of them, a *LimitError if the pods
// of the namespace would hold more than one of limits allows, ErrUnavailable in the chain
// if there was no answer, and other errors for what the API server refuses. It may be
// called again for the same attachment.
func (k *Keeper) Acquire(ctx context.Context, attachment string, claims []Claim, limits ...Limit) error {
	// In one order everywhere, or two pods could go on refusing each other.
	claims = slices.SortedFunc(slices.Values(claims), func(a, b Claim) int { return a.Addr.Compare(b.Addr) })
	var taken []*hold
	var away error
	unchecked := false
	for _, c := range claims {
		if c.Pod.UID == "" {
			k.giveBack(attachment, taken)
			return fmt.Errorf("pod %s has no UID, so no address can be claimed for it: only pods of the kubelet may have addresses of an AddressPool", c.Pod)
		}
		h := k.take(c, attachment)
		taken = append(taken, h)
		unchecked = unchecked || !k.isGranted(h)
		err := away
		if away == nil {
			err = k.ensure(ctx, h)
		}
		if errors.Is(err, ErrUnavailable) {
			away = err
			if k.is(h, ours) {
				continue
			}
		}
		if err != nil {
			k.giveBack(attachment, taken)
			return err
		}
	}
	if unchecked {
		if err := k.within(ctx, limits, claims); err != nil {
			k.giveBack(attachment, taken)
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range taken {
		h.users[attachment] = true
	}
	return nil
}

// OfService returns a *HeldError if Services have an address, for pods that share it with one
// another and so do not claim it. If nobody knows, ErrUnavailable is in the chain.
func (k *Keeper) OfService(ctx context.Context, addr netip.Addr) error {
	c, err := k.current(ctx, v1alpha1.AddressClaimName(addr))
	if err != nil {
		return err
	}
	return heldByService(addr, c)
}

// heldByService is what a claim of Services refuses a pod with; nil if it is none.
func heldByService(addr netip.Addr, c *v1alpha1.AddressClaim) error {
	if c == nil || len(c.Spec.Services) == 0 {
		return nil
	}
	return &HeldError{Addr: addr, Service: c.Spec.Services[0].Namespace + "/" + c.Spec.Services[0].Name}
}

// Release says that an attachment is gone, or was never made. It returns at once; its
// claims are released by Run, when its pod goes too.
func (k *Keeper) Release(attachment string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.holds {
		if _, uses := h.users[attachment]; uses {
			k.drop(h, attachment)
		}
	}
}

// take enters attachment as a user of the claim, so that it is not released from here
// on.
func (k *Keeper) take(c Claim, attachment string) *hold {
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		h := k.holdOf(c)
		if h.busy == nil {
			if !h.users[attachment] {
				h.users[attachment] = false
			}
			h.unwanted = false
			return h
		}
		h.cancelRelease()
		busy := h.busy
		k.mu.Unlock()
		<-busy
		k.mu.Lock()
	}
}

// giveBack undoes take for an Acquire that failed. What was granted before stays.
func (k *Keeper) giveBack(attachment string, taken []*hold) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range taken {
		if granted, uses := h.users[attachment]; uses && !granted {
			k.drop(h, attachment)
			h.unwanted = len(h.users) == 0
		}
	}
}

// holdOf returns the hold on c, which it makes if it is missing. k.mu must be held.
func (k *Keeper) holdOf(c Claim) *hold {
	id := key{c.Addr, c.Pod.UID}
	h := k.holds[id]
	if h == nil {
		h = &hold{Claim: c, users: map[string]bool{}, pause: firstPause}
		k.holds[id] = h
	}
	return h
}

// drop takes a user from h; with the last one the release is due. k.mu must be held.
func (k *Keeper) drop(h *hold, attachment string) {
	delete(h.users, attachment)
	if len(h.users) > 0 {
		return
	}
	h.due, h.pause = time.Now(), firstPause
	select {
	case k.wake <- struct{}{}:
	default:
	}
}
