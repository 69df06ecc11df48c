package exits

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Exit says that a container has exited. A process that was started in it by exec does
// not count.
type Exit struct {
	Container
	// At is the time that the runtime gives. Where it gives none, as for an exit
	// while it could not be reached, it is the time at which the exit was found.
	At time.Time
}

// Container is one container of a pod, as the runtime knows it.
type Container struct {
	ID      string // as in the pod's status, without the "containerd://"
	Name    string // in the pod's spec; empty for a sandbox
	Sandbox bool   // it holds the pod's namespaces: the pod ends with it
	Pod     pod.Ref
}

// DefaultSockets are where runtimes listen in their packages and in the usual
// distributions.
var DefaultSockets = []string{
	"/run/containerd/containerd.sock",
	"/run/k3s/containerd/containerd.sock",
	"/run/crio/crio.sock",
}

// Source is a way in which the runtime reports exits.
type Source int8

// The sources.
const (
	None Source = iota
	Containerd
	CRI
)

// AllSources are in the order of preference.
var AllSources = []Source{Containerd, CRI}

// String returns the source as flags, status and metrics name it.
func (s Source) String() string {
	switch s {
	case Containerd:
		return "containerd"
	case CRI:
		return "cri"
	}
	return "none"
}

// ParseSources reads the names of sources, separated by commas, in order. For "none"
// the slice is empty.
func ParseSources(s string) ([]Source, error) {
	sources := []Source{}
	if s == None.String() {
		return sources, nil
	}
	for name := range strings.SplitSeq(s, ",") {
		i := slices.IndexFunc(AllSources, func(s Source) bool { return s.String() == name })
		if i < 0 {
			return nil, fmt.Errorf("%q: want containerd, cri, or both separated by a comma, or none", name)
		}
		sources = append(sources, AllSources[i])
	}
	return sources, nil
}

// Status is the source of exits in use.
type Status struct {
	Source Source // None if no source is connected
	Socket string
	Since  time.Time
	Err    error // why a preferred source is not in use; nil if there is none
}

// Config says whom to ask for exits.
type Config struct {
	// Sockets are tried in order. The first that answers is used until it does
	// not any more.
	Sockets []string
	// Sources are tried at each socket, in order. Without any, no runtime is
	// contacted and Watch reports nothing.
	Sources []Source
	Log     *slog.Logger
	// OnStatus is called after each change of the Status; it may be nil. Its calls
	// come one at a time and hold up Watch.
	OnStatus func(Status)
}

// Runtime is the container runtime as a source of exits.
type Runtime struct {
	sockets  []string
	sources  []Source
	log      *slog.Logger
	onStatus func(Status)

	mu     sync.Mutex // guards what follows
	status Status
}

// The wait between two attempts to connect.
const (
	retryMin = 10 * time.Millisecond
	retryMax = time.Second
)

// New returns the Runtime that c describes. Nothing is contacted yet.
func New(c Config) *Runtime {
	return &Runtime{sockets: c.Sockets, sources: c.Sources, log: c.Log, onStatus: c.OnStatus, status: Status{Since: time.Now()}}
}

// Status returns the source of exits in use.
func (r *Runtime) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Watch calls f with each exit, one call at a time, until ctx ends, and returns its
// cause.
func (r *Runtime) Watch(ctx context.Context, f func(Exit)) error {
	if len(r.sources) == 0 || len(r.sockets) == 0 {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	known := table{}
	retry := backoff.Backoff{First: retryMin, Last: retryMax}
	for {
		connected, err := r.try(ctx, known, f)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if connected {
			retry.Reset()
		}
		r.set(Status{Err: err})
		if err := retry.Wait(ctx); err != nil {
			return err
		}
	}
}

// try goes through the sources until one has worked for a while, or none is left.
func (r *Runtime) try(ctx context.Context, known table, f func(Exit)) (connected bool, err error) {
	var errs []error
	for _, socket := range r.sockets {
		conn, err := dial(ctx, socket)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer conn.Close()
		for _, source := range r.sources {
			err := follow(ctx, source.at(conn), known, func() {
				connected = true
				r.set(Status{Source: source, Socket: socket, Err: errors.Join(errs...)})
			}, f)
			err = fmt.Errorf("%s at %s: %w", source, socket, err)
			if connected || ctx.Err() != nil {
				return connected, err
			}
			errs = append(errs, err)
		}
	}
	return false, errors.Join(errs...)
}

// at is the service at the other end of a connection.
func (s Source) at(conn *grpc.ClientConn) service {
	if s == Containerd {
		return newContainerd(conn)
	}
	return newCRI(conn)
}

// dial connects, or returns the plain error if there is no listener.
func dial(ctx context.Context, socket string) (*grpc.ClientConn, error) {
	knock, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	knock.Close()
	return grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func (r *Runtime) set(now Status) {
	r.mu.Lock()
	before := r.status
	now.Since = before.Since
	if now.Source != before.Source || now.Socket != before.Socket {
		now.Since = time.Now()
	}
	r.status = now
	r.mu.Unlock()

	if now.Source == before.Source && now.Socket == before.Socket && (now.Err == nil) == (before.Err == nil) {
		return
	}
	if now.Source == None {
		r.log.Warn("cannot watch the runtime for exits of containers; the kubelet reports them about a second later", "error", now.Err)
	} else {
		r.log.Info("watching the runtime for exits of containers", "source", now.Source.String(), "socket", now.Socket)
	}
	if r.onStatus != nil {
		r.onStatus(now)
	}
}
