package policy

import (
	"context"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
	"k8s.io/klog/v2"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	podref "flock.fritzlab.net/flock/pkg/pod"
)

// Sources are where the objects of the API server come from. [NewSources] makes them
// of its address.
type Sources struct {
	NetworkPolicies cache.ListerWatcher
	// ClusterNetworkPolicies gives objects of v1beta1. It may be nil; if the API
	// server says that there is no such kind, there are no such policies.
	ClusterNetworkPolicies cache.ListerWatcher
	// Pods are those of all nodes: this one may have pods of another CNI plugin too.
	Pods, Namespaces, Nodes cache.ListerWatcher
	// NodePods are those of this node, for their labels. It may be nil: labels are those of
	// [Enforcer.Set] then.
	NodePods cache.ListerWatcher
}

// A watch follows objects of one kind while they are needed. It keeps nothing of them
// but their names: the index has what it needs. All but store's methods are for the
// Enforcer's goroutine.
type watch struct {
	e        *Enforcer
	name     string
	source   cache.ListerWatcher
	example  runtime.Object
	isPolicy bool
	optional bool // the API server may have no such kind
	needed   func() bool
	trim     cache.TransformFunc // makes a copy without what set does not look at
	// set takes an object in. It is not for the index if false.
	set    func(obj metav1.Object) bool
	delete func(namespace, name, uid string)
	// fresh: what it says is not kept for the next start, which learns it elsewhere.
	fresh bool
	// byUID: the index tells objects of one name apart by their UIDs.
	byUID bool

	objects map[objectName]known // those in the index
	round   uint32               // counts lists
	synced  bool                 // all are known, by the API server or by the file
	marked  bool                 // the file says so
	current bool                 // the API server reports changes
	err     error                // of the last try to reach the API server
	cancel  context.CancelFunc   // nil: not running
	idle    time.Time            // since when it is not needed; zero: it is
	run     int                  // counts starts: what an earlier run sends late is dropped
}

const podsKind = "pods"

type objectName struct{ namespace, name string }

// known is what is remembered of an object in the index.
type known struct {
	uid   string
	sum   uint64
	round uint32 // the list that it was in last
}

func (e *Enforcer) newWatches() []*watch {
	always := func() bool { return true }
	x := e.index
	ofPolicy := func(namespace, name, _ string) { x.DeletePolicy(PolicyRef{namespace, name}) }
	watches := []*watch{
		{
			name: "networkpolicies", source: e.c.Sources.NetworkPolicies, example: &networkingv1.NetworkPolicy{}, isPolicy: true, needed: always,
			trim: trimmed(func(np *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
				out := &networkingv1.NetworkPolicy{ObjectMeta: trimMeta(np.ObjectMeta), Spec: np.Spec}
				out.CreationTimestamp = np.CreationTimestamp // by which policies have their turn, if there are too many
				return out
			}),
			set: func(o metav1.Object) bool {
				x.SetNetworkPolicy(o.(*networkingv1.NetworkPolicy))
				return true
			},
			delete: ofPolicy,
		},
		{
			name: "clusternetworkpolicies", source: e.c.Sources.ClusterNetworkPolicies, example: &policyv1beta1.ClusterNetworkPolicy{}, isPolicy: true, optional: true, needed: always,
			trim: trimmed(func(cnp *policyv1beta1.ClusterNetworkPolicy) *policyv1beta1.ClusterNetworkPolicy {
				return &policyv1beta1.ClusterNetworkPolicy{ObjectMeta: trimMeta(cnp.ObjectMeta), Spec: cnp.Spec}
			}),
			set: func(o metav1.Object) bool {
				x.SetClusterNetworkPolicy(o.(*policyv1beta1.ClusterNetworkPolicy))
				return true
			},
			delete: ofPolicy,
		},
		{
			// The kubelet reports a pod when its status changes, and not when a label does.
			name: "nodepods", source: e.c.Sources.NodePods, example: &corev1.Pod{}, fresh: true,
			needed: func() bool { return len(x.policies) > 0 },
			trim: trimmed(func(p *corev1.Pod) *corev1.Pod {
				out := &corev1.Pod{ObjectMeta: trimMeta(p.ObjectMeta)}
				out.Labels = p.Labels
				if static, ok := p.Annotations[corev1.MirrorPodAnnotationKey]; ok {
					out.UID = types.UID(static) // by which the kubelet knows it
				}
				return out
			}),
			set: e.setLabels, byUID: true, delete: e.forgetLabels,
		},
		{
			name: podsKind, source: e.c.Sources.Pods, example: &corev1.Pod{},
			needed: func() bool { pods, _, _ := x.needs(); return pods },
			trim:   trimmed(e.trimPod), set: e.setRemote, byUID: true,
			delete: func(namespace, name, uid string) { e.deleteRemote(podKey{namespace, name, uid}) },
		},
		{
			name: "namespaces", source: e.c.Sources.Namespaces, example: &corev1.Namespace{},
			needed: func() bool { _, namespaces, _ := x.needs(); return namespaces },
			trim: trimmed(func(ns *corev1.Namespace) *corev1.Namespace {
				out := &corev1.Namespace{ObjectMeta: trimMeta(ns.ObjectMeta)}
				out.Labels = ns.Labels
				return out
			}),
			set: func(o metav1.Object) bool {
				x.SetNamespace(Namespace{o.GetName(), o.GetLabels()})
				return true
			},
			delete: func(_, name, _ string) { x.DeleteNamespace(name) },
		},
		{
			name: "nodes", source: e.c.Sources.Nodes, example: &corev1.Node{},
			needed: func() bool { _, _, nodes := x.needs(); return nodes },
			trim: trimmed(func(n *corev1.Node) *corev1.Node {
				out := &corev1.Node{ObjectMeta: trimMeta(n.ObjectMeta)}
				out.Labels, out.Status.Addresses = n.Labels, n.Status.Addresses
				return out
			}),
			set: func(o metav1.Object) bool {
				x.SetNode(NodeOf(o.(*corev1.Node)))
				return true
			},
			delete: func(_, name, _ string) { x.DeleteNode(name) },
		},
	}
	out := watches[:0]
	for _, w := range watches {
		if w.source != nil {
			w.e, w.objects = e, map[objectName]known{}
			out = append(out, w)
		}
	}
	return out
}

// trimmed makes a TransformFunc of a function that copies what is needed of an object.
func trimmed[T any](trim func(*T) *T) cache.TransformFunc {
	return func(obj any) (any, error) {
		if o, ok := obj.(*T); ok {
			return trim(o), nil
		}
		return obj, nil
	}
}

// trimMeta keeps what names an object, and its version, which a reflector needs.
func trimMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

// trimPod keeps of a pod what setRemote and Config.Addrs look at.
func (e *Enforcer) trimPod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: trimMeta(p.ObjectMeta)}
	out.Labels = p.Labels
	for _, key := range e.c.Annotations {
		if value, ok := p.Annotations[key]; ok {
			annotate(out, key, value)
		}
	}
	out.Spec.HostNetwork = p.Spec.HostNetwork
	out.Status.Phase, out.Status.PodIPs = p.Status.Phase, p.Status.PodIPs
	for _, cs := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range cs {
			if ports := namedPorts(c.Ports); len(ports) > 0 {
				out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Ports: ports})
			}
		}
	}
	return out
}

func namedPorts(ports []corev1.ContainerPort) (named []corev1.ContainerPort) {
	for _, p := range ports {
		if p.Name != "" {
			named = append(named, corev1.ContainerPort{Name: p.Name, Protocol: p.Protocol, ContainerPort: p.ContainerPort})
		}
	}
	return named
}

// setRemote takes in a pod as the API server has it. What is known of a pod of flock's
// on this node comes from the node.
func (e *Enforcer) setRemote(o metav1.Object) bool {
	in := o.(*corev1.Pod)
	key := podKey{in.Namespace, in.Name, string(in.UID)}
	if _, local := e.localPods[key]; local {
		delete(e.asking, key)
		return true
	}
	addrs := statusAddrs(in)
	if len(addrs) > 0 && e.c.Addrs != nil && len(in.Annotations) > 0 {
		before := splitAddrs(in.Annotations[heldAnnotation])
		if asked := e.asking[key]; asked != nil {
			before = splitAddrs(asked.Annotations[heldAnnotation])
		}
		annotate(in, heldAnnotation, "")
		more := e.c.Addrs(in, before)
		annotate(in, heldAnnotation, joinAddrs(more))
		addrs = append(addrs, more...)
	}
	p := PodOf(in, addrs)
	if p.HostNetwork || p.Finished || len(p.Addrs) == 0 {
		delete(e.asking, key)
		return false
	}
	if len(in.Annotations) > 0 {
		e.asking[key] = in
	}
	e.index.SetPod(p)
	return true
}

// versioned are the labels of a version of a pod.
type versioned struct {
	version uint64
	labels  map[string]string
}

// setLabels takes in the labels that the API server has of a pod of this node.
func (e *Enforcer) setLabels(o metav1.Object) bool {
	key := podKey{o.GetNamespace(), o.GetName(), string(o.GetUID())}
	e.labels[key] = versioned{podref.Version(o.GetResourceVersion()), o.GetLabels()}
	if p, known := e.localPods[key]; known {
		e.setLocal(p)
	}
	return true
}

// forgetLabels takes in that the API server has a pod no more. While it runs on, its
// labels stay: the kubelet may never have reported them.
func (e *Enforcer) forgetLabels(namespace, name, uid string) {
	key := podKey{namespace, name, uid}
	if _, runs := e.localPods[key]; !runs {
		delete(e.labels, key)
	}
}

// relabeled is a pod of this node with the latest labels that are known of it.
func (e *Enforcer) relabeled(p Pod) Pod {
	if l, known := e.labels[podKey{p.Namespace, p.Name, p.UID}]; known && l.version >= p.Version {
		p.Labels, p.Version = l.labels, l.version
	}
	return p
}

// AddrsChanged says that Config.Addrs may answer otherwise now. It does not wait.
func (e *Enforcer) AddrsChanged() {
	e.change(func() {
		for _, w := range e.watches {
			if w.name != podsKind {
				continue
			}
			for _, p := range slices.Collect(maps.Values(e.asking)) {
				held := p.Annotations[heldAnnotation]
				if e.setRemote(p) && p.Annotations[heldAnnotation] != held {
					w.record(objectName{p.Namespace, p.Name}, p)
				}
			}
		}
	})
}

func (e *Enforcer) deleteRemote(key podKey) {
	delete(e.asking, key)
	if _, local := e.localPods[key]; !local {
		e.index.deletePod(key)
	}
}

func statusAddrs(p *corev1.Pod) (out []netip.Addr) {
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// missing says that what the kind's objects say is needed and not known.
func (w *watch) missing() bool { return w.needed() && !w.synced }

func (w *watch) running() bool { return w.cancel != nil }

func (w *watch) start(ctx context.Context, following *sync.WaitGroup) {
	w.run++
	ctx, w.cancel = context.WithCancel(ctx)
	s := &store{ctx: ctx, watch: w, run: w.run}
	source := cache.ToListerWatcherWithContext(w.source)
	stream, streams := w.source.(lister)
	s.streams = streams
	// A reflector would call it an error each time that there is no such kind.
	listWatch := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if streams {
				list, err := s.listed(ctx, stream, o)
				return list, s.noteError(err)
			}
			for wait := time.Duration(0); ; wait = min(2*wait+time.Second, time.Minute) {
				list, err := source.ListWithContext(ctx, o)
				s.noteError(err)
				kind, waits := w.source.(awaiter)
				if !waits || !apierrors.IsNotFound(err) {
					return list, err
				}
				pause(ctx, wait) // the CRD may be there, and not serve the kind
				began := time.Now()
				if kind.await(ctx); ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				if time.Since(began) > time.Minute {
					wait = 0
				}
			}
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			events, err := source.WatchWithContext(ctx, o)
			return events, s.noteError(err)
		},
	}
	reflector := cache.NewReflectorWithOptions(watchable{listWatch, streams || watchlist.DoesClientNotSupportWatchListSemantics(w.source)}, w.example, s, cache.ReflectorOptions{
		Name:    "flock/policy/" + w.name,
		Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: math.MaxInt32, Cap: 10 * time.Second},
	})
	following.Go(func() {
		reflector.RunWithContext(klog.NewContext(ctx, logr.FromSlogHandler(w.e.c.Log.Handler())))
	})
}

// An awaiter is a source of a kind that may not be there.
type awaiter interface {
	// await returns when the kind may be there.
	await(ctx context.Context)
}

// watchable says whether a reflector may ask for a list by a watch (KEP-3157): it would
// keep all of it.
type watchable struct {
	*cache.ListWatch
	unsupported bool
}

func (w watchable) IsWatchListSemanticsUnSupported() bool { return w.unsupported }

// stop ends the watch and forgets its objects.
func (w *watch) stop() {
	if w.cancel != nil {
		w.cancel()
	}
	w.setSynced(false)
	w.cancel, w.current, w.err, w.idle = nil, false, nil, time.Time{}
	w.run++
	w.forget()
}

// relist follows the API server from the beginning, and has all objects recorded that it
// reports. Meanwhile what is known stays.
func (w *watch) relist() {
	if w.fresh {
		return
	}
	w.marked = false
	for name, o := range w.objects {
		o.sum = 0 // so that it counts as changed
		w.objects[name] = o
	}
	if w.running() {
		w.cancel()
		w.cancel = nil
		w.run++
	}
}

// put takes an object in, and records it for the next start.
func (w *watch) put(o metav1.Object) {
	name := objectName{o.GetNamespace(), o.GetName()}
	before, was := w.objects[name]
	is := knownAs(o)
	if was && before.uid == is.uid && before.sum == is.sum {
		before.round = w.round
		w.objects[name] = before
		return
	}
	switch {
	case w.take(o, is):
		w.record(name, o)
	case was:
		w.record(name, nil)
	}
}

// take takes an object in, and says whether it is for the index; one with another UID
// takes the place of its predecessor.
func (w *watch) take(o metav1.Object, is known) bool {
	name := objectName{o.GetNamespace(), o.GetName()}
	before, was := w.objects[name]
	ok := w.set(o)
	if was && (!ok || w.byUID && before.uid != is.uid) {
		w.delete(name.namespace, name.name, before.uid)
		delete(w.objects, name)
	}
	if ok {
		is.round = w.round
		w.objects[name] = is
	}
	return ok
}

func (w *watch) drop(name objectName) {
	if o, known := w.objects[name]; known {
		w.delete(name.namespace, name.name, o.uid)
		delete(w.objects, name)
		w.record(name, nil)
	}
}

// finish drops what was not in the list that is just complete: it came since round was
// increased.
func (w *watch) finish() {
	for name, o := range w.objects {
		if o.round != w.round {
			w.drop(name)
		}
	}
	w.setSynced(true)
	w.current, w.err = true, nil
}

// forget drops all objects.
func (w *watch) forget() {
	for name := range w.objects {
		w.drop(name)
	}
}

// A store is where a reflector puts objects: it has the Enforcer's goroutine take them
// in, and keeps nothing.
type store struct {
	ctx   context.Context
	watch *watch
	run   int
	// streams: the objects of a list come by listed, and Replace is its end.
	streams bool
	// failed says that the last request did. It is the reflector's goroutine's.
	failed bool
}

func (s *store) change(do func()) {
	s.watch.e.change(func() {
		if s.run == s.watch.run {
			do()
		}
	})
}

// noteError takes in what came of a request to the API server. If there is no such
// kind, there are no such objects, until the next try says otherwise. All API servers
// have the other kinds: a proxy before them may answer 404 too, and that says nothing.
func (s *store) noteError(err error) error {
	switch {
	case s.ctx.Err() != nil:
	case apierrors.IsNotFound(err) && s.watch.optional:
		s.change(func() {
			s.watch.round++
			s.watch.finish()
		})
	case err != nil || s.failed:
		s.watch.e.post(func() {
			if s.run == s.watch.run {
				s.watch.current, s.watch.err = err == nil, err
			}
		})
	}
	s.failed = err != nil
	return err
}

func (s *store) Add(obj any) error { return s.Update(obj) }

func (s *store) Update(obj any) error {
	o, err := s.watch.owned(obj)
	if err != nil {
		return err
	}
	s.change(func() { s.watch.put(o) })
	return nil
}

func (s *store) Delete(obj any) error {
	o, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	s.change(func() { s.watch.drop(objectName{o.GetNamespace(), o.GetName()}) })
	return nil
}

func (s *store) Replace(list []any, _ string) error {
	objects := make([]metav1.Object, len(list))
	for i, obj := range list {
		var err error
		if objects[i], err = s.watch.owned(obj); err != nil {
			return err
		}
	}
	s.change(func() {
		if !s.streams {
			s.watch.round++
		}
		for _, o := range objects {
			s.watch.put(o)
		}
		s.watch.finish()
	})
	return nil
}

// listed takes objects of a list in while it comes.
func (s *store) listed(ctx context.Context, from lister, o metav1.ListOptions) (runtime.Object, error) {
	const atOnce = 256
	var objects []metav1.Object
	deliver := func() error {
		batch, done := objects, make(chan struct{})
		objects = nil
		s.watch.e.change(func() {
			defer close(done)
			if s.run == s.watch.run {
				for _, o := range batch {
					s.watch.put(o)
				}
			}
		})
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
	if o.Continue == "" {
		s.change(func() { s.watch.round++ })
	}
	list, err := from.list(ctx, o, func(obj runtime.Object) error {
		own, err := s.watch.owned(obj)
		if err != nil {
			return err
		}
		if objects = append(objects, own); len(objects) == atOnce {
			return deliver()
		}
		return nil
	})
	if err == nil {
		err = deliver()
	}
	return &metav1.List{ListMeta: list}, err
}

func (s *store) Resync() error { return nil }

// Transformer implements [cache.TransformingStore], so that a list of all pods is
// trimmed while it comes.
func (s *store) Transformer() cache.TransformFunc { return s.watch.trim }
