package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/pod"
)

// Source is a source of a node's pods.
type Source interface {
	// Get returns a pod as it is now, for a runtime that asks for its network.
	// An error is ErrNotFound only if there is no use in asking again.
	Get(context.Context, pod.Ref) (*Pod, error)
	// Watch calls f with each pod and each change, one call at a time, until ctx
	// ends, and returns its cause. Changes that come faster than f returns are
	// reported together, as the latest state. A Source is watched once.
	Watch(ctx context.Context, f func(Event)) error
	// Status returns the source that is in use.
	Status() Status
}

// Status is the source that is in use.
type Status struct {
	// Origin is None while no source is connected. Then the last reports stay
	// valid, and Watch reports nothing.
	Origin Origin
	Since  time.Time
	// Kubelet and APIServer are the reasons why the source is not connected. They
	// are nil if it is connected or not in use.
	Kubelet, APIServer error
}

// Config configures a Source.
type Config struct {
	Node   string         // the node's name in the API
	Socket string         // of the kubelet's Pods API; empty if the kubelet is not used
	API    rest.Interface // of API group core; nil: do not ask the API server
	Log    *slog.Logger
	// OnStatus is called after each change of the Status. It may be nil. Watch
	// waits for the call.
	OnStatus func(Status)
}

// kubeletPatience is how long a kubelet that was connected may be down before the API
// server is used. A restart takes less, and while the kubelet is down little happens
// that only the API server knows.
const kubeletPatience = 5 * time.Second

// Local is the Source for one node's pods: the kubelet while it answers, else
// the API server.
type Local struct {
	sources  map[Origin]source
	log      *slog.Logger
	onStatus func(Status)

	mu     sync.RWMutex // guards what follows; Watch alone writes
	memory memory
	status Status
}

// source is a way to learn of pods.
type source interface {
	get(context.Context, pod.Ref) (*Pod, error)
	// follow reports until ctx ends: first a list; after each loss of the connection
	// an error and then a list again.
	follow(ctx context.Context, emit func(report))
}

var _ Source = (*Local)(nil)

// New returns the Source that c describes. Nothing is contacted yet.
func New(c Config) (*Local, error) {
	sources := map[Origin]source{}
	if c.Socket != "" {
		sources[Kubelet] = newKubelet(c.Socket, syncPatience)
	}
	if c.API != nil {
		sources[APIServer] = &apiserver{c.Node, c.API, c.Log}
	}
	if len(sources) == 0 {
		return nil, errors.New("no source of pods: want the kubelet's socket, or access to the API server, or both")
	}
	return newLocal(sources, c.Log, c.OnStatus), nil
}

func newLocal(sources map[Origin]source, log *slog.Logger, onStatus func(Status)) *Local {
	return &Local{
		sources: sources, log: log, onStatus: onStatus,
		memory: memory{pods: map[pod.UID]*Pod{}},
		status: Status{Since: time.Now()},
	}
}

// Get implements [Source]. It uses the kubelet, then the watch of the API server, then
// a GET from the API server. If none answers, it returns the last known state.
func (l *Local) Get(ctx context.Context, ref pod.Ref) (*Pod, error) {
	var errs []error
	for _, o := range []Origin{Kubelet, APIServer} {
		if o == APIServer {
			if pod := l.recall(ref, APIServer); pod != nil {
				return pod, nil
			}
		}
		s, ok := l.sources[o]
		if !ok {
			continue
		}
		pod, err := s.get(ctx, ref)
		if err == nil || errors.Is(err, ErrNotFound) {
			return pod, err
		}
		errs = append(errs, err)
	}
	if pod := l.recall(ref, None); pod != nil {
		l.log.WarnContext(ctx, "neither the kubelet nor the API server answers; using the last known state of the pod", "pod", ref.String(), "error", errors.Join(errs...))
		return pod, nil
	}
	return nil, fmt.Errorf("pod %s: %w", ref, errors.Join(errs...))
}

// recall returns the last known state of the pod, or nil if there is none or if another
// origin than o is connected.
func (l *Local) recall(ref pod.Ref, o Origin) *Pod {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if o != None && l.status.Origin != o {
		return nil
	}
	if ref.UID != "" {
		return l.memory.pods[ref.UID]
	}
	for _, p := range l.memory.pods {
		if p.Namespace == ref.Namespace && p.Name == ref.Name {
			return p
		}
	}
	return nil
}

// Status implements [Source].
func (l *Local) Status() Status {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.status
}

// Watch implements [Source].
func (l *Local) Watch(ctx context.Context, f func(Event)) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	type message struct {
		from Origin
		report
	}
	inbox := make(chan message)
	follow := func(o Origin) (stop func()) {
		ctx, stop := context.WithCancel(ctx)
		running.Go(func() {
			l.sources[o].follow(ctx, func(r report) {
				if ctx.Err() != nil {
					return
				}
				select {
				case inbox <- message{o, r}:
				case <-ctx.Done():
				}
			})
		})
		return stop
	}

	var stopAPIServer func() // nil while it is not in use
	askAPIServer := func() {
		if stopAPIServer == nil && l.sources[APIServer] != nil {
			stopAPIServer = follow(APIServer)
		}
	}
	patience := time.NewTimer(kubeletPatience)
	defer patience.Stop()
	if l.sources[Kubelet] != nil {
		follow(Kubelet)
	} else {
		askAPIServer()
	}
	kubeletSeen, kubeletAway := false, true
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-patience.C:
			if kubeletAway {
				askAPIServer()
			}
		case m := <-inbox:
			if m.from == Kubelet {
				switch away := m.err != nil; {
				case !away && kubeletAway:
					kubeletSeen = true
					if stopAPIServer != nil {
						stopAPIServer()
						stopAPIServer = nil
					}
				case away && !kubeletSeen && errors.Is(m.err, errNotServed):
					askAPIServer()
				case away && !kubeletAway:
					patience.Reset(kubeletPatience)
				}
				kubeletAway = m.err != nil
			}
			for _, event := range l.take(m.from, m.report) {
				f(event)
			}
		}
	}
}

// take processes a report, and logs a change of the source in use.
func (l *Local) take(from Origin, r report) []Event {
	l.mu.Lock()
	events := l.memory.take(from, r)
	before := l.status
	now := before
	now.Origin = None
	if l.memory.live {
		now.Origin = l.memory.source
	}
	switch from {
	case Kubelet:
		now.Kubelet = r.err
		if r.err == nil {
			now.APIServer = nil // it is not in use any more
		}
	case APIServer:
		now.APIServer = r.err
	}
	if now.Origin != before.Origin {
		now.Since = time.Now()
	}
	l.status = now
	l.mu.Unlock()

	changed := now.Origin != before.Origin || (now.Kubelet == nil) != (before.Kubelet == nil) || (now.APIServer == nil) != (before.APIServer == nil)
	if !changed {
		return events
	}
	if now.Origin == None {
		l.log.Warn("neither the kubelet nor the API server reports this node's pods; their last known state stays in force", "error", cmp.Or(r.err, now.Kubelet, now.APIServer))
	} else if now.Origin != before.Origin {
		why := []any{"from", now.Origin.String()}
		if now.Kubelet != nil {
			why = append(why, "kubelet", now.Kubelet)
		}
		l.log.Info("learning of this node's pods", why...)
	}
	if l.onStatus != nil {
		l.onStatus(now)
	}
	return events
}
