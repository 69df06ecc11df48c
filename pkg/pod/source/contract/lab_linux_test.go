//go:build cluster

package contract

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pod"
)

const (
	labName = "test-contract"
	// program is the lab, as make builds it.
	program   = "../../../../bin/lab"
	labDir    = "/var/lib/flock-lab/" + labName
	node      = "node1"
	control   = "cp"
	namespace = metav1.NamespaceDefault
	echoImage = "echo:dev"
	// patience is more than anything but bringing a lab up takes.
	patience = 30 * time.Second
)

// lab is a lab of one node, with parts that can be stopped.
type lab struct{}

func bringUp(t *testing.T) lab {
	var l lab
	l.must(t, "down") // what an earlier run may have left
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("KEEP_LAB") != "" {
			t.Logf("the lab is kept: bin/lab --name %s status", labName)
			return
		}
		l.must(t, "down")
	})
	l.up(t)
	l.await(t, "the service account of pods", func() error {
		_, err := l.run("", "kubectl", "get", "serviceaccount", "default")
		return err
	})
	return l
}

// up starts what is not running.
func (l lab) up(t *testing.T) {
	t.Helper()
	l.must(t, "up", "--nodes=1", "--cni=ptp")
}

// run runs the program and returns its output; the error holds its complaint.
func (l lab) run(stdin string, args ...string) (string, error) {
	cmd := exec.Command(program, append([]string{"--name", labName}, args...)...)
	var complaint strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &complaint
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("lab %s: %w: %s%s", strings.Join(args, " "), err, out, complaint.String())
	}
	return string(out), err
}

func (l lab) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := l.run("", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// await polls until ready returns nil.
func (l lab) await(t *testing.T, what string, ready func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s: %v", what, err)
		}
	}
}

// api reaches the API server from the control plane's network namespace: the
// machine itself has no way there.
func (l lab) api(t *testing.T) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", labDir+"/pki/admin.kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		var conn net.Conn
		err := netns.DoPath(labDir+"/ns/"+control+"/net", func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	return config
}

func (l lab) kubeletSocket() string {
	return labDir + "/members/" + node + "/kubelet/pods-api/pods-api.sock"
}

// containerdSocket is the node's, seen from outside of its mounts: through its
// kubelet, which does not end with containerd.
func (l lab) containerdSocket(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", l.pid(t, node, "kubelet"))
}

// pid is that of one of the lab's own processes.
func (l lab) pid(t *testing.T, member, process string) int {
	t.Helper()
	note, err := os.ReadFile(fmt.Sprintf("%s/members/%s/run/%s.json", labDir, member, process))
	if err != nil {
		t.Fatal(err)
	}
	var p struct{ PID int }
	if err := json.Unmarshal(note, &p); err != nil || p.PID < 2 {
		t.Fatalf("%s: %v", note, err)
	}
	return p.PID
}

// stop ends a process as a service manager does.
func (l lab) stop(t *testing.T, member, process string) {
	t.Helper()
	fd, err := unix.PidfdOpen(l.pid(t, member, process), 0)
	if err != nil {
		t.Fatalf("%s on %s: %v", process, member, err)
	}
	defer unix.Close(fd)
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
		n, err := 0, error(unix.EINTR)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
		}
		if n > 0 {
			return
		}
	}
	t.Fatalf("%s on %s does not end", process, member)
}

// gate is a condition of a pod's readiness that a test decides.
const gate = "flock.fritzlab.net/test"

// echo is a pod on the node that serves until it gets SIGTERM.
func echo(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	no, grace := false, int64(5)
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			AutomountServiceAccountToken:  &no,
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "echo", Image: echoImage, ImagePullPolicy: corev1.PullNever}},
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func gated(p *corev1.Pod) { p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: gate}} }

// create makes the pod, returns its UID, and takes it away at the test's end.
func (l lab) create(t *testing.T, p *corev1.Pod) (uid pod.UID) {
	t.Helper()
	object, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.run(string(object), "kubectl", "create", "--filename=-", "--output=jsonpath={.metadata.uid}")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.delete(t, p.Name, "--force", "--grace-period=0", "--ignore-not-found") })
	return pod.UID(out)
}

func (l lab) delete(t *testing.T, pod string, options ...string) {
	t.Helper()
	l.must(t, append([]string{"kubectl", "delete", "pod", pod, "--wait=false"}, options...)...)
}

// setGate decides the pod's readiness, containers aside.
func (l lab) setGate(t *testing.T, pod string, open corev1.ConditionStatus) {
	t.Helper()
	l.must(t, "kubectl", "patch", "pod", pod, "--subresource=status",
		fmt.Sprintf(`--patch={"status":{"conditions":[{"type":%q,"status":%q}]}}`, gate, open))
}

// ctr asks the node's containerd.
func (l lab) ctr(t *testing.T, args ...string) string {
	t.Helper()
	return l.must(t, append([]string{"exec", node, "--", "ctr", "--address=/run/containerd/containerd.sock", "--namespace=k8s.io"}, args...)...)
}

// crash kills the first process of a container, and returns when.
func (l lab) crash(t *testing.T, containerID string) time.Time {
	t.Helper()
	return l.crashLater(t, containerID)()
}

// crashLater finds the first process of a container, and returns how to kill it.
func (l lab) crashLater(t *testing.T, containerID string) func() time.Time {
	t.Helper()
	for line := range strings.Lines(l.ctr(t, "tasks", "list")) {
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
func (l lab) sandboxOf(t *testing.T, podUID pod.UID) string {
	t.Helper()
	return strings.TrimSpace(l.ctr(t, "containers", "list", "--quiet",
		fmt.Sprintf(`labels."io.kubernetes.pod.uid"==%s,labels."io.cri-containerd.kind"==sandbox`, podUID)))
}

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// core is a client of API group core.
func core(t *testing.T, c *rest.Config) rest.Interface {
	t.Helper()
	client, err := kube.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	return client.Core()
}
