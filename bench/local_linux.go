package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Contestant is a build of flock that takes part in [Local].
type Contestant struct {
	Name string
	Bin  string // directory of flock and flock-agent
}

// LocalConfig is what [Local] measures.
type LocalConfig struct {
	Contestants []Contestant
	BaselineBin string // directory of ptp and host-local; empty: no baseline
	N           int    // pods of each contestant in each part
	Parallel    []int  // how many pods come at once; 1 is one after the other
}

// localNode is the NodeConfig of each contestant's node. Its addresses are in no
// quarantine, so that any number of pods can come.
const localNode = `{"metadata":{"name":"node1","generation":1},"spec":{
	"podCIDRs":{"ipv6":["2001:db8:1::/64"],"ipv4":["10.1.0.0/16"],"quarantineSeconds":0},
	"defaults":{"ipv4":true}}}`

// localAPI is of an API server that is not there.
const localAPI = `{"apiVersion":"v1","kind":"Config","current-context":"c",
	"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
	"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"users":[{"name":"u","user":{}}]}`

// Local measures ADD and DEL of several builds of flock and of ptp with host-local in
// one run, in turns, without a cluster: each agent runs in a network namespace of its
// own, with a copy of a NodeConfig and without an API server. It writes a table with
// the median of the ratios to the baseline of the same round.
func Local(ctx context.Context, c LocalConfig, out io.Writer) (err error) {
	// As on a node, what the agent writes is in memory.
	temp, err := os.MkdirTemp("/dev/shm", "flock-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	var runtimes []runtimeOf
	for _, contestant := range c.Contestants {
		r, stop, err := startLocal(ctx, contestant, filepath.Join(temp, contestant.Name))
		if err != nil {
			return fmt.Errorf("%s: %w", contestant.Name, err)
		}
		defer stop()
		runtimes = append(runtimes, r)
	}
	if c.BaselineBin != "" {
		r, stop, err := localPTP(c.BaselineBin, filepath.Join(temp, "ptp"))
		if err != nil {
			return err
		}
		defer stop()
		runtimes = append(runtimes, r)
	}
	for _, width := range c.Parallel {
		times, err := inTurns(ctx, runtimes, width, c.N)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%d at once, n=%d\n", width, len(times[0].add))
		if err := localTable(out, runtimes, times); err != nil {
			return err
		}
	}
	return nil
}

// startLocal starts a contestant's agent in a network namespace of its own.
func startLocal(ctx context.Context, c Contestant, dir string) (r runtimeOf, stop func(), err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return r, nil, err
	}
	for name, content := range map[string]string{"kubeconfig": localAPI, "nodeconfig.json": localNode} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return r, nil, err
		}
	}
	// Taken pods before: it does not wait for routers.
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "taking-pods"), boot, 0o600)
	}
	if err != nil {
		return r, nil, err
	}
	host, err := newNetNS()
	if err != nil {
		return r, nil, err
	}
	router, err := uplink(host)
	if err != nil {
		return r, nil, fmt.Errorf("the node's uplink: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, "agent.log"))
	if err != nil {
		return r, nil, err
	}
	defer log.Close()
	agent := exec.CommandContext(ctx, filepath.Join(c.Bin, "flock-agent"), "--node-name=node1", "--state-dir="+dir,
		"--kubeconfig="+filepath.Join(dir, "kubeconfig"), "--pods-api=", "--exit-sources=none", "--health-address=")
	agent.Stderr = log
	ended, err := host.start(agent)
	if err != nil {
		return r, nil, err
	}
	stop = func() {
		_ = agent.Process.Kill()
		<-ended
		host.Close()
		router.Close()
	}
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"flock","plugins":[{"type":"flock","agentSocket":%q}]}`, filepath.Join(dir, "cni.sock"))
	r = runtimeOf{name: c.Name, cni: libcni.NewCNIConfigWithCacheDir([]string{c.Bin}, filepath.Join(dir, "cache"), nil), host: host, want: []int{128, 32}, agent: agent.Process.Pid}
	if r.list, err = libcni.NetworkConfFromBytes([]byte(conf)); err != nil {
		stop()
		return r, nil, err
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		pod, err := newNetNS()
		if err == nil {
			_, err = r.pod(ctx, pod, "ready")
			pod.Close()
		}
		if err == nil {
			return r, stop, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			stop()
			said, _ := os.ReadFile(log.Name())
			said = said[:min(len(said), 4<<10)]
			return r, nil, fmt.Errorf("its agent takes no pods: %w\n%s", err, said)
		}
	}
}

// uplink gives a node a link to a router, which it returns.
func uplink(node *netNS) (router *netNS, err error) {
	if router, err = newNetNS(); err != nil {
		return nil, err
	}
	err = node.Do(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "node", PeerNamespace: netlink.NsFd(router.f.Fd())}
		errs := []error{netlink.LinkAdd(veth), netlink.LinkSetUp(veth), takeLinkLock()}
		for _, a := range []string{"2001:db8:ffff::2/64", "192.0.2.2/24"} {
			addr, err := netlink.ParseAddr(a)
			if err == nil {
				addr.Flags = unix.IFA_F_NODAD
				err = netlink.AddrAdd(veth, addr)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return router, errors.Join(err, router.Do(func() error {
		l, err := netlink.LinkByName("node")
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		return err
	}))
}

// localPTP is ptp with host-local in a network namespace of its own.
func localPTP(bin, dir string) (r runtimeOf, stop func(), err error) {
	host, err := newNetNS()
	if err != nil {
		return r, nil, err
	}
	r = runtimeOf{name: "ptp+host-local", cni: libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(dir, "cache"), nil), host: host, want: []int{16}}
	if r.list, err = libcni.NetworkConfFromBytes(ptpConf(filepath.Join(dir, "host-local"))); err != nil {
		host.Close()
		return r, nil, err
	}
	return r, func() { host.Close() }, nil
}

// podTimes are how long a contestant's pods took, in the order of their rounds.
type podTimes struct{ add, del, settled []time.Duration }

// inTurns adds and deletes n pods with each runtime, width of them at once.
func inTurns(ctx context.Context, runtimes []runtimeOf, width, n int) ([]podTimes, error) {
	times := make([]podTimes, len(runtimes))
	for round := -max(1, warmUp/width); round*width < n; round++ {
		for i := range runtimes {
			which := (i + round&0xff) % len(runtimes) // each is first equally often
			t, err := runtimes[which].burst(ctx, width, strconv.Itoa(width)+"-"+strconv.Itoa(round))
			if err != nil {
				return nil, fmt.Errorf("round %d of %s: %w", round, runtimes[which].name, err)
			}
			if round >= 0 {
				times[which].add = append(times[which].add, t.add...)
				times[which].del = append(times[which].del, t.del...)
				times[which].settled = append(times[which].settled, t.settled...)
			}
		}
	}
	return times, nil
}

// burst adds width pods at once, then deletes them at once.
func (r runtimeOf) burst(ctx context.Context, width int, id string) (t podTimes, err error) {
	pods := make([]*netNS, width)
	for i := range pods {
		if pods[i], err = newNetNS(); err != nil {
			return t, err
		}
		defer pods[i].Close()
	}
	if width == 1 {
		p, err := r.pod(ctx, pods[0], id)
		return podTimes{[]time.Duration{p.add}, []time.Duration{p.del}, []time.Duration{p.settled}}, err
	}
	t = podTimes{make([]time.Duration, width), make([]time.Duration, width), make([]time.Duration, width)}
	confs, links, errs := make([]*libcni.RuntimeConf, width), make([]string, width), make([]error, width)
	for i := range confs {
		confs[i] = conf(pods[i], id+"-"+strconv.Itoa(i))
	}
	atOnce := func(f func(i int) error) {
		var all sync.WaitGroup
		start := make(chan struct{})
		for i := range width {
			all.Go(func() {
				errs[i] = errors.Join(errs[i], r.host.Do(func() error { <-start; return f(i) }))
			})
		}
		close(start)
		all.Wait()
	}
	atOnce(func(i int) (err error) {
		links[i], t.add[i], err = r.add(ctx, confs[i])
		return err
	})
	began := time.Now()
	atOnce(func(i int) error {
		d, err := r.del(ctx, confs[i])
		t.del[i] = d
		return err
	})
	atOnce(func(i int) error {
		err := awaitNoLink(links[i])
		t.settled[i] = time.Since(began)
		return err
	})
	return t, errors.Join(append(errs, awaitGracePeriod(), ctx.Err())...)
}

// localTable writes what the runtimes took, the last of which is the baseline.
func localTable(out io.Writer, runtimes []runtimeOf, times []podTimes) error {
	base := times[len(times)-1]
	var b strings.Builder
	fmt.Fprintf(&b, "%-18s %9s %9s %9s %7s %9s %9s %7s %9s\n", "", "ADD p50", "p99", "max", "ratio", "DEL p50", "p99", "ratio", "settled")
	for i, r := range runtimes {
		add, del, settled := Milliseconds(times[i].add), Milliseconds(times[i].del), Milliseconds(times[i].settled)
		fmt.Fprintf(&b, "%-18s %9.3f %9.3f %9.3f %7.3f %9.3f %9.3f %7.3f %9.3f\n", r.name,
			add.P50, add.P99, add.Max, medianRatio(times[i].add, base.add), del.P50, del.P99, medianRatio(times[i].del, base.del), settled.P50)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// medianRatio is the median of the ratios of the two of each round.
func medianRatio(samples, base []time.Duration) float64 {
	ratios := make([]time.Duration, len(samples))
	for i := range samples {
		ratios[i] = time.Duration(float64(samples[i]) / float64(base[i]) * float64(time.Millisecond))
	}
	return Milliseconds(ratios).P50
}
