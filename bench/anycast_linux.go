package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// anycastFlips measures how soon the router's kernel knows what has become of a
// pod with an anycast address.
var anycastFlips = Bench{
	Name:  observerName,
	About: fmt.Sprintf("pods that go and come, to the router's kernel, against a tick of %s, a debounce of %s and birdc configure", baselineTick, baselineDebounce),
	Run: func(ctx context.Context, l *cluster.Lab, n int) ([]Result, error) {
		g, err := newGround(ctx, l)
		if err != nil {
			return nil, err
		}
		results, err := flips(ctx, g, n)
		return results, errors.Join(err, g.remove(ctx))
	},
	OnNode: func(ctx context.Context, input json.RawMessage) (any, error) {
		var in observeInput
		if err := json.Unmarshal(input, &in); err != nil {
			return nil, err
		}
		return nil, observe(ctx, in, os.Stdout)
	},
}

// observerName names the benchmark with the observer as its OnNode.
const observerName = "anycast.flips"

const (
	// flock's bird: where its control socket is on a node.
	birdControl = "/run/flock/bird/bird.ctl"
	// atOnce is the number of pods at a time.
	atOnce = 50
	// apart is the time between two deletions, and from the return of a killed pod to
	// the next kill. The work of kubelet and runtime for one pod, some 300 ms of a
	// processor, must be over by then, so that each is measured alone.
	apart = 500 * time.Millisecond
	// flipsApart is the time between two changes of readiness. The kubelet's probes,
	// a second apart, notice them in an order of their own.
	flipsApart = 100 * time.Millisecond
	// seenPatience bounds the wait for an effect at the router.
	seenPatience = 30 * time.Second
)

// flipTimes are durations by pod.
type flipTimes struct {
	NotReady, NotReadyNode, BaseNotReady []time.Duration
	NotReadyAPIDown                      []time.Duration
	NotReadyRealTime                     []time.Duration
	Reached, Routed, BaseRouted          []time.Duration
	ReadyNode                            []time.Duration
	Delete, DeleteNoticed, BaseDelete    []time.Duration
	DeleteNode                           []time.Duration
	BeforeSIGTERM                        int
}

func (m flipTimes) results() []Result {
	base := func(name string, samples []time.Duration) *Result {
		return &Result{Name: name, Unit: "ms", Figures: Milliseconds(samples)}
	}
	share := 0.0
	if n := len(m.Delete); n > 0 {
		share = 100 * float64(m.BeforeSIGTERM) / float64(n)
	}
	return []Result{
		{Name: "anycast.withdraw.notready", Unit: "ms", Figures: Milliseconds(m.NotReady), Baseline: base("tick.withdraw.notready", m.BaseNotReady)},
		{Name: "anycast.withdraw.notready.node", Unit: "ms", Figures: Milliseconds(m.NotReadyNode)},
		{Name: "anycast.withdraw.notready.apidown", Unit: "ms", Figures: Milliseconds(m.NotReadyAPIDown)},
		{Name: "anycast.withdraw.notready.realtime", Unit: "ms", Figures: Milliseconds(m.NotReadyRealTime)},
		{Name: "anycast.withdraw.delete", Unit: "ms", Figures: Milliseconds(m.Delete), Baseline: base("tick.withdraw.delete", m.BaseDelete)},
		{Name: "anycast.withdraw.delete.node", Unit: "ms", Figures: Milliseconds(m.DeleteNode)},
		{Name: "kubelet.notices.delete", Unit: "ms", Figures: Milliseconds(m.DeleteNoticed)},
		{Name: "anycast.withdraw.delete.before-sigterm", Unit: "%", Figures: Figures{N: len(m.Delete), P50: share, P99: share, Max: share}},
		{Name: "anycast.announce.ready", Unit: "ms", Figures: Milliseconds(m.Reached)},
		{Name: "anycast.announce.ready.node", Unit: "ms", Figures: Milliseconds(m.ReadyNode)},
		{Name: "anycast.announce.ready.routed", Unit: "ms", Figures: Milliseconds(m.Routed), Baseline: base("tick.announce.ready.routed", m.BaseRouted)},
	}
}

func flips(ctx context.Context, g *ground, n int) (results []Result, err error) {
	base, err := startBaseline(ctx, g.podsAPI(), anycastName)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, base.close()) }()
	seen, err := observing(ctx, observeInput{
		PodsAPI: g.podsAPI(), Namespace: anycastName,
		Node:   member.Of(g.lab.Dir, anycastNode).NetNS(),
		Router: member.Of(g.lab.Dir, plan.Tor).NetNS(), BaseRouter: base.router.Path(), Outside: member.Of(g.lab.Dir, plan.Outside).NetNS(),
	})
	if err != nil {
		return nil, err
	}
	defer seen.close()
	before, err := configured(g.lab)
	if err != nil {
		return nil, err
	}

	var m flipTimes
	generations := (n + atOnce - 1) / atOnce
	for i := range generations {
		gen := generation{ground: g, seen: seen}
		// n in all, as evenly as can be.
		if err := gen.flips(ctx, i, n*(i+1)/generations-n*i/generations, &m); err != nil {
			return nil, err
		}
	}
	if err := notConfiguredSince(g.lab, before); err != nil {
		return nil, err
	}
	flipped := len(m.NotReady) + len(m.NotReadyRealTime) + len(m.NotReadyAPIDown) + len(m.Routed) + len(m.Delete)
	return append(m.results(), Result{Name: "anycast.reconfigurations", Unit: "times", Figures: Figures{N: flipped}}), nil
}

// configured is when flock's BIRD last read its configuration, by its clock.
func configured(l *cluster.Lab) (time.Time, error) {
	cmd, err := l.Command(anycastNode, "birdc", "-s", birdControl, "show", "status")
	if err != nil {
		return time.Time{}, err
	}
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if at, ok := strings.CutPrefix(strings.TrimSpace(line), "Last reconfiguration on "); ok {
			return fabric.BirdTime(at)
		}
	}
	return time.Time{}, fmt.Errorf("birdc on %s: %w: %s", anycastNode, err, out)
}

// notConfiguredSince fails if BIRD has read its configuration again after before.
func notConfiguredSince(l *cluster.Lab, before time.Time) error {
	after, err := configured(l)
	if err == nil && after.Sub(before).Abs() >= fabric.BirdJitter {
		err = fmt.Errorf("flock's BIRD on %s read its configuration for anycast, at %s", anycastNode, after)
	}
	return err
}

// generation is pods that come at once.
type generation struct {
	*ground
	seen  *sightings
	pods  []corev1.Pod
	addrs []netip.Addr
}

// flips are a generation that loses and regains readiness with the API server and
// without, and is deleted.
func (g *generation) flips(ctx context.Context, number, size int, m *flipTimes) error {
	began := monotonic()
	if err := g.come(ctx, number, size); err != nil {
		return err
	}
	if _, err := g.await(ctx, began, podPatience, routedBase, true); err != nil {
		return fmt.Errorf("new pods at the baseline: %w", err)
	}
	if err := g.flip(ctx, false, flipSinks{routed: &m.NotReady, installed: &m.NotReadyNode, routedBase: &m.BaseNotReady}); err != nil {
		return err
	}
	if err := g.flip(ctx, true, flipSinks{routed: &m.Routed, installed: &m.ReadyNode, reached: &m.Reached, routedBase: &m.BaseRouted}); err != nil {
		return err
	}
	err := inRealTime(member.Of(g.lab.Dir, anycastNode), member.Of(g.lab.Dir, plan.Tor), func() error {
		return g.flip(ctx, false, flipSinks{routed: &m.NotReadyRealTime})
	})
	if err != nil {
		return fmt.Errorf("with real-time priority: %w", err)
	}
	if err := g.flip(ctx, true, flipSinks{routed: new([]time.Duration)}); err != nil {
		return err
	}
	err = g.lab.WithoutAPIServer(ctx, func() error {
		if err := g.flip(ctx, false, flipSinks{routed: &m.NotReadyAPIDown}); err != nil {
			return fmt.Errorf("without API server: %w", err)
		}
		return g.flip(ctx, true, flipSinks{routed: new([]time.Duration)})
	})
	if err != nil {
		return err
	}
	if err := g.kubeletIsBack(ctx, number); err != nil {
		return fmt.Errorf("after the API server was away: %w", err)
	}
	if err := g.delete(ctx, m); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// come makes the pods, and returns when all have their routes.
func (g *generation) come(ctx context.Context, number, size int) error {
	g.addrs = nil
	for i := range size {
		g.addrs = append(g.addrs, anycastAddr(number, i+1))
	}
	began := monotonic()
	err := inParallel(size, func(i int) error {
		return g.create(ctx, fmt.Sprintf("g%d-%d", number, i), g.addrs[i])
	})
	if err != nil {
		return err
	}
	if _, err := g.await(ctx, began, podPatience, routed, true); err != nil {
		return fmt.Errorf("new pods: %w", err)
	}
	return g.refresh(ctx)
}

// await is sightings.await for all pods, by address.
func (g *generation) await(ctx context.Context, since int64, patience time.Duration, what string, yes bool) (map[netip.Addr]int64, error) {
	found, err := g.seen.await(ctx, since, patience, marksOf(what, yes, g.addrs)...)
	if err != nil {
		return nil, err
	}
	at := make(map[netip.Addr]int64, len(found))
	for m, t := range found {
		at[m.Addr] = t
	}
	return at, nil
}

// refresh reads the pods, in the order of their addresses, once the API server
// knows the containers of all.
func (g *generation) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	return process.Await(ctx, "the API server to know the pods' containers", nil, func(ctx context.Context) error {
		all, err := g.list(ctx)
		if err != nil {
			return err
		}
		by := map[string]corev1.Pod{}
		for _, p := range all {
			if slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.ContainerID != "" }) {
				by[addressesOf(&p)] = p
			}
		}
		g.pods = nil
		for _, a := range g.addrs {
			p, ok := by[a.String()]
			if !ok {
				return fmt.Errorf("not that of the one with %s", a)
			}
			g.pods = append(g.pods, p)
		}
		return nil
	})
}

// since adds up the times from start to end, by pod.
func (g *generation) since(start, end map[netip.Addr]int64) (took []time.Duration) {
	for _, a := range g.addrs {
		took = append(took, time.Duration(end[a]-start[a]))
	}
	return took
}

// kubeletIsBack returns when the kubelet hears from the API server again, for
// which it waits the longer the more often it has tried in vain.
func (g *generation) kubeletIsBack(ctx context.Context, number int) error {
	began, addr := monotonic(), anycastAddr(number, 0)
	name := fmt.Sprintf("g%d-back", number)
	if err := g.create(ctx, name, addr); err != nil {
		return err
	}
	if _, err := g.seen.await(ctx, began, podPatience, mark{routed, addr, true}); err != nil {
		return err
	}
	return g.api.Delete(ctx, name, metav1.DeleteOptions{})
}

// flipSinks are what effects of a flip to wait for, and where to add how long each
// took since the kubelet published the flip.
type flipSinks map[string]*[]time.Duration

// flip changes the readiness of all pods and waits for the effects.
func (g *generation) flip(ctx context.Context, ready bool, effects flipSinks) error {
	began := monotonic()
	for i := range g.pods {
		if i > 0 {
			time.Sleep(flipsApart)
		}
		if err := g.setReady(ctx, g.pods[i:i+1], ready); err != nil {
			return err
		}
	}
	publishedAt, err := g.await(ctx, began, seenPatience, published, ready)
	if err != nil {
		return err
	}
	for effect, took := range effects {
		there, err := g.await(ctx, began, seenPatience, effect, ready)
		if err != nil {
			return err
		}
		*took = append(*took, g.since(publishedAt, there)...)
	}
	return nil
}

// each does something to one pod after the other, and returns when.
func (g *generation) each(f func(i int) (int64, error)) (map[netip.Addr]int64, error) {
	at := map[netip.Addr]int64{}
	for i := range g.pods {
		if i > 0 {
			time.Sleep(apart)
		}
		var err error
		if at[g.addrs[i]], err = f(i); err != nil {
			return nil, fmt.Errorf("pod %s: %w", g.pods[i].Name, err)
		}
	}
	return at, nil
}

// delete deletes each pod, and waits until all have gone.
func (g *generation) delete(ctx context.Context, m *flipTimes) error {
	logs := make([]*os.File, len(g.pods))
	for i := range g.pods {
		log, err := g.log(&g.pods[i])
		if err != nil {
			return err
		}
		defer log.Close()
		logs[i] = log
	}
	// The baseline has them all before the first is deleted.
	time.Sleep(baselineTick + 2*baselineDebounce)
	began := monotonic()
	requested, err := g.each(func(i int) (int64, error) {
		at := monotonic()
		return at, g.api.Delete(ctx, g.pods[i].Name, metav1.DeleteOptions{})
	})
	if err != nil {
		return err
	}
	gone, err := g.await(ctx, began, seenPatience, routed, false)
	if err != nil {
		return err
	}
	m.Delete = append(m.Delete, g.since(requested, gone)...)
	onNode, err := g.await(ctx, began, seenPatience, installed, false)
	if err != nil {
		return err
	}
	m.DeleteNode = append(m.DeleteNode, g.since(requested, onNode)...)
	noticed, err := g.await(ctx, began, seenPatience, deleted, true)
	if err != nil {
		return err
	}
	m.DeleteNoticed = append(m.DeleteNoticed, g.since(requested, noticed)...)
	base, err := g.await(ctx, began, seenPatience, routedBase, false)
	if err != nil {
		return err
	}
	m.BaseDelete = append(m.BaseDelete, g.since(requested, base)...)
	if err := g.gone(ctx); err != nil {
		return err
	}
	for i, a := range g.addrs {
		said, err := io.ReadAll(logs[i])
		if err != nil {
			return err
		}
		at, err := terminated(said)
		if err != nil {
			return fmt.Errorf("pod %s: %w", g.pods[i].Name, err)
		}
		if gone[a] < at {
			m.BeforeSIGTERM++
		}
	}
	return nil
}
