package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/journal"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// Config says what an [Enforcer] works with.
type Config struct {
	// Table is the kernel's side; a *[Table].
	Table kernelTable
	// Sources are the API server's side.
	Sources Sources
	// File is where the agent keeps what the API server has said, for its next start;
	// nothing is kept if it is empty.
	File string
	// Addrs are the addresses that a pod of another node holds beside those in its
	// status, if it has one of the Annotations. It gets those that it returned before.
	// It must not wait. May be nil.
	Addrs       func(pod *corev1.Pod, before []netip.Addr) []netip.Addr
	Annotations []string
	// Budget is how many elements the NetworkPolicies of one namespace may have in the
	// kernel's sets; 0: [DefaultBudget].
	Budget int
	// Report is called with what is newly found that policies say and this node
	// cannot enforce. It must not wait. May be nil.
	Report func([]Finding)
	Log    *slog.Logger
}

type kernelTable interface {
	Apply(*Ruleset, Change) error
	Sync(r *Ruleset, between func()) ([]datapath.Repair, error)
	Invalidate()
	Counts() (Counts, error)
	CountsOf([]*Counter) (map[string]uint64, error)
}

// An Enforcer keeps the node's table true to the cluster's policies. It is a
// [datapath.Feature].
//
// It changes nothing in the kernel before it knows all policies and flock's pods on
// this node: until then, what an earlier agent left is in force. The cluster's pods,
// namespaces and nodes are only followed while a policy on this node needs them.
type Enforcer struct {
	c       Config
	index   *Index // Run's own
	watches []*watch
	status  cell.Cell[Status]
	counts  atomic.Pointer[counts]
	changes *prometheus.HistogramVec

	inbox *cell.Inbox[func()] // what Run does next, one after the other

	// Run's own:
	undone    []func()       // taken from the inbox and still to do
	complete  bool           // SetComplete was called
	localPods map[podKey]Pod // those of Set and Prepare, as they said
	unlabeled map[podKey]Pod // those of SetUnlabeled of which the file has nothing
	kept      kept
	labels    map[podKey]versioned   // of pods of this node, as the API server says
	asking    map[podKey]*corev1.Pod // those of other nodes with one of Config.Annotations
	journal   *journal.Journal       // of Config.File; nil: it is not open
	unkept    bool                   // the file cannot be opened or written
	waiting   []chan error           // who waits for what is in the index to be in force
	refusal   error                  // of the kernel's, to the last change
	refusals  uint64
	began     time.Time // of Run; zero once something is in force
	since     time.Time // when the first of the changes came that are not in force
	dirty     bool      // the index may have something that is not in force
	syncing   bool      // a Sync is at work
	pressed   bool      // somebody waits no longer for sources
	backoff   time.Duration
	retry     *time.Timer
	findings  []Finding
	tally     Tally
	selected  cell.Cell[[]string]
}

var _ datapath.Feature = (*Enforcer)(nil)

const (
	firstRetry, lastRetry = 100 * time.Millisecond, 30 * time.Second
	// sourcesPatience is how long a pod's start waits for the cluster's pods, if
	// they were not followed before. It then begins with what is known: what the
	// policies allow it follows.
	sourcesPatience = 3 * time.Second
	// idlePatience is how long what no policy needs any more is still followed.
	idlePatience = time.Minute
)

// New returns an Enforcer. Nothing happens before Run.
func New(c Config) *Enforcer {
	e := &Enforcer{
		c: c, index: NewIndex(), changes: changeMetric.NewHistogram(prometheus.ExponentialBuckets(0.0001, 2, 16)), inbox: cell.NewInbox[func()](), backoff: firstRetry,
		localPods: map[podKey]Pod{}, unlabeled: map[podKey]Pod{}, kept: kept{map[podKey]keptPod{}, map[podKey]uint64{}}, labels: map[podKey]versioned{}, asking: map[podKey]*corev1.Pod{},
	}
	e.index.SetBudget(cmp.Or(c.Budget, DefaultBudget))
	e.watches = e.newWatches()
	e.setStatus()
	return e
}

// Name implements [datapath.Feature].
func (e *Enforcer) Name() string { return "policy" }

// Kinds implements [datapath.Feature].
func (e *Enforcer) Kinds() []kernel.Kind { return []kernel.Kind{kernel.NFTables} }

// Run follows the API server and does all else, until ctx ends. What is in the kernel
// stays in force.
func (e *Enforcer) Run(ctx context.Context) {
	var following sync.WaitGroup
	defer following.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.retry = time.NewTimer(0)
	defer e.retry.Stop()
	housekeeping := time.NewTicker(idlePatience / 4)
	defer housekeeping.Stop()
	e.began = time.Now()
	e.flush()
	defer func() {
		if e.journal != nil {
			e.journal.Close()
		}
	}()
	for {
		e.follow(ctx, &following)
		select {
		case <-ctx.Done():
			return
		case <-e.inbox.Filled():
			e.drain()
		case <-e.retry.C:
		case <-housekeeping.C:
			warnOfFullConntrack(e.c.Log, "/proc/sys/net/netfilter")
		}
		e.enforce()
		e.setStatus()
	}
}

// drain does what has come: one transaction for all of it. A Sync calls it from within
// drain, so that what is done next is what came first, whoever does it.
func (e *Enforcer) drain() {
	e.undone = append(e.undone, e.inbox.Take()...)
	for len(e.undone) > 0 {
		do := e.undone[0]
		e.undone[0] = nil
		e.undone = e.undone[1:]
		do()
	}
	e.undone = nil
}

// post has Run do something. It does not wait.
func (e *Enforcer) post(do func()) { e.inbox.Put(do) }

// change has Run change the index.
func (e *Enforcer) change(do func()) {
	came := time.Now()
	e.post(func() {
		do()
		if e.dirty = true; e.since.IsZero() {
			e.since = came
		}
	})
}

// ErrUnknown says that the policies are not known yet, so that a pod that starts
// would be without.
var ErrUnknown = errors.New("network policies are not known yet")

// Prepare is Set, and then InForce. It is for a new pod, whose links do not exist yet.
func (e *Enforcer) Prepare(ctx context.Context, p Pod) error {
	e.Set(p)
	if err := e.InForce(ctx); err != nil {
		return fmt.Errorf("network policies of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// InForce returns when everything that was set before is in force. It waits until
// all that decides is known, and no longer than until ctx ends: the error has
// [ErrUnknown] in its chain then. Other errors are the kernel's.
func (e *Enforcer) InForce(ctx context.Context) error {
	done := make(chan error, 1)
	e.post(func() {
		if e.dirty || !e.localKnown() || !e.policiesKnown() {
			e.waiting = append(e.waiting, done)
		} else {
			done <- nil
		}
	})
	patience := time.NewTicker(sourcesPatience)
	defer patience.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-patience.C:
			e.post(func() { e.pressed = e.localKnown() && e.policiesKnown() })
		case <-ctx.Done():
			if why := e.status.Get().Missing; why != "" {
				return fmt.Errorf("%w: %s", ErrUnknown, why)
			}
			return context.Cause(ctx)
		}
	}
}

// Set takes in what a pod of this node is now. It does not wait.
func (e *Enforcer) Set(p Pod) { e.change(func() { e.setLocal(p) }) }

func (e *Enforcer) setLocal(p Pod) {
	key := podKey{p.Namespace, p.Name, p.UID}
	delete(e.unlabeled, key)
	e.localPods[key] = p
	e.index.SetPod(e.relabeled(p))
	e.recordLocal(key)
}

// SetUnlabeled takes in the links and addresses of a pod that this node had when the agent started,
// and that no source has reported yet. What an earlier agent knew of the same attachments is in force
// until Set; without that, nothing is changed in the kernel before Set. It does not wait.
func (e *Enforcer) SetUnlabeled(p Pod) { e.change(func() { e.setUnlabeled(p) }) }

// Identify gives what is known of a pod without UID, whose record was rebuilt, to the pod with that
// UID. It does not wait.
func (e *Enforcer) Identify(namespace, name, uid string) {
	e.change(func() {
		nameless := podKey{namespace, name, ""}
		p, local := e.localPods[nameless]
		u, unlabeled := e.unlabeled[nameless]
		e.deleteLocal(nameless)
		if u.UID = uid; unlabeled {
			e.setUnlabeled(u)
		}
		if p.UID = uid; local {
			e.setLocal(p)
		}
	})
}

// Delete takes in that a pod of this node is gone, with its links. It does not wait.
func (e *Enforcer) Delete(namespace, name, uid string) {
	e.change(func() { e.deleteLocal(podKey{namespace, name, uid}) })
}

func (e *Enforcer) deleteLocal(key podKey) {
	delete(e.localPods, key)
	delete(e.unlabeled, key)
	delete(e.labels, key)
	e.dropLocal(key)
	e.index.deletePod(key)
}

// SetComplete says that Set or SetUnlabeled has been called for all pods that this node had when the
// agent started.
func (e *Enforcer) SetComplete() { e.change(func() { e.complete = true }) }

// Sync implements [datapath.Feature].
func (e *Enforcer) Sync(ctx context.Context) (repairs []datapath.Repair, err error) {
	done := make(chan struct{})
	var look func()
	waited := false
	look = func() {
		if e.dirty && e.known() && e.refusal == nil && !waited {
			waited = true
			e.post(look) // behind the enforce of what has just come
			return
		}
		defer close(done)
		if !e.known() || e.dirty || e.syncing {
			return // the desired state is not known, or enforce tries again
		}
		e.syncing = true
		defer func() { e.syncing = false }()
		// Changes do not wait for it.
		repairs, err = e.c.Table.Sync(e.index.Ruleset(), func() {
			e.drain()
			e.enforce()
		})
	}
	e.post(look)
	select {
	case <-done:
		return repairs, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (e *Enforcer) policiesKnown() bool {
	return !slices.ContainsFunc(e.watches, func(w *watch) bool { return w.isPolicy && !w.synced })
}

// known says whether the index has all that decides.
func (e *Enforcer) known() bool {
	if !e.localKnown() || !e.policiesKnown() {
		return false
	}
	return e.pressed || !slices.ContainsFunc(e.watches, (*watch).missing)
}

// follow starts and stops following what policies need.
func (e *Enforcer) follow(ctx context.Context, following *sync.WaitGroup) {
	for _, w := range e.watches {
		switch needed := w.needed(); {
		case needed && !w.running():
			w.start(ctx, following)
		case needed:
			w.idle = time.Time{}
		case !w.running() && !w.synced:
		case w.idle.IsZero():
			w.idle = time.Now()
		case time.Since(w.idle) >= idlePatience:
			w.stop()
		}
	}
}

// enforce carries what is in the index into the kernel.
func (e *Enforcer) enforce() {
	e.flush()
	if !e.dirty || !e.localKnown() || !e.policiesKnown() {
		e.since = time.Time{}
		return
	}
	change := e.index.Flush()
	if len(change.Links) > 0 {
		e.selected.Set(e.index.selectedNamespaces())
	}
	e.report()
	if !e.known() {
		e.since = time.Time{}
		// Only now it is clear that something is needed that is not followed yet.
		// Whom policies allow is not cut off until that is known; then the table is
		// compared as a whole.
		e.c.Table.Invalidate()
		return
	}
	e.countLast(change.GoneCounters)
	err := e.c.Table.Apply(e.index.Ruleset(), change)
	e.refusal = err
	for _, w := range e.waiting {
		w <- err
	}
	e.waiting = nil
	if err != nil {
		e.refusals++
		e.c.Log.Error("cannot enforce network policies, will retry", "error", err, "after", e.backoff.String())
		e.retry.Reset(e.backoff)
		e.backoff = min(2*e.backoff, lastRetry)
		return
	}
	if !e.since.IsZero() && !change.Empty() {
		e.changes.WithLabelValues().Observe(time.Since(e.since).Seconds())
	}
	if !e.began.IsZero() {
		e.c.Log.Info("network policies are in force", "pods", len(e.index.Ruleset().Links), "took", time.Since(e.began).Round(time.Millisecond).String())
		e.began = time.Time{}
		// What the start took is more than all that follows takes: it is the node's again.
		go debug.FreeOSMemory()
	}
	e.dirty, e.backoff, e.since = false, firstRetry, time.Time{}
	e.pressed = e.pressed && slices.ContainsFunc(e.watches, (*watch).missing)
}

// report passes on what has been found since the last time.
func (e *Enforcer) report() {
	now := e.index.Findings()
	if slices.Equal(now, e.findings) {
		return
	}
	known := map[Finding]bool{}
	for _, f := range e.findings {
		known[f] = true
	}
	var news []Finding
	for _, f := range now {
		if !known[f] {
			news = append(news, f)
			e.c.Log.Warn("cannot enforce a part of a network policy", "policy", f.Policy.String(), "reason", f.Message)
		}
	}
	e.findings = now
	if len(news) > 0 && e.c.Report != nil {
		e.c.Report(news)
	}
}

// warnOfFullConntrack warns while new connections may find no room in the kernel's
// table: they are dropped then, whatever the policies are.
func warnOfFullConntrack(log *slog.Logger, dir string) {
	read := func(name string) (n int) {
		b, err := sys.ReadFile(filepath.Join(dir, name))
		if err == nil {
			n, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return n
	}
	if count, limit := read("nf_conntrack_count"), read("nf_conntrack_max"); limit > 0 && count > limit-limit/10 {
		log.Warn("the connection tracking table is almost full, new connections will be dropped", "connections", count, "limit", limit, "sysctl", "net.netfilter.nf_conntrack_max")
	}
}
