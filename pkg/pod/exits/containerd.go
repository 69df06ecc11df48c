package exits

import (
	"context"
	"errors"
	"fmt"
	"io"

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

	"flock.fritzlab.net/flock/pkg/pod"
)

// containerdNamespace is where containerd keeps what it runs for Kubernetes.
const containerdNamespace = "k8s.io"

// Labels that the kubelet gives to sandboxes and containers, and the one by which
// containerd distinguishes them.
const (
	labelUID       = "io.kubernetes.pod.uid"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelPod       = "io.kubernetes.pod.name"
	labelContainer = "io.kubernetes.container.name"
	labelKind      = "io.cri-containerd.kind"
	kindSandbox    = "sandbox"
)

// containerd reports tasks: a container's task is its first process.
type containerd struct {
	events     eventsapi.EventsClient
	containers containersapi.ContainersClient
	tasks      tasksapi.TasksClient
}

func newContainerd(conn *grpc.ClientConn) containerd {
	return containerd{eventsapi.NewEventsClient(conn), containersapi.NewContainersClient(conn), tasksapi.NewTasksClient(conn)}
}

func inNamespace(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", containerdNamespace)
}

func (c containerd) subscribe(ctx context.Context) (func() (event, error), error) {
	var filters []string
	for _, topic := range []string{"/tasks/start", "/tasks/exit", "/containers/delete"} {
		filters = append(filters, fmt.Sprintf("topic==%q,namespace==%q", topic, containerdNamespace))
	}
	stream, err := c.events.Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	return func() (event, error) {
		envelope, err := stream.Recv()
		if err != nil {
			return event{}, err
		}
		return read(envelope)
	}, nil
}

// read returns what an event of containerd says. Other events become the kind nothing.
func read(e *types.Envelope) (event, error) {
	var start apievents.TaskStart
	var exit apievents.TaskExit
	var remove apievents.ContainerDelete
	var err error
	switch any := e.GetEvent(); e.GetTopic() {
	case "/tasks/start":
		err = any.UnmarshalTo(&start)
		return event{kind: started, id: start.ContainerID}, err
	case "/tasks/exit":
		err = any.UnmarshalTo(&exit)
		if exit.ID != exit.ContainerID { // a process started by exec, such as a probe
			return event{}, err
		}
		return event{kind: ended, id: exit.ContainerID, at: exit.ExitedAt.AsTime()}, err
	case "/containers/delete":
		err = any.UnmarshalTo(&remove)
		return event{kind: removed, id: remove.ID}, err
	}
	return event{}, nil
}

func (c containerd) list(ctx context.Context) ([]state, error) {
	ctx = inNamespace(ctx)
	// As a stream: each comes with the spec that it was made from, and all together
	// can be larger than a message may be.
	stream, err := c.containers.ListStream(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	byID := map[string]Container{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if who, err := fromLabels(m.Container.ID, m.Container.Labels); err == nil {
			who.Sandbox = m.Container.Labels[labelKind] == kindSandbox
			byID[who.ID] = who
		}
	}
	answer, err := c.tasks.List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	var states []state
	for _, t := range answer.Tasks {
		if who, ok := byID[t.ID]; ok {
			states = append(states, state{Container: who, running: t.Status != task.Status_STOPPED, at: t.ExitedAt.AsTime()})
		}
	}
	return states, nil
}

func (c containerd) identify(ctx context.Context, id string) (Container, error) {
	answer, err := c.containers.Get(inNamespace(ctx), &containersapi.GetContainerRequest{ID: id})
	if err != nil {
		return Container{}, err
	}
	who, err := fromLabels(id, answer.Container.Labels)
	who.Sandbox = answer.Container.Labels[labelKind] == kindSandbox
	return who, err
}

func (c containerd) runs(ctx context.Context, who Container) (bool, error) {
	answer, err := c.tasks.Get(inNamespace(ctx), &tasksapi.GetRequest{ContainerID: who.ID})
	if status.Code(err) == codes.NotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// Unknown is a task with a shim that does not answer.
	if answer.GetProcess().GetStatus() == task.Status_UNKNOWN {
		return false, fmt.Errorf("container %s: the state of its task is unknown", who.ID)
	}
	return answer.Process.Status != task.Status_STOPPED, nil
}

// fromLabels reads the kubelet's labels.
func fromLabels(id string, labels map[string]string) (Container, error) {
	if labels[labelUID] == "" {
		return Container{}, fmt.Errorf("container %s belongs to no pod", id)
	}
	return Container{
		ID: id, Name: labels[labelContainer],
		Pod: pod.Ref{Namespace: labels[labelNamespace], Name: labels[labelPod], UID: pod.UID(labels[labelUID])},
	}, nil
}
