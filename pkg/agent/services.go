//go:build linux

package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/datapath/service"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/pod/source"
	"flock.fritzlab.net/flock/pkg/routing/departure"
)

// services passes to the controller of Services' addresses what it decides from, and reports
// what it has decided.
type services struct {
	servicesConfig
	routes     *service.Routes
	reader     *proxy.Reader
	controller *service.Controller

	local     cell.Cell[bool] // the node's own pods decide about a Service
	health    cell.Cell[string]
	unwatched cell.Cell[bool] // the watch of Services was not answered
	offline   cell.Cell[bool] // the API server does not answer
	reported  cell.Topic      // what Report says may have changed
	durations *prometheus.HistogramVec
	podNames  map[pod.UID]bool // podChanged's own
	kept      *kube.Kept[[]*corev1.Service]
	excluded  *kube.Kept[*bool] // the Node is excluded from load balancers
	seen      *kube.Kept[*proxySeen]
	proxy     *proxyHealth // followHealth's own
}

type servicesConfig struct {
	node string
	path string // of the copy of the Services
	// excludedPath is where it is kept whether the Node is excluded from load balancers.
	excludedPath string
	seenPath     string // of what was seen of kube-proxy
	healthz      string // kube-proxy's
	api          *kube.Client
	state        cell.Reader[nodeState]
	pools        cell.Reader[poolSet]
	missing      cell.Reader[string] // what keeps the node from taking pods
	departing    cell.Reader[departure.Decision]
	nodeCache    *kube.Cache[*corev1.Node]
	nodeChanged  *cell.Topic
	namespaces   *kube.Namespaces
	labelled     *cell.Topic // of namespaces
	ledger       *ledger.Ledger
	granted      *cell.Topic // of ledger
	given        *servicePools
	onLocal      func() // whether the pods of the node decide about a Service has changed
	log          *slog.Logger
}

// excludeLabel excludes a Node from load balancers (KEP-1143).
const excludeLabel = corev1.LabelNodeExcludeBalancers

func newServices(c servicesConfig) (s *services, err error) {
	s = &services{servicesConfig: c, podNames: map[pod.UID]bool{}, durations: serviceTransitionsMetric.NewHistogram(prometheus.ExponentialBuckets(0.0001, 2, 16))}
	if s.kept, err = kube.OpenKept[[]*corev1.Service](c.path, nil, c.log); err != nil {
		return nil, err
	}
	if s.excluded, err = kube.OpenKept[*bool](c.excludedPath, nil, c.log); err != nil {
		return nil, err
	}
	if s.seen, err = kube.OpenKept[*proxySeen](c.seenPath, nil, c.log); err != nil {
		return nil, err
	}
	if s.routes, err = service.Open(); err != nil {
		return nil, err
	}
	if s.reader, err = proxy.Open(); err != nil {
		s.routes.Close()
		return nil, err
	}
	if c.healthz != "" {
		epoch, err := s.reader.Epoch()
		s.proxy = resume(c.healthz, s.seen.Get(), time.Now(), epoch, err)
		s.health.Set(s.proxy.verdict())
	}
	s.controller = service.NewController(service.Config{Routes: s.routes, Proxy: s.reader, OnTransitions: s.transitions, OnStatus: s.reported.Wake, Log: c.log})
	return s, nil
}

// Close implements Closer. The routes are a part of their own.
func (s *services) Close() { s.reader.Close() }

// Run follows everything that the controller decides by.
func (s *services) Run(ctx context.Context) error {
	return together(ctx, s.controller.Run, s.followServices, s.followNode, s.followHeld, s.followHealth, s.followAPIServer)
}

// wanted is what of the Services matters to the node, by its configuration.
type wanted struct {
	kinds config.ServiceAddresses
	// all: those of every type, and not only load balancers.
	all bool
}

// want is what to follow; false while that is not known.
func (s *services) want(pools []config.Pool) (w wanted, ok bool) {
	in := s.state.Get().inForce
	if in == nil {
		return w, false
	}
	w.kinds = in.node.Services
	externalIPs := slices.ContainsFunc(pools, func(p config.Pool) bool { return p.Services.ExternalIPs })
	w.all = w.kinds.ClusterIP || w.kinds.ExternalIP && externalIPs
	return w, true
}

// followServices follows Services and EndpointSlices, as few as decisions need.
func (s *services) followServices(ctx context.Context) error {
	const (
		saveSettle = 5 * time.Second      // the copy is written so much later
		gather     = 2 * time.Millisecond // changes that come together are one
	)
	changed := cell.Signal()
	s.state.Notify(changed)
	s.pools.Notify(changed)
	s.labelled.Notify(changed)
	objects := following[*corev1.Service]{changed: changed}
	slicesOf := following[*discoveryv1.EndpointSlice]{changed: changed}
	needed := recent{}
	defer objects.stop()
	defer slicesOf.stop()
	kept := s.kept.Get()
	save := settling{after: saveSettle}
	var sentServices []*service.Service
	var sentSlices service.Slices
	sent, sentSome := false, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.kept.Due():
			s.kept.Retry()
			continue
		case <-s.given.kept.Due():
			s.given.kept.Retry()
			continue
		case <-changed:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(gather):
			}
		case <-save.over:
			save.over = nil
			s.given.kept.Save(s.given.Get())
			if all, ok := objects.list(); ok {
				slices.SortFunc(all, byName)
				s.kept.Save(all)
			}
			continue
		}
		pools := s.pools.Get()
		w, ok := s.want(pools.pools)
		if !ok {
			continue
		}
		objects.follow(ctx, fmt.Sprint(w.all), func(changed func()) followed[*corev1.Service] {
			return s.api.AnnouncedServices(w.all, changed, func(heard bool) { s.unwatched.Set(!heard) })
		})
		all, known := objects.list()
		slices.SortFunc(all, byName)
		if known {
			save.begin()
		} else if kept == nil {
			continue // the API server has not answered, now or before
		} else {
			all = kept
		}
		given := service.Granting(all, pools.pools, s.given.Get())
		if !known { // what else the API server may have keeps its pool
			last := maps.Clone(s.given.Get())
			maps.Copy(last, given)
			given = last
		}
		if s.given.Set(given) {
			save.begin()
		}
		parsed := service.Parse(all, service.Admission{Kinds: w.kinds, Pools: slices.Concat(pools.pools, pools.retained), Labels: s.namespaces.Known})
		if !sent || !reflect.DeepEqual(parsed, sentServices) {
			s.controller.Send(service.Services{All: parsed})
			sentServices, sent = parsed, true
			s.reported.Wake()
		}
		if s.local.Set(slices.ContainsFunc(parsed, (*service.Service).NeedPods)) {
			s.onLocal()
		}
		names := needed.keep(time.Now(), needSlices(parsed))
		now := service.Slices{Names: map[string]bool{}}
		if len(names) == 0 {
			slicesOf.stop()
		} else {
			if len(names) > mostNames {
				names = nil
			}
			slicesOf.follow(ctx, strings.Join(names, ","), func(changed func()) followed[*discoveryv1.EndpointSlice] {
				return s.api.EndpointSlices(names, changed)
			})
			list, known := slicesOf.list()
			if !known {
				continue
			}
			now = service.Slices{Of: service.ParseSlices(list, s.node)}
			if slicesOf.listed != "" {
				now.Names = map[string]bool{}
				for name := range strings.SplitSeq(slicesOf.listed, ",") {
					now.Names[name] = true
				}
			}
		}
		if !sentSome || !reflect.DeepEqual(now, sentSlices) {
			s.controller.Send(now)
			sentSlices, sentSome = now, true
		}
	}
}

func byName(a, b *corev1.Service) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// mostNames bounds how many Services are named in the selection of EndpointSlices. With more
// of them, all are followed.
const mostNames = 200

// needSlices are the names of the Services whose EndpointSlices are needed.
func needSlices(all []*service.Service) map[string]bool {
	names := map[string]bool{}
	for _, s := range all {
		if s.NeedSlices() {
			names[s.Name] = true
		}
	}
	return names
}

// followNode passes on what the node is like.
func (s *services) followNode(ctx context.Context) error {
	changed := cell.Signal()
	s.state.Notify(changed)
	s.missing.Notify(changed)
	s.departing.Notify(changed)
	s.nodeChanged.Notify(changed)
	s.health.Notify(changed)
	s.offline.Notify(changed)
	excluded := s.excluded.Get() // nil while that is not known
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.excluded.Due():
			s.excluded.Retry()
			continue
		case <-changed:
		}
		in := s.state.Get().inForce
		if in != nil {
			s.routes.SetMTU(in.mtu)
		}
		now := service.Node{Known: in != nil, NotServing: s.missing.Get(), ProxyUnhealthy: s.health.Get(), Offline: s.offline.Get()}
		if d := s.departing.Get(); d.Withdraw {
			now.Departing = d.Reason
		}
		if node, ok := s.nodeCache.Get(s.node); ok {
			_, is := node.Labels[excludeLabel]
			excluded = &is
			s.excluded.Save(excluded)
		}
		now.Excluded = excluded != nil && *excluded
		s.controller.Send(service.NodeChanged{Node: now})
		s.reported.Wake()
	}
}

// followHeld passes on which addresses pods hold that routers know, or may come to know, by
// themselves.
func (s *services) followHeld(ctx context.Context) error {
	changed := cell.Signal()
	s.granted.Notify(changed)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		held := map[netip.Addr]string{}
		for _, r := range s.ledger.Records() {
			for _, a := range r.All() {
				held[a] = r.Pod.String()
			}
		}
		s.controller.Send(service.Held{By: held})
	}
}

// followHealth asks kube-proxy for its health, also when it may just have written: its last answer
// should be from after that.
func (s *services) followHealth(ctx context.Context) error {
	if s.healthz == "" {
		return nil
	}
	const every, atMostEvery, patience = 5 * time.Second, time.Second, 2 * time.Second
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	written := cell.Signal()
	s.reader.Written().Notify(written)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		fault, silence := askProxy(ctx, client, s.healthz)
		if ctx.Err() == nil {
			epoch, err := s.reader.Epoch()
			s.health.Set(s.proxy.take(time.Now(), fault, silence, epoch, err))
			seen := s.proxy.proxySeen
			s.seen.Save(&seen)
		}
		pause := time.After(atMostEvery)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-s.seen.Due():
				s.seen.Retry()
				continue
			case <-tick.C:
			case <-written:
			}
			waiting = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-pause:
		}
	}
}

// followAPIServer finds out whether the API server answers. The watch of Services notices at
// once if it does not, but not if its packets are dropped. So the agent asks it, while there
// are pods of Services that kube-proxy may not know: two questions without answer count.
func (s *services) followAPIServer(ctx context.Context) error {
	const every, patience, enough = 10 * time.Second, 5 * time.Second, 2
	matters, changed := s.controller.APIServerMatters(), cell.Signal()
	matters.Notify(changed)
	s.unwatched.Notify(changed)
	silent := 0
	var last time.Time
	for {
		var again <-chan time.Time
		if !matters.Get() {
			silent = 0
		} else if wait := time.Until(last.Add(every)); wait > 0 {
			again = time.After(wait)
		} else {
			last = time.Now()
			if s.api.Answers(ctx, s.node, patience) {
				silent = 0
			} else if ctx.Err() == nil {
				silent++
			}
			again = time.After(every)
		}
		s.offline.Set(s.unwatched.Get() || silent >= enough)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}

// podChanged passes a report of the source of pods to the controller.
func (s *services) podChanged(e source.Event) {
	switch e.Type {
	case source.Deleted:
		delete(s.podNames, e.Pod.UID)
		s.controller.Send(service.PodGone{UID: e.Pod.UID})
	case source.Synced:
		s.controller.Send(service.PodsSynced{All: slices.Collect(maps.Keys(s.podNames))})
	default:
		s.podNames[e.Pod.UID] = true
		s.controller.Send(service.PodReported{PodReport: podReport(e.Pod)})
	}
}

// podReport is what the source says of a pod.
func podReport(p *source.Pod) service.PodReport {
	r := service.PodReport{
		Ref: p.Ref, Labels: p.Labels, Addrs: p.Status.IPs, HostNetwork: p.HostNetwork, Ready: p.Status.Ready.Readiness,
		Detail:      strings.TrimSuffix(strings.TrimPrefix(p.Status.Ready.Reason+": "+p.Status.Ready.Message, ": "), ": "),
		Terminating: !p.Deletion.IsZero() || p.Status.Phase == source.Succeeded || p.Status.Phase == source.Failed,
	}
	r.Finished = p.Status.Phase == source.Succeeded || p.Status.Phase == source.Failed
	for _, port := range p.Ports {
		r.Ports = append(r.Ports, service.PodPort{Name: port.Name, Protocol: pod.Protocols[strings.ToLower(string(port.Protocol))], Number: port.Number})
	}
	for _, run := range p.Status.Runs {
		if !run.Init || run.Running { // a running init container is a sidecar, or the pod is not Ready yet
			r.Containers = append(r.Containers, service.Container{Name: run.Container, ID: run.ID})
		}
	}
	return r
}

// podDeleting implements podFollower.
func (s *services) podDeleting(uid pod.UID) { s.controller.Send(service.PodDeleting{UID: uid}) }

// containerExited implements podFollower.
func (s *services) containerExited(id string) { s.controller.Send(service.Exited{ContainerID: id}) }

// followsDeletions implements podFollower.
func (s *services) followsDeletions() bool { return s.local.Get() }

// transitions is called by the controller with changes that the kernel has.
func (s *services) transitions(made []service.Transition) {
	for _, t := range made {
		change, word := "withdraw", "withdrawn"
		if t.Announced {
			change, word = "announce", "announced"
		}
		s.durations.WithLabelValues(change, string(t.Reason)).Observe(t.Latency().Seconds())
		s.log.Info("address of a Service "+word, "service", t.Service, "address", t.Addr, "reason", string(t.Reason), "detail", t.Detail, "took", t.Latency())
	}
	s.reported.Wake()
}

// Notify implements Follower.
func (s *services) Notify(ch chan<- struct{}) { s.reported.Notify(ch) }

// Report implements Reporter. Addresses that are not announced come first.
func (s *services) Report(ctx context.Context, status *v1alpha1.NodeConfigStatus) {
	const most = 256
	is, err := s.controller.Status(ctx)
	if err != nil {
		return
	}
	slices.SortStableFunc(is.Paths, func(p, q service.Path) int {
		switch {
		case p.Announced == q.Announced:
			return 0
		case q.Announced:
			return -1
		}
		return 1
	})
	status.Services = nil
	for _, p := range is.Paths[:min(len(is.Paths), most)] {
		entry := v1alpha1.ServiceStatus{
			Service: p.Service.String(), Address: p.Addr.String(), Announced: p.Announced,
			Reason: string(p.Reason), Message: p.Detail, Since: metav1.NewTime(p.Since.Truncate(time.Second)),
		}
		if !p.Prefix.IsSingleIP() {
			entry.Prefix = p.Prefix.String()
		}
		status.Services = append(status.Services, entry)
	}
}

var (
	serviceAddressesMetric = metric.New(metric.Gauge, "flock_service_addresses",
		"Addresses of Services, by whether the node announces them.",
		"announced=\"true\" falls to 0: the node attracts no traffic for Services. status.services of its NodeConfig says why.", "announced")
	serviceTransitionsMetric = metric.New(metric.Histogram, "flock_service_transition_duration_seconds",
		"Time from the event that the agent received to the changed route in the kernel, by change (announce, withdraw) and reason.",
		"Above 0.01 s: clients are sent to a node that does not serve the Service any more. A high rate of withdraw: endpoints become Ready and not Ready again and again.", "change", "reason")
	serviceRefusedMetric = metric.New(metric.Counter, "flock_service_refused_packets_total",
		"Packets to addresses of Services that nobody translated, and that the node refused.",
		"Rising fast: clients use a port that the Service does not have, or kube-proxy has lost its rules.")
	serviceProxyMetric = metric.New(metric.Gauge, "flock_service_proxy",
		"1 for the mode of kube-proxy whose rules the kernel has: nftables, iptables, iptables-legacy or none.",
		"none while Services have addresses: no Service is announced by the node.", "mode")
)

// Describe implements prometheus.Collector.
func (s *services) Describe(ch chan<- *prometheus.Desc) {
	metric.Describe(ch, serviceAddressesMetric, serviceRefusedMetric, serviceProxyMetric)
	s.durations.Describe(ch)
}

// Collect implements prometheus.Collector.
func (s *services) Collect(ch chan<- prometheus.Metric) {
	s.durations.Collect(ch)
	if n, err := s.routes.Refused(); err == nil {
		ch <- serviceRefusedMetric.Value(float64(n))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	status, err := s.controller.Status(ctx)
	if err != nil {
		return
	}
	announces := map[netip.Addr]bool{} // several Services may share an address
	for _, p := range status.Paths {
		announces[p.Addr] = announces[p.Addr] || p.Announced
	}
	counts := map[bool]int{}
	for _, announced := range announces {
		counts[announced]++
	}
	for _, announced := range []bool{true, false} {
		ch <- serviceAddressesMetric.Value(float64(counts[announced]), strconv.FormatBool(announced))
	}
	for _, m := range []proxy.Mode{proxy.NFTables, proxy.IPTables, proxy.Legacy, proxy.None} {
		name := string(m)
		if m == proxy.None {
			name = "none"
		}
		ch <- serviceProxyMetric.Bool(status.Mode == m && len(status.Paths) > 0, name)
	}
}
