package bench

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

func TestRuns(t *testing.T) {
	t.Parallel()
	events := parseTrace(`
           flock-30      [000] .....     1.000100: sched_process_exec: filename=/opt/cni/bin/flock pid=30 old_pid=30
           flock-31      [001] .....     1.000200: sched_process_exec: filename=/opt/cni/bin/flock pid=31 old_pid=31
           other-32      [001] .....     1.000300: sched_process_exec: filename=/opt/cni/bin/flock-other pid=32 old_pid=32
           flock-31      [001] .....     1.000400: sched_process_exit: comm=flock pid=31 prio=120
           other-32      [001] .....     1.000500: sched_process_exit: comm=flock-other pid=32 prio=120
           flock-30      [000] .....     1.000600: sched_process_exit: comm=flock pid=30 prio=120
`)
	want := []time.Duration{200 * time.Microsecond, 500 * time.Microsecond}
	if got := runs(events, "/opt/cni/bin/flock"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFirstReady(t *testing.T) {
	t.Parallel()
	pod := func(name string, ready corev1.ConditionStatus) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}}
	}
	name := func(i int) string { return string(rune('a' + i)) }
	w := watch.NewFakeWithChanSize(6, false)
	w.Add(pod("somebody-elses", corev1.ConditionTrue))
	w.Add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	w.Modify(pod("a", corev1.ConditionFalse))
	w.Modify(pod("b", corev1.ConditionTrue))
	w.Modify(pod("b", corev1.ConditionTrue))
	w.Modify(pod("a", corev1.ConditionTrue))
	at, err := firstReady(t.Context(), w, 2, name)
	if err != nil || len(at) != 2 || at["b"] >= at["a"] {
		t.Errorf("got %v, %v", at, err)
	}

	w = watch.NewFakeWithChanSize(1, false)
	w.Modify(pod("a", corev1.ConditionTrue))
	w.Stop()
	if _, err := firstReady(t.Context(), w, 2, name); err == nil || !strings.Contains(err.Error(), "ended the watch") {
		t.Errorf("a watch that ended: %v", err)
	}
	w = watch.NewFakeWithChanSize(1, false)
	w.Error(&metav1.Status{Message: "too old"})
	if _, err := firstReady(t.Context(), w, 2, name); err == nil || !strings.Contains(err.Error(), "too old") {
		t.Errorf("an error of the watch: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := firstReady(ctx, watch.NewFake(), 2, name); err == nil || !strings.Contains(err.Error(), "0 of 2 pods are Ready") {
		t.Errorf("out of time: %v", err)
	}
}
