package kube

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Namespaces knows the labels of namespaces. It follows those that it is asked for, one by
// one: most nodes need none of them, and all of them on every node would cost the API
// server a copy of each change for each node.
type Namespaces struct {
	client  *Client
	changed func()

	mu       sync.Mutex // guards below
	ctx      context.Context
	followed map[string]*namespace
	running  sync.WaitGroup
}

// namespace is one that is followed.
type namespace struct {
	*Cache[*corev1.Namespace]
	asked   time.Time
	lasting bool // Known was asked: whoever did waits for changes
	stop    context.CancelFunc
	changed chan struct{} // closed, and replaced, with each change
}

const (
	// keepNamespace is how long a namespace is followed after it was asked for last. While
	// it is, its pods can start without the API server.
	keepNamespace = 24 * time.Hour
	// namespacePatience is for the API server's answer about a namespace that is new here.
	namespacePatience = 5 * time.Second
)

// Namespaces returns Namespaces that follow none yet. They call changed, from goroutines
// of Run, when what Known returns may have changed.
func (c *Client) Namespaces(changed func()) *Namespaces {
	return &Namespaces{client: c, changed: changed, followed: map[string]*namespace{}}
}

// Run follows the namespaces that Labels is asked for, until ctx ends.
func (n *Namespaces) Run(ctx context.Context) {
	n.mu.Lock()
	n.ctx = ctx
	n.mu.Unlock()
	n.changed() // what was asked for before was not followed
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(time.Hour + rand.N(time.Hour)):
			n.forget(time.Now().Add(-keepNamespace))
		}
	}
	n.running.Wait()
}

// forget ends following what was not asked for since, and what is no more.
func (n *Namespaces) forget(since time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, ns := range n.followed {
		synced := ns.Synced() // before the look: what is not there then is not there at all
		_, there := ns.Get(name)
		if (!ns.lasting || synced && !there) && ns.asked.Before(since) {
			ns.stop()
			delete(n.followed, name)
		}
	}
}

// Labels returns the labels of a namespace, as the API server had them last. It waits for
// the API server if the namespace is new here. The error says why they are not known.
func (n *Namespaces) Labels(ctx context.Context, name string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, namespacePatience)
	defer cancel()
	for {
		ns, changed, err := n.follow(name)
		if err != nil {
			return nil, err
		}
		synced := ns.Synced() // before the look: what is not there then is not there at all
		if object, ok := ns.Get(name); ok {
			return object.Labels, nil
		}
		if synced {
			return nil, fmt.Errorf("the API server has no namespace %s", name)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("the API server has not sent namespace %s yet", name)
		}
	}
}

// Known returns the labels of a namespace if the API server has sent it, and does not wait.
// From then on it is followed.
func (n *Namespaces) Known(name string) (labels map[string]string, ok bool) {
	object, ok := n.known(name)
	if !ok {
		return nil, false
	}
	return object.Labels, true
}

// PolicyLog is Known for the annotation [v1alpha1.PolicyLogAnnotation], which is empty if
// there is none.
func (n *Namespaces) PolicyLog(name string) (value string, ok bool) {
	object, ok := n.known(name)
	if !ok {
		return "", false
	}
	return object.Annotations[v1alpha1.PolicyLogAnnotation], true
}

func (n *Namespaces) known(name string) (*corev1.Namespace, bool) {
	ns, _, err := n.follow(name)
	if err != nil {
		return nil, false
	}
	n.mu.Lock()
	ns.lasting = true
	n.mu.Unlock()
	return ns.Get(name)
}

// follow returns a namespace, and what is closed when it changes.
func (n *Namespaces) follow(name string) (*namespace, <-chan struct{}, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ns := n.followed[name]
	if ns == nil {
		if n.ctx == nil || n.ctx.Err() != nil {
			return nil, nil, fmt.Errorf("namespace %s is not known: the agent is starting or ending", name)
		}
		ctx, stop := context.WithCancel(n.ctx)
		ns = &namespace{stop: stop, changed: make(chan struct{})}
		ns.Cache = newCache[*corev1.Namespace](n.client.core, "namespaces", &corev1.Namespace{}, fields.OneTermEqualSelector("metadata.name", name), onlyNeeded, func() {
			n.mu.Lock()
			close(ns.changed)
			ns.changed = make(chan struct{})
			n.mu.Unlock()
			n.changed()
		})
		n.followed[name] = ns
		n.running.Go(func() { ns.Run(ctx) })
	}
	ns.asked = time.Now()
	return ns, ns.changed, nil
}

// onlyNeeded keeps the name and the labels of a namespace, and the annotation of
// PolicyLog.
func onlyNeeded(obj any) (any, error) {
	if ns, ok := obj.(*corev1.Namespace); ok {
		annotations := map[string]string(nil)
		if value, there := ns.Annotations[v1alpha1.PolicyLogAnnotation]; there {
			annotations = map[string]string{v1alpha1.PolicyLogAnnotation: value}
		}
		ns.ObjectMeta = metav1.ObjectMeta{Name: ns.Name, ResourceVersion: ns.ResourceVersion, Labels: ns.Labels, Annotations: annotations}
		ns.Spec, ns.Status = corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
	}
	return obj, nil
}
