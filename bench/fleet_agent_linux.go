package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"flock.fritzlab.net/flock/lab/process"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/scrape"
)

const (
	// realNode is the node of the one agent that is a process with a node of its own.
	realNode = "real"
	// sampleEvery is how often a process's memory is read.
	sampleEvery = time.Second
)

// countingProxy is where the real agent finds the API server, so that its requests are
// counted. It speaks what the server speaks: TLS and HTTP/2.
func (s *apiServer) countingProxy(t *traffic) (address string, err error) {
	var listener net.Listener
	if err := s.ns.Do(func() (err error) { listener, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		return "", err
	}
	target, err := url.Parse(fleetURL)
	if err != nil {
		return "", errors.Join(err, listener.Close())
	}
	config, err := scrape.TLS("", "", realNode, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		return "", errors.Join(err, listener.Close())
	}
	server := &http.Server{TLSConfig: config, Handler: &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     s.transport(t),
		FlushInterval: -1, // a watch never ends
	}}
	go server.ServeTLS(listener, "", "")
	s.stops = append(s.stops, func() { _ = server.Close() })
	return listener.Addr().String(), nil
}

// realAgent is flock-agent as it is deployed, on a node that is a network namespace: that of
// the API server. No BIRD and no kubelet is there.
type realAgent struct {
	process *os.Process
	traffic traffic
}

// startAgent starts the agent, and waits until it has reported its NodeConfig.
func (f *fleetRun) startAgent(ctx context.Context) (*realAgent, error) {
	ctx, cancel := context.WithTimeout(ctx, fleetPatience)
	defer cancel()
	a := &realAgent{}
	address, err := f.server.countingProxy(&a.traffic)
	if err != nil {
		return nil, err
	}
	kubeconfig := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c",
		"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":"https://%s","insecure-skip-tls-verify":true}}],
		"users":[{"name":"u","user":{"token":%q,"as":"system:serviceaccount:flock-system:flock",
			"as-groups":["system:serviceaccounts","system:serviceaccounts:flock-system","system:authenticated"],
			"as-user-extra":{"authentication.kubernetes.io/node-name":[%q]}}}]}`, address, fleetToken, realNode)
	if err := os.WriteFile(f.server.path("kubeconfig"), []byte(kubeconfig), 0o600); err != nil {
		return nil, err
	}
	nc := &v1alpha1.NodeConfig{Spec: v1alpha1.NodeConfigSpec{PodCIDRs: v1alpha1.PodCIDRs{IPv6: []v1alpha1.CIDR{"2001:db8:1::/64"}}}}
	nc.Name = realNode
	if err := f.flock.CreateNodeConfig(ctx, nc); err != nil {
		return nil, err
	}
	if a.process, err = f.server.start(filepath.Join(f.bin, "flock-agent"), "--node-name="+realNode, "--state-dir="+f.server.path("state"),
		"--kubeconfig="+f.server.path("kubeconfig"), "--pods-api="+f.server.path("no-kubelet"), "--exit-sources=none", "--health-address=", "--kube-proxy-healthz="); err != nil {
		return nil, err
	}
	err = process.Await(ctx, "the agent's report", nil, func(ctx context.Context) error {
		nc := &v1alpha1.NodeConfig{}
		if err := f.flock.Flock().Get().Resource("nodeconfigs").Name(realNode).Do(ctx).Into(nc); err != nil {
			return err
		}
		if nc.Status.ObservedGeneration != nc.Generation {
			return fmt.Errorf("it has reported generation %d of %d", nc.Status.ObservedGeneration, nc.Generation)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, f.server.said("flock-agent"))
	}
	return a, nil
}

// quietly measures the time in which nothing changes, with a real agent and a naive client as
// processes of their own beside the rest.
func (f *fleetRun) quietly(ctx context.Context, m *fleetFigures) error {
	agent, err := f.startAgent(ctx)
	if err != nil {
		return fmt.Errorf("%w: make bin/flock-agent builds it", err)
	}
	child, err := startChild(ctx, fleetName, naiveInput{NetNS: f.server.ns.Path()})
	if err != nil {
		return err
	}
	err = func() error {
		if line, err := child.line(); err != nil || line != "synced" {
			return errors.Join(err, fmt.Errorf("the naive client says %q, want synced", line))
		}
		if err := pause(ctx, min(f.quiet, 10*time.Second)); err != nil { // its start is not quiet
			return err
		}
		m.realStart = agent.traffic.now()
		m.quiet, err = f.measure(func() error {
			for end := time.Now().Add(f.quiet); time.Now().Before(end); {
				for _, p := range []struct {
					pid int
					rss *[]float64
				}{{agent.process.Pid, &m.agentRSS}, {child.cmd.Process.Pid, &m.naiveRSS}} {
					mib, err := residentMiB(p.pid)
					if err != nil {
						return err
					}
					*p.rss = append(*p.rss, mib)
				}
				if err := pause(ctx, sampleEvery); err != nil {
					return err
				}
			}
			return nil
		})
		m.realQuiet = agent.traffic.now().since(m.realStart)
		return err
	}()
	return errors.Join(err, child.end())
}

// residentMiB is the resident memory of a process.
func residentMiB(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			return float64(kib) / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has ended", pid)
}

// naiveInput is where the naive client that is a process finds the API server.
type naiveInput struct{ NetNS string }

// followNaively is that process. It says when it has everything.
func followNaively(ctx context.Context, in naiveInput) error {
	debug.SetGCPercent(25) // as the agent does
	ns, err := os.Open(in.NetNS)
	if err != nil {
		return err
	}
	s := &apiServer{ns: &netNS{ns}}
	defer s.ns.Close()
	n, err := newNaive(s, nil)
	if err != nil {
		return err
	}
	var failed error
	var once sync.Once
	n.namespace, n.failed = func() {}, func(err error) { once.Do(func() { failed = err }) }
	n.run(ctx, func() { fmt.Println("synced") })
	return failed
}
