package departure

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/routing/departure/stop"
)

// cluster is an API server; what is not there is not found.
type cluster struct {
	mu        sync.Mutex // guards what follows
	node      *corev1.Node
	daemonSet *appsv1.DaemonSet
	podAway   bool
	podEnds   bool
	away      bool

	followed, known bool // whether the Keeper's view of the Node is that of now
	seen            *corev1.Node
	changed         cell.Topic
}

var errAway = errors.New("the API server is away")

func (c *cluster) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	c.mu.Lock()
	away, node := c.away, c.node
	c.mu.Unlock()
	switch {
	case away:
		<-ctx.Done()
		return nil, errAway
	case node == nil:
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, name)
	}
	return node, nil
}

func (c *cluster) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away || c.podAway {
		return nil, errAway
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if c.podEnds {
		p.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	}
	controller := true
	p.OwnerReferences = []metav1.OwnerReference{
		{APIVersion: "example.com/v1", Kind: "DaemonSet", Name: "wrong"},
		{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "site-flock", Controller: &controller},
	}
	return p, nil
}

func (c *cluster) GetDaemonSet(ctx context.Context, _, name string) (*appsv1.DaemonSet, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away {
		return nil, errAway
	}
	if c.daemonSet == nil || name != "site-flock" {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "daemonsets"}, name)
	}
	return c.daemonSet, nil
}

func (c *cluster) set(change func()) {
	c.mu.Lock()
	change()
	if c.followed {
		c.seen = c.node
	}
	c.mu.Unlock()
	c.changed.Wake()
}

func labelled(unschedulable bool) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{"flock": ""}}}
	n.Spec.Unschedulable = unschedulable
	return n
}

func keeper(t *testing.T, c *cluster, dir string) *Keeper {
	t.Helper()
	k, err := New(Config{
		NodeName: "node1", Namespace: "flock-system", Pod: "site-flock-x7k2p", API: c, Dir: dir, Log: slog.New(slog.DiscardHandler),
		Node: func() (*corev1.Node, bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.seen, c.known
		},
		NodeConfig: func() (*v1alpha1.NodeConfig, bool) { return nil, true },
		Changed:    []Notifier{&c.changed},
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newCluster() *cluster {
	ds := &appsv1.DaemonSet{}
	ds.Spec.Template.Spec.NodeSelector = map[string]string{"flock": ""}
	return &cluster{node: labelled(false), daemonSet: ds, followed: true, known: true, seen: labelled(false)}
}

// TestKeeper: the decision follows the cluster, is in the file, and is made once more at
// the end.
func TestKeeper(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		// while the agent runs; at its end
		change, last func(*cluster)
		want, end    stop.Decision
	}{
		{"nothing", func(*cluster) {}, func(*cluster) {}, stop.Decision{}, stop.Decision{Final: true}},
		{"the label is removed", func(c *cluster) { c.node = &corev1.Node{} }, func(*cluster) {},
			stop.Decision{Leave: true, Withdraw: true}, stop.Decision{Leave: true, Withdraw: true, Final: true}},
		{"cordoned and uncordoned", func(c *cluster) { c.node = labelled(true) }, func(c *cluster) { c.node = labelled(false) },
			stop.Decision{Leave: true}, stop.Decision{Final: true}},
		{"the label is removed at the end, the agent has not seen it", func(c *cluster) { c.followed = false }, func(c *cluster) { c.node = &corev1.Node{} },
			stop.Decision{}, stop.Decision{Leave: true, Withdraw: true, Final: true}},
		{"the DaemonSet is deleted at the end", func(*cluster) {}, func(c *cluster) { c.daemonSet = nil },
			stop.Decision{}, stop.Decision{Leave: true, Withdraw: true, Final: true}},
		{"the API server is away at the end", func(c *cluster) { c.node = labelled(true) }, func(c *cluster) { c.away = true },
			stop.Decision{Leave: true}, stop.Decision{Leave: true, Final: true}},
		{"the agent's pod cannot be read before the end", func(c *cluster) { c.daemonSet = nil }, func(c *cluster) { c.podAway = false },
			stop.Decision{}, stop.Decision{Leave: true, Withdraw: true, Final: true}},
		{"the Node is not known", func(c *cluster) { c.known = false }, func(c *cluster) { c.away = true },
			stop.Decision{}, stop.Decision{Final: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, cluster := t.TempDir(), newCluster()
			cluster.podAway = strings.Contains(c.name, "pod cannot be read")
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				k := keeper(t, cluster, dir)
				done := make(chan error)
				go func() { done <- k.Run(ctx) }()
				synctest.Wait()
				cluster.set(func() { c.change(cluster) })
				synctest.Wait()
				wantFile(t, dir, c.want)
				cluster.mu.Lock()
				c.last(cluster)
				cluster.mu.Unlock()
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				wantFile(t, dir, c.end)
			})
		})
	}
}

// TestLabelComesBack: a node that gets its label back announces again when it is clear that
// flock's pod stays, and else stays withdrawn, for nobody could withdraw until the next
// agent runs. For BIRD that is a restart.
func TestLabelComesBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		podEnds   bool
		want, end stop.Decision
	}{
		{false, stop.Decision{}, stop.Decision{Final: true}},
		{true, stop.Decision{Withdraw: true}, stop.Decision{Withdraw: true, Final: true}},
	} {
		dir, cluster := t.TempDir(), newCluster()
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			k := keeper(t, cluster, dir)
			done := make(chan error)
			go func() { done <- k.Run(ctx) }()
			synctest.Wait()
			cluster.set(func() { cluster.node = &corev1.Node{} })
			synctest.Wait()
			wantFile(t, dir, stop.Decision{Leave: true, Withdraw: true})
			time.Sleep(100 * time.Millisecond)
			cluster.set(func() { cluster.node, cluster.podEnds = labelled(false), c.podEnds })
			synctest.Wait()
			wantFile(t, dir, stop.Decision{Withdraw: true})
			time.Sleep(returnAfter - 101*time.Millisecond)
			wantFile(t, dir, stop.Decision{Withdraw: true})
			time.Sleep(time.Second)
			wantFile(t, dir, c.want)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			wantFile(t, dir, c.end)
			if next := keeper(t, cluster, dir).Decision.Get(); next.Withdraw != c.end.Withdraw {
				t.Errorf("the next agent begins with %+v", next)
			}
		})
	}
}

// TestFailuresAreTriedAgain: what failed once is done a little later, though nothing changes.
func TestFailuresAreTriedAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		leaves       bool // is decided, though not recorded
		fail, mended func(*cluster, string)
	}{
		{"the question for the DaemonSet, which is deleted", false, func(c *cluster, _ string) { c.daemonSet, c.podAway = nil, true }, func(c *cluster, _ string) { c.podAway = false }},
		{"the directory", true, func(c *cluster, dir string) {
			c.daemonSet = nil
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}, func(_ *cluster, dir string) {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Error(err)
			}
		}},
		{"the file", true, func(c *cluster, dir string) {
			c.daemonSet = nil
			if err := os.MkdirAll(filepath.Join(dir, ".departure.new", "in-the-way"), 0o700); err != nil {
				t.Error(err)
			}
		}, func(_ *cluster, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, ".departure.new")); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, cluster := t.TempDir(), newCluster()
			c.fail(cluster, dir)
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				k := keeper(t, cluster, dir)
				done := make(chan error)
				go func() { done <- k.Run(ctx) }()
				synctest.Wait()
				if d := k.Decision.Get(); d.Leave != c.leaves {
					t.Errorf("%+v, want that the node leaves: %t", d, c.leaves)
				}
				wantFile(t, dir, stop.Decision{})
				cluster.mu.Lock()
				c.mended(cluster, dir)
				cluster.mu.Unlock()
				time.Sleep(2 * time.Second)
				synctest.Wait()
				wantFile(t, dir, stop.Decision{Leave: true, Withdraw: true})
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestUnreadableDecision: nothing is announced because the file cannot be read.
func TestUnreadableDecision(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "departure"), 0o700); err != nil {
		t.Fatal(err)
	}
	if k, err := New(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Errorf("no error, and the decision %+v", k.Decision.Get())
	}
}

func wantFile(t *testing.T, dir string, want stop.Decision) {
	t.Helper()
	got, err := stop.Read(dir)
	if (got.Reason == "") == (got.Leave || got.Withdraw) {
		t.Errorf("%+v: want a reason where the node leaves or withdraws", got)
	}
	if got.Reason = ""; err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

// TestNextAgent: the start of an agent does not announce what was withdrawn, and BIRD
// waits for its last decision again.
func TestNextAgent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := stop.Write(dir, stop.Decision{Leave: true, Withdraw: true, Final: true, Reason: "drained"}); err != nil {
		t.Fatal(err)
	}
	k := keeper(t, newCluster(), dir)
	if got, want := k.Decision.Get(), (Decision{true, true, "drained"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	wantFile(t, dir, stop.Decision{Leave: true, Withdraw: true})
	if c := k.Conditions()[0]; c.Status != metav1.ConditionFalse || c.Reason != "Draining" {
		t.Errorf("%+v", c)
	}
	status := v1alpha1.NodeConfigStatus{Anycast: []v1alpha1.AnycastStatus{{Announced: true, Reason: "Ready"}, {Reason: "NotReady"}}}
	k.Report(t.Context(), &status)
	if a := status.Anycast; a[0].Announced || a[0].Reason != "Draining" || a[1].Reason != "NotReady" {
		t.Errorf("%+v", a)
	}
}
