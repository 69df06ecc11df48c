package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/pkg/kube"
)

// fleetCost measures what many nodes' agents cost an API server. It needs no pods of a lab,
// only its programs.
var fleetCost = Bench{
	Name:  fleetName,
	About: fmt.Sprintf("%d hollow agents on an API server of their own, whatever n is, against as many clients that follow all namespaces, pods and claims", fullFleet.nodes),
	Run: func(ctx context.Context, l *cluster.Lab, _ int) ([]Result, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return measureFleet(ctx, fullFleet, fleetPlaces{l.Programs, filepath.Join(l.Checkout, "deploy"), filepath.Dir(self)})
	},
	OnNode: func(ctx context.Context, input json.RawMessage) (any, error) {
		var in naiveInput
		if err := json.Unmarshal(input, &in); err != nil {
			return nil, err
		}
		return nil, followNaively(ctx, in)
	},
}

// fleetSize is what is measured, and how long.
type fleetSize struct {
	nodes, namespaces, pods, claims int
	// followers are the agents that follow the namespace that changes, as those with pods of it
	// that ask for an address of a pool for namespaces do.
	followers int
	// changes are how often a namespace changes.
	changes int
	// survivors are the naive clients beside the agents in the quiet time.
	survivors int
	// idle is for how long nothing is done before what is measured by the moment, so that what
	// all those clients cost anyhow can be taken away.
	idle time.Duration
	// minReady is between two waves.
	minReady int
	// quiet is how long nothing changes. client-go renews a watch every five to ten minutes:
	// in eight minutes that begin four after the last start, each is renewed as often as in any
	// other eight.
	untilQuiet, quiet time.Duration
}

var fullFleet = fleetSize{
	nodes: 1000, namespaces: 200, pods: 1000, claims: 500, followers: 100, changes: 20, survivors: 100,
	idle: time.Minute, minReady: 2, untilQuiet: 4 * time.Minute, quiet: 8 * time.Minute,
}

// fleetPlaces are directories.
type fleetPlaces struct {
	programs string // kube-apiserver and kubectl
	deploy   string // flock's manifests
	bin      string // flock-agent
}

const (
	fleetName     = "fleet"
	elsewhere     = "elsewhere" // a node without an agent
	fleetTemplate = "all"
	// rollOutPatience is for all nodes to follow a change of the template.
	rollOutPatience = 15 * time.Minute
)

func fleetNamespace(i int) string { return fmt.Sprint("fleet-", i) }
func fleetNode(i int) string      { return fmt.Sprint("hollow", i) }

// fleetRun is one run of the benchmark.
type fleetRun struct {
	fleetSize
	fleetPlaces
	server *apiServer
	admin  kubernetes.Interface
	flock  *kube.Client

	agents, control, others traffic      // of the hollow agents, of flock-controller, and of the naive clients
	namespacesSeen          atomic.Int64 // by naive clients
	hollows                 []*hollow

	mu      sync.Mutex // guards below
	began   time.Time  // what reports are timed from
	reports map[int64]map[string]time.Duration
	// overlapping are the nodes whose pod CIDRs another has too, as their agents report, and since when.
	overlapping map[string]time.Duration
	failures    int
	failure     error // the last one
	progress    chan struct{}
}

func measureFleet(ctx context.Context, size fleetSize, in fleetPlaces) (results []Result, err error) {
	// What client-go says of a busy API server it would say for each agent. Failures are counted.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancelCause(ctx)
	s, err := startAPIServer(ctx, cancel, in.programs, in.deploy)
	if err != nil {
		return nil, err
	}
	// All clients end before the server does.
	var running sync.WaitGroup
	defer func() { cancel(nil); running.Wait(); err = errors.Join(err, s.close()) }()
	f := &fleetRun{fleetSize: size, fleetPlaces: in, server: s, reports: map[int64]map[string]time.Duration{}, overlapping: map[string]time.Duration{}, progress: make(chan struct{}, 1)}
	if f.admin, err = kubernetes.NewForConfig(s.admin(nil)); err != nil {
		return nil, err
	}
	if f.flock, err = kube.NewClient(s.admin(nil)); err != nil {
		return nil, err
	}
	if err := f.fill(ctx); err != nil {
		return nil, err
	}
	return f.phases(ctx, &running)
}

// cost is what something has cost: of the API server's processor, and what each group asked for.
type cost struct {
	took, cpu               time.Duration
	agents, control, others usage
}

func (f *fleetRun) measure(do func() error) (c cost, err error) {
	before, err := f.server.cpu()
	if err != nil {
		return c, err
	}
	agents, control, others, began := f.agents.now(), f.control.now(), f.others.now(), time.Now()
	if err := do(); err != nil {
		return c, err
	}
	c.took = time.Since(began)
	after, err := f.server.cpu()
	c.cpu = after - before
	c.agents, c.control, c.others = f.agents.now().since(agents), f.control.now().since(control), f.others.now().since(others)
	return c, err
}

// less takes away what as much time costs in which nothing is done.
func (c cost) less(idle cost) cost {
	if idle.took <= 0 {
		return c
	}
	part := c.took.Seconds() / idle.took.Seconds()
	c.cpu -= time.Duration(part * float64(idle.cpu))
	c.agents, c.control, c.others = c.agents.less(idle.agents, part), c.control.less(idle.control, part), c.others.less(idle.others, part)
	return c
}

func (f *fleetRun) measureIdle(ctx context.Context) (cost, error) {
	return f.measure(func() error { return pause(ctx, f.idle) })
}

// heap is what this process has in use.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// naively measures the baseline. Its clients end before the agents start.
func (f *fleetRun) naively(ctx context.Context, of *clientCost) (err error) {
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() { stop(); running.Wait() }()
	empty := heap()
	if of.start, err = f.measure(func() error { return f.startNaive(ctx, &running, f.nodes, &of.took) }); err != nil {
		return fmt.Errorf("start of the naive clients: %w", err)
	}
	of.heap = heap() - empty
	if of.idle, err = f.measureIdle(ctx); err != nil {
		return err
	}
	seen := f.namespacesSeen.Load()
	all := func(string) bool { // of them have seen one change more
		done := f.namespacesSeen.Load() >= seen+int64(f.nodes)
		if done {
			seen += int64(f.nodes)
		}
		return done
	}
	if of.namespace, err = f.measure(func() error { return f.changeNamespaces(ctx, "naive", all) }); err != nil {
		return fmt.Errorf("changes of a namespace: %w", err)
	}
	return nil
}

func (f *fleetRun) phases(ctx context.Context, running *sync.WaitGroup) ([]Result, error) {
	var m fleetFigures
	m.fleetSize = f.fleetSize
	if err := f.naively(ctx, &m.naive); err != nil {
		return nil, err
	}
	if err := f.template(ctx, 1400, "100%", 0); err != nil {
		return nil, err
	}
	running.Go(func() { f.runController(ctx) })
	if err := f.awaitController(ctx); err != nil {
		return nil, err
	}
	empty := heap() // with what flock-controller has, but for the NodeConfigs that the agents make
	var err error
	if m.flock.start, err = f.measure(func() error { return f.startAgents(ctx, running, &m.flock.took) }); err != nil {
		return nil, fmt.Errorf("start of the agents: %w", err)
	}
	m.flock.heap = heap() - empty
	if m.flock.idle, err = f.measureIdle(ctx); err != nil {
		return nil, err
	}
	if m.flock.namespace, err = f.measure(func() error { return f.changeNamespaces(ctx, "flock", f.followersSaw) }); err != nil {
		return nil, fmt.Errorf("changes of a namespace: %w", err)
	}
	if m.overlaps.cost, err = f.measure(func() error { return f.overlapAll(ctx, &m.overlaps.took) }); err != nil {
		return nil, fmt.Errorf("pod CIDRs of several nodes: %w", err)
	}
	if err := f.overlapNone(ctx); err != nil {
		return nil, fmt.Errorf("pod CIDRs of one node each again: %w", err)
	}
	if m.lists, err = f.measure(func() error { return f.listNodeConfigs(ctx) }); err != nil {
		return nil, fmt.Errorf("lists of all NodeConfigs: %w", err)
	}
	if err := f.startNaive(ctx, running, f.survivors, nil); err != nil {
		return nil, fmt.Errorf("start of naive clients for the quiet time: %w", err)
	}
	began := time.Now()
	for _, change := range []struct {
		generation int64
		atOnce     bool
		of         *timedCost
	}{{2, true, &m.atOnce}, {3, false, &m.waves}} {
		if change.of.cost, err = f.measure(func() error { return f.changeTemplate(ctx, change.generation, change.atOnce, &change.of.took) }); err != nil {
			return nil, fmt.Errorf("change of the template to generation %d: %w", change.generation, err)
		}
	}
	if err := pause(ctx, time.Until(began.Add(f.untilQuiet))); err != nil {
		return nil, err
	}
	if err := f.quietly(ctx, &m); err != nil {
		return nil, err
	}
	f.mu.Lock()
	m.failures = f.failures
	f.mu.Unlock()
	return m.results(), nil
}
