//go:build cluster

package sources

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/lab/image"
	"flock.fritzlab.net/flock/pkg/exits"
	"flock.fritzlab.net/flock/pkg/pods"
)

// testExits tells one story by each way, and how soon.
func testExits(t *testing.T, r *rig) {
	for _, way := range []exits.Way{exits.Containerd, exits.CRI} {
		t.Run(way.String(), func(t *testing.T) {
			l := listen(t, r, way)
			kubelet := observe(t, pods.Config{Socket: r.kubeletSocket()})
			t.Run("crash", func(t *testing.T) { testExit(t, r, l, kubelet) })
			t.Run("latency", func(t *testing.T) { testExitLatency(t, r, l, kubelet) })
			t.Run("restart", func(t *testing.T) { testRuntimeRestart(t, r, l, kubelet) })
		})
	}
}

// listener collects exits and when they came.
type listener struct {
	t       *testing.T
	runtime *exits.Runtime
	told    chan told
	status  chan exits.Status
}

type told struct {
	exits.Exit
	heard time.Time
}

func listen(t *testing.T, r *rig, way exits.Way) *listener {
	l := &listener{t: t, told: make(chan told, 1000), status: make(chan exits.Status, 100)}
	l.runtime = exits.New(exits.Config{
		Sockets: []string{r.containerdSocket(t)}, Ways: []exits.Way{way}, Log: logger(t),
		OnStatus: func(s exits.Status) { l.status <- s },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.runtime.Watch(ctx, func(e exits.Exit) { l.told <- told{e, time.Now()} }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
	l.awaitStatus(way)
	return l
}

func (l *listener) awaitStatus(way exits.Way) {
	l.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case s := <-l.status:
			if s.Way == way {
				return
			}
		case <-timeout:
			l.t.Fatalf("status stays %+v, want %s", l.runtime.Status(), way)
		}
	}
}

// await returns the exit of the container. What other pods' do meanwhile is no
// matter, but of one that has not ended nothing may be told.
func (l *listener) await(t *testing.T, id string, alive ...string) told {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e := <-l.told:
			if slices.Contains(alive, e.ID) {
				t.Errorf("told that %+v has ended", e.Container)
			}
			if e.ID == id {
				return e
			}
		case <-timeout:
			t.Fatalf("not told that container %s has ended", id)
		}
	}
}

// probed has a process exec'ed in the container every second.
func probed(p *corev1.Pod) {
	p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/echo", "ready", "true"}}},
		PeriodSeconds: 1,
	}
}

// testExit: the end of a container is told with whose it was, that of the probes'
// processes is not, and that of the sandbox is the whole pod's.
func testExit(t *testing.T, r *rig, l *listener, kubelet *observer) {
	made := r.create(t, echo("exit", probed))
	uid := string(made.UID)
	p := kubelet.awaitPod(uid, "the pod to be Ready", ready)
	first := p.Status.Runs[0].ID
	began := r.crash(t, first)
	e := l.await(t, first)
	want := exits.Container{ID: first, Name: "echo", PodUID: uid, Namespace: namespace, PodName: made.Name}
	if e.Container != want || e.At.Before(began) || e.At.After(e.heard) {
		t.Errorf("told %+v, want %+v between %s and %s", e.Exit, want, began, e.heard)
	}
	p = kubelet.awaitPod(uid, "another run to be Ready", func(p *pods.Pod) bool { return ready(p) && p.Status.Runs[0].ID != first })

	second := p.Status.Runs[0].ID
	sandbox := r.sandboxOf(t, uid)
	r.crash(t, sandbox)
	e = l.await(t, sandbox, second)
	want = exits.Container{ID: sandbox, Sandbox: true, PodUID: uid, Namespace: namespace, PodName: made.Name}
	if e.Container != want {
		t.Errorf("told %+v, want %+v", e.Container, want)
	}
}

// testExitLatency measures from SIGKILL to the call, and to the kubelet's notice.
func testExitLatency(t *testing.T, r *rig, l *listener, kubelet *observer) {
	const containers, rounds = 10, 2
	var byRuntime, byKubelet []time.Duration
	for round := range rounds {
		made := r.create(t, echo(fmt.Sprintf("crowd-%d", round), func(p *corev1.Pod) {
			p.Spec.Containers = nil
			for i := range containers {
				port := 8080 + i
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
					Name: fmt.Sprintf("echo-%d", i), Image: image.EchoRef, ImagePullPolicy: corev1.PullNever,
					Args: []string{"serve", "-listen", fmt.Sprintf(":%d", port)},
					ReadinessProbe: &corev1.Probe{
						ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(int32(port))}},
						PeriodSeconds: 1,
					},
				})
			}
		}))
		uid := string(made.UID)
		p := kubelet.awaitPod(uid, "the pod to be Ready", ready)
		for _, run := range p.Status.Runs {
			mark := kubelet.mark()
			began := r.crash(t, run.ID)
			e := l.await(t, run.ID)
			byRuntime = append(byRuntime, e.heard.Sub(began))
			// It is seen to be down, or up again as another.
			kubelet.awaitPod(uid, "the kubelet to notice", func(p *pods.Pod) bool { return !slices.Contains(p.Status.Runs, run) })
			for _, h := range kubelet.since(mark, uid) {
				if !slices.Contains(h.Pod.Status.Runs, run) {
					byKubelet = append(byKubelet, h.at.Sub(began))
					break
				}
			}
		}
	}
	for name, d := range map[string][]time.Duration{"exits": byRuntime, "the kubelet": byKubelet} {
		slices.Sort(d)
		t.Logf("SIGKILL to word of %s: p50 %s, p99 %s of %d", name, d[len(d)/2], d[len(d)*99/100], len(d))
	}
}

// testRuntimeRestart: what ends while the runtime is away is told when it is back.
func testRuntimeRestart(t *testing.T, r *rig, l *listener, kubelet *observer) {
	stays, ends := r.create(t, echo("stays")), r.create(t, echo("ends"))
	staying := kubelet.awaitPod(string(stays.UID), "the staying pod to be Ready", ready).Status.Runs[0].ID
	ending := kubelet.awaitPod(string(ends.UID), "the ending pod to be Ready", ready).Status.Runs[0].ID
	way := l.runtime.Status().Way
	kill := r.crashLater(t, ending)
	r.stop(t, node, "containerd")
	l.awaitStatus(exits.None)
	kill()
	r.up(t)
	l.await(t, ending, staying)
	l.awaitStatus(way)
}
