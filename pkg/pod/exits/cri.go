package exits

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"flock.fritzlab.net/flock/pkg/pod"
)

// cri is any runtime, by the interface that Kubernetes prescribes.
type cri struct {
	client runtimeapi.RuntimeServiceClient
}

func newCRI(conn *grpc.ClientConn) cri { return cri{runtimeapi.NewRuntimeServiceClient(conn)} }

func (c cri) subscribe(ctx context.Context) (func() (event, error), error) {
	stream, err := c.client.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return nil, err
	}
	return func() (event, error) {
		e, err := stream.Recv()
		if err != nil {
			return event{}, err
		}
		return readCRI(e), nil
	}, nil
}

func readCRI(e *runtimeapi.ContainerEventResponse) event {
	out := event{id: e.GetContainerId(), at: time.Unix(0, e.GetCreatedAt())}
	switch e.GetContainerEventType() {
	case runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT:
		out.kind = started
	case runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT:
		out.kind = ended
	case runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT:
		out.kind = removed
		return out
	default:
		return event{}
	}
	sandbox := e.GetPodSandboxStatus()
	if sandbox.GetMetadata().GetUid() == "" {
		return out
	}
	who := Container{
		ID: out.id, Sandbox: out.id == sandbox.GetId(),
		Pod: podOf(sandbox.Metadata),
	}
	for _, s := range e.GetContainersStatuses() {
		if s.GetId() != out.id {
			continue
		}
		who.Name = s.GetMetadata().GetName()
		if s.GetFinishedAt() != 0 {
			out.at = time.Unix(0, s.GetFinishedAt())
		}
	}
	if who.Sandbox || who.Name != "" {
		out.who = &who
	}
	return out
}

func podOf(m *runtimeapi.PodSandboxMetadata) pod.Ref {
	return pod.Ref{Namespace: m.GetNamespace(), Name: m.GetName(), UID: pod.UID(m.GetUid())}
}

func (c cri) list(ctx context.Context) ([]state, error) {
	sandboxes, err := c.client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := c.client.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	var states []state
	for _, s := range sandboxes.GetItems() {
		states = append(states, state{
			Container: Container{ID: s.GetId(), Sandbox: true, Pod: podOf(s.GetMetadata())},
			running:   s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY,
		})
	}
	for _, s := range containers.GetContainers() {
		if s.GetState() == runtimeapi.ContainerState_CONTAINER_CREATED {
			continue // its start will be an event
		}
		if who, err := fromLabels(s.GetId(), s.GetLabels()); err == nil {
			states = append(states, state{Container: who, running: s.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING})
		}
	}
	return states, nil
}

func (c cri) runs(ctx context.Context, who Container) (bool, error) {
	var running bool
	var err error
	if who.Sandbox {
		var answer *runtimeapi.PodSandboxStatusResponse
		answer, err = c.client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: who.ID})
		running = answer.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
	} else {
		var answer *runtimeapi.ContainerStatusResponse
		answer, err = c.client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: who.ID})
		running = answer.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	if status.Code(err) == codes.NotFound {
		return false, nil
	}
	return running, err
}

func (c cri) identify(ctx context.Context, id string) (Container, error) {
	answer, err := c.client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id}})
	if err != nil {
		return Container{}, err
	}
	for _, s := range answer.GetContainers() {
		return fromLabels(s.GetId(), s.GetLabels())
	}
	return Container{}, fmt.Errorf("container %s does not exist any more", id)
}
