//go:build linux

// Command flock-agent does all of flock's work on a node: it answers the CNI
// plugin, wires pods, maintains the node's routes and renders the routing daemon's
// configuration.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"flock.fritzlab.net/flock/internal/logattr"
	"flock.fritzlab.net/flock/internal/otlp"
	"flock.fritzlab.net/flock/internal/version"
	"flock.fritzlab.net/flock/pkg/agent"
	"flock.fritzlab.net/flock/pkg/agent/threads"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/pod/exits"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

const usage = `flock-agent serves the pods of one node.

It runs in the node's own network namespace (the DaemonSet in deploy/ does
this), waits for the NodeConfig with the node's name, and then answers the CNI
plugin on the socket in the state directory. While it does not run, running pods
and the routes of the node stay as they are.

Flags:
`

func main() {
	var c agent.Config
	var level slog.Level
	var format string
	var showVersion bool
	flag.StringVar(&c.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this node's Node and NodeConfig objects (default: $NODE_NAME)")
	flag.StringVar(&c.Namespace, "namespace", "flock-system", "namespace of flock's own objects: its DaemonSet, and the Secrets that messages about passwords name")
	flag.StringVar(&c.PodName, "pod-name", os.Getenv("POD_NAME"), "name of the agent's own pod, by which it finds its DaemonSet, to tell a roll-out from a departure of the node (default: $POD_NAME)")
	addresses := func(s string) error {
		c.NodeAddresses = nil
		for field := range strings.SplitSeq(s, ",") {
			addr, err := netip.ParseAddr(field)
			if err != nil {
				return fmt.Errorf("%q is not an IP address: want the node's InternalIPs, separated by commas", field)
			}
			c.NodeAddresses = append(c.NodeAddresses, addr)
		}
		return nil
	}
	flag.Func("node-addresses", "the Node's InternalIPs, separated by commas; a BGP session to a router in the subnet of one of them uses it as its source (default: $NODE_ADDRESSES)", addresses)
	flag.StringVar(&c.StateDir, "state-dir", "/run/flock", "directory for the socket, the attachments and BIRD's configuration; must not survive a reboot")
	flag.StringVar(&c.Kubeconfig, "kubeconfig", "", "path to a kubeconfig; if empty, the agent uses the service account of its pod")
	flag.StringVar(&c.PodsAPI, "pods-api", source.DefaultSocket, "socket of the kubelet's Pods API (Kubernetes 1.37 and later); while it does not answer, the agent watches the API server; if empty, always")
	c.ExitSources = exits.AllSources
	flag.Func("exit-sources", "where the agent learns that a container has ended, in order of preference, separated by commas: containerd (its own events, after some 3 ms), cri (events of any runtime, some 50 ms); none uses the kubelet only, up to a second (default \"containerd,cri\")", func(s string) (err error) {
		c.ExitSources, err = exits.ParseSources(s)
		return err
	})
	c.RuntimeSockets = exits.DefaultSockets
	flag.Func("runtime-sockets", "sockets of the container runtime for --exit-sources, separated by commas; the agent tries them in order (default \""+strings.Join(exits.DefaultSockets, ",")+"\")", func(s string) error {
		c.RuntimeSockets = strings.Split(s, ",")
		return nil
	})
	flag.StringVar(&c.ProxyHealthz, "kube-proxy-healthz", "http://localhost:10256/healthz", "URL of kube-proxy's health check; while it answers 503, or when it has answered and does not for a minute, the node does not announce Services with externalTrafficPolicy Cluster; if empty, the agent does not check")
	flag.StringVar(&c.HealthAddress, "health-address", "127.0.0.1:9479", "address and port of /healthz, /readyz and /metrics (Prometheus); if empty, there are none")
	flag.Func("policy-mark", "bits of the ct mark in which network policies record that they have judged a connection: a mask of 8 or more bits side by side that no other program uses (default 0xffffff00)", func(s string) (err error) {
		c.PolicyMark, err = policy.ParseMark(s)
		return err
	})
	flag.IntVar(&c.PolicyBudget, "policy-budget", policy.DefaultBudget, "how many elements (addresses of pods for each port, and blocks of addresses) the NetworkPolicies of one namespace may have on the node; policies above it, the newest, allow nothing")
	flag.StringVar(&c.MetricsAddress, "metrics-address", "", "address and port of /metrics for other machines, over TLS: the API server must allow the client's token to get this path (TokenReview, SubjectAccessReview); :9480 in deploy/; if empty, there is none")
	flag.StringVar(&c.MetricsCertFile, "metrics-cert-file", "", "PEM file with the certificate for --metrics-address, read again when it changes; if empty, the agent makes one itself")
	flag.StringVar(&c.MetricsKeyFile, "metrics-key-file", "", "PEM file with the key of --metrics-cert-file")
	flag.StringVar(&c.PageAddress, "page-address", "", "address and port, on the loopback, of a page that shows the node's pods, routes, sessions, policies and Events: 127.0.0.1:9481; if empty, there is none")
	flag.StringVar(&c.OTLPEndpoint, "otlp-endpoint", "", "URL of an OpenTelemetry collector (OTLP over HTTP, as in http://127.0.0.1:4318) that gets the spans of each ADD and DEL; OTEL_EXPORTER_OTLP_HEADERS, _COMPRESSION and _CERTIFICATE in the environment, and the forms with OTLP_TRACES, say how; if empty, none are made")
	flag.Func("realtime-priority", "real-time priority of the agent's threads, from 1 to 99 (SCHED_RR): on a node whose processors are all busy a withdrawal does not wait for one; needs CAP_SYS_NICE; 0: none (default 0)", func(s string) (err error) {
		c.RealtimePriority, err = threads.ParsePriority(s)
		return err
	})
	flag.TextVar(&level, "log-level", slog.LevelInfo, "lowest level to log: debug, info, warn or error")
	flag.StringVar(&format, "log-format", "text", "format of the log: text (logfmt) or json, a line each")
	flag.BoolVar(&showVersion, "version", false, "print the version and exit")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if env := os.Getenv("NODE_ADDRESSES"); env != "" && c.NodeAddresses == nil {
		if err := addresses(env); err != nil {
			fmt.Fprintf(os.Stderr, "flock-agent: NODE_ADDRESSES=%q: %v\n", env, err)
			os.Exit(2)
		}
	}
	if showVersion {
		fmt.Println(version.Version)
		return
	}
	var err error
	if c.OTLPEndpoint, err = otlp.ParseEndpoint(c.OTLPEndpoint); err != nil { // not by flag, which prints the value with its password
		fmt.Fprintln(os.Stderr, "flock-agent: --otlp-endpoint:", err)
		os.Exit(2)
	}
	if err := agent.CheckPageAddress(c.PageAddress); err != nil {
		fmt.Fprintln(os.Stderr, "flock-agent:", err)
		os.Exit(2)
	}
	if c.PolicyBudget < 1 {
		fmt.Fprintf(os.Stderr, "flock-agent: --policy-budget=%d: want 1 or more elements, %d if it is left out\n", c.PolicyBudget, policy.DefaultBudget)
		os.Exit(2)
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "flock-agent: unexpected argument %q; see --help\n", flag.Arg(0))
		os.Exit(2)
	}

	handler, err := logHandler(os.Stderr, format, level)
	if err != nil {
		fmt.Fprintln(os.Stderr, "flock-agent:", err)
		os.Exit(2)
	}
	c.Log = slog.New(handler)
	if c.OTLPEndpoint != "" {
		// The headers may come from a Secret, of which no roll-out tries a change at one node first: a
		// bad one must not keep agents from their start.
		if c.OTLP, err = otlp.FromEnvironment(os.Getenv); err != nil {
			c.Log.Error("cannot read OpenTelemetry's environment variables, no spans are sent until they are fixed and the agent starts again", "error", err)
			c.OTLPEndpoint = ""
		}
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25) // a node has little memory to spare, and the agent makes little garbage
	}
	klog.SetSlogLogger(c.Log) // client-go logs in the same format
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := agent.Run(ctx, c); err != nil {
		c.Log.Error("flock-agent exits", "error", err)
		os.Exit(1)
	}
}

// logHandler writes lines in the format, with the attributes of the call that they
// belong to.
func logHandler(w io.Writer, format string, level slog.Level) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return logattr.Handler(slog.NewTextHandler(w, options)), nil
	case "json":
		return logattr.Handler(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("--log-format=%s: want text or json", format)
}
