package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	podsapi "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/pkg/pod"
)

// DefaultSocket is where a kubelet with the usual root directory serves its
// Pods API.
const DefaultSocket = "/var/lib/kubelet/pods-api/pods-api.sock"

const (
	// answerPatience is for one answer. The kubelet takes well under a
	// millisecond; one that takes this long hangs, and the next source is asked.
	answerPatience = time.Second
	// limitPause is how long to wait when the kubelet's rate limit refuses a
	// call, and limitPatience for how long to go on: it admits ten calls at
	// once, and then one every 10 ms, of all its clients together.
	limitPause    = 10 * time.Millisecond
	limitPatience = 5 * time.Second
	// syncPatience is for all pods of the node, at the start of a watch.
	syncPatience = 10 * time.Second
	// retryMin and retryMax bound the wait between two tries to follow.
	retryMin = 10 * time.Millisecond
	retryMax = time.Second
)

// errNotServed says that this kubelet seems to have no Pods API.
var errNotServed = errors.New("want Kubernetes 1.37 or its feature gate PodsAPI")

// kubelet is the kubelet's Pods API, pods.v1alpha1.
type kubelet struct {
	socket       string
	syncPatience time.Duration
	// watched is the connection of the stream, once it is in sync.
	watched atomic.Pointer[grpc.ClientConn]
	// limited is held by the one call that tries again after the rate limit has
	// refused it. Those behind it wait without asking, and so leave other clients
	// of the kubelet their share.
	limited chan struct{}
}

func newKubelet(socket string, syncPatience time.Duration) *kubelet {
	return &kubelet{socket: socket, syncPatience: syncPatience, limited: make(chan struct{}, 1)}
}

// dial connects, or returns the plain error if there is no listener. gRPC would wrap
// it and retry at a pace of its own.
func (k *kubelet) dial(ctx context.Context) (*grpc.ClientConn, error) {
	knock, err := new(net.Dialer).DialContext(ctx, "unix", k.socket)
	if err != nil {
		return nil, err
	}
	knock.Close()
	return grpc.NewClient("unix:"+k.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// get returns one pod as it is now, including recently edited annotations, which the
// stream does not report.
func (k *kubelet) get(ctx context.Context, ref pod.Ref) (*Pod, error) {
	if ref.UID == "" {
		return nil, errors.New("the kubelet finds pods by UID, and the runtime gave none")
	}
	ctx, cancel := context.WithTimeout(ctx, limitPatience)
	defer cancel()
	conn := k.watched.Load()
	if conn == nil {
		var err error
		if conn, err = k.dial(ctx); err != nil {
			return nil, k.explain(err)
		}
		defer conn.Close()
	}
	client := podsapi.NewPodsClient(conn)
	answer, err := getPod(ctx, client, string(ref.UID))
	if status.Code(err) == codes.ResourceExhausted {
		answer, err = k.getWithinLimit(ctx, client, string(ref.UID), err)
	}
	switch status.Code(err) {
	case codes.OK:
		return decode(answer.GetPod())
	case codes.NotFound:
		return nil, fmt.Errorf("the kubelet has %w: pod %s with UID %s", ErrNotFound, ref, ref.UID)
	}
	return nil, k.explain(err)
}

// getWithinLimit asks again until the rate limit lets it, in its turn. The error
// is that of the last time.
func (k *kubelet) getWithinLimit(ctx context.Context, client podsapi.PodsClient, uid string, refused error) (*podsapi.GetPodResponse, error) {
	select {
	case k.limited <- struct{}{}:
		defer func() { <-k.limited }()
	case <-ctx.Done():
		return nil, refused
	}
	for {
		answer, err := getPod(ctx, client, uid)
		if status.Code(err) != codes.ResourceExhausted {
			return answer, err
		}
		select {
		case <-time.After(limitPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func getPod(ctx context.Context, client podsapi.PodsClient, uid string) (*podsapi.GetPodResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	return client.GetPod(ctx, &podsapi.GetPodRequest{PodUID: uid})
}

// follow watches until ctx ends, connecting again whenever it has to.
func (k *kubelet) follow(ctx context.Context, emit func(report)) {
	retry := backoff.Backoff{First: retryMin, Last: retryMax}
	for ctx.Err() == nil {
		err := k.watch(ctx, func(r report) {
			retry.Reset()
			emit(r)
		})
		if ctx.Err() != nil {
			return
		}
		emit(report{err: k.explain(err)})
		_ = retry.Wait(ctx)
	}
}

// watch runs one stream to its end. It reports nothing before the kubelet has sent the
// complete list of pods.
func (k *kubelet) watch(ctx context.Context, emit func(report)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tooSlow := time.AfterFunc(k.syncPatience, func() {
		cancel(fmt.Errorf("no complete list of pods within %s", k.syncPatience))
	})
	defer tooSlow.Stop()
	err := k.stream(ctx, func(r report) {
		if tooSlow.Stop(); ctx.Err() == nil {
			emit(r)
		}
	})
	return cmp.Or(context.Cause(ctx), err)
}

func (k *kubelet) stream(ctx context.Context, emit func(report)) error {
	conn, err := k.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer k.watched.Store(nil)
	stream, err := podsapi.NewPodsClient(conn).WatchPods(ctx, &podsapi.WatchPodsRequest{})
	if err != nil {
		return err
	}
	list, synced := []*Pod{}, false
	for {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		if event.Type == podsapi.EventType_INITIAL_SYNC_COMPLETE {
			k.watched.Store(conn)
			emit(report{list: list})
			list, synced = nil, true
			continue
		}
		pod, err := decode(event.GetPod())
		if err != nil {
			return err
		}
		switch {
		case event.Type == podsapi.EventType_DELETED:
			emit(report{gone: pod.UID})
		case event.Type != podsapi.EventType_ADDED && event.Type != podsapi.EventType_MODIFIED:
			return fmt.Errorf("unknown event type %d", event.Type)
		case synced:
			emit(report{pod: pod})
		default:
			list = append(list, pod)
		}
	}
}

// explain adds what an error means for the operator.
func (k *kubelet) explain(err error) error {
	code := status.Code(err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w: %w", err, errNotServed)
	case code == codes.Unimplemented:
		err = fmt.Errorf("%s: %w", status.Convert(err).Message(), errNotServed)
	case code != codes.Unknown:
		err = fmt.Errorf("%s: %s", code, status.Convert(err).Message())
	}
	return fmt.Errorf("kubelet's Pods API at %s: %w", k.socket, err)
}
