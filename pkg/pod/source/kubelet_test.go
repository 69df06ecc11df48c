package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podsapi "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"flock.fritzlab.net/flock/pkg/pod"
)

// patience is more than anything here takes.
const patience = 10 * time.Second

// fakeKubelet serves the Pods API and breaks in the ways a kubelet does.
type fakeKubelet struct {
	podsapi.UnimplementedPodsServer
	t        *testing.T
	socket   string
	listener net.Listener
	server   *grpc.Server
	refused  chan string // a call was refused: the pod's UID, if it was about one

	mu      sync.Mutex // guards what follows
	pods    map[types.UID]*corev1.Pod
	refuse  error                                 // the answer to every call
	streams map[chan *podsapi.WatchPodsEvent]bool // closed: dropped as too slow
}

func startFakeKubelet(t *testing.T) *fakeKubelet {
	k := &fakeKubelet{
		t: t, socket: filepath.Join(t.TempDir(), "pods-api.sock"),
		refused: make(chan string, 1000),
		pods:    map[types.UID]*corev1.Pod{}, streams: map[chan *podsapi.WatchPodsEvent]bool{},
	}
	k.start()
	t.Cleanup(k.stop)
	return k
}

func (k *fakeKubelet) start() {
	k.t.Helper()
	var err error
	if k.listener, err = net.Listen("unix", k.socket); err != nil {
		k.t.Fatal(err)
	}
	k.server = grpc.NewServer()
	podsapi.RegisterPodsServer(k.server, k)
	go k.server.Serve(k.listener)
}

// stop takes the socket away, as a kubelet does that ends.
func (k *fakeKubelet) stop() {
	k.listener.Close()
	k.server.Stop()
}

// set makes the pod what the kubelet knows, with or without an event for watchers.
func (k *fakeKubelet) set(p *corev1.Pod, notify bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	kind := podsapi.EventType_MODIFIED
	if k.pods[p.UID] == nil {
		kind = podsapi.EventType_ADDED
	}
	k.pods[p.UID] = p
	if notify {
		k.broadcast(&podsapi.WatchPodsEvent{Type: kind, Pod: encode(k.t, p)})
	}
}

func (k *fakeKubelet) remove(p *corev1.Pod, notify bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pods, p.UID)
	if notify {
		only := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
		k.broadcast(&podsapi.WatchPodsEvent{Type: podsapi.EventType_DELETED, Pod: encode(k.t, only)})
	}
}

// say sends an event as it is.
func (k *fakeKubelet) say(e *podsapi.WatchPodsEvent) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.broadcast(e)
}

func (k *fakeKubelet) broadcast(e *podsapi.WatchPodsEvent) {
	for s := range k.streams {
		s <- e
	}
}

// drop ends the streams as a kubelet does for a client that is too slow.
func (k *fakeKubelet) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for s := range k.streams {
		close(s)
		delete(k.streams, s)
	}
}

func (k *fakeKubelet) setRefuse(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refuse = err
}

func (k *fakeKubelet) answer(uid string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse != nil {
		k.refused <- uid
	}
	return k.refuse
}

func (k *fakeKubelet) GetPod(_ context.Context, r *podsapi.GetPodRequest) (*podsapi.GetPodResponse, error) {
	if err := k.answer(r.PodUID); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.pods[types.UID(r.PodUID)]
	if p == nil {
		return nil, status.Errorf(codes.NotFound, "pod with UID %s not found", r.PodUID)
	}
	return &podsapi.GetPodResponse{Pod: encode(k.t, p)}, nil
}

func (k *fakeKubelet) WatchPods(_ *podsapi.WatchPodsRequest, s podsapi.Pods_WatchPodsServer) error {
	if err := k.answer(""); err != nil {
		return err
	}
	events := make(chan *podsapi.WatchPodsEvent, 100)
	k.mu.Lock()
	k.streams[events] = true
	for _, uid := range slices.Sorted(maps.Keys(k.pods)) {
		events <- &podsapi.WatchPodsEvent{Type: podsapi.EventType_ADDED, Pod: encode(k.t, k.pods[uid])}
	}
	events <- &podsapi.WatchPodsEvent{Type: podsapi.EventType_INITIAL_SYNC_COMPLETE}
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.streams, events)
	}()
	for {
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case e, ok := <-events:
			if !ok {
				return status.Error(codes.ResourceExhausted, "watch client channel closed")
			}
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
}

func encode(t *testing.T, p *corev1.Pod) []byte {
	b, err := p.Marshal()
	if err != nil {
		t.Error(err)
	}
	return b
}

// apiPod is pod() as the Kubernetes API has it.
func apiPod(name string, ready corev1.ConditionStatus, since int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)},
		Status: corev1.PodStatus{
			Phase:             corev1.PodRunning,
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.NewTime(at(since))}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "c", ContainerID: "containerd://id-0", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
		},
	}
}

// asInitializing is what a restarted kubelet makes of a pod that was Ready.
func asInitializing(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	c := &p.Status.Conditions[0]
	c.Status, c.Reason, c.Message = corev1.ConditionFalse, "ContainersNotReady", "Kubelet is initializing pod containers"
	return p
}

// watcher collects what a Source reports.
type watcher struct {
	t      *testing.T
	local  *Local
	events chan Event
	status chan Status
}

func startWatch(t *testing.T, c Config) *watcher {
	t.Helper()
	c.Node, c.Log = "node1", slog.New(slog.DiscardHandler)
	local, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return startWatchOf(t, local)
}

// startWatchOf watches, and waits at the test's end until nothing of it is left.
func startWatchOf(t *testing.T, local *Local) *watcher {
	w := &watcher{t: t, local: local, events: make(chan Event, 1000), status: make(chan Status, 1000)}
	local.onStatus = func(s Status) { w.status <- s }
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.local.Watch(ctx, func(e Event) { w.events <- e }) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			w.t.Errorf("Watch returned %v, want %v", err, context.Canceled)
		}
	})
	return w
}

// expect waits for as many events as want has, and compares.
func (w *watcher) expect(want string) {
	w.t.Helper()
	var events []Event
	for range strings.Split(want, ", ") {
		select {
		case e := <-w.events:
			events = append(events, e)
		case <-time.After(patience):
			w.t.Fatalf("reported %q and no more, want %q; status %+v", inWords(events), want, w.local.Status())
		}
	}
	if got := inWords(events); got != want {
		w.t.Fatalf("reported %q, want %q", got, want)
	}
}

// expectStatus waits until the source in use is o and why not the kubelet
// contains the words.
func (w *watcher) expectStatus(o Origin, kubelet string) {
	w.t.Helper()
	var last Status
	for {
		select {
		case last = <-w.status:
			if last.Origin == o && (last.Kubelet == nil) == (kubelet == "") && (kubelet == "" || strings.Contains(last.Kubelet.Error(), kubelet)) {
				return
			}
		case <-time.After(patience):
			w.t.Fatalf("status stays %+v, want origin %s, kubelet %q", last, o, kubelet)
		}
	}
}

func TestKubeletWatch(t *testing.T) {
	k := startFakeKubelet(t)
	a, b := apiPod("a", corev1.ConditionTrue, 0), apiPod("b", corev1.ConditionFalse, 0)
	k.set(a, false)
	w := startWatch(t, Config{Socket: k.socket})
	w.expect("+a Ready, synced")
	w.expectStatus(Kubelet, "")
	k.set(b, true)
	w.expect("+b NotReady")
	k.set(apiPod("b", corev1.ConditionTrue, 5), true)
	w.expect("~b Ready")
	k.set(apiPod("b", corev1.ConditionFalse, 1), true) // by another clock
	w.expect("~b NotReady")
	k.remove(a, true)
	w.expect("-a")
}

func TestKubeletDropsSlowWatcher(t *testing.T) {
	k := startFakeKubelet(t)
	k.set(apiPod("a", corev1.ConditionTrue, 0), false)
	k.set(apiPod("b", corev1.ConditionTrue, 0), false)
	w := startWatch(t, Config{Socket: k.socket})
	w.expect("+a Ready, +b Ready, synced")
	k.remove(apiPod("a", "", 0), false)
	k.set(apiPod("b", corev1.ConditionFalse, 1), false)
	k.drop()
	w.expect("~b NotReady, -a, synced")
}

func TestKubeletRestart(t *testing.T) {
	k := startFakeKubelet(t)
	a := apiPod("a", corev1.ConditionTrue, 0)
	k.set(a, false)
	w := startWatch(t, Config{Socket: k.socket})
	w.expect("+a Ready, synced")
	w.expectStatus(Kubelet, "")

	k.stop()
	w.expectStatus(None, "Pods API")
	k.setRefuse(status.Error(codes.FailedPrecondition, "Kubelet is initializing"))
	k.start()
	k.awaitRefused(2)
	k.setRefuse(nil)
	k.set(asInitializing(a), false)
	w.expect("synced") // a keeps its readiness
	k.set(apiPod("a", corev1.ConditionFalse, 7), true)
	w.expect("~a NotReady")
}

// awaitRefused waits until n more calls have been refused, and returns how many of
// them were about each pod.
func (k *fakeKubelet) awaitRefused(n int) map[string]int {
	times := map[string]int{}
	for range n {
		select {
		case uid := <-k.refused:
			times[uid]++
		case <-time.After(patience):
			k.t.Error("not asked again")
			return times
		}
	}
	return times
}

func TestKubeletSocketAppearsLater(t *testing.T) {
	k := startFakeKubelet(t)
	k.stop()
	w := startWatch(t, Config{Socket: k.socket})
	w.expectStatus(None, "want Kubernetes 1.37")
	k.start()
	w.expect("synced")
	w.expectStatus(Kubelet, "")
}

func TestKubeletOlderThanPodsAPI(t *testing.T) {
	k := startFakeKubelet(t)
	k.setRefuse(status.Error(codes.Unimplemented, "unknown service v1alpha1.Pods"))
	w := startWatch(t, Config{Socket: k.socket})
	w.expectStatus(None, "want Kubernetes 1.37")
}

func TestKubeletSaysGarbage(t *testing.T) {
	nameless := apiPod("", corev1.ConditionTrue, 0)
	for name, e := range map[string]*podsapi.WatchPodsEvent{
		"not protobuf":   {Type: podsapi.EventType_MODIFIED, Pod: []byte{0xff, 0xff, 0xff}},
		"no pod":         {Type: podsapi.EventType_MODIFIED},
		"a nameless pod": {Type: podsapi.EventType_ADDED, Pod: encode(t, nameless)},
		"another event":  {Type: 17, Pod: encode(t, apiPod("a", corev1.ConditionFalse, 9))},
	} {
		t.Run(name, func(t *testing.T) {
			k := startFakeKubelet(t)
			k.set(apiPod("a", corev1.ConditionTrue, 0), false)
			w := startWatch(t, Config{Socket: k.socket})
			w.expect("+a Ready, synced")
			w.expectStatus(Kubelet, "")
			k.say(e)
			w.expectStatus(None, "Pods API")
			w.expect("synced") // it is asked again, and nothing has changed
		})
	}
}

// listen has accept be called with each connection to the socket it returns.
func listen(t *testing.T, accept func(net.Conn)) (socket string) {
	socket = filepath.Join(t.TempDir(), "pods-api.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accept(conn)
		}
	}()
	return socket
}

func TestKubeletIsNoKubelet(t *testing.T) {
	w := startWatch(t, Config{Socket: listen(t, func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		c.Close()
	})})
	w.expectStatus(None, "Unavailable")
	if _, err := w.local.Get(t.Context(), pod.Ref{Namespace: "shop", Name: "a", UID: "uid-a"}); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Get returned %v, want an error that is not %v", err, ErrNotFound)
	}
}

// A kubelet that is stopped, or short of everything: connections are made, and
// that is all.
func TestKubeletHangs(t *testing.T) {
	held := make(chan net.Conn, 1000)
	k := newKubelet(listen(t, func(c net.Conn) { held <- c }), 10*time.Millisecond)
	w := startWatchOf(t, newLocal(map[Origin]source{Kubelet: k}, slog.New(slog.DiscardHandler), nil))
	w.expectStatus(None, "no complete list of pods within 10ms")
	began := time.Now()
	if _, err := w.local.Get(t.Context(), pod.Ref{Namespace: "shop", Name: "a", UID: "uid-a"}); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Get returned %v, want an error that is not %v", err, ErrNotFound)
	}
	if took := time.Since(began); took > limitPatience {
		t.Errorf("Get gave up after %s, want it to after about %s", took, answerPatience)
	}
}

func TestKubeletGet(t *testing.T) {
	k := startFakeKubelet(t)
	k.set(apiPod("a", corev1.ConditionTrue, 0), false)
	local, err := New(Config{Socket: k.socket, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	a := pod.Ref{Namespace: "shop", Name: "a", UID: "uid-a"}

	p, err := local.Get(t.Context(), a)
	if err != nil || p.Ref != a {
		t.Errorf("Get returned %+v, %v, want pod a", p, err)
	}
	if _, err := local.Get(t.Context(), pod.Ref{Namespace: "shop", Name: "b", UID: "uid-b"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get of no pod returned %v, want %v", err, ErrNotFound)
	}
	if _, err := local.Get(t.Context(), pod.Ref{Namespace: "shop", Name: "a"}); err == nil || !strings.Contains(err.Error(), "UID") {
		t.Errorf("Get without a UID returned %v, want an error that says so", err)
	}

	// The rate limit is the kubelet's, not the pod's, and for all its clients: of
	// many that it refuses, one asks again.
	const many = 20
	k.setRefuse(status.Error(codes.ResourceExhausted, "rejected by rate limit"))
	var all sync.WaitGroup
	for i := range many {
		uid := fmt.Sprint("uid-", i)
		k.set(apiPod(fmt.Sprint(i), corev1.ConditionTrue, 0), false)
		all.Go(func() {
			if _, err := local.Get(t.Context(), pod.Ref{Namespace: "shop", Name: fmt.Sprint(i), UID: pod.UID(uid)}); err != nil {
				t.Errorf("Get past the rate limit returned %v", err)
			}
		})
	}
	again := 0
	for _, times := range k.awaitRefused(many + 5) {
		if times > 1 {
			again++
		}
	}
	if again != 1 {
		t.Errorf("%d calls ask again at the same time, want 1", again)
	}
	k.setRefuse(nil)
	all.Wait()

	k.stop()
	if _, err := local.Get(t.Context(), a); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Get without a kubelet returned %v, want an error that is not %v", err, ErrNotFound)
	}
}
