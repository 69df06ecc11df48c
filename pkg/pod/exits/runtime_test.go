package exits

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"flock.fritzlab.net/flock/pkg/pod"
)

// patience is more than anything here takes.
const patience = 10 * time.Second

// fakeRuntime is a runtime with one sandbox or container by ID. It serves what
// containerd does, or the CRI alone, and breaks as they do.
type fakeRuntime struct {
	t        *testing.T
	socket   string
	cri      bool // and nothing else
	listener net.Listener
	server   *grpc.Server
	listed   chan struct{} // the containers were listed
	asked    chan string   // there was an answer about one

	mu         sync.Mutex // guards what follows
	containers map[string]*fakeContainer
	streams    map[chan proto.Message]bool
	silent     bool // subscribers get nothing
	disabled   bool // their stream is ended at once
	identified []string
}

type fakeContainer struct {
	labels  map[string]string
	sandbox bool
	ended   bool
	skipped bool // lists leave it out
	slow    int  // so many times there is no answer about it
}

func newFakeRuntime(t *testing.T) *fakeRuntime {
	return &fakeRuntime{
		t: t, socket: filepath.Join(t.TempDir(), "runtime.sock"),
		listed: make(chan struct{}, 100), asked: make(chan string, 100),
		containers: map[string]*fakeContainer{}, streams: map[chan proto.Message]bool{},
	}
}

func (r *fakeRuntime) start() {
	r.t.Helper()
	var err error
	if r.listener, err = net.Listen("unix", r.socket); err != nil {
		r.t.Fatal(err)
	}
	r.server = grpc.NewServer()
	if !r.cri {
		eventsapi.RegisterEventsServer(r.server, containerdEvents{fakeRuntime: r})
		containersapi.RegisterContainersServer(r.server, containerdContainers{fakeRuntime: r})
		tasksapi.RegisterTasksServer(r.server, containerdTasks{fakeRuntime: r})
	}
	runtimeapi.RegisterRuntimeServiceServer(r.server, criRuntime{fakeRuntime: r})
	go r.server.Serve(r.listener)
	r.t.Cleanup(r.stop)
}

func (r *fakeRuntime) stop() {
	r.listener.Close()
	r.server.Stop()
}

// run adds a running container of pod shop/a.
func (r *fakeRuntime) run(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id] = &fakeContainer{labels: map[string]string{
		labelUID: "uid", labelNamespace: "shop", labelPod: "a", labelContainer: "c",
	}}
}

func (r *fakeRuntime) runSandbox(id string) {
	r.run(id)
	r.containers[id].sandbox = true
	r.containers[id].labels[labelKind] = kindSandbox
	delete(r.containers[id].labels, labelContainer)
}

func (r *fakeRuntime) end(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id].ended = true
}

func (r *fakeRuntime) remove(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, id)
}

// say sends an event to who watches.
func (r *fakeRuntime) say(m proto.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.streams {
		s <- m
	}
}

func (r *fakeRuntime) serve(ctx context.Context, send func(proto.Message) error) error {
	events := make(chan proto.Message, 100)
	r.mu.Lock()
	if !r.silent {
		r.streams[events] = true
	}
	disabled := r.disabled
	r.mu.Unlock()
	if disabled {
		return nil
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.streams, events)
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-events:
			if err := send(e); err != nil {
				return err
			}
		}
	}
}

// ids returns those of all containers.
func (r *fakeRuntime) ids() []string { return slices.Sorted(maps.Keys(r.containers)) }

type containerdEvents struct {
	eventsapi.UnimplementedEventsServer
	*fakeRuntime
}

func (r containerdEvents) Subscribe(_ *eventsapi.SubscribeRequest, s eventsapi.Events_SubscribeServer) error {
	return r.serve(s.Context(), func(m proto.Message) error {
		if raw, ok := m.(*types.Envelope); ok {
			return s.Send(raw)
		}
		topic := map[string]string{"TaskStart": "/tasks/start", "TaskExit": "/tasks/exit", "ContainerDelete": "/containers/delete"}[string(m.ProtoReflect().Descriptor().Name())]
		value, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		// containerd's names have no host in front.
		any := &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}
		return s.Send(&types.Envelope{Namespace: containerdNamespace, Topic: topic, Event: any})
	})
}

type containerdContainers struct {
	containersapi.UnimplementedContainersServer
	*fakeRuntime
}

func (r containerdContainers) namespaced(ctx context.Context) error {
	if md, _ := metadata.FromIncomingContext(ctx); !slices.Equal(md.Get("containerd-namespace"), []string{containerdNamespace}) {
		return status.Error(codes.FailedPrecondition, "namespace is required")
	}
	return nil
}

func (r containerdContainers) ListStream(_ *containersapi.ListContainersRequest, s containersapi.Containers_ListStreamServer) error {
	if err := r.namespaced(s.Context()); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range r.ids() {
		if err := s.Send(&containersapi.ListContainerMessage{Container: &containersapi.Container{ID: id, Labels: r.containers[id].labels}}); err != nil {
			return err
		}
	}
	return nil
}

func (r containerdContainers) Get(ctx context.Context, q *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	if err := r.namespaced(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.identified = append(r.identified, q.ID)
	c := r.containers[q.ID]
	if c == nil {
		return nil, status.Error(codes.NotFound, q.ID)
	}
	return &containersapi.GetContainerResponse{Container: &containersapi.Container{ID: q.ID, Labels: c.labels}}, nil
}

type containerdTasks struct {
	tasksapi.UnimplementedTasksServer
	*fakeRuntime
}

func (r containerdTasks) List(context.Context, *tasksapi.ListTasksRequest) (*tasksapi.ListTasksResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := &tasksapi.ListTasksResponse{}
	for _, id := range r.ids() {
		if c := r.containers[id]; !c.skipped {
			answer.Tasks = append(answer.Tasks, c.task(id))
		}
	}
	r.listed <- struct{}{}
	return answer, nil
}

func (c *fakeContainer) task(id string) *task.Process {
	if c.ended {
		return &task.Process{ID: id, Status: task.Status_STOPPED, ExitedAt: timestamppb.New(at(7))}
	}
	return &task.Process{ID: id, Status: task.Status_RUNNING}
}

func (r containerdTasks) Get(_ context.Context, q *tasksapi.GetRequest) (*tasksapi.GetResponse, error) {
	c, err := r.ask(q.ContainerID)
	if err != nil {
		return nil, err
	}
	return &tasksapi.GetResponse{Process: c.task(q.ContainerID)}, nil
}

// ask answers about one container, or does not.
func (r *fakeRuntime) ask(id string) (fakeContainer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return fakeContainer{}, status.Error(codes.NotFound, id)
	}
	if c.slow > 0 {
		c.slow--
		return fakeContainer{}, status.Error(codes.DeadlineExceeded, "shim "+id)
	}
	r.asked <- id
	return *c, nil
}

type criRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	*fakeRuntime
}

func (r criRuntime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s runtimeapi.RuntimeService_GetContainerEventsServer) error {
	return r.serve(s.Context(), func(m proto.Message) error { return s.Send(m.(*runtimeapi.ContainerEventResponse)) })
}

func (r criRuntime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := &runtimeapi.ListPodSandboxResponse{}
	for _, id := range r.ids() {
		c := r.containers[id]
		if c.sandbox && !c.skipped {
			answer.Items = append(answer.Items, &runtimeapi.PodSandbox{Id: id, Metadata: sandboxMetadata, State: c.sandboxState()})
		}
	}
	return answer, nil
}

func (c *fakeContainer) sandboxState() runtimeapi.PodSandboxState {
	if c.ended {
		return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return runtimeapi.PodSandboxState_SANDBOX_READY
}

func (c *fakeContainer) state() runtimeapi.ContainerState {
	if c.ended {
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_RUNNING
}

func (r criRuntime) PodSandboxStatus(_ context.Context, q *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	c, err := r.ask(q.PodSandboxId)
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{State: c.sandboxState()}}, err
}

func (r criRuntime) ContainerStatus(_ context.Context, q *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := r.ask(q.ContainerId)
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{State: c.state()}}, err
}

var sandboxMetadata = &runtimeapi.PodSandboxMetadata{Uid: "uid", Namespace: "shop", Name: "a"}

func (r criRuntime) ListContainers(_ context.Context, q *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := &runtimeapi.ListContainersResponse{}
	for _, id := range r.ids() {
		c := r.containers[id]
		if c.sandbox || c.skipped || q.GetFilter().GetId() != "" && q.GetFilter().GetId() != id {
			continue
		}
		answer.Containers = append(answer.Containers, &runtimeapi.Container{Id: id, Labels: c.labels, State: c.state()})
	}
	if q.GetFilter() == nil {
		r.listed <- struct{}{}
	}
	return answer, nil
}

// watcher collects what a Runtime reports.
type watcher struct {
	t       *testing.T
	runtime *Runtime
	exits   chan Exit
	status  chan Status
}

func watch(t *testing.T, sockets ...string) *watcher {
	w := &watcher{t: t, exits: make(chan Exit, 100), status: make(chan Status, 100)}
	w.runtime = New(Config{Sockets: sockets, Sources: AllSources, Log: slog.New(slog.DiscardHandler), OnStatus: func(s Status) { w.status <- s }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.runtime.Watch(ctx, func(e Exit) { w.exits <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch returned %v, want %v", err, context.Canceled)
		}
	})
	return w
}

func (w *watcher) expect(want Container, at time.Time) {
	w.t.Helper()
	select {
	case e := <-w.exits:
		if e.Container != want || !at.IsZero() && !e.At.Equal(at) {
			w.t.Fatalf("reported %+v, want %+v at %s", e, want, at)
		}
	case <-time.After(patience):
		w.t.Fatalf("no report of %+v; status %+v", want, w.runtime.Status())
	}
}

// expectNone checks that nothing more is reported.
func (w *watcher) expectNone() {
	w.t.Helper()
	select {
	case e := <-w.exits:
		w.t.Errorf("reported %+v, want nothing", e)
	default:
	}
}

func (w *watcher) expectStatus(source Source, words string) Status {
	w.t.Helper()
	var last Status
	for {
		select {
		case last = <-w.status:
			if last.Source == source && (last.Err == nil) == (words == "") && (words == "" || strings.Contains(last.Err.Error(), words)) {
				return last
			}
		case <-time.After(patience):
			w.t.Fatalf("status stays %+v, want %s and %q", last, source, words)
		}
	}
}

var (
	container = Container{ID: "x", Name: "c", Pod: pod.Ref{Namespace: "shop", Name: "a", UID: "uid"}}
	sandbox   = Container{ID: "s", Sandbox: true, Pod: pod.Ref{Namespace: "shop", Name: "a", UID: "uid"}}
)

func named(c Container, id string) Container { c.ID = id; return c }

func TestContainerd(t *testing.T) {
	r := newFakeRuntime(t)
	r.run("x")
	r.runSandbox("s")
	r.start()
	w := watch(t, r.socket)
	if s := w.expectStatus(Containerd, ""); s.Socket != r.socket {
		t.Errorf("status %+v, want socket %s", s, r.socket)
	}
	exit := func(id, container string, seconds int) *apievents.TaskExit {
		return &apievents.TaskExit{ID: id, ContainerID: container, ExitedAt: timestamppb.New(at(seconds))}
	}
	r.say(exit("probe", "x", 1))
	r.say(exit("x", "x", 2))
	w.expect(container, at(2))
	r.say(exit("s", "s", 3))
	w.expect(sandbox, at(3))
	if r.identified != nil {
		t.Errorf("asked about %v, which was known", r.identified)
	}

	// One that starts later, and one that ends before it is known.
	r.run("y")
	r.say(&apievents.TaskStart{ContainerID: "y"})
	r.say(exit("y", "y", 4))
	w.expect(named(container, "y"), at(4))
	r.run("z")
	r.say(exit("z", "z", 5))
	w.expect(named(container, "z"), at(5))
	// What is no pod's, and what is gone before it is known.
	r.say(exit("gone", "gone", 6))
	r.say(&apievents.ContainerDelete{ID: "z"})
	r.run("last")
	r.say(exit("last", "last", 7))
	w.expect(named(container, "last"), at(7))
	w.expectNone()
}

func TestContainerdRestart(t *testing.T) {
	r := newFakeRuntime(t)
	for _, id := range []string{"stays", "ends", "goes"} {
		r.run(id)
	}
	r.start()
	w := watch(t, r.socket)
	w.expectStatus(Containerd, "")
	r.stop()
	w.expectStatus(None, "Unavailable")
	r.end("ends")
	r.remove("goes")
	r.start()
	w.expect(named(container, "ends"), at(7))
	w.expect(named(container, "goes"), time.Time{})
	w.expectStatus(Containerd, "")
	w.expectNone()
}

// What ends between the first list and the moment when the stream has begun.
func TestEndBeforeTheStreamBegins(t *testing.T) {
	for _, criOnly := range []bool{false, true} {
		r := newFakeRuntime(t)
		r.cri, r.silent = criOnly, true
		r.run("x")
		r.start()
		w := watch(t, r.socket)
		<-r.listed
		r.end("x")
		w.expect(container, time.Time{})
	}
}

func TestCRI(t *testing.T) {
	r := newFakeRuntime(t)
	r.cri = true
	r.run("x")
	r.runSandbox("s")
	r.start()
	w := watch(t, r.socket)
	w.expectStatus(CRI, "containerd")
	say := func(kind runtimeapi.ContainerEventType, id string, seconds int, sandbox *runtimeapi.PodSandboxStatus, containers ...*runtimeapi.ContainerStatus) {
		r.say(&runtimeapi.ContainerEventResponse{
			ContainerId: id, ContainerEventType: kind, CreatedAt: at(seconds).UnixNano(),
			PodSandboxStatus: sandbox, ContainersStatuses: containers,
		})
	}
	const (
		created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
		started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
		stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
		deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
	)
	pod := &runtimeapi.PodSandboxStatus{Id: "s", Metadata: sandboxMetadata}
	status := func(id string, finished int64) *runtimeapi.ContainerStatus {
		return &runtimeapi.ContainerStatus{Id: id, Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, FinishedAt: finished}
	}
	say(stopped, "x", 2, nil) // without what is known already
	w.expect(container, at(2))
	say(created, "y", 3, pod, status("y", 0))
	say(started, "y", 3, pod, status("y", 0))
	say(stopped, "y", 5, nil)
	w.expect(named(container, "y"), at(5))
	say(stopped, "z", 6, pod, status("y", 0), status("z", at(4).UnixNano()))
	w.expect(named(container, "z"), at(4))
	say(deleted, "z", 6, nil)
	say(stopped, "s", 7, pod)
	w.expect(sandbox, at(7))
	r.run("later")
	say(started, "later", 8, nil)
	say(stopped, "later", 9, nil)
	w.expect(named(container, "later"), at(9))
	w.expectNone()
}

func TestCRIRestart(t *testing.T) {
	r := newFakeRuntime(t)
	r.cri = true
	r.run("ends")
	r.runSandbox("s")
	r.start()
	w := watch(t, r.socket)
	w.expectStatus(CRI, "containerd")
	r.stop()
	w.expectStatus(None, "Unavailable")
	r.end("ends")
	r.end("s")
	r.start()
	for range 2 {
		select {
		case e := <-w.exits:
			if e.Container != named(container, "ends") && e.Container != sandbox {
				t.Errorf("reported %+v", e)
			}
		case <-time.After(patience):
			t.Fatal("no report of the exit")
		}
	}
}

// What has exited before anybody watched is reported, because the kubelet may not have
// looked yet: an agent that restarts in the second of a crash learns of it.
func TestExitBeforeTheFirstList(t *testing.T) {
	for _, criOnly := range []bool{false, true} {
		r := newFakeRuntime(t)
		r.cri = criOnly
		r.run("x")
		r.run("y")
		r.end("x")
		r.runSandbox("s")
		r.end("s")
		r.start()
		w := watch(t, r.socket)
		want := map[string]Container{"x": named(container, "x"), "s": sandbox}
		for range 2 {
			select {
			case e := <-w.exits:
				if e.Container != want[e.ID] {
					t.Errorf("reported %+v, want %+v", e, want[e.ID])
				}
			case <-time.After(patience):
				t.Fatal("an exit is missing")
			}
		}
		w.expectStatus(map[bool]Source{false: Containerd, true: CRI}[criOnly], map[bool]string{true: "containerd"}[criOnly])
		w.expectNone()
	}
}

// A list that leaves out a container with a slow shim is no exit; one that leaves
// out a container that has exited is, once the runtime answers.
func TestMissingFromAList(t *testing.T) {
	for _, criOnly := range []bool{false, true} {
		r := newFakeRuntime(t)
		r.cri = criOnly
		source, words := Containerd, ""
		if criOnly {
			source, words = CRI, "containerd"
		}
		for _, id := range []string{"slow", "dies"} {
			r.run(id)
		}
		r.runSandbox("s")
		r.start()
		w := watch(t, r.socket)
		w.expectStatus(source, words)
		r.stop()
		w.expectStatus(None, "Unavailable")
		r.end("dies")
		for _, id := range []string{"slow", "dies", "s"} {
			r.containers[id].skipped, r.containers[id].slow = true, 2
		}
		r.start()
		w.expect(named(container, "dies"), time.Time{})
		w.expectStatus(source, words)
		for answered := map[string]bool{}; !answered["slow"] || !answered["s"]; {
			select {
			case id := <-r.asked:
				answered[id] = true
			case <-time.After(patience):
				t.Fatalf("the runtime was asked about %v only", answered)
			}
		}
		w.expectNone()

		// It is watched on.
		if criOnly {
			r.say(&runtimeapi.ContainerEventResponse{ContainerId: "slow", ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, CreatedAt: at(8).UnixNano()})
		} else {
			r.say(&apievents.TaskExit{ID: "slow", ContainerID: "slow", ExitedAt: timestamppb.New(at(8))})
		}
		w.expect(named(container, "slow"), at(8))
	}
}

func TestNoRuntime(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.sock")
	w := watch(t, missing)
	w.expectStatus(None, missing)
}

// The second of two sockets: why not the first stays visible.
func TestSockets(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.sock")
	r := newFakeRuntime(t)
	r.run("x")
	r.start()
	w := watch(t, missing, r.socket)
	w.expectStatus(Containerd, missing)
}

func TestCRIWithEventsDisabled(t *testing.T) {
	r := newFakeRuntime(t)
	r.cri, r.disabled = true, true
	r.start()
	w := watch(t, r.socket)
	w.expectStatus(None, "enable_pod_events")
}

// A runtime that does not keep to its protocol is asked again.
func TestGarbage(t *testing.T) {
	r := newFakeRuntime(t)
	r.run("x")
	r.start()
	w := watch(t, r.socket)
	w.expectStatus(Containerd, "")
	r.say(&types.Envelope{Topic: "/tasks/exit", Event: &anypb.Any{TypeUrl: "containerd.events.TaskExit", Value: []byte{0xff}}})
	w.expectStatus(None, "containerd at")
	w.expectStatus(Containerd, "")
	w.expectNone()
}

// What is neither containerd nor a runtime with events.
func TestRuntimeWithoutEvents(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "runtime.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	w := watch(t, socket)
	w.expectStatus(None, "cri at "+socket+": not served")
}

func FuzzRead(f *testing.F) {
	f.Add("/tasks/exit", "containerd.events.TaskExit", []byte("\n\x01x\x12\x01x"))
	f.Add("/tasks/start", "containerd.events.TaskStart", []byte("\n\x01x"))
	f.Fuzz(func(t *testing.T, topic, kind string, value []byte) {
		e, err := read(&types.Envelope{Topic: topic, Event: &anypb.Any{TypeUrl: kind, Value: value}})
		if err == nil && e.kind != nothing && topic != "/tasks/exit" && topic != "/tasks/start" && topic != "/containers/delete" {
			t.Errorf("%s was read as %+v", topic, e)
		}
	})
}

func TestParseSources(t *testing.T) {
	for s, want := range map[string][]Source{
		"containerd,cri": {Containerd, CRI},
		"cri,containerd": {CRI, Containerd},
		"cri":            {CRI},
		"none":           {},
	} {
		if got, err := ParseSources(s); err != nil || got == nil || !slices.Equal(got, want) {
			t.Errorf("ParseSources(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "cri,", "none,cri", "docker", "CRI"} {
		if got, err := ParseSources(s); err == nil {
			t.Errorf("ParseSources(%q) = %v, want an error", s, got)
		}
	}
}
