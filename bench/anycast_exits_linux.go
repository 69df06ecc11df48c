package bench

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	eventtypes "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containers are those of pods with anycast addresses, by the runtime's ID.
type containers struct {
	mu sync.Mutex // guards of
	of map[string]netip.Addr
}

// learn takes in which containers a pod's status names.
func (c *containers) learn(pod *corev1.Pod, addr netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range pod.Status.ContainerStatuses {
		if _, id, ok := strings.Cut(s.ContainerID, "://"); ok {
			c.of[id] = addr
		}
	}
}

// ended reports the end of a container of a pod with an address.
func (c *containers) ended(id string, at int64, what string, report func(sighting)) {
	c.mu.Lock()
	addr, ok := c.of[id]
	c.mu.Unlock()
	if ok {
		report(sighting{at, what, addr, false})
	}
}

// watchExits reports the ends of containers, both from containerd's own events and
// from CRI's.
func watchExits(ctx context.Context, socket string, c *containers, report func(sighting)) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	own, err := eventsapi.NewEventsClient(conn).Subscribe(ctx, &eventsapi.SubscribeRequest{
		Filters: []string{`topic=="/tasks/exit",namespace=="k8s.io"`},
	})
	if err != nil {
		return fmt.Errorf("containerd's events at %s: %w", socket, err)
	}
	portable, err := runtimeapi.NewRuntimeServiceClient(conn).GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return fmt.Errorf("CRI's events at %s: %w", socket, err)
	}
	ended := make(chan error, 2)
	go func() {
		for {
			e, err := own.Recv()
			at := monotonic()
			if err != nil {
				ended <- fmt.Errorf("containerd's events: %w", err)
				return
			}
			var exit eventtypes.TaskExit
			if err := e.GetEvent().UnmarshalTo(&exit); err != nil {
				ended <- fmt.Errorf("containerd's event %s: %w", e.GetTopic(), err)
				return
			}
			if exit.ID == exit.ContainerID { // else a process that was exec'ed into it
				c.ended(exit.ContainerID, at, exitContainerd, report)
			}
		}
	}()
	go func() {
		for {
			e, err := portable.Recv()
			at := monotonic()
			if err != nil {
				ended <- fmt.Errorf("CRI's events: %w", err)
				return
			}
			if e.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
				c.ended(e.GetContainerId(), at, exitCRI, report)
			}
		}
	}()
	err = <-ended
	conn.Close() // ends the other
	<-ended
	if ctx.Err() != nil {
		return nil
	}
	return err
}
