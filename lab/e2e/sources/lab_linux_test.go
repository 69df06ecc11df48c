//go:build cluster

package sources

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/image"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/process"
	"flock.fritzlab.net/flock/lab/state"
)

const (
	labName   = "test-sources"
	node      = "node1"
	namespace = metav1.NamespaceDefault
	// patience is more than anything but bringing a lab up takes.
	patience = 30 * time.Second
)

func TestMain(m *testing.M) {
	member.RunHelper()
	os.Exit(m.Run())
}

// rig is a lab of one node, whose parts can be taken away.
type rig struct {
	lab      *cluster.Lab
	settings cluster.Settings
	config   *rest.Config
	client   kubernetes.Interface
}

func bringUp(t *testing.T) *rig {
	dir, err := state.For(labName)
	if err != nil {
		t.Fatal(err)
	}
	down := func() {
		if err := cluster.Down(dir); err != nil {
			t.Error(err)
		}
	}
	down() // what an earlier run may have left
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("KEEP_LAB") != "" {
			t.Logf("the lab is kept: bin/lab --name %s status", labName)
			return
		}
		down()
	})
	checkout, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{settings: cluster.Settings{Nodes: 1, MTU: 1500, CNI: cluster.PTP, Checkout: checkout}}
	r.up(t)
	if r.config, err = r.lab.RESTConfig(); err != nil {
		t.Fatal(err)
	}
	// Until they are ended by the server or by us; as the agent's are.
	r.config.Timeout = 0
	if r.client, err = kubernetes.NewForConfig(r.config); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the service account of pods", func(ctx context.Context) error {
		_, err := r.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return r
}

// up starts what was stopped.
func (r *rig) up(t *testing.T) {
	t.Helper()
	dir, err := state.For(labName)
	if err != nil {
		t.Fatal(err)
	}
	var progress strings.Builder
	if r.lab, err = cluster.Up(t.Context(), dir, r.settings, 5*time.Minute, &progress); err != nil {
		t.Fatalf("%s%v", progress.String(), err)
	}
}

// process returns one of the lab's own.
func (r *rig) process(t *testing.T, on, name string) *process.Process {
	t.Helper()
	all, err := process.List(member.Of(r.lab.Dir, on))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no process %s on %s", name, on)
	return nil
}

func (r *rig) stop(t *testing.T, on, name string) {
	t.Helper()
	if err := r.process(t, on, name).Stop(5 * time.Second); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) kubeletSocket() string {
	return r.lab.Dir.Member(node, "kubelet", "pods-api", "pods-api.sock")
}

// containerdSocket is the node's, seen from outside of its mounts.
func (r *rig) containerdSocket(t *testing.T) string {
	t.Helper()
	// The kubelet's view does not end with containerd.
	return fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", r.process(t, node, "kubelet").PID)
}

func (r *rig) await(t *testing.T, what string, ready func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := process.Await(ctx, what, nil, ready); err != nil {
		t.Fatal(err)
	}
}

// gate is a condition of a pod's readiness that a test decides.
const gate = "flock.fritzlab.net/test"

// echo is a pod on the node that serves until it is told to end.
func echo(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	no, grace := false, int64(5)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			AutomountServiceAccountToken:  &no,
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "echo", Image: image.EchoRef, ImagePullPolicy: corev1.PullNever}},
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func gated(p *corev1.Pod) { p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: gate}} }

// create makes the pod and takes it away at the test's end.
func (r *rig) create(t *testing.T, p *corev1.Pod) *corev1.Pod {
	t.Helper()
	made, err := r.client.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r.client.CoreV1().Pods(namespace).Delete(ctx, made.Name, *metav1.NewDeleteOptions(0)) // it may be gone
	})
	return made
}

// setGate decides the pod's readiness, containers aside.
func (r *rig) setGate(t *testing.T, name string, open bool) {
	t.Helper()
	status := corev1.ConditionFalse
	if open {
		status = corev1.ConditionTrue
	}
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":%q}]}}`, gate, status)
	_, err := r.client.CoreV1().Pods(namespace).Patch(t.Context(), name, "application/strategic-merge-patch+json", []byte(patch), metav1.PatchOptions{}, "status")
	if err != nil {
		t.Fatal(err)
	}
}

// ctr asks the node's containerd.
func (r *rig) ctr(t *testing.T, args ...string) string {
	t.Helper()
	cmd, err := r.lab.Command(node, append([]string{"ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	var complaint strings.Builder
	cmd.Stderr = &complaint // its warnings too
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ctr %s: %v: %s", strings.Join(args, " "), err, complaint.String())
	}
	return string(out)
}

// crash kills the first process of a container, and returns when.
func (r *rig) crash(t *testing.T, containerID string) time.Time {
	t.Helper()
	return r.crashLater(t, containerID)()
}

// crashLater finds the first process of a container, and returns how to kill it.
func (r *rig) crashLater(t *testing.T, containerID string) func() time.Time {
	t.Helper()
	for line := range strings.Lines(r.ctr(t, "tasks", "list")) {
		fields := strings.Fields(line) // TASK PID STATUS
		if fields[0] != containerID {
			continue
		}
		pid, err := strconv.Atoi(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		return func() time.Time {
			now := time.Now()
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return now
		}
	}
	t.Fatalf("no task of container %s", containerID)
	return nil
}

// sandboxOf returns the ID of the pod's sandbox.
func (r *rig) sandboxOf(t *testing.T, podUID string) string {
	t.Helper()
	return strings.TrimSpace(r.ctr(t, "containers", "list", "--quiet",
		fmt.Sprintf(`labels."io.kubernetes.pod.uid"==%s,labels."io.cri-containerd.kind"==sandbox`, podUID)))
}

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}
