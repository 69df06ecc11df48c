package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// routingRestart counts packets that are lost while flock's processes are replaced.
var routingRestart = Bench{
	Name:  senderName,
	About: "packets lost while BIRD is killed, its pod deleted, the agent killed, against BIRD stopped by SIGTERM; a twentieth as often",
	Run: func(ctx context.Context, l *cluster.Lab, n int) ([]Result, error) {
		g, err := newRoutingGround(ctx, l)
		if err != nil {
			return nil, err
		}
		results, err := restarts(ctx, g, max(1, n/20))
		return results, errors.Join(err, g.remove(ctx))
	},
	OnNode: func(ctx context.Context, input json.RawMessage) (any, error) {
		var in streamsInput
		if err := json.Unmarshal(input, &in); err != nil {
			return nil, err
		}
		return sendStreams(ctx, in, os.Stdout)
	},
}

// senderName names the benchmark with an OnNode that sends the streams.
const senderName = "routing.restart"

const (
	// packetEvery is the pace of each stream.
	packetEvery = time.Millisecond
	// aftermath is how long an agent that runs again is given to do harm.
	aftermath = 3 * time.Second
)

// What deploy/ calls the containers and their programs.
const (
	flockNamespace = "flock-system"
	flockPods      = "app.kubernetes.io/name=flock"
	birdContainer  = "bird"
	agentContainer = "agent"
)

// blow is something that befalls flock on a node.
type blow struct {
	name string
	// container is the one that must come back.
	container string
	strike    func(context.Context, *restarting, plan.Node) error
	// silent: the router must not notice.
	silent bool
}

// blows in an order in which no container ends twice in a pod: the kubelet would
// wait before it starts it again.
var blows = []blow{
	{"BIRD killed", birdContainer, signal(birdContainer, syscall.SIGKILL), false},
	{"agent killed", agentContainer, signal(agentContainer, syscall.SIGKILL), true},
	{"pod deleted", birdContainer, deletePod, false},
	{birdStopped, birdContainer, signal(birdContainer, syscall.SIGTERM), false},
}

// birdStopped is the baseline: on SIGTERM BIRD sends a Cease to its peers and ends.
const birdStopped = "BIRD stopped"

// restarting is the nodes and what goes between their pods meanwhile.
type restarting struct {
	*ground
	pods map[string]streamEnd // by node
	// lost packets by blow, and BGP messages that were no keepalives.
	lost      map[string][]int
	messages  []int
	due, sent int
}

// streamEnd is a pod at an end of a stream.
type streamEnd struct {
	netns string
	addrs []netip.Addr
}

func restarts(ctx context.Context, g *ground, n int) ([]Result, error) {
	r := restarting{ground: g, pods: map[string]streamEnd{}, lost: map[string][]int{}}
	nodes := plan.Nodes(g.lab.Nodes)
	if len(nodes) < 2 {
		return nil, fmt.Errorf("lab %s has one node: bring it up with --nodes 2 or more", g.lab.Dir.Lab())
	}
	if err := r.deploy(ctx, nodes); err != nil {
		return nil, err
	}
	for i := range n {
		node, other := nodes[i%len(nodes)], nodes[(i+1)%len(nodes)]
		if err := r.fresh(ctx, node); err != nil {
			return nil, err
		}
		for _, b := range blows {
			if err := r.suffer(ctx, b, node, other); err != nil {
				return nil, fmt.Errorf("%s on %s: %w", b.name, node.Name(), err)
			}
		}
	}
	return r.results(), nil
}

func (r *restarting) results() []Result {
	counts := func(name, unit string, samples ...int) Result {
		return Result{Name: name, Unit: unit, Figures: Counts(samples)}
	}
	stopped := counts("bird.sigterm.lost", "packets", r.lost[birdStopped]...)
	bird := counts("routing.restart.bird.lost", "packets", slices.Concat(r.lost["BIRD killed"], r.lost["pod deleted"])...)
	bird.Baseline = &stopped
	return []Result{
		bird,
		counts("routing.restart.agent.lost", "packets", r.lost["agent killed"]...),
		counts("routing.restart.agent.messages", "messages", r.messages...),
		unsent("routing.restart", r.due, r.sent),
	}
}

// deploy makes a pod on each node.
func (r *restarting) deploy(ctx context.Context, nodes []plan.Node) error {
	for _, n := range nodes {
		if err := r.createOn(ctx, n.Name(), "stream-"+n.Name()); err != nil {
			return err
		}
	}
	tree, err := cgroup.ForLab(r.lab.Dir.Lab())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	return process.Await(ctx, "the streams' pods to be Ready", nil, func(ctx context.Context) error {
		pods, err := r.list(ctx)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if !isReady(&p) || len(p.Status.ContainerStatuses) != 1 {
				return fmt.Errorf("pod %s is not Ready", p.Name)
			}
			pids, err := tree.Container(p.Spec.NodeName, containerID(p.Status.ContainerStatuses[0]))
			if err != nil || len(pids) == 0 {
				return errors.Join(err, fmt.Errorf("pod %s has no process", p.Name))
			}
			end := streamEnd{netns: fmt.Sprintf("/proc/%d/ns/net", pids[0])}
			for _, ip := range p.Status.PodIPs {
				addr, err := netip.ParseAddr(ip.IP)
				if err != nil {
					return fmt.Errorf("pod %s: %w", p.Name, err)
				}
				end.addrs = append(end.addrs, addr)
			}
			r.pods[p.Spec.NodeName] = end
		}
		if len(r.pods) != len(nodes) {
			return fmt.Errorf("%d pods, want %d", len(r.pods), len(nodes))
		}
		return nil
	})
}

// streams go, in both families, between the pod of the node and that of another
// one, and between it and the outside host, whoever begins.
func (r *restarting) streams(node, other plan.Node) (all []stream) {
	outside := streamEnd{netns: member.Of(r.lab.Dir, plan.Outside).NetNS()}
	for _, p := range plan.OutsideHost.All() {
		outside.addrs = append(outside.addrs, p.Addr())
	}
	here, there := r.pods[node.Name()], r.pods[other.Name()]
	for _, s := range []struct {
		name     string
		from, to streamEnd
	}{
		{node.Name() + " to " + other.Name(), here, there},
		{node.Name() + " to outside", here, outside},
		{"outside to " + node.Name(), outside, here},
	} {
		for _, addr := range s.to.addrs {
			all = append(all, stream{Name: fmt.Sprintf("%s, %s", s.name, addr), NetNS: s.from.netns, To: netip.AddrPortFrom(addr, cluster.EchoPort), Flows: 1})
		}
	}
	return all
}

// suffer has the streams go on while the blow falls and until flock is whole.
func (r *restarting) suffer(ctx context.Context, b blow, node, other plan.Node) (err error) {
	old, _, err := r.container(ctx, node, b.container)
	if err != nil {
		return err
	}
	sessions, err := sessionsOf(r.lab, node.Name())
	if err != nil {
		return err
	}
	seen, err := captureBGP(r.lab, node.Name())
	if err != nil {
		return err
	}
	s, err := streamTogether(ctx, streamsInput{Streams: r.streams(node, other), Every: packetEvery})
	if err != nil {
		_, stopped := seen.stop()
		return errors.Join(err, stopped)
	}
	err = b.strike(ctx, r, node)
	if err == nil {
		err = r.awaitContainer(ctx, node, b.container, old)
	}
	if err == nil {
		err = awaitSessions(ctx, r.lab, node.Name(), !b.silent, sessions)
	}
	if err == nil && b.silent {
		time.Sleep(aftermath)
	}
	reports, stopped := s.stop()
	messages, captured := seen.stop()
	if err := errors.Join(err, stopped, captured); err != nil {
		return err
	}
	if messages[bgpKeepalive] == 0 {
		return errors.New("the capture at the router saw no keepalive of BGP: so it proves nothing about other messages")
	}
	lost := 0
	for _, report := range reports {
		lost, r.due, r.sent = lost+report.Lost, r.due+report.Due, r.sent+report.Sent
		if report.Lost > 0 {
			fmt.Fprintf(os.Stderr, "%s: stream %s lost %d of %d packets, within %s\n", b.name, report.Name, report.Lost, report.Sent, time.Duration(report.LastLost-report.FirstLost))
		}
	}
	r.lost[b.name] = append(r.lost[b.name], lost)
	if b.silent {
		now, err := sessionsOf(r.lab, node.Name())
		if err != nil {
			return err
		}
		if !slices.Equal(now, sessions) {
			return fmt.Errorf("the router's sessions were %v and are %v", sessions, now)
		}
		r.messages = append(r.messages, messages.news())
	}
	return nil
}

// signal ends a container's program.
func signal(container string, sig syscall.Signal) func(context.Context, *restarting, plan.Node) error {
	return func(ctx context.Context, r *restarting, node plan.Node) error {
		_, pid, err := r.container(ctx, node, container)
		if err != nil {
			return err
		}
		return syscall.Kill(pid, sig)
	}
}

func deletePod(ctx context.Context, r *restarting, node plan.Node) error {
	pod, err := r.flockPod(ctx, node)
	if err != nil {
		return err
	}
	return r.client.CoreV1().Pods(flockNamespace).Delete(ctx, pod.Name, metav1.DeleteOptions{})
}

// fresh replaces flock's pod on a node if one of its containers has ended before.
func (r *restarting) fresh(ctx context.Context, node plan.Node) error {
	pod, err := r.flockPod(ctx, node)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.RestartCount > 0 }) {
		return nil
	}
	old, _, err := r.container(ctx, node, birdContainer)
	if err != nil {
		return err
	}
	sessions, err := sessionsOf(r.lab, node.Name())
	if err != nil {
		return err
	}
	if err := deletePod(ctx, r, node); err != nil {
		return err
	}
	if err := r.awaitContainer(ctx, node, birdContainer, old); err != nil {
		return err
	}
	return awaitSessions(ctx, r.lab, node.Name(), true, sessions)
}

// flockPod is the DaemonSet's pod on a node, the one that stays.
func (r *restarting) flockPod(ctx context.Context, node plan.Node) (*corev1.Pod, error) {
	pods, err := r.client.CoreV1().Pods(flockNamespace).List(ctx, metav1.ListOptions{LabelSelector: flockPods, FieldSelector: "spec.nodeName=" + node.Name()})
	if err != nil {
		return nil, err
	}
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil {
			return &p, nil
		}
	}
	return nil, fmt.Errorf("flock has no pod on %s", node.Name())
}

// container is the one of that name in flock's pod, which must run, and its
// program's process: probes may run beside it.
func (r *restarting) container(ctx context.Context, node plan.Node, name string) (id string, pid int, err error) {
	pod, err := r.flockPod(ctx, node)
	if err != nil {
		return "", 0, err
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.Name != name || c.State.Running == nil {
			continue
		}
		tree, err := cgroup.ForLab(r.lab.Dir.Lab())
		if err != nil {
			return "", 0, err
		}
		pids, err := tree.Container(node.Name(), containerID(c))
		if err != nil {
			return "", 0, err
		}
		pid, err := oldest(pids)
		return c.ContainerID, pid, err
	}
	return "", 0, fmt.Errorf("pod %s: container %s does not run", pod.Name, name)
}

// oldest is the process of a container that was there first.
func oldest(pids []int) (pid int, err error) {
	first := uint64(0)
	for _, p := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			continue // ended meanwhile
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		started, err := strconv.ParseUint(f[19], 10, 64)
		if err != nil {
			return 0, err
		}
		if first == 0 || started < first {
			first, pid = started, p
		}
	}
	if pid == 0 {
		return 0, errors.New("the container has no process")
	}
	return pid, nil
}

// awaitContainer waits until the container runs that came after old.
func (r *restarting) awaitContainer(ctx context.Context, node plan.Node, name, old string) error {
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	return process.Await(ctx, name+" to be back", nil, func(ctx context.Context) error {
		id, _, err := r.container(ctx, node, name)
		if err == nil && id == old {
			err = fmt.Errorf("container %s still runs", id)
		}
		return err
	})
}

func containerID(c corev1.ContainerStatus) string {
	return strings.TrimPrefix(c.ContainerID, "containerd://")
}
