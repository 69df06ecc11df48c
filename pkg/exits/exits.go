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
)

// Exit says that a container has ended. An exec'ed process is none.
type Exit struct {
	Container
	// At is when by the runtime's word; for what ended while the runtime could
	// not be reached it may be when it was found out.
	At time.Time
}

// Container is one container of a pod, as the runtime knows it.
type Container struct {
	ID        string // as in the pod's status, without the "containerd://"
	Name      string // in the pod's spec; empty for a sandbox
	Sandbox   bool   // it holds the pod's namespaces: with it, the whole pod ends
	PodUID    string
	Namespace string
	PodName   string
}

// DefaultSockets are where runtimes listen, as their packages and the usual
// distributions have it.
var DefaultSockets = []string{
	"/run/containerd/containerd.sock",
	"/run/k3s/containerd/containerd.sock",
	"/run/crio/crio.sock",
}

// Way is how exits are learned of.
type Way int8

// The ways.
const (
	None Way = iota
	Containerd
	CRI
)

// AllWays are those to learn of exits, the better first.
var AllWays = []Way{Containerd, CRI}

// String returns the way in words for logs, status and metrics.
func (w Way) String() string {
	switch w {
	case Containerd:
		return "containerd"
	case CRI:
		return "cri"
	}
	return "none"
}

// ParseWays reads ways as their names, separated by commas, in order; "none" alone
// is no way at all, and returned as an empty slice.
func ParseWays(s string) ([]Way, error) {
	ways := []Way{}
	if s == None.String() {
		return ways, nil
	}
	for name := range strings.SplitSeq(s, ",") {
		i := slices.IndexFunc(AllWays, func(w Way) bool { return w.String() == name })
		if i < 0 {
			return nil, fmt.Errorf("%q: want containerd, cri, or both separated by a comma, or none", name)
		}
		ways = append(ways, AllWays[i])
	}
	return ways, nil
}

// Status says how exits are learned of now.
type Status struct {
	Way    Way // None: they are not
	Socket string
	Since  time.Time
	Err    error // why not, or why not in a better way; nil at best
}

// Config says where to learn of exits.
type Config struct {
	// Sockets are tried in order; the first that answers is used until it
	// does not.
	Sockets []string
	// Ways are asked for at each socket, in order. Without any nothing is
	// contacted, and nothing told.
	Ways []Way
	Log  *slog.Logger
	// OnStatus is called with each new Status, after the fact; may be nil. Its
	// calls come one at a time and hold up Watch.
	OnStatus func(Status)
}

// Runtime is the container runtime, as far as it tells of exits.
type Runtime struct {
	sockets  []string
	ways     []Way
	log      *slog.Logger
	onStatus func(Status)

	mu     sync.Mutex // guards what follows
	status Status
}

// The wait between two tries to connect.
const (
	retryMin = 10 * time.Millisecond
	retryMax = time.Second
)

// New returns the Runtime that c describes. Nothing is contacted yet.
func New(c Config) *Runtime {
	return &Runtime{sockets: c.Sockets, ways: c.Ways, log: c.Log, onStatus: c.OnStatus, status: Status{Since: time.Now()}}
}

// Status says how exits are learned of now.
func (r *Runtime) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Watch tells of each exit, one call at a time, until ctx ends, and returns why
// it ended.
func (r *Runtime) Watch(ctx context.Context, f func(Exit)) error {
	if len(r.ways) == 0 || len(r.sockets) == 0 {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	known := table{}
	pause := retryMin
	for {
		connected, err := r.try(ctx, known, f)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if connected {
			pause = retryMin
		}
		r.set(Status{Err: err})
		select {
		case <-time.After(pause):
			pause = min(2*pause, retryMax)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// try goes through the ways until one has worked for a while, or none is left.
func (r *Runtime) try(ctx context.Context, known table, f func(Exit)) (connected bool, err error) {
	var whyNot []error
	for _, socket := range r.sockets {
		conn, err := dial(ctx, socket)
		if err != nil {
			whyNot = append(whyNot, err)
			continue
		}
		defer conn.Close()
		for _, w := range r.ways {
			err := follow(ctx, w.at(conn), known, func() {
				connected = true
				r.set(Status{Way: w, Socket: socket, Err: errors.Join(whyNot...)})
			}, f)
			err = fmt.Errorf("%s at %s: %w", w, socket, err)
			if connected || ctx.Err() != nil {
				return connected, err
			}
			whyNot = append(whyNot, err)
		}
	}
	return false, errors.Join(whyNot...)
}

// at is the service that the way is by.
func (w Way) at(conn *grpc.ClientConn) service {
	if w == Containerd {
		return newContainerd(conn)
	}
	return newCRI(conn)
}

// dial connects, or returns the plain error if nobody listens on the socket.
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
	if now.Way != before.Way || now.Socket != before.Socket {
		now.Since = time.Now()
	}
	r.status = now
	r.mu.Unlock()

	if now.Way == before.Way && now.Socket == before.Socket && (now.Err == nil) == (before.Err == nil) {
		return
	}
	if now.Way == None {
		r.log.Warn("the runtime does not tell of containers that end: the kubelet will, about a second later", "error", now.Err)
	} else {
		r.log.Info("the runtime tells of containers that end", "by", now.Way.String(), "socket", now.Socket)
	}
	if r.onStatus != nil {
		r.onStatus(now)
	}
}
