package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/process"
	"flock.fritzlab.net/flock/pkg/netlink"
)

// policyAPI measures how soon what is asked of the API server is enforced on a node, by
// the agent that runs there.
var policyAPI = Bench{
	Name:  "policy.api",
	About: "10,000 pods, 1,000 policies in the lab: from the request that changes a peer's label to node1's kernel having it, against the request's event in a watch of its own",
	Run: func(ctx context.Context, l *cluster.Lab, n int) (results []Result, err error) {
		if l.CNI != cluster.Flock {
			return nil, fmt.Errorf("lab %s runs %s: bring it up with --cni %s", l.Dir.Lab(), l.CNI, cluster.Flock)
		}
		config, err := l.RESTConfig()
		if err != nil {
			return nil, err
		}
		config.QPS = -1 // 20,000 requests
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, err
		}
		g := apiGround{client}
		defer func() { err = errors.Join(err, g.remove(context.WithoutCancel(ctx))) }()
		if err := g.remove(ctx); err != nil {
			return nil, err
		}
		if err := g.fill(ctx); err != nil {
			return nil, err
		}
		return g.measure(ctx, l, n)
	},
}

const (
	apiNamespaces  = 10
	apiPods        = 1000 // of a namespace, none of which runs
	apiPolicies    = 100  // of a namespace
	apiName        = "flock-bench-policy"
	apiConcurrency = 16
	// apiPatience is for all objects to go.
	apiPatience = 5 * time.Minute
)

// apiPeer is the address of the peer that comes and goes.
var apiPeer = netip.MustParseAddr("2001:db8:ffff:ffff::1")

// apiGround is the objects of the bench at the API server.
type apiGround struct{ client kubernetes.Interface }

func apiNamespace(i int) string { return fmt.Sprint(apiName, "-", i) }

// remove takes all away, and waits for it.
func (g apiGround) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	for i := range apiNamespaces {
		err := g.client.CoreV1().Namespaces().Delete(ctx, apiNamespace(i), metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return process.Await(ctx, "the bench's namespaces to go", nil, func(ctx context.Context) error {
		for i := range apiNamespaces {
			if _, err := g.client.CoreV1().Namespaces().Get(ctx, apiNamespace(i), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return errors.Join(err, fmt.Errorf("%s is still there", apiNamespace(i)))
			}
		}
		return nil
	})
}

// each calls f for 0 to n-1, several at a time.
func each(ctx context.Context, n int, f func(i int) error) error {
	next := make(chan int)
	errs := make(chan error, apiConcurrency)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var workers sync.WaitGroup
	for range apiConcurrency {
		workers.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					errs <- err
					cancel()
					return
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	workers.Wait()
	close(errs)
	return errors.Join(<-errs, unlessDone(context.Cause(ctx)))
}

// fill creates the pods and policies. A pod that no node has keeps the address that its
// status is given.
func (g apiGround) fill(ctx context.Context) error {
	for i := range apiNamespaces {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: apiNamespace(i)}}
		if _, err := g.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
			return err
		}
		if err := process.Await(ctx, "the namespace's service account", nil, func(ctx context.Context) error {
			_, err := g.client.CoreV1().ServiceAccounts(apiNamespace(i)).Get(ctx, "default", metav1.GetOptions{})
			return err
		}); err != nil {
			return err
		}
		// The pod of this namespace that the policies select, on the node.
		if _, err := g.client.CoreV1().Pods(apiNamespace(i)).Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"app": "web"}},
			Spec: corev1.PodSpec{
				NodeName: "node1", TerminationGracePeriodSeconds: new(int64),
				Containers: []corev1.Container{{Name: "echo", Image: "echo:dev", ImagePullPolicy: corev1.PullNever}},
			},
		}, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	if err := each(ctx, apiNamespaces*apiPods, func(i int) error {
		addr := apiPeer
		if i > 0 {
			addr = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xff, 0xff, 0xff, 0xfe, 14: byte(i >> 8), 15: byte(i)})
		}
		return g.pod(ctx, apiNamespace(i/apiPods), fmt.Sprint("peer-", i%apiPods), fmt.Sprint("none", i%10), addr)
	}); err != nil {
		return err
	}
	return each(ctx, apiNamespaces*apiPolicies, func(i int) error {
		port := intstr.FromInt32(int32(1000 + i%apiPolicies))
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("policy-", i%apiPolicies)}}
		np.Spec.PodSelector.MatchLabels = map[string]string{"app": "web"}
		np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
			From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"group": fmt.Sprint("g", i%10)}}}},
			Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
		}}
		_, err := g.client.NetworkingV1().NetworkPolicies(apiNamespace(i/apiPolicies)).Create(ctx, np, metav1.CreateOptions{})
		return err
	})
}

func (g apiGround) pod(ctx context.Context, namespace, name, group string, addr netip.Addr) error {
	pod, err := g.client.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"group": group}},
		Spec: corev1.PodSpec{
			SchedulerName: "none", TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{{Name: "none", Image: "none"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	pod.Status.Phase = corev1.PodPending
	pod.Status.PodIP, pod.Status.PodIPs = addr.String(), []corev1.PodIP{{IP: addr.String()}}
	_, err = g.client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

// relabel makes the peer one whom ten policies allow, or nobody.
func (g apiGround) relabel(ctx context.Context, group string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{"group": group}}})
	if err != nil {
		return err
	}
	_, err = g.client.CoreV1().Pods(apiNamespace(0)).Patch(ctx, "peer-0", types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	return err
}

func (g apiGround) measure(ctx context.Context, l *cluster.Lab, n int) ([]Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	enforced := make(chan elementChange, 1000)
	if err := watchElements(ctx, member.Of(l.Dir, "node1").NetNS(), enforced); err != nil {
		return nil, err
	}
	// From version 0, or the API server may wait in vain for its cache to be up to date.
	watched, err := g.client.CoreV1().Pods(apiNamespace(0)).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=peer-0", ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	defer watched.Stop()
	took, noticed := map[string][]time.Duration{}, map[string][]time.Duration{}
	const warmUp = 3
	for i := range warmUp + n {
		for _, kind := range []string{"allow", "revoke"} {
			group := map[string]string{"allow": "g1", "revoke": "none"}[kind]
			for len(enforced) > 0 {
				<-enforced
			}
			began := time.Now()
			if err := g.relabel(ctx, group); err != nil {
				return nil, err
			}
			notice, at, err := await(ctx, watched.ResultChan(), enforced, group, kind == "allow")
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", kind, i, err)
			}
			if i >= warmUp {
				took[kind], noticed[kind] = append(took[kind], at.Sub(began)), append(noticed[kind], notice.Sub(began))
			}
			if err := pause(ctx, faultsApart/2); err != nil {
				return nil, err
			}
		}
	}
	var results []Result
	for _, kind := range []string{"allow", "revoke"} {
		results = append(results, Result{
			Name: "policy.api." + kind, Unit: "ms", Figures: Milliseconds(took[kind]),
			Baseline: &Result{Name: "apiserver.notices." + kind, Unit: "ms", Figures: Milliseconds(noticed[kind])},
			Goal:     &Goal{P99: 50},
		})
	}
	return results, nil
}

// await waits until a watch and the kernel have a change of the peer, and returns when.
func await(ctx context.Context, watched <-chan watch.Event, enforced <-chan elementChange, group string, added bool) (notice, at time.Time, err error) {
	patience := time.NewTimer(patience)
	defer patience.Stop()
	for notice.IsZero() || at.IsZero() {
		select {
		case e, ok := <-watched:
			if !ok {
				return notice, at, errors.New("the watch of the peer has ended")
			}
			if p, ok := e.Object.(*corev1.Pod); ok && p.Labels["group"] == group && notice.IsZero() {
				notice = time.Now()
			}
		case c := <-enforced:
			if c.added == added && at.IsZero() {
				at = c.at
			}
		case <-patience.C:
			return notice, at, fmt.Errorf("not noticed or not enforced after a long time: noticed %t, enforced %t", !notice.IsZero(), !at.IsZero())
		case <-ctx.Done():
			return notice, at, context.Cause(ctx)
		}
	}
	return notice, at, nil
}

// elementChange is an element with the peer's address that the kernel has, or has no
// more.
type elementChange struct {
	at    time.Time
	added bool
}

// watchElements sends what changes in sets of a network namespace, until ctx ends.
func watchElements(ctx context.Context, netns string, changes chan<- elementChange) error {
	var w *netlink.Watch
	if err := member.InNet(netns, func() (err error) {
		w, err = netlink.Subscribe(unix.NETLINK_NETFILTER, nil, unix.NFNLGRP_NFTABLES)
		return err
	}); err != nil {
		return err
	}
	peer := apiPeer.AsSlice()
	go func() {
		defer w.Close()
		w.Run(ctx, func(m netlink.Message) {
			typ := m.Type & 0xff
			if typ != unix.NFT_MSG_NEWSETELEM && typ != unix.NFT_MSG_DELSETELEM || !bytes.Contains(m.Body, peer) {
				return
			}
			select {
			case changes <- elementChange{time.Now(), typ == unix.NFT_MSG_NEWSETELEM}:
			default:
			}
		})
	}()
	return nil
}
