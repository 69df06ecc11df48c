package claim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Claim is a pod's hold on an address.
type Claim struct {
	Addr         netip.Addr
	PodNamespace string
	PodName      string
	PodUID       string // the runtime's: for a static pod not that of its mirror
}

// HeldError says that a pod that lives holds the address.
type HeldError struct {
	Addr netip.Addr
	Pod  string // namespace/name
	Node string
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s is held by pod %s on node %s: choose another address, or wait until that pod has gone", e.Addr, e.Pod, e.Node)
}

// ErrUnavailable says that the API server gave no answer: the same call may well
// succeed later.
var ErrUnavailable = errors.New("the API server, which keeps addresses of AddressPools from being given twice, does not answer; pods that have theirs keep them")

// API is what claims need of the API server. The errors are those of
// k8s.io/apimachinery/pkg/api/errors; any other says that there was no answer.
type API interface {
	CreateClaim(context.Context, *v1alpha1.AddressClaim) error
	GetClaim(ctx context.Context, name string) (*v1alpha1.AddressClaim, error)
	// DeleteClaim deletes the claim of that name if it has that UID; if it has
	// another, the error is a conflict.
	DeleteClaim(ctx context.Context, name string, uid types.UID) error
	// ClaimsOf returns all claims that a node's agent has made.
	ClaimsOf(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error)
	GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
}

// Config is what a Keeper is made of.
type Config struct {
	Node string
	API  API
	Log  *slog.Logger
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
	podUID string
}

// hold is a claim that this node has, may have, or is about to have.
type hold struct {
	Claim
	// users are the attachments of the pod that need it, each true once it was
	// granted. With none of them left the claim is to be released.
	users map[string]bool
	known knowledge
	// unwanted: to be released though the pod lives, as its Acquire failed.
	unwanted bool
	// due is when the release is tried next, and pause what comes after that.
	due   time.Time
	pause time.Duration
	// busy is closed when the release that is under way ends, and cut ends it
	// early; nil if none is.
	busy chan struct{}
	cut  context.CancelFunc
}

// knowledge is what is known of the claim at the API server.
type knowledge int8

const (
	// unknown: it may or may not be there.
	unknown knowledge = iota
	// ours: it was there, and nobody here has tried to delete it since.
	ours
	// doubtful: a deletion was tried and may yet happen.
	doubtful
)

// New returns a Keeper that knows of no claims.
func New(c Config) *Keeper {
	return &Keeper{Config: c, wake: make(chan struct{}, 1), holds: map[key]*hold{}}
}

// Restore tells of the claims that an attachment has from before the start of this
// process. It must come before Run and before any Acquire.
func (k *Keeper) Restore(attachment string, claims []Claim) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range claims {
		h := k.holdOf(c)
		h.users[attachment] = true
		h.known = ours
	}
}

// Acquire claims addresses for an attachment of a pod: all of them or none. It asks
// the API server, but what the pod holds already it keeps without an answer.
//
// The errors are a *HeldError if another pod holds one of them, ErrUnavailable in the
// chain if there was no answer, and other errors for what the API server refuses. It
// may be called again for the same attachment.
func (k *Keeper) Acquire(ctx context.Context, attachment string, claims []Claim) error {
	// In one order everywhere, or two pods could go on refusing each other.
	claims = slices.SortedFunc(slices.Values(claims), func(a, b Claim) int { return a.Addr.Compare(b.Addr) })
	var taken []*hold
	var away error
	for _, c := range claims {
		if c.PodUID == "" {
			k.giveBack(attachment, taken)
			return fmt.Errorf("pod %s/%s has no UID, so nothing can be claimed for it: only a pod of the kubelet may have an address of an AddressPool", c.PodNamespace, c.PodName)
		}
		h := k.take(c, attachment)
		taken = append(taken, h)
		err := away
		if away == nil {
			err = k.secure(ctx, h)
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
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range taken {
		h.users[attachment] = true
	}
	return nil
}

// Release says that an attachment is gone, or was never made. It returns at once; its
// claims are given up by Run, when its pod goes too.
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
		h.cut()
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

// holdOf returns the hold on c, a new one if there is none. k.mu must be held.
func (k *Keeper) holdOf(c Claim) *hold {
	id := key{c.Addr, c.PodUID}
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
