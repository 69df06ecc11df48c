// Command flock-controller gives Services of type LoadBalancer their addresses, and does what
// else needs the whole cluster in view.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"flock.fritzlab.net/flock/internal/version"
	"flock.fritzlab.net/flock/pkg/controller"
)

const usage = `flock-controller gives Services with loadBalancerClass flock.fritzlab.net/bgp
their addresses from AddressPools with use service. flock's agents announce them.

It also ends the AddressClaims of nodes that are gone, turns the conditions of
NodeConfigs of such nodes to Unknown, writes who uses an AddressPool into its
status, and encrypts the passwords of BGP and OSPF sessions for the nodes that
need them. Several instances may run: the one with the Lease works. While none
works, Services keep what they have, and nodes go on announcing it.

Flags:
`

func main() {
	var c controller.Config
	var level slog.Level
	var kubeconfig, format string
	var showVersion bool
	hostname, _ := os.Hostname()
	flag.StringVar(&c.Name, "name", os.Getenv("POD_NAME"), "unique name of this instance (default: $POD_NAME, or the host's name)")
	flag.StringVar(&c.Namespace, "namespace", "flock-system", "namespace of the Lease "+controller.LeaseName+" and of the Secrets with the passwords of BGP and OSPF sessions")
	flag.DurationVar(&c.LeaseDuration, "lease-duration", controller.DefaultLeaseDuration, "how long the Lease is valid without renewal before another instance takes over; at least 2s")
	flag.BoolVar(&c.Classless, "without-class", false, "also give addresses to Services of type LoadBalancer without a loadBalancerClass; do not set it while another controller takes these")
	flag.StringVar(&kubeconfig, "kubeconfig", "", "path to a kubeconfig; if empty, the controller uses the service account of its pod")
	flag.StringVar(&c.HealthAddress, "health-address", "127.0.0.1:9478", "address and port of /healthz, /readyz and /metrics (Prometheus); if empty, there are none")
	flag.StringVar(&c.MetricsAddress, "metrics-address", "", "address and port of /metrics for other machines, over TLS: the API server must allow the client's token to get this path (TokenReview, SubjectAccessReview); :9482 in deploy/; if empty, there is none")
	flag.TextVar(&level, "log-level", slog.LevelInfo, "lowest level to log: debug, info, warn or error")
	flag.StringVar(&format, "log-format", "text", "format of the log: text (logfmt) or json, a line each")
	flag.BoolVar(&showVersion, "version", false, "print the version and exit")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if showVersion {
		fmt.Println(version.Version)
		return
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "flock-controller: unexpected argument %q; see --help\n", flag.Arg(0))
		os.Exit(2)
	}
	if c.LeaseDuration < 2*time.Second {
		fmt.Fprintf(os.Stderr, "flock-controller: --lease-duration=%s: want at least 2s\n", c.LeaseDuration)
		os.Exit(2)
	}
	if c.Name == "" {
		c.Name = hostname
	}

	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		c.Log = slog.New(slog.NewTextHandler(os.Stderr, options))
	case "json":
		c.Log = slog.New(slog.NewJSONHandler(os.Stderr, options))
	default:
		fmt.Fprintf(os.Stderr, "flock-controller: --log-format=%s: want text or json\n", format)
		os.Exit(2)
	}
	klog.SetSlogLogger(c.Log) // client-go logs in the same format
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := func() (err error) {
		if kubeconfig == "" {
			c.API, err = rest.InClusterConfig()
		} else {
			c.API, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
		}
		if err != nil {
			return fmt.Errorf("no way to reach the API server: %w", err)
		}
		return controller.Run(ctx, c)
	}()
	if err != nil {
		c.Log.Error("flock-controller exits", "error", err)
		os.Exit(1)
	}
}
