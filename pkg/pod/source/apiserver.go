package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"flock.fritzlab.net/flock/pkg/pod"
)

// serverPatience is for one GET from the API server, client-go's retries included.
const serverPatience = 5 * time.Second

// apiserver is the API server as a source of one node's pods.
type apiserver struct {
	node   string
	client rest.Interface // of API group core
	log    *slog.Logger
}

// get asks for one pod, once.
func (a *apiserver) get(ctx context.Context, ref pod.Ref) (*Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, serverPatience)
	defer cancel()
	var in corev1.Pod
	err := a.client.Get().Namespace(ref.Namespace).Resource("pods").Name(ref.Name).Do(ctx).Into(&in)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("the API server has %w: pod %s", ErrNotFound, ref)
	}
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	pod := convert(&in)
	if ref.UID != "" && pod.UID != ref.UID {
		return nil, fmt.Errorf("the API server has %w: pod %s with UID %s was replaced by one with UID %s", ErrNotFound, ref, ref.UID, pod.UID)
	}
	return pod, nil
}

// follow watches until ctx ends, connecting again whenever it has to.
func (a *apiserver) follow(ctx context.Context, emit func(report)) {
	onNode := fields.OneTermEqualSelector("spec.nodeName", a.node).String()
	pods := func(o *metav1.ListOptions) *rest.Request {
		o.FieldSelector = onNode
		return a.client.Get().Resource("pods").VersionedParams(o, metav1.ParameterCodec)
	}
	lost := func(err error) error {
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return io.EOF // the reflector does not log it
		default:
			emit(report{err: fmt.Errorf("API server: %w", err)})
		}
		return err
	}
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := &corev1.PodList{}
			return list, lost(pods(&o).Do(ctx).Into(list))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			w, err := pods(&o).Watch(ctx)
			switch list := o.SendInitialEvents != nil && *o.SendInitialEvents; {
			case list && apierrors.IsInvalid(err): // it is too old for that, and the reflector will list
				return w, err
			case !list && err == nil:
				emit(report{resumed: true})
			}
			return w, lost(err)
		},
	}
	reflector := cache.NewReflectorWithOptions(source, &corev1.Pod{}, intake(emit), cache.ReflectorOptions{
		Name: "flock/pods",
		// Half a minute, client-go's own limit, is long for a node with a
		// kubelet that does not answer either.
		Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: math.MaxInt32, Cap: 5 * time.Second},
	})
	reflector.RunWithContext(klog.NewContext(ctx, logr.FromSlogHandler(a.log.Handler())))
}

// intake is a reflector's store that stores nothing and reports everything.
type intake func(report)

func (emit intake) Add(obj any) error { return emit.Update(obj) }
func (emit intake) Update(obj any) error {
	return emit.each(obj, func(p *Pod) report { return report{pod: p} })
}
func (emit intake) Delete(obj any) error {
	return emit.each(obj, func(p *Pod) report { return report{gone: p.UID} })
}
func (emit intake) Resync() error { return nil }

func (emit intake) Replace(objs []any, _ string) error {
	list := make([]*Pod, 0, len(objs))
	for _, obj := range objs {
		in, ok := obj.(*corev1.Pod)
		if !ok {
			return errNotAPod
		}
		list = append(list, convert(in))
	}
	emit(report{list: list})
	return nil
}

var errNotAPod = errors.New("not a v1.Pod")

func (emit intake) each(obj any, as func(*Pod) report) error {
	in, ok := obj.(*corev1.Pod)
	if !ok {
		return errNotAPod
	}
	emit(as(convert(in)))
	return nil
}
