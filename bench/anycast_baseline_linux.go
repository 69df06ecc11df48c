package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	podsapi "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"flock.fritzlab.net/flock/lab/process"
)

// baseline announces the pods' anycast addresses the way that is common: every
// tick it looks which pods are Ready; when that has not changed for as long as
// debounce, it writes the routing daemon's configuration and has it be read. It
// looks at the same pods at the same time as flock, and has a node and a router
// of its own, each a namespace with a BIRD.
type baseline struct {
	podsAPI, namespace string
	dir                string
	node, router       *netNS
	birds              []*exec.Cmd
	ended              chan error
	stop               context.CancelFunc
	configured         int // times; to be read when it has been closed
}

const (
	baselineTick     = 2 * time.Second
	baselineDebounce = 500 * time.Millisecond
)

var (
	baselineNode   = netip.MustParsePrefix("2001:db8:ba5e::11/64")
	baselineRouter = netip.MustParsePrefix("2001:db8:ba5e::1/64")
)

// startBaseline returns when the two BIRDs speak.
func startBaseline(ctx context.Context, podsAPI, namespace string) (b *baseline, err error) {
	b = &baseline{podsAPI: podsAPI, namespace: namespace}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "flock-bench-"); err != nil {
		return b, err
	}
	if b.node, err = newNetNS(); err != nil {
		return b, err
	}
	if b.router, err = newNetNS(); err != nil {
		return b, err
	}
	if err := b.wire(); err != nil {
		return b, err
	}
	if err := b.write(nil); err != nil {
		return b, err
	}
	if err := os.WriteFile(filepath.Join(b.dir, "router.conf"), []byte(baselineRouterConfig()), 0o644); err != nil {
		return b, err
	}
	for _, where := range []struct {
		name string
		ns   *netNS
	}{{"router", b.router}, {"node", b.node}} {
		cmd := exec.Command("bird", "-f", "-c", filepath.Join(b.dir, where.name+".conf"), "-s", filepath.Join(b.dir, where.name+".ctl"))
		cmd.Stderr = os.Stderr
		if err := where.ns.Do(cmd.Start); err != nil {
			return b, err
		}
		b.birds = append(b.birds, cmd)
	}
	ready, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = process.Await(ready, "the baseline's BGP session", nil, func(ctx context.Context) error {
		out, err := b.birdc(ctx, "show", "protocols", "tor")
		if err != nil || !strings.Contains(out, "Established") {
			return fmt.Errorf("%s %w", out, err)
		}
		return nil
	})
	if err != nil {
		return b, err
	}
	ctx, b.stop = context.WithCancel(ctx)
	b.ended = make(chan error, 1)
	go func() { b.ended <- b.run(ctx) }()
	return b, nil
}

// close ends the baseline and takes all of it away.
func (b *baseline) close() error {
	var errs []error
	if b.stop != nil {
		b.stop()
		errs = append(errs, <-b.ended)
	}
	for _, bird := range b.birds {
		_ = bird.Process.Kill()
		_ = bird.Wait() // killed
	}
	for _, ns := range []*netNS{b.node, b.router} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// wire has a link between node and router.
func (b *baseline) wire() error {
	const name = "eth0"
	err := b.node.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(b.router.f.Fd())})
	})
	if err != nil {
		return fmt.Errorf("the baseline's link: %w", err)
	}
	for _, end := range []struct {
		ns   *netNS
		addr netip.Prefix
	}{{b.node, baselineNode}, {b.router, baselineRouter}} {
		err := end.ns.Do(func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: end.addr.Addr().AsSlice(), Mask: net.CIDRMask(end.addr.Bits(), 128)}, Flags: unix.IFA_F_NODAD}
			return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
		})
		if err != nil {
			return fmt.Errorf("the baseline's address %s: %w", end.addr, err)
		}
	}
	return nil
}

func baselineRouterConfig() string {
	return fmt.Sprintf(`router id 192.0.2.1;
protocol device {}
protocol kernel { ipv6 { import none; export all; }; }
protocol bgp node { local %s as 64512; neighbor %s as 64601; passive on; ipv6 { import all; export none; }; }
`, baselineRouter.Addr(), baselineNode.Addr())
}

// baselineNodeConfig announces addrs.
func baselineNodeConfig(addrs []netip.Addr) string {
	var routes strings.Builder
	for _, a := range addrs {
		fmt.Fprintf(&routes, "  route %s/128 unreachable;\n", a)
	}
	return fmt.Sprintf(`router id 192.0.2.11;
protocol device {}
protocol static {
  ipv6;
%s}
protocol bgp tor { local %s as 64601; neighbor %s as 64512; connect delay time 1; ipv6 { import none; export all; }; }
`, &routes, baselineNode.Addr(), baselineRouter.Addr())
}

func (b *baseline) write(addrs []netip.Addr) error {
	return os.WriteFile(filepath.Join(b.dir, "node.conf"), []byte(baselineNodeConfig(addrs)), 0o644)
}

func (b *baseline) birdc(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "birdc", append([]string{"-s", filepath.Join(b.dir, "node.ctl")}, args...)...).CombinedOutput()
	return string(bytes.TrimSpace(out)), err
}

// run is the loop.
func (b *baseline) run(ctx context.Context) error {
	conn, err := grpc.NewClient("unix:"+b.podsAPI, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := podsapi.NewPodsClient(conn)
	tick := time.NewTicker(baselineTick)
	defer tick.Stop()
	debounce := time.NewTimer(0)
	debounce.Stop()
	var want []netip.Addr
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			now, err := b.ready(ctx, client)
			if status.Code(err) == codes.ResourceExhausted {
				continue // the kubelet's rate limit, of all its clients together
			}
			if err != nil {
				return unlessDone(errors.Join(err, context.Cause(ctx)))
			}
			if !slices.Equal(now, want) {
				want = now
				debounce.Reset(baselineDebounce)
			}
		case <-debounce.C:
			if err := b.write(want); err != nil {
				return err
			}
			out, err := b.birdc(ctx, "configure")
			if ctx.Err() != nil {
				return nil
			}
			if err != nil || !strings.Contains(out, "Reconfigured") && !strings.Contains(out, "in progress") {
				return fmt.Errorf("the baseline's birdc configure: %w: %s", err, out)
			}
			b.configured++
		}
	}
}

// ready are the addresses of pods that are Ready and not being deleted.
func (b *baseline) ready(ctx context.Context, client podsapi.PodsClient) ([]netip.Addr, error) {
	list, err := client.ListPods(ctx, &podsapi.ListPodsRequest{})
	if err != nil {
		return nil, err
	}
	ready := map[netip.Addr]bool{}
	for _, p := range list.Pods {
		pod, addr, err := decodePod(p)
		if err != nil {
			return nil, err
		}
		if addr.IsValid() && pod.Namespace == b.namespace && pod.DeletionTimestamp == nil && isReady(pod) {
			ready[addr] = true
		}
	}
	return slices.SortedFunc(maps.Keys(ready), netip.Addr.Compare), nil
}
