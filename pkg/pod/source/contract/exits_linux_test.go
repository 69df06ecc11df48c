//go:build cluster

package contract

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/pod/exits"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

// testExits runs the same steps with each source, and measures the delay.
func testExits(t *testing.T, l lab) {
	for _, way := range []exits.Source{exits.Containerd, exits.CRI} {
		t.Run(way.String(), func(t *testing.T) {
			runtime := listen(t, l, way)
			kubelet := observe(t, source.Config{Socket: l.kubeletSocket()})
			t.Run("crash", func(t *testing.T) { testExit(t, l, runtime, kubelet) })
			t.Run("latency", func(t *testing.T) { testExitLatency(t, l, runtime, kubelet) })
			t.Run("restart", func(t *testing.T) { testRuntimeRestart(t, l, runtime, kubelet) })
		})
	}
}

// listener collects exits and when they came.
type listener struct {
	t        *testing.T
	runtime  *exits.Runtime
	reported chan reported
	status   chan exits.Status
}

type reported struct {
	exits.Exit
	heard time.Time
}

func listen(t *testing.T, l lab, way exits.Source) *listener {
	w := &listener{t: t, reported: make(chan reported, 1000), status: make(chan exits.Status, 100)}
	w.runtime = exits.New(exits.Config{
		Sockets: []string{l.containerdSocket(t)}, Sources: []exits.Source{way}, Log: logger(t),
		OnStatus: func(s exits.Status) { w.status <- s },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.runtime.Watch(ctx, func(e exits.Exit) { w.reported <- reported{e, time.Now()} }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
	w.awaitStatus(way)
	return w
}

func (w *listener) awaitStatus(way exits.Source) {
	w.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case s := <-w.status:
			if s.Source == way {
				return
			}
		case <-timeout:
			w.t.Fatalf("status stays %+v, want %s", w.runtime.Status(), way)
		}
	}
}

// await returns the exit of the container. What other pods' do meanwhile is no
// matter, but the end of one that still runs must not be reported.
func (w *listener) await(t *testing.T, id string, alive ...string) reported {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e := <-w.reported:
			if slices.Contains(alive, e.ID) {
				t.Errorf("reported that %+v has ended", e.Container)
			}
			if e.ID == id {
				return e
			}
		case <-timeout:
			t.Fatalf("not reported that container %s has ended", id)
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

// testExit checks that the end of a container is reported with its pod, that of the probes'
// processes is not, and that of the sandbox is the whole pod's.
func testExit(t *testing.T, l lab, runtime *listener, kubelet *observer) {
	uid := l.create(t, echo("exit", probed))
	first := kubelet.awaitPod(uid, "the pod to be Ready", ready).Status.Runs[0].ID
	began := l.crash(t, first)
	e := runtime.await(t, first)
	want := exits.Container{ID: first, Name: "echo", Pod: pod.Ref{Namespace: namespace, Name: "exit", UID: uid}}
	if e.Container != want || e.At.Before(began) || e.At.After(e.heard) {
		t.Errorf("reported %+v, want %+v between %s and %s", e.Exit, want, began, e.heard)
	}
	again := kubelet.awaitPod(uid, "another run to be Ready", func(p *source.Pod) bool { return ready(p) && p.Status.Runs[0].ID != first })

	sandbox := l.sandboxOf(t, uid)
	l.crash(t, sandbox)
	e = runtime.await(t, sandbox, again.Status.Runs[0].ID)
	want = exits.Container{ID: sandbox, Sandbox: true, Pod: pod.Ref{Namespace: namespace, Name: "exit", UID: uid}}
	if e.Container != want {
		t.Errorf("reported %+v, want %+v", e.Container, want)
	}
}

// testExitLatency measures from SIGKILL to the call, and to the kubelet's notice.
func testExitLatency(t *testing.T, l lab, runtime *listener, kubelet *observer) {
	const containers, rounds = 10, 2
	var byRuntime, byKubelet []time.Duration
	for round := range rounds {
		uid := l.create(t, echo(fmt.Sprintf("crowd-%d", round), func(p *corev1.Pod) {
			p.Spec.Containers = nil
			for i := range containers {
				port := 8080 + i
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
					Name: fmt.Sprintf("echo-%d", i), Image: echoImage, ImagePullPolicy: corev1.PullNever,
					Args: []string{"serve", "-listen", fmt.Sprintf(":%d", port)},
					ReadinessProbe: &corev1.Probe{
						ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(int32(port))}},
						PeriodSeconds: 1,
					},
				})
			}
		}))
		p := kubelet.awaitPod(uid, "the pod to be Ready", ready)
		for _, run := range p.Status.Runs {
			kill, mark := l.crashLater(t, run.ID), kubelet.mark()
			began := kill()
			byRuntime = append(byRuntime, runtime.await(t, run.ID).heard.Sub(began))
			// It is seen to be down, or up again as another.
			kubelet.awaitPod(uid, "the kubelet to notice", func(p *source.Pod) bool { return !slices.Contains(p.Status.Runs, run) })
			reported := kubelet.since(mark, uid)
			i := slices.IndexFunc(reported, func(h heard) bool { return !slices.Contains(h.Pod.Status.Runs, run) })
			byKubelet = append(byKubelet, reported[i].at.Sub(began))
		}
	}
	for _, by := range []struct {
		who  string
		took []time.Duration
	}{{"the runtime", byRuntime}, {"the kubelet", byKubelet}} {
		slices.Sort(by.took)
		n := len(by.took)
		t.Logf("SIGKILL to the word of %s: p50 %s, p99 %s of %d", by.who, by.took[n/2], by.took[n*99/100], n)
	}
}

// testRuntimeRestart: exits during an outage of the runtime are reported after it.
func testRuntimeRestart(t *testing.T, l lab, runtime *listener, kubelet *observer) {
	stays, ends := l.create(t, echo("stays")), l.create(t, echo("ends"))
	staying := kubelet.awaitPod(stays, "the staying pod to be Ready", ready).Status.Runs[0].ID
	ending := kubelet.awaitPod(ends, "the ending pod to be Ready", ready).Status.Runs[0].ID
	way, kill := runtime.runtime.Status().Source, l.crashLater(t, ending)
	l.stop(t, node, "containerd")
	runtime.awaitStatus(exits.None)
	kill()
	l.up(t)
	runtime.await(t, ending, staying)
	runtime.awaitStatus(way)
}
