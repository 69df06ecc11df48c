//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"flock.fritzlab.net/flock/pkg/anycast"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/claim"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/exits"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/ledger"
	"flock.fritzlab.net/flock/pkg/pods"
	"flock.fritzlab.net/flock/pkg/routing/bird"
	"flock.fritzlab.net/flock/pkg/sourceguard"
	"flock.fritzlab.net/flock/pkg/version"
	"flock.fritzlab.net/flock/pkg/wiring"
)

// Config is what the agent's flags say.
type Config struct {
	NodeName  string
	Namespace string // of flock's own objects: the Secrets with routers' passwords
	// NodeAddresses are the Node's InternalIPs: what routers know it by.
	NodeAddresses []netip.Addr
	StateDir      string
	Kubeconfig    string
	HealthAddress string
	PodsAPI       string // the kubelet's socket; empty: ask the API server
	// ExitSources say by whom the exits of containers are told, RuntimeSockets
	// where; both are tried in order.
	ExitSources    []exits.Way
	RuntimeSockets []string
	Log            *slog.Logger
}

// Agent serves the pods of one node.
type Agent struct {
	Config
	api  *kube.Client
	pods pods.Source
	// deletions are asked for while the node holds anycast addresses.
	deletions *pods.Deletions
	exits     *exits.Runtime
	claims    *claim.Keeper
	events    *kube.Recorder
	metrics   *metrics
	// What the API server says.
	nodeConfig   *kube.Cache[*v1alpha1.NodeConfig]
	addressPools *kube.Cache[*v1alpha1.AddressPool]
	namespaces   *kube.Cache[*corev1.Namespace]
	templates    *kube.Cache[*v1alpha1.NodeConfigTemplate]
	ownNode      *kube.Cache[*corev1.Node]
	ledger       *ledger.Ledger
	host         *wiring.Host
	reaper       *wiring.Reaper
	guard        *sourceguard.Guard
	bird         *bird.Applier
	fib          *anycast.FIB
	anycast      *anycast.Controller
	news         news
	turns        turns
	gate         gate

	// serving is what a call needs to know of the node; nil: pods are not
	// served, for the reason in waiting.
	serving     atomic.Pointer[serving]
	waiting     atomic.Pointer[string]
	usesSecrets bool // followNode's own, as are keptPools, what the node has on disk
	keptPools   []*v1alpha1.AddressPool
	// surroundings are those that the configuration was put in force in.
	surroundings surroundings
	// latest is what became of the newest NodeConfig; nil: none was seen.
	latest atomic.Pointer[outcome]
	// unrouted is why the routing daemon has not been told what the NodeConfig asks
	// of it; nil: it has not come to that yet.
	unrouted atomic.Pointer[error]
	// fleet is what templates make of the node; nil: not known yet.
	fleet atomic.Pointer[fleet.Verdict]
	// overlaps says which pod CIDRs other nodes have too; nil: not known yet.
	overlaps atomic.Pointer[string]
	// statusDue asks the status writer to look, nodeConfigChanged, cidrsChanged
	// and poolRoutesChanged ask the follower of the node, poolsChanged the anycast
	// side, fleetDue and overlapDue those who look beyond the node.
	statusDue, nodeConfigChanged, cidrsChanged, poolsChanged, poolRoutesChanged, fleetDue, overlapDue signal
	// anycastHeld asks the follower of deletions whether there is need of it.
	anycastHeld signal
	// startupDue asks the keeper of the gate, nodeDue the reporter of the Node.
	startupDue, nodeDue signal
	linksChanged        signal // asks the follower of the node, too
}

// Run serves the node until ctx ends. It leaves links, routes and the routing
// daemon as they are: pods keep working without it.
func Run(ctx context.Context, c Config) error {
	if c.NodeName == "" {
		return errors.New("no node name: set --node-name or $NODE_NAME to the name of this node's Node object")
	}
	a := &Agent{
		Config: c, metrics: newMetrics(),
		statusDue: newSignal(), nodeConfigChanged: newSignal(), cidrsChanged: newSignal(), poolsChanged: newSignal(), poolRoutesChanged: newSignal(),
		fleetDue: newSignal(), overlapDue: newSignal(), anycastHeld: newSignal(), news: news{come: newSignal()},
		startupDue: newSignal(), nodeDue: newSignal(), linksChanged: newSignal(),
	}
	a.wait("flock's agent on node %s is starting", a.NodeName)
	if err := takeShortTurns(); err != nil {
		a.Log.Debug("withdrawals may wait longer for their turn on a busy node", "error", err)
	}
	if err := a.connect(); err != nil {
		return err
	}
	if err := os.MkdirAll(a.StateDir, 0o700); err != nil {
		return err
	}
	// Before all that changes anything: it fails where another agent is alive, and
	// calls wait in it.
	plugin, err := cni.Listen(filepath.Join(a.StateDir, "cni.sock"))
	if err != nil {
		return err
	}
	if err := a.open(); err != nil {
		return errors.Join(err, plugin.Close())
	}
	defer a.close()

	a.Log.Info("flock-agent starts", "version", version.Version, "node", a.NodeName)
	forever := func(run func(context.Context)) func(context.Context) error {
		return func(ctx context.Context) error { run(ctx); return nil }
	}
	return together(ctx,
		func(ctx context.Context) error {
			return plugin.Serve(ctx, a, a.Log)
		},
		a.followNode,
		a.followFleet,
		a.followOverlaps,
		a.followStartup,
		a.reportNode,
		a.followPods,
		a.followDeletions,
		a.followExits,
		a.followPools,
		a.followLinks,
		a.followUplinks,
		a.anycast.Run,
		a.reportTransitions,
		forever(a.nodeConfig.Run),
		forever(a.addressPools.Run),
		forever(a.namespaces.Run),
		forever(a.templates.Run),
		forever(a.ownNode.Run),
		forever(a.claims.Run),
		forever(a.events.Run),
		forever(a.reaper.Run),
		forever(a.bird.Run),
		a.reportStatus,
		a.serveHealth,
	)
}

// connect makes the clients of the API server and the kubelet. It contacts
// neither.
func (a *Agent) connect() error {
	server, err := apiServer(a.Kubeconfig)
	if err != nil {
		return fmt.Errorf("no way to reach the API server: %w", err)
	}
	server.UserAgent = "flock-agent/" + version.Version
	if a.api, err = kube.NewClient(server); err != nil {
		return err
	}
	a.nodeConfig = a.api.NodeConfig(a.NodeName, func() {
		a.nodeConfigChanged.give()
		a.fleetDue.give()
		a.overlapDue.give()
		a.statusDue.give()
	})
	a.templates = a.api.NodeConfigTemplates(a.fleetDue.give)
	a.ownNode = a.api.Node(a.NodeName, func() { a.fleetDue.give(); a.nodeDue.give() })
	a.addressPools = a.api.AddressPools(func() {
		a.poolsChanged.give()
		a.poolRoutesChanged.give()
	})
	a.namespaces = a.api.Namespaces()
	a.exits = exits.New(exits.Config{Sockets: a.RuntimeSockets, Ways: a.ExitSources, Log: a.Log, OnStatus: func(exits.Status) { a.changed() }})
	claims, err := kube.NewClaims(server)
	if err != nil {
		return err
	}
	a.claims = claim.New(claim.Config{Node: a.NodeName, API: claims, Log: a.Log})
	if a.events, err = kube.NewRecorder(server, a.NodeName, a.Log); err != nil {
		return err
	}
	if a.deletions, err = pods.NewDeletions(server, a.NodeName, a.Log); err != nil {
		return err
	}
	a.pods, err = pods.New(pods.Config{Node: a.NodeName, Socket: a.PodsAPI, API: server, Log: a.Log, OnStatus: a.sourceChanged})
	return err
}

// open reads what the node has promised and holds it against the kernel.
func (a *Agent) open() (err error) {
	if err := a.openGate(); err != nil {
		return err
	}
	birdDir := filepath.Join(a.StateDir, "bird")
	if err := os.MkdirAll(birdDir, 0o700); err != nil {
		return err
	}
	if a.ledger, err = ledger.Open(filepath.Join(a.StateDir, "attachments"), time.Now); err != nil {
		return err
	}
	for _, r := range a.ledger.Records() {
		a.claims.Restore(r.ID.String(), claimsOf(r))
	}
	if a.host, err = wiring.Open(); err != nil {
		return err
	}
	if wanted, err := a.host.SourceRoutesWanted(); err != nil {
		return err
	} else if wanted {
		a.Log.Warn("sysctl net.ipv4.conf.all.rp_filter is not 0: a pod's IPv4 answers from an anycast address are dropped once the address is withdrawn; set it to 0, and rp_filter on the uplinks instead")
	}
	if a.guard, err = sourceguard.Open(); err != nil {
		return err
	}
	var bindings []sourceguard.Binding
	for _, r := range a.ledger.Records() {
		bindings = append(bindings, binding(r))
	}
	if err := a.guard.Resync(bindings); err != nil {
		return err
	}
	a.reaper = wiring.NewReaper(a.host, func(wiring.Link) {}, a.Log) // followLinks sees them go
	if err := a.reconcile(); err != nil {
		return err
	}
	if err := a.openAnycast(); err != nil {
		return err
	}
	a.bird = bird.NewApplier(bird.ApplierConfig{
		Dir:      birdDir,
		Socket:   filepath.Join(birdDir, "bird.ctl"),
		Check:    bird.CheckFile("bird"),
		OnChange: func(bird.State) { a.changed() },
		Log:      a.Log,
	})
	return nil
}

func (a *Agent) close() {
	a.fib.Close()
	a.host.Close()
	a.guard.Close()
}

func apiServer(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

// together runs each function until all have ended; the first error ends the
// others by their context.
func together(ctx context.Context, fs ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var first error
	var once sync.Once
	for _, f := range fs {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				once.Do(func() { first = err })
				cancel(err)
			}
		})
	}
	wg.Wait()
	return first
}

// wait takes the node out of service, for the reason that the plugin's answer
// and the status then give.
func (a *Agent) wait(format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	a.waiting.Store(&why)
	a.changed()
}

// changed asks for the status to be written, and for a look at whether the node may
// take its first pods.
func (a *Agent) changed() {
	a.statusDue.give()
	a.startupDue.give()
}

// signal says that there is something to look at. Given several times before it
// is taken, it is one.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) give() {
	select {
	case s <- struct{}{}:
	default:
	}
}
