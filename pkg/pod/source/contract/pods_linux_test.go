//go:build cluster

package contract

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

func TestSources(t *testing.T) {
	l := bringUp(t)
	t.Run("pods", func(t *testing.T) { testPods(t, l) })
	t.Run("exits", func(t *testing.T) { testExits(t, l) })
}

// testPods runs the same steps with each source, and then changes between them.
func testPods(t *testing.T, l lab) {
	cable := newCable(l.api(t))
	for _, s := range []candidate{
		{
			name: "kubelet", origin: source.Kubelet,
			config:  source.Config{Socket: l.kubeletSocket()},
			cut:     func(t *testing.T) { l.stop(t, node, "kubelet") },
			restore: l.up,
		},
		{
			name: "apiserver", origin: source.APIServer,
			config:  source.Config{API: core(t, cable.config())},
			cut:     func(*testing.T) { cable.cut() },
			restore: func(*testing.T) { cable.restore() },
		},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Run("fields", func(t *testing.T) { testFields(t, l, s) })
			t.Run("readiness", func(t *testing.T) { testReadiness(t, l, s) })
			t.Run("crash", func(t *testing.T) { testCrash(t, l, s) })
			t.Run("deletion", func(t *testing.T) { testDeletion(t, l, s) })
			t.Run("end", func(t *testing.T) { testEnd(t, l, s) })
			t.Run("outage", func(t *testing.T) { testOutage(t, l, s) })
		})
	}
	t.Run("without the API server", func(t *testing.T) { testWithoutAPIServer(t, l) })
	t.Run("without the kubelet", func(t *testing.T) { testWithoutKubelet(t, l) })
	t.Run("latency", func(t *testing.T) { testLatency(t, l) })
}

// candidate is a source under test: all must pass the same contract.
type candidate struct {
	name         string
	origin       source.Origin
	config       source.Config
	cut, restore func(*testing.T)
}

// cable is the way to the API server.
type cable struct {
	end *rest.Config

	mu     sync.Mutex // guards what follows
	broken bool
	conns  []net.Conn
}

func newCable(end *rest.Config) *cable { return &cable{end: end} }

// config is for who is at the other end.
func (c *cable) config() *rest.Config {
	config := rest.CopyConfig(c.end)
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.broken {
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		conn, err := c.end.Dial(ctx, network, address)
		if err == nil {
			c.conns = append(c.conns, conn)
		}
		return conn, err
	}
	return config
}

func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = true
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

func (c *cable) restore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = false
}

func ready(p *source.Pod) bool    { return p.Status.Ready.Readiness == pod.Ready }
func notReady(p *source.Pod) bool { return p.Status.Ready.Readiness == pod.NotReady }

func testFields(t *testing.T, l lab, s candidate) {
	const key = "flock.fritzlab.net/anycast"
	self := types.UID(l.must(t, "kubectl", "get", "node", node, "--output=jsonpath={.metadata.uid}"))
	yes, began := true, time.Now().Add(-time.Second)
	name := "fields-" + s.name
	uid := l.create(t, echo(name, func(p *corev1.Pod) {
		p.Annotations = map[string]string{key: "2001:db8::53"}
		p.Labels = map[string]string{"app": "fields"}
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node, UID: self, Controller: &yes}}
		p.Spec.InitContainers = []corev1.Container{{Name: "prepare", Image: echoImage, ImagePullPolicy: corev1.PullNever, Args: []string{"ready", "true"}}}
	}))
	ref := pod.Ref{Namespace: namespace, Name: name, UID: uid}
	first := observe(t, s.config)
	first.awaitPod(ref.UID, "the pod to be Ready", ready)

	// A later watcher gets the pods at once.
	o := observe(t, s.config)
	var p *source.Pod
	o.await("the first sync", func(o *observer) bool {
		p = o.pods[ref.UID]
		return o.synced == 1
	})
	if p == nil {
		t.Fatalf("reported to be complete without the pod:\n%s", o.story(0))
	}
	if got := o.local.Status(); got.Origin != s.origin || got.Kubelet != nil || got.APIServer != nil {
		t.Errorf("status %+v, want origin %s", got, s.origin)
	}
	if p.Ref != ref || p.Annotations[key] != "2001:db8::53" || p.Labels["app"] != "fields" || !p.Deletion.IsZero() {
		t.Errorf("reported %+v", p)
	}
	if want := []source.Owner{{APIVersion: "v1", Kind: "Node", Name: node, UID: self, Controller: true}}; !slices.Equal(p.Owners, want) {
		t.Errorf("owners %+v, want %+v", p.Owners, want)
	}
	if want := []source.Container{{Name: "prepare", Image: echoImage, Init: true}, {Name: "echo", Image: echoImage}}; !slices.Equal(p.Containers, want) {
		t.Errorf("containers %+v, want %+v", p.Containers, want)
	}
	if runs := p.Status.Runs; len(runs) != 2 ||
		runs[0].Container != "prepare" || !runs[0].Init || runs[0].Running || len(runs[0].ID) != 64 ||
		runs[1].Container != "echo" || runs[1].Init || !runs[1].Running || len(runs[1].ID) != 64 {
		t.Errorf("runs %+v", runs)
	}
	if p.Status.Phase != source.Running || p.Status.Ready.Since.Before(began.Truncate(time.Second)) {
		t.Errorf("status %+v, want Running, and Ready since %s or later", p.Status, began)
	}

	if got, err := o.local.Get(t.Context(), ref); err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("Get returned %+v, %v, want what was reported, %+v", got, err, p)
	}
	other := ref
	other.UID = "00000000-0000-0000-0000-000000000000"
	if got, err := o.local.Get(t.Context(), other); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("Get of an earlier pod of that name returned %+v, %v, want %v", got, err, source.ErrNotFound)
	}
	l.must(t, "kubectl", "annotate", "--overwrite", "pod", name, key+"=2001:db8::54")
	l.await(t, "Get to see the annotation edited", func() error {
		got, err := o.local.Get(t.Context(), ref)
		if err == nil && got.Annotations[key] != "2001:db8::54" {
			err = fmt.Errorf("annotations %v", got.Annotations)
		}
		return err
	})
}

func testReadiness(t *testing.T, l lab, s candidate) {
	o := observe(t, s.config)
	uid := l.create(t, echo("readiness-"+s.name, gated))
	o.awaitPod(uid, "the pod to run", func(p *source.Pod) bool { return len(p.Status.Runs) > 0 && p.Status.Runs[0].Running })
	if reported := o.since(0, uid); slices.ContainsFunc(reported, func(h heard) bool { return !notReady(h.Pod) }) {
		t.Errorf("Ready before its gate was open:\n%s", o.story(0))
	}
	l.setGate(t, "readiness-"+s.name, corev1.ConditionTrue)
	opened := o.awaitPod(uid, "the pod to be Ready", ready).Status.Ready.Since
	l.setGate(t, "readiness-"+s.name, corev1.ConditionFalse)
	if closed := o.awaitPod(uid, "the pod not to be Ready", notReady).Status.Ready; closed.Since.Before(opened) || closed.Reason == "" {
		t.Errorf("not Ready %+v, want it to be since %s or later, and why", closed, opened)
	}
}

func testCrash(t *testing.T, l lab, s candidate) {
	o := observe(t, s.config)
	uid := l.create(t, echo("crash-"+s.name))
	before := o.awaitPod(uid, "the pod to be Ready", ready).Status.Runs[0]
	l.crash(t, before.ID)
	o.awaitPod(uid, "another run to be Ready", func(p *source.Pod) bool {
		run := p.Status.Runs[0]
		return ready(p) && run.Running && run.Restarts == before.Restarts+1 && run.ID != before.ID
	})
}

func testDeletion(t *testing.T, l lab, s candidate) {
	o := observe(t, s.config)
	name := "deletion-" + s.name
	uid := l.create(t, echo(name, func(p *corev1.Pod) {
		p.Spec.Containers[0].Args = []string{"serve", "-linger", "500ms"}
	}))
	o.awaitPod(uid, "the pod to be Ready", ready)
	mark := o.mark()
	l.delete(t, name)
	o.awaitGone(uid, "the pod to be gone")
	reported := o.since(mark, uid)
	if len(reported) < 2 || reported[0].Type != source.Modified || reported[len(reported)-1].Type != source.Deleted {
		t.Errorf("reported\n%s\nwant the deletion's beginning and its end", o.story(mark))
	}
	if slices.ContainsFunc(reported, func(h heard) bool { return h.Pod.Deletion.IsZero() }) {
		t.Errorf("reported\n%s\nwant the time of deletion in each", o.story(mark))
	}
}

// testEnd: a pod that has run to its end is no longer reported, although the API
// server keeps it.
func testEnd(t *testing.T, l lab, s candidate) {
	o := observe(t, s.config)
	name := "end-" + s.name
	uid := l.create(t, echo(name, func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Args = []string{"ready", "true"}
	}))
	ended := func(h heard) bool { return h.Type == source.Deleted && h.Pod.UID == uid }
	o.await("the pod to have ended", func(o *observer) bool { return slices.ContainsFunc(o.reported, ended) })
	l.await(t, "the API server to know that, too", func() error {
		if phase := l.must(t, "kubectl", "get", "pod", name, "--output=jsonpath={.status.phase}"); phase != "Succeeded" {
			return fmt.Errorf("phase %s", phase)
		}
		return nil
	})
	later := observe(t, s.config)
	later.await("the first sync", func(o *observer) bool { return o.synced > 0 })
	if reported := later.since(0, uid); len(reported) > 0 {
		t.Errorf("reported a pod that has ended:\n%s", later.story(0))
	}
	if reported := o.since(0, uid); !ended(reported[len(reported)-1]) {
		t.Errorf("reported it after its end:\n%s", o.story(0))
	}
}

// testOutage: during an outage of the source nothing changes; then the difference is reported,
// and nothing of who is as before.
func testOutage(t *testing.T, l lab, s candidate) {
	o := observe(t, s.config)
	steady, victim := l.create(t, echo("steady-"+s.name)), l.create(t, echo("victim-"+s.name))
	o.awaitPod(steady, "the steady pod to be Ready", ready)
	o.awaitPod(victim, "the victim to be Ready", ready)
	mark := o.mark()

	s.cut(t)
	o.awaitStatus(source.None)
	l.delete(t, "victim-"+s.name, "--force", "--grace-period=0")
	newcomer := l.create(t, echo("newcomer-"+s.name))
	if reported := o.story(mark); reported != "" {
		t.Errorf("reported while no source answers:\n%s", reported)
	}
	s.restore(t)
	o.awaitStatus(s.origin)
	o.awaitPod(newcomer, "the newcomer to be Ready", ready)
	o.awaitGone(victim, "the victim to be gone")
	undisturbed(t, o, mark, steady)
}

// undisturbed: no report says that the pod is not Ready, or gone.
func undisturbed(t *testing.T, o *observer, mark int, steady pod.UID) {
	t.Helper()
	if slices.ContainsFunc(o.since(mark, steady), func(h heard) bool { return h.Type == source.Deleted || !ready(h.Pod) }) {
		t.Errorf("the steady pod was Ready all the time; reported\n%s", o.story(mark))
	}
}

func testWithoutAPIServer(t *testing.T, l lab) {
	o := observe(t, source.Config{Socket: l.kubeletSocket(), API: core(t, l.api(t))})
	uid := l.create(t, echo("apiless"))
	before := o.awaitPod(uid, "the pod to be Ready", ready)
	mark := o.mark()
	l.stop(t, control, "kube-apiserver")
	l.crash(t, before.Status.Runs[0].ID)
	o.awaitPod(uid, "another run to be Ready", func(p *source.Pod) bool { return ready(p) && p.Status.Runs[0].Restarts == 1 })
	if _, err := o.local.Get(t.Context(), before.Ref); err != nil {
		t.Errorf("Get without the API server returned %v", err)
	}
	if s := o.local.Status(); s.Origin != source.Kubelet || s.Kubelet != nil {
		t.Errorf("status %+v, want the kubelet", s)
	}
	l.up(t)
	if reported := o.since(mark, uid); slices.ContainsFunc(reported, func(h heard) bool { return h.Type == source.Deleted }) {
		t.Errorf("reported\n%s", o.story(mark))
	}
}

func testWithoutKubelet(t *testing.T, l lab) {
	cable := newCable(l.api(t))
	o := observe(t, source.Config{Socket: l.kubeletSocket(), API: core(t, cable.config())})
	steady, leaving := l.create(t, echo("steady")), l.create(t, echo("leaving"))
	known := o.awaitPod(steady, "the steady pod to be Ready", ready)
	o.awaitPod(leaving, "the leaving pod to be Ready", ready)
	// The kubelet reports a Ready pod to the API server a little later than here.
	l.must(t, "kubectl", "wait", "--for=condition=Ready", "--timeout=60s", "pod/steady", "pod/leaving")
	mark := o.mark()

	l.stop(t, node, "kubelet")
	stopped := time.Now()
	o.awaitStatus(source.None)
	o.awaitStatus(source.APIServer)
	t.Logf("the API server stepped in %s after the kubelet's end", time.Since(stopped).Round(time.Millisecond))
	l.delete(t, "leaving")
	o.awaitPod(leaving, "the deletion to begin", func(p *source.Pod) bool { return !p.Deletion.IsZero() })
	if _, err := o.local.Get(t.Context(), known.Ref); err != nil {
		t.Errorf("Get without the kubelet returned %v", err)
	}

	cable.cut()
	o.awaitStatus(source.None)
	if s := o.local.Status(); s.Kubelet == nil || s.APIServer == nil {
		t.Errorf("status %+v, want both reasons", s)
	}
	if got, err := o.local.Get(t.Context(), known.Ref); err != nil || got.UID != known.UID {
		t.Errorf("Get without kubelet and API server returned %+v, %v, want what is remembered", got, err)
	}

	l.up(t)
	o.awaitStatus(source.Kubelet)
	o.awaitGone(leaving, "the deleted pod to be gone")
	undisturbed(t, o, mark, steady)
}

// testLatency measures what an ADD waits for.
func testLatency(t *testing.T, l lab) {
	o := observe(t, source.Config{Socket: l.kubeletSocket(), API: core(t, l.api(t))})
	uid := l.create(t, echo("latency"))
	ref := o.awaitPod(uid, "the pod to be Ready", ready).Ref
	const n = 200
	var took []time.Duration
	pace := time.NewTicker(15 * time.Millisecond) // below the kubelet's rate limit
	defer pace.Stop()
	for range n {
		<-pace.C
		began := time.Now()
		if _, err := o.local.Get(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("Get: p50 %s, p99 %s of %d", took[n/2], took[n*99/100], n)

	// More at once than the kubelet's rate limit of 10 admits, none refused.
	var burst sync.WaitGroup
	began := time.Now()
	for range 40 {
		burst.Go(func() {
			if _, err := o.local.Get(t.Context(), ref); err != nil {
				t.Error(err)
			}
		})
	}
	burst.Wait()
	t.Logf("40 Gets at once: %s", time.Since(began).Round(time.Millisecond))
}
