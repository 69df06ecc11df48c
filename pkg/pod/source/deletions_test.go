package source

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/pod"
)

// deleting is p with a deletion timestamp.
func deleting(p *corev1.Pod) *corev1.Pod {
	p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1790000000, 0)}
	return p
}

// Pods that are being deleted are reported, whether they are found so or become so,
// also after the API server was away; others, and mirrors of static pods, are not.
func TestDeletions(t *testing.T) {
	a := startFakeAPIServer(t)
	a.set(apiPod("a", corev1.ConditionTrue, 0), deleting(apiPod("b", corev1.ConditionTrue, 0)))
	d := NewDeletions(a.client(), "node1", slog.New(slog.DiscardHandler))
	reported := make(chan pod.UID, 10)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { d.Watch(ctx, func(uid pod.UID) { reported <- uid }) })
	expect := func(uid pod.UID) {
		t.Helper()
		select {
		case got := <-reported:
			if got != uid {
				t.Errorf("reported %s, want %s", got, uid)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no report of %s", uid)
		}
	}
	expect("uid-b")
	a.expectWatched()
	mirror := deleting(apiPod("static-node1", corev1.ConditionTrue, 0))
	mirror.Annotations = map[string]string{mirrorAnnotation: "uid-static"}
	a.say("MODIFIED", mirror)
	a.say("MODIFIED", apiPod("c", corev1.ConditionFalse, 0))
	a.say("MODIFIED", deleting(apiPod("a", corev1.ConditionTrue, 0)))
	expect("uid-a")

	a.set(deleting(apiPod("d", corev1.ConditionTrue, 0)))
	a.mu.Lock()
	a.gone = true
	a.mu.Unlock()
	a.cut(nil)
	expect("uid-d")
	cancel()
	watching.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := slices.Compact(a.asked); !slices.Equal(got, []string{"spec.nodeName=node1"}) {
		t.Errorf("asked for pods with field selectors %q, want only this node's", got)
	}
}
