package pods

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// Source is where a node's pods are learned from.
type Source interface {
	// Get returns a pod as it is now, for a runtime that asks for its network.
	// An error is ErrNotFound only if there is no use in asking again.
	Get(context.Context, Ref) (*Pod, error)
	// Watch tells what pods there are and every change, one call at a time,
	// until ctx ends, and returns why it ended. What changes faster than f
	// returns is told in one step: the latest. A Source is watched once.
	Watch(ctx context.Context, f func(Event)) error
	// Status says where the pods are learned from now.
	Status() Status
}

// Status says where the pods are learned from.
type Status struct {
	// Origin is None while no source is connected; what was told stands then,
	// and Watch tells nothing.
	Origin Origin
	Since  time.Time
	// Kubelet and APIServer are why the source is not connected; nil if it is
	// or has not been asked.
	Kubelet, APIServer error
}

// Config says whose pods to learn of, and where.
type Config struct {
	Node   string       // the node's name in the API
	Socket string       // of the kubelet's Pods API; empty: don't ask the kubelet
	API    *rest.Config // nil: don't ask the API server
	Log    *slog.Logger
	// OnStatus is called with each new Status, after the fact; may be nil. Its
	// calls come one at a time and hold up Watch.
	OnStatus func(Status)
}

// kubeletPatience is how long a kubelet that was connected may be away before
// the API server is asked: a restart takes less, and while the kubelet is away
// little happens that only the API server knows.
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
	get(context.Context, Ref) (*Pod, error)
	// follow tells until ctx ends: first a list, after each loss of contact an
	// err and then a list again.
	follow(ctx context.Context, tell func(report))
}

var _ Source = (*Local)(nil)

// New returns the Source that c describes. Nothing is contacted yet.
func New(c Config) (*Local, error) {
	sources := map[Origin]source{}
	if c.Socket != "" {
		sources[Kubelet] = newKubelet(c.Socket, syncPatience)
	}
	if c.API != nil {
		a, err := newAPIServer(c.API, c.Node, c.Log)
		if err != nil {
			return nil, err
		}
		sources[APIServer] = a
	}
	if len(sources) == 0 {
		return nil, errors.New("no source of pods: want the kubelet's socket, or access to the API server, or both")
	}
	return newLocal(sources, c.Log, c.OnStatus), nil
}

func newLocal(sources map[Origin]source, log *slog.Logger, onStatus func(Status)) *Local {
	return &Local{
		sources: sources, log: log, onStatus: onStatus,
		memory: memory{pods: map[string]*Pod{}},
		status: Status{Since: time.Now()},
	}
}

// Get implements [Source]. It asks the kubelet, then what the watch of the API
// server knows, then the API server itself, and if nobody answers it returns
// what was known of the pod last.
func (l *Local) Get(ctx context.Context, ref Ref) (*Pod, error) {
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
		l.log.Warn("pod taken from memory, since nobody answers", "pod", ref.String(), "error", errors.Join(errs...))
		return pod, nil
	}
	return nil, fmt.Errorf("pod %s: %w", ref, errors.Join(errs...))
}

// recall returns what the watch knows of the pod, nil if nothing or if another
// origin than o is connected.
func (l *Local) recall(ref Ref, o Origin) *Pod {
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

	var stopAPIServer func() // nil while it is not asked
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

// take takes a report in, and says so if it changes where pods are learned from.
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
			now.APIServer = nil // it is not asked any more
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
		l.log.Warn("nobody tells of this node's pods: what is known of them stands", "error", cmp.Or(r.err, now.Kubelet, now.APIServer))
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
