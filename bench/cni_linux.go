package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/components"
)

// cniSerial measures what a pod's start and end wait for: the plugin as a runtime
// calls it, through libcni, process start included.
var cniSerial = Bench{
	Name:  "cni.serial",
	About: "ADD and DEL of one pod after the other, flock dual stack, ptp + host-local " + components.Plugins + " IPv4 alone",
	Run: func(ctx context.Context, l *cluster.Lab, n int) ([]Result, error) {
		if l.CNI != cluster.Flock {
			return nil, fmt.Errorf("lab %s runs %s: bring it up with --cni %s", l.Dir.Lab(), l.CNI, cluster.Flock)
		}
		var m cniTimes
		err := OnNode(ctx, l, "node1", "cni.serial", cniInput{N: n, BaselineBin: l.Programs}, &m)
		if err != nil {
			return nil, err
		}
		return m.results(), nil
	},
	OnNode: func(ctx context.Context, input json.RawMessage) (any, error) {
		var in cniInput
		if err := json.Unmarshal(input, &in); err != nil {
			return nil, err
		}
		return measureCNI(ctx, in)
	},
}

const (
	confFile = "/etc/cni/net.d/01-flock.conflist"
	confBin  = "/opt/cni/bin"
	// warmUp rounds bring programs and files into memory.
	warmUp = 5
	// patience is how long a link may take to go after its DEL.
	patience = 30 * time.Second
)

type cniInput struct {
	N           int
	BaselineBin string // directory of ptp and host-local
}

// cniTimes are durations by round. Settled: from the start of DEL until the
// host's link is gone and the kernel takes changes of links again; flock leaves
// that to its reaper.
type cniTimes struct {
	Add, Del, Settled             []time.Duration
	BaseAdd, BaseDel, BaseSettled []time.Duration
}

func (m cniTimes) results() []Result {
	against := func(verb string, samples, base []time.Duration) Result {
		return Result{
			Name: "cni." + verb + ".dual.serial", Unit: "ms", Figures: Milliseconds(samples),
			Baseline: &Result{Name: "ptp+host-local." + verb + ".ipv4.serial", Unit: "ms", Figures: Milliseconds(base)},
		}
	}
	return []Result{
		against("add", m.Add, m.BaseAdd),
		against("del", m.Del, m.BaseDel),
		against("del-settled", m.Settled, m.BaseSettled),
	}
}

// runtimeOf is a container runtime for one network.
type runtimeOf struct {
	name string
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	host *netNS // where its plugins run
	want []int  // prefix lengths of the addresses that a pod must get
	// agent is the process ID of the flock-agent behind it, if this process started one.
	agent int
}

func measureCNI(ctx context.Context, in cniInput) (m cniTimes, err error) {
	temp, err := os.MkdirTemp("", "flock-bench-")
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()

	list, err := libcni.NetworkConfFromFile(confFile)
	if err != nil {
		return m, fmt.Errorf("%w: is flock installed on this node?", err)
	}
	node, err := currentNetNS()
	if err != nil {
		return m, err
	}
	defer node.Close()
	flock := runtimeOf{cni: libcni.NewCNIConfigWithCacheDir([]string{confBin}, filepath.Join(temp, "flock"), nil), list: list, host: node, want: []int{128, 32}}

	// The baseline's host is no node: nothing of it is seen there.
	apart, err := newNetNS()
	if err != nil {
		return m, err
	}
	defer apart.Close()
	base := runtimeOf{cni: libcni.NewCNIConfigWithCacheDir([]string{in.BaselineBin}, filepath.Join(temp, "ptp"), nil), host: apart, want: []int{16}}
	if base.list, err = libcni.NetworkConfFromBytes(ptpConf(filepath.Join(temp, "host-local"))); err != nil {
		return m, err
	}
	return compare(ctx, flock, base, warmUp, in.N)
}

// ptpConf is the baseline's network: no masquerading, no DNS, nothing that flock
// would not do as well.
func ptpConf(dataDir string) []byte {
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "bench-ptp",
		"plugins": []any{map[string]any{
			"type":   "ptp",
			"ipMasq": false,
			"ipam": map[string]any{
				"type":    "host-local",
				"dataDir": dataDir,
				"ranges":  []any{[]any{map[string]string{"subnet": "10.255.0.0/16"}}},
				"routes":  []any{map[string]string{"dst": "0.0.0.0/0"}},
			},
		}},
	})
	if err != nil {
		panic(err) // a constant but for a string
	}
	return conf
}

// compare takes turns between the two. Pods' namespaces are kept until the end,
// and a turn begins only when what the one before it has left to the kernel is
// done: it would else be counted on whoever comes next.
func compare(ctx context.Context, a, b runtimeOf, warmUp, n int) (m cniTimes, err error) {
	for i := range warmUp + n {
		for _, turn := range []struct {
			of                runtimeOf
			add, del, settled *[]time.Duration
		}{
			{a, &m.Add, &m.Del, &m.Settled},
			{b, &m.BaseAdd, &m.BaseDel, &m.BaseSettled},
		} {
			pod, err := newNetNS()
			if err != nil {
				return m, err
			}
			defer pod.Close()
			t, err := turn.of.pod(ctx, pod, strconv.Itoa(i))
			if err != nil {
				return m, fmt.Errorf("pod %d of network %s: %w", i, turn.of.list.Name, err)
			}
			if i >= warmUp {
				*turn.add, *turn.del, *turn.settled = append(*turn.add, t.add), append(*turn.del, t.del), append(*turn.settled, t.settled)
			}
		}
	}
	return m, nil
}

// podTime is how long one pod took.
type podTime struct{ add, del, settled time.Duration }

// pod adds a pod to the network and deletes it.
func (r runtimeOf) pod(ctx context.Context, pod *netNS, id string) (t podTime, err error) {
	conf := conf(pod, id)
	err = r.host.Do(func() (err error) {
		var link string
		link, t.add, err = r.add(ctx, conf)
		if link == "" {
			return err
		}
		before := time.Now()
		var delErr error
		t.del, delErr = r.del(ctx, conf)
		if err := errors.Join(err, delErr); err != nil {
			return err
		}
		err = awaitNoLink(link)
		t.settled = time.Since(before)
		return errors.Join(err, awaitGracePeriod())
	})
	return t, errors.Join(err, ctx.Err())
}

func conf(pod *netNS, id string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: "flock-bench-" + strconv.Itoa(os.Getpid()) + "-" + id, NetNS: pod.Path(), IfName: "eth0"}
}

// add adds a pod and returns its link on the host.
func (r runtimeOf) add(ctx context.Context, conf *libcni.RuntimeConf) (link string, took time.Duration, err error) {
	before := time.Now()
	result, err := r.cni.AddNetworkList(ctx, r.list, conf)
	took = time.Since(before)
	if err == nil {
		link, err = check(result, r.want)
	}
	if err != nil {
		_, delErr := r.del(ctx, conf)
		return "", took, errors.Join(fmt.Errorf("ADD: %w", err), delErr)
	}
	return link, took, nil
}

func (r runtimeOf) del(ctx context.Context, conf *libcni.RuntimeConf) (took time.Duration, err error) {
	before := time.Now()
	if err := r.cni.DelNetworkList(context.WithoutCancel(ctx), r.list, conf); err != nil {
		return 0, fmt.Errorf("DEL: %w", err)
	}
	return time.Since(before), nil
}

// check holds a result against what was asked for and returns the name of the
// host's link.
func check(result types.Result, want []int) (link string, err error) {
	r, err := types100.GetResult(result)
	if err != nil {
		return "", err
	}
	var got []int
	for _, ip := range r.IPs {
		ones, _ := ip.Address.Mask.Size()
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); !ok || addr.IsUnspecified() {
			return "", fmt.Errorf("address %v: is none", ip.Address)
		}
		got = append(got, ones)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return "", fmt.Errorf("got addresses %v, want their prefix lengths to be %v: is the other family switched off in the NodeConfig's defaults?", r.IPs, want)
	}
	for _, i := range r.Interfaces {
		if i.Sandbox == "" {
			return i.Name, nil
		}
	}
	return "", errors.New("the result names no link of the host")
}

// awaitNoLink waits until the link is gone from this thread's namespace, and
// whoever deletes it has let go of the kernel's lock for links.
func awaitNoLink(name string) error {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		_, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return takeLinkLock()
		}
		if err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("link %s: still there %s after its DEL", name, patience)
		}
	}
}

// takeLinkLock has the kernel take its lock for links (rtnl) by a change that
// changes nothing but the loopback of the baseline's host, once.
func takeLinkLock() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// awaitGracePeriod waits until the kernel has freed what was deleted before
// (synchronize_rcu), as membarrier(2) with MEMBARRIER_CMD_GLOBAL does.
func awaitGracePeriod() error {
	const membarrierGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		return fmt.Errorf("membarrier: %w", errno)
	}
	return nil
}
