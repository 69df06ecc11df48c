package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/components"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/metallb"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// serviceFlips measures how soon the router's kernel knows what has become of the only pod of
// a Service with externalTrafficPolicy Local, and how soon the Service is reached.
var serviceFlips = Bench{
	Name:  "service.flips",
	About: "Services whose only pod goes and comes, to the router's kernel and to the first connection from outside, against MetalLB " + components.MetalLB,
	Run: func(ctx context.Context, l *cluster.Lab, n int) ([]Result, error) {
		g, err := newGround(ctx, l)
		if err != nil {
			return nil, err
		}
		results, err := serviceResults(ctx, g, n)
		ctx = context.WithoutCancel(ctx)
		_, gone := l.Kubectl(ctx, "", "delete", "--ignore-not-found", "addresspool/"+serviceName)
		return results, errors.Join(err, g.remove(ctx), gone, metallb.Remove(ctx, l))
	},
}

const (
	// serviceName is what the pool is called.
	serviceName = "flock-bench-service"
	// readyApart is the time between two pods that become Ready. kube-proxy writes its rules
	// once a second at most (minSyncPeriod), after two at once: each is to be measured alone.
	readyApart = 2200 * time.Millisecond
	// serviceAtOnce is the number of Services at a time.
	serviceAtOnce = 25
)

// servicePool is the pool of the Services' addresses.
var servicePool = netip.MustParsePrefix("2001:db8:5c::/48")

func serviceAddr(group, i int) netip.Addr { return numbered(servicePool, group, i) }

// serviceTimes are durations by Service, and MetalLB's are those of its Services with the same pods.
type serviceTimes struct {
	NotReady, NotReadyNode, NotReadyAPIDown, NotReadyMetalLB []time.Duration
	NotReadyRealTime, NotReadyRealTimeNode, SliceNotReady    []time.Duration
	Ready, ReadyMetalLB, ReadyRealTime                       readyTimes
	SliceReady, Proxy                                        []time.Duration
}

// readyTimes are durations from a pod that becomes Ready.
type readyTimes struct {
	Reached, Routed, Node []time.Duration
	// Refused counts connections that were refused, and Lost those that failed otherwise though
	// the router had the route.
	Refused, Lost int
}

func (m serviceTimes) results() []Result {
	count := func(name string, failed int, of readyTimes) Result {
		return Result{Name: name, Unit: "times", Figures: Figures{N: len(of.Reached), P50: float64(failed), P99: float64(failed), Max: float64(failed)}}
	}
	against := func(r Result, baseline Result) Result {
		r.Baseline = &baseline
		return r
	}
	times := func(name string, all []time.Duration) Result {
		return Result{Name: name, Unit: "ms", Figures: Milliseconds(all)}
	}
	within := func(p99 float64, r Result) Result {
		r.Goal = &Goal{P99: p99}
		return r
	}
	return []Result{
		within(10, against(times("service.withdraw.notready", m.NotReady), times("metallb.withdraw.notready", m.NotReadyMetalLB))),
		times("service.withdraw.notready.node", m.NotReadyNode),
		times("endpointslices.notice.notready", m.SliceNotReady),
		within(10, times("service.withdraw.notready.apidown", m.NotReadyAPIDown)),
		within(10, times("service.withdraw.notready.realtime", m.NotReadyRealTime)),
		times("service.withdraw.notready.realtime.node", m.NotReadyRealTimeNode),
		within(50, against(times("service.announce.ready", m.Ready.Reached), times("metallb.announce.ready", m.ReadyMetalLB.Reached))),
		against(times("service.announce.ready.routed", m.Ready.Routed), times("metallb.announce.ready.routed", m.ReadyMetalLB.Routed)),
		times("service.announce.ready.node", m.Ready.Node),
		times("endpointslices.notice.ready", m.SliceReady),
		times("kube-proxy.programs.ready", m.Proxy),
		against(count("service.announce.refused", m.Ready.Refused, m.Ready), count("metallb.announce.refused", m.ReadyMetalLB.Refused, m.ReadyMetalLB)),
		against(count("service.announce.lost", m.Ready.Lost, m.Ready), count("metallb.announce.lost", m.ReadyMetalLB.Lost, m.ReadyMetalLB)),
		within(50, times("service.announce.ready.realtime", m.ReadyRealTime.Reached)),
		times("service.announce.ready.realtime.routed", m.ReadyRealTime.Routed),
		times("service.announce.ready.realtime.node", m.ReadyRealTime.Node),
		count("service.announce.realtime.refused", m.ReadyRealTime.Refused, m.ReadyRealTime),
		count("service.announce.realtime.lost", m.ReadyRealTime.Lost, m.ReadyRealTime),
	}
}

func serviceResults(ctx context.Context, g *ground, n int) ([]Result, error) {
	_, err := g.lab.Kubectl(ctx, fmt.Sprintf(`
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: %s}
spec:
  cidrs: ["%s"]
  uses: [service]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}
`, serviceName, servicePool, anycastName), "apply", "--filename=-")
	if err != nil {
		return nil, err
	}
	if err := installMetalLB(ctx, g.lab); err != nil {
		return nil, fmt.Errorf("the baseline MetalLB: %w", err)
	}
	seen, err := observing(ctx, observeInput{
		PodsAPI: g.podsAPI(), Namespace: anycastName, Proxy: true, MetalLB: true,
		Node:   member.Of(g.lab.Dir, anycastNode).NetNS(),
		Router: member.Of(g.lab.Dir, plan.Tor).NetNS(), Outside: member.Of(g.lab.Dir, plan.Outside).NetNS(),
	})
	if err != nil {
		return nil, err
	}
	defer seen.close()
	before, err := configured(g.lab)
	if err != nil {
		return nil, err
	}
	slicesSeen, err := watchSlices(ctx, g, seen)
	if err != nil {
		return nil, err
	}
	defer slicesSeen()
	var m serviceTimes
	turns := (n + serviceAtOnce - 1) / serviceAtOnce
	for i := range turns {
		gen := generation{ground: g, seen: seen}
		if err := gen.serviceFlips(ctx, i, n*(i+1)/turns-n*i/turns, &m); err != nil {
			return nil, err
		}
	}
	if err := notConfiguredSince(g.lab, before); err != nil {
		return nil, err
	}
	flipped := len(m.NotReady) + len(m.NotReadyRealTime) + len(m.NotReadyAPIDown) + len(m.Ready.Routed) + len(m.ReadyRealTime.Routed)
	return append(m.results(), Result{Name: "service.reconfigurations", Unit: "times", Figures: Figures{N: flipped}}), nil
}

// watchSlices adds to the sightings when an EndpointSlice says that a Service's pod is ready,
// or not: a speaker that follows EndpointSlices, as MetalLB's does, knows nothing before.
// It watches until stop, and begins again where the API server goes away.
func watchSlices(ctx context.Context, g *ground, seen *sightings) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	api := g.client.DiscoveryV1().EndpointSlices(anycastName)
	first, err := api.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		cancel()
		return nil, err
	}
	var running sync.WaitGroup
	running.Go(func() {
		ready := map[netip.Addr]bool{}
		for w := first; ctx.Err() == nil; {
			for event := range w.ResultChan() {
				at := monotonic()
				slice, ok := event.Object.(*discoveryv1.EndpointSlice)
				if !ok {
					continue
				}
				var number, i int
				if _, err := fmt.Sscanf(slice.Labels[discoveryv1.LabelServiceName], serviceFormat, &number, &i); err != nil {
					continue
				}
				addr := serviceAddr(number, i+1)
				is := slices.ContainsFunc(slice.Endpoints, func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready != nil && *e.Conditions.Ready })
				if is != ready[addr] {
					ready[addr] = is
					seen.add(sighting{at, sliced, addr, is}, nil)
				}
			}
			w.Stop()
			for ctx.Err() == nil {
				if w, err = api.Watch(ctx, metav1.ListOptions{}); err == nil {
					break
				}
				time.Sleep(time.Second)
			}
		}
	})
	return func() { cancel(); running.Wait() }, nil
}

// serviceFlips are Services whose pods lose and regain readiness, with the API server and
// without.
func (g *generation) serviceFlips(ctx context.Context, number, size int, m *serviceTimes) error {
	if err := g.comeServices(ctx, number, size); err != nil {
		return err
	}
	if err := g.flip(ctx, false, flipSinks{
		routed: &m.NotReady, installed: &m.NotReadyNode, sliced: &m.SliceNotReady, ofMetalLB(routed): &m.NotReadyMetalLB,
	}); err != nil {
		return err
	}
	if err := g.readyServices(ctx, readySinks{Flock: &m.Ready, MetalLB: &m.ReadyMetalLB, Slice: &m.SliceReady, Proxy: &m.Proxy}); err != nil {
		return err
	}
	err := inRealTime(member.Of(g.lab.Dir, anycastNode), member.Of(g.lab.Dir, plan.Tor), func() error {
		if err := g.flip(ctx, false, flipSinks{routed: &m.NotReadyRealTime, installed: &m.NotReadyRealTimeNode}); err != nil {
			return err
		}
		return g.readyServices(ctx, readySinks{Flock: &m.ReadyRealTime, MetalLB: new(readyTimes), Slice: new([]time.Duration), Proxy: new([]time.Duration)})
	})
	if err != nil {
		return fmt.Errorf("with real-time priority: %w", err)
	}
	err = g.lab.WithoutAPIServer(ctx, func() error {
		if err := g.flip(ctx, false, flipSinks{routed: &m.NotReadyAPIDown}); err != nil {
			return fmt.Errorf("without API server: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := g.kubeletIsBack(ctx, number); err != nil {
		return fmt.Errorf("after the API server was away: %w", err)
	}
	for i := range g.addrs {
		for _, format := range []string{serviceFormat, metalLBFormat} {
			if err := g.client.CoreV1().Services(anycastName).Delete(ctx, fmt.Sprintf(format, number, i), metav1.DeleteOptions{}); err != nil {
				return err
			}
		}
		if err := g.api.Delete(ctx, serviceOf(number, i), metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return g.gone(ctx)
}

// serviceOf names a Service and its pod.
func serviceOf(number, i int) string { return fmt.Sprintf(serviceFormat, number, i) }

const serviceFormat = "s%d-%d"

// comeServices makes the Services and their pods, and returns when all are announced.
func (g *generation) comeServices(ctx context.Context, number, size int) error {
	g.addrs = nil
	for i := range size {
		g.addrs = append(g.addrs, serviceAddr(number, i+1))
	}
	began := monotonic()
	err := inParallel(size, func(i int) error {
		return g.createService(ctx, number, i, g.addrs[i])
	})
	if err != nil {
		return err
	}
	for _, what := range []string{routed, ofMetalLB(routed)} {
		if _, err := g.await(ctx, began, podPatience, what, true); err != nil {
			return fmt.Errorf("new Services: %w", err)
		}
	}
	return g.refresh(ctx)
}

// createService makes a Service at an address, MetalLB's for the same pod, and the pod.
func (g *ground) createService(ctx context.Context, number, i int, addr netip.Addr) error {
	class, no, grace, name := "flock.fritzlab.net/bgp", false, int64(1), serviceOf(number, i)
	selector := map[string]string{"service": name}
	_, err := g.client.CoreV1().Services(anycastName).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"flock.fritzlab.net/addresses": addr.String()}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, AllocateLoadBalancerNodePorts: &no,
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, IPFamilies: []corev1.IPFamily{corev1.IPv6Protocol},
			Selector: selector, Ports: []corev1.ServicePort{{Port: cluster.EchoPort}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if err := g.createMetalLB(ctx, number, i, addr, selector); err != nil {
		return err
	}
	_, err = g.api.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: selector, Annotations: map[string]string{serviceAnnotation: addr.String()}},
		Spec: corev1.PodSpec{
			NodeName: anycastNode, TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &no,
			Containers: []corev1.Container{{
				Name: "echo", Image: "echo:dev", ImagePullPolicy: corev1.PullNever,
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(cluster.EchoPort)}},
					PeriodSeconds: 1, FailureThreshold: 1, TimeoutSeconds: 5,
				},
			}},
		},
	}, metav1.CreateOptions{})
	return err
}

// proxyAtRest returns when kube-proxy has written nothing for a while.
func (g *generation) proxyAtRest(ctx context.Context) error {
	const rest = 3 * time.Second
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	return process.Await(ctx, "kube-proxy to have written all rules", nil, func(context.Context) error {
		if late := g.seen.seen(programmed, monotonic()-rest.Nanoseconds()); len(late) > 0 {
			return fmt.Errorf("it has written %d times in the last %s", len(late), rest)
		}
		return nil
	})
}

// readySinks are where durations from pods that become Ready go.
type readySinks struct {
	Flock, MetalLB *readyTimes
	Slice, Proxy   *[]time.Duration
}

// readyServices has one pod after the other become Ready, once kube-proxy has nothing else to do.
func (g *generation) readyServices(ctx context.Context, to readySinks) error {
	if err := g.proxyAtRest(ctx); err != nil {
		return err
	}
	began := monotonic()
	for i := range g.pods {
		if i > 0 {
			time.Sleep(readyApart)
		}
		if err := g.setReady(ctx, g.pods[i:i+1], true); err != nil {
			return err
		}
	}
	at := map[string]map[netip.Addr]int64{}
	for _, what := range []string{published, installed, routed, reached, sliced, ofMetalLB(routed), ofMetalLB(reached)} {
		var err error
		if at[what], err = g.await(ctx, began, seenPatience, what, true); err != nil {
			return err
		}
	}
	to.Flock.Node = append(to.Flock.Node, g.since(at[published], at[installed])...)
	*to.Slice = append(*to.Slice, g.since(at[published], at[sliced])...)
	writes := g.seen.seen(programmed, began)
	for _, a := range g.addrs {
		if i := slices.IndexFunc(writes, func(s sighting) bool { return s.At > at[published][a] }); i >= 0 {
			*to.Proxy = append(*to.Proxy, time.Duration(writes[i].At-at[published][a]))
		}
	}
	for sink, kind := range map[*readyTimes]func(string) string{
		to.Flock:   func(what string) string { return what },
		to.MetalLB: ofMetalLB,
	} {
		sink.Routed = append(sink.Routed, g.since(at[published], at[kind(routed)])...)
		sink.Reached = append(sink.Reached, g.since(at[published], at[kind(reached)])...)
		sink.Refused += len(g.seen.seen(kind(refused), began))
		for _, what := range []string{unreachable, unanswered} {
			for _, s := range g.seen.seen(kind(what), began) {
				if there := at[kind(routed)][s.Addr]; there > 0 && s.At > there {
					sink.Lost++
				}
			}
		}
	}
	return nil
}
