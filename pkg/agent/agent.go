//go:build linux

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/internal/otlp"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/internal/version"
	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/agent/threads"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/hostport"
	"flock.fritzlab.net/flock/pkg/datapath/nodeguard"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/sourceguard"
	"flock.fritzlab.net/flock/pkg/datapath/survey"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
	"flock.fritzlab.net/flock/pkg/pod/exits"
	"flock.fritzlab.net/flock/pkg/pod/source"
	"flock.fritzlab.net/flock/pkg/routing/departure"
	"flock.fritzlab.net/flock/pkg/scrape"
	"flock.fritzlab.net/flock/pkg/support"
)

// Config is what the agent's flags say.
type Config struct {
	NodeName  string
	Namespace string // of flock's own objects: the Secrets with routers' passwords
	PodName   string // of the agent's own pod in Namespace; empty: it runs outside of pods
	// NodeAddresses are the Node's InternalIPs: what routers know it by.
	NodeAddresses []netip.Addr
	StateDir      string
	Kubeconfig    string
	HealthAddress string
	// MetricsAddress is where Prometheus may read from other machines; the files have its
	// certificate, and are empty for one of the agent's own.
	MetricsAddress, MetricsCertFile, MetricsKeyFile string
	PodsAPI                                         string // the kubelet's socket; empty: ask the API server
	// PageAddress is where the node's page is served, on loopback only; empty: nowhere.
	PageAddress string
	// ExitSources report containers that have ended, at RuntimeSockets; both are
	// tried in order.
	ExitSources    []exits.Source
	RuntimeSockets []string
	// PolicyMark are the bits of the ct mark for network policies; 0: the default.
	PolicyMark policy.Mark
	// PolicyBudget is how many elements the NetworkPolicies of one namespace may have; 0:
	// the default.
	PolicyBudget int
	// ProxyHealthz is where kube-proxy says how it is; empty: it is not asked.
	ProxyHealthz string
	// OTLPEndpoint is the URL of the collector that gets the spans of calls, as
	// otlp.ParseEndpoint returns it; empty: there is none.
	OTLPEndpoint string
	// OTLP is how they are sent there.
	OTLP otlp.Settings
	// RealtimePriority is that of the agent's threads (SCHED_RR), from 1 to 99; 0: none.
	RealtimePriority int
	Log              *slog.Logger
}

// Run serves the node until ctx ends. It leaves links, routes and the routing
// daemon as they are: pods keep working without it.
func Run(ctx context.Context, c Config) error {
	if c.NodeName == "" {
		return errors.New("no node name: set --node-name or $NODE_NAME to the name of this node's Node object")
	}
	if err := sys.MkdirAll(c.StateDir, 0o700); err != nil {
		return err
	}
	// Before anything is changed: it fails where another agent runs, and calls wait
	// in it.
	listener, err := cni.Listen(c.path("cni.sock"))
	if err != nil {
		return err
	}
	parts, stop, err := compose(ctx, c, listener)
	if err != nil {
		return errors.Join(err, missingInKernel(), listener.Close())
	}
	defer stop()
	c.Log.Info("starting flock-agent", "version", version.Version, "node", c.NodeName)
	return parts.run(ctx)
}

// missingInKernel explains why the agent cannot start, if the kernel lacks what it needs.
func missingInKernel() error {
	findings, err := support.Kernel()
	if err != nil {
		return nil // what keeps one from trying it is in the agent's own error
	}
	var all []error
	for _, f := range findings {
		if f.Breaks {
			all = append(all, errors.New(f.String()))
		}
	}
	return errors.Join(all...)
}

func (c Config) path(name string) string { return filepath.Join(c.StateDir, name) }

// compose makes the agent's parts, and brings the kernel to the records. It contacts
// neither the API server nor the kubelet.
func compose(ctx context.Context, c Config, listener *cni.Listener) (_ parts, stop func(), err error) {
	threads := threads.New(c.RealtimePriority, c.Log)
	server, err := apiServer(c.Kubeconfig)
	if err != nil {
		return nil, nil, fmt.Errorf("no way to reach the API server: %w", err)
	}
	server.UserAgent = "flock-agent/" + version.Version
	kube.ConnectOnce(server)
	if sys.Enabled {
		server.Wrap(func(next http.RoundTripper) http.RoundTripper { return counted{next} })
	}
	api, err := kube.NewClient(server)
	if err != nil {
		return nil, nil, err
	}
	recorder := kube.NewRecorder(api, c.NodeName, c.Log)
	deletions := source.NewDeletions(api.Core(), c.NodeName, c.Log)
	var retired, granted cell.Topic
	promises := ledger.Open(ledger.Config{Dir: c.path("attachments"), OnRetired: retired.Wake, OnGranted: granted.Wake, Log: c.Log})
	host, err := wiring.Open()
	if err != nil {
		return nil, nil, err
	}
	if wanted, err := host.RPFilterEnabled(); err != nil {
		return nil, nil, err
	} else if wanted {
		c.Log.Warn("sysctl net.ipv4.conf.all.rp_filter is not 0: a pod's IPv4 answers from an anycast address are dropped once the address is withdrawn; set it to 0, and rp_filter on the uplinks instead")
	}
	guard, err := sourceguard.Open()
	if err != nil {
		return nil, nil, err
	}
	ports, err := hostport.Open(c.Log)
	if err != nil {
		return nil, nil, err
	}

	var configChanged, nodeChanged, templatesChanged, poolsChanged, kernelChanged, grantsChanged cell.Topic
	configCache := api.NodeConfig(c.NodeName, configChanged.Wake)
	nodeCache := api.Node(c.NodeName, nodeChanged.Wake)
	templateCache := api.NodeConfigTemplates(templatesChanged.Wake)
	poolCache := api.AddressPools(poolsChanged.Wake)
	namespaces := api.Namespaces(grantsChanged.Wake)

	configs := &nodeConfigs{node: c.NodeName, path: c.path("nodeconfig.json"), cache: configCache, changed: &configChanged, log: c.Log}
	if err := configs.open(); err != nil {
		return nil, nil, err
	}
	given := &servicePools{path: c.path("services-pools.json"), log: c.Log}
	if err := given.open(); err != nil {
		return nil, nil, err
	}
	pools := &pools{path: c.path("addresspools.json"), gonePath: c.path("addresspools-gone.json"), cache: poolCache, changed: &poolsChanged, ledger: promises, granted: &granted, services: given, log: c.Log}
	if err := pools.open(); err != nil {
		return nil, nil, err
	}
	templates := &templates{nodeName: c.NodeName, api: api, configs: configs, node: nodeCache, templates: templateCache, nodeChanged: &nodeChanged, changed: &templatesChanged, log: c.Log}

	claims := claim.New(claim.Config{
		Node: c.NodeName, API: api, Log: c.Log,
		Quarantine: func(a netip.Addr) time.Duration { return claim.Quarantine(a, pools.Get().pools) },
	})
	announcer := &announcer{announcerConfig: announcerConfig{
		node: c.NodeName, ledger: promises, host: host, pools: pools, deletions: deletions, events: recorder, log: c.Log,
	}}
	announcer.exits = exits.New(exits.Config{Sockets: c.RuntimeSockets, Sources: c.ExitSources, Log: c.Log, OnStatus: func(exits.Status) { announcer.reported.Wake() }})
	if announcer.pods, err = source.New(source.Config{Node: c.NodeName, Socket: c.PodsAPI, API: api.Core(), Log: c.Log, OnStatus: announcer.sourceChanged}); err != nil {
		return nil, nil, err
	}
	node := &node{name: c.NodeName, configs: configs, templates: templates, allocator: promises, retired: &retired, kernel: &kernelChanged, host: host, log: c.Log}
	node.open()
	departing, err := departure.New(departure.Config{
		NodeName: c.NodeName, Namespace: c.Namespace, Pod: c.PodName, API: api, Dir: c.path("bird"), Log: c.Log,
		Node: func() (*corev1.Node, bool) { n, _ := nodeCache.Get(c.NodeName); return n, nodeCache.Synced() },
		NodeConfig: func() (*v1alpha1.NodeConfig, bool) {
			nc, _ := configCache.Get(c.NodeName)
			return nc, configCache.Synced()
		},
		Changed: []departure.Notifier{&nodeChanged, &configChanged},
	})
	if err != nil {
		return nil, nil, err
	}
	passwords := &passwords{node: c.NodeName, path: c.path("password-key"), configs: configs, log: c.Log}
	router := &router{departing: &departing.Decision, namespace: c.Namespace, addresses: c.NodeAddresses, opened: passwords, state: node, pools: pools, log: c.Log}
	if err := router.open(c.path("bird")); err != nil {
		return nil, nil, err
	}
	gate := &gate{state: node, daemon: &router.daemon, log: c.Log}
	if err := gate.open(c.path("taking-pods")); err != nil {
		return nil, nil, err
	}
	policyTable, err := policy.Open(cmp.Or(c.PolicyMark, policy.DefaultMark))
	if err != nil {
		return nil, nil, err
	}
	policySources, err := policy.NewSources(server, c.NodeName)
	if err != nil {
		return nil, nil, err
	}
	peers := &peers{namespaces: namespaces, pools: pools, claims: api.AddressClaims(grantsChanged.Wake), grants: &grantsChanged, wake: make(chan struct{}, 1)}
	policies := newPolicies(policy.Config{
		Sources: policySources, File: c.path("policies"), Addrs: peers.addrs, Annotations: peerAnnotations, Budget: c.PolicyBudget, Log: c.Log,
	}, policyTable, announcer.pods, recorder)
	peers.onRegranted = policies.AddrsChanged
	stopwatch := newStopwatch(c)
	attacher := newAttacher(attacherConfig{
		node: c.NodeName, listener: listener, retired: &retired, state: node, gate: gate, pods: announcer.pods, pools: pools, namespaces: namespaces,
		ledger: promises, claims: claims, host: host, guard: guard, ports: ports, policies: policies, announcer: announcer, events: recorder, stopwatch: stopwatch, log: c.Log,
	})
	if err := attacher.reconcile(ctx); err != nil {
		return nil, nil, err
	}
	if err := announcer.open(); err != nil {
		return nil, nil, err
	}
	policies.open(promises.Records())
	services, err := newServices(servicesConfig{
		node: c.NodeName, path: c.path("services.json"), excludedPath: c.path("node-excluded.json"), seenPath: c.path("kube-proxy.json"), healthz: c.ProxyHealthz, api: api, state: node, pools: pools, missing: &gate.missing,
		departing: &departing.Decision, nodeCache: nodeCache, nodeChanged: &nodeChanged, namespaces: namespaces, labelled: &grantsChanged,
		ledger: promises, granted: &granted, given: given, onLocal: announcer.held.Wake, log: c.Log,
	})
	if err != nil {
		return nil, nil, err
	}
	announcer.others = append(announcer.others, services)
	nodeCondition := &nodeCondition{name: c.NodeName, api: api, node: nodeCache, changed: &nodeChanged, missing: &gate.missing, log: c.Log}
	nodeguard, err := nodeguard.Open()
	if err != nil {
		return nil, nil, err
	}
	surveyor, err := survey.Open()
	if err != nil {
		return nil, nil, err
	}
	report := &report{node: c.NodeName, api: api, state: node, configs: configs, log: c.Log}
	supported := &supported{nodeName: c.NodeName, api: api, node: nodeCache, nodeChanged: &nodeChanged, daemon: &router.daemon, kernel: support.Kernel, log: c.Log}
	certificate, err := scrape.TLS(c.MetricsCertFile, c.MetricsKeyFile, c.NodeName, c.NodeAddresses)
	if err != nil {
		return nil, nil, err
	}
	health := &health{
		socket: c.path("health.sock"), address: c.HealthAddress, metrics: c.MetricsAddress,
		tls: certificate, guard: scrape.NewGuard(api, c.Log), log: c.Log,
	}

	looks, err := rtnl.Dial()
	if err != nil {
		return nil, nil, err
	}
	viewer := &viewer{
		node: c.NodeName, address: c.PageAddress, kernel: looks, ledger: promises, anycast: announcer.controller, guard: guard,
		policies: policies, daemon: &router.daemon, events: recorder, log: c.Log,
	}

	all := parts{
		configCache, nodeCache, templateCache, poolCache, namespaces, recorder, claims,
		configs, pools, poolUse{promises, &granted, pools}, templates, &overlaps{configs},
		node, passwords, router, gate, nodeCondition,
		stopwatch, attacher, announcer, podEvents{announcer.pods, []func(source.Event){announcer.podChanged, policies.podChanged, services.podChanged}}, services, departing,
		host, guard, policies, peers, ports, announcer.controller, services.routes, nodeGuard{nodeguard, node, host.OnLink, c.Log}, surveyor,
		&policyLog{namespaces: namespaces, changed: &grantsChanged, policies: policies, log: c.Log},
		threads, events{recorder}, buildInfo{}, supported,
		report, viewer, health,
	}
	if err := all.open(); err != nil {
		return nil, nil, err
	}
	repair, err := newRepair(each[datapath.Feature](all), recorder, &kernelChanged, c.Log)
	if err != nil {
		return nil, nil, err
	}
	all = append(all, repair)
	report.parts, health.parts, viewer.parts = all, all, all
	return all, all.close, nil
}

// events contributes the metric of the recorder of Events.
type events struct{ recorder *kube.Recorder }

var droppedMetric = metric.New(metric.Counter, "flock_events_dropped_total",
	"Events that were not written because the API server took them too slowly.",
	"Rising: Events are missing in kubectl describe. The log has them all.")

// Describe implements prometheus.Collector.
func (e events) Describe(ch chan<- *prometheus.Desc) { ch <- droppedMetric.Desc }

// Collect implements prometheus.Collector.
func (e events) Collect(ch chan<- prometheus.Metric) {
	ch <- droppedMetric.Value(float64(e.recorder.Dropped()))
}

func apiServer(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}
