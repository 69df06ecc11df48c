package controller

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/scrape"
)

// Config is what flock-controller is started with.
type Config struct {
	// API is where the API server is, with the credentials.
	API *rest.Config
	// Name of this instance, unlike that of any other, and the namespace of the Lease
	// and of the Secrets with passwords.
	Name, Namespace string
	// LeaseDuration is after how long another instance takes a Lease that is not renewed; 0 is
	// the default.
	LeaseDuration time.Duration
	// Classless: Services of type LoadBalancer without a loadBalancerClass get addresses too.
	Classless bool
	// HealthAddress is address:port of /healthz, /readyz and /metrics; "" serves none.
	HealthAddress string
	// MetricsAddress is address:port of /metrics for other machines, over TLS and for those
	// whom the API server allows; "" serves none.
	MetricsAddress string
	Log            *slog.Logger
}

// Run works until ctx ends. It gives up the Lease then, so that another instance goes on at
// once. The error says why it cannot begin.
func Run(ctx context.Context, c Config) error {
	client, err := kube.NewClient(c.API)
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	ctrl := newController(c, client)
	election, err := newElection(c, ctrl.lead)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var served error
	var parts sync.WaitGroup
	if c.HealthAddress != "" {
		parts.Go(func() {
			if err := serve(ctx, c.HealthAddress, ctrl.handler(election)); err != nil {
				served = fmt.Errorf("--health-address=%s: %w", c.HealthAddress, err)
				cancel()
			}
		})
	}
	tls, err := scrape.TLS("", "", c.Name, nil)
	if err != nil {
		return fmt.Errorf("make a certificate for --metrics-address: %w", err)
	}
	parts.Go(func() {
		scrape.Address{Flag: "--metrics-address", Addr: c.MetricsAddress, TLS: tls, Log: c.Log}.
			Run(ctx, scrape.NewGuard(client, c.Log).Protect(ctrl.metricsHandler()))
	})
	election.run(ctx)
	cancel()
	parts.Wait()
	return served
}

// Lead does the work of the instance with the Lease, without having it, until ctx ends.
func Lead(ctx context.Context, c Config) error {
	client, err := kube.NewClient(c.API)
	if err != nil {
		return err
	}
	newController(c, client).lead(ctx)
	return nil
}

type controller struct {
	Config
	client   *kube.Client
	metrics  *metrics
	recorder *kube.Recorder
	synced   atomic.Bool // while it leads: it has all objects
}

func newController(c Config, client *kube.Client) *controller {
	return &controller{Config: c, client: client, metrics: newMetrics(), recorder: kube.NewControllerRecorder(client, c.Name, c.Log)}
}

// lead works until ctx ends.
func (c *controller) lead(ctx context.Context) {
	c.metrics.leading.Store(true)
	defer c.metrics.leading.Store(false)
	defer c.metrics.forget()
	w := newWorld(c.client, c.Log)
	var parts sync.WaitGroup
	for _, run := range w.caches() {
		parts.Go(func() { run(ctx) })
	}
	defer parts.Wait()
	if !w.await(ctx, c.Log) {
		return
	}
	c.synced.Store(true)
	defer c.synced.Store(false)
	c.Log.Info("caches are synced, assigning addresses")
	for _, run := range []func(context.Context){
		c.recorder.Run,
		(&services{world: w, api: c.client, classless: c.Classless, events: c.recorder, log: c.Log, metrics: c.metrics}).Run,
		(&claims{world: w, api: c.client, log: c.Log, metrics: c.metrics}).Run,
		(&nodes{world: w, api: c.client, log: c.Log, metrics: c.metrics}).Run,
		(&agents{world: w, api: c.client, namespace: c.Namespace, metrics: c.metrics}).Run,
		(&podCIDRs{world: w, api: c.client, log: c.Log, metrics: c.metrics}).Run,
		(&rollouts{world: w, api: c.client, events: c.recorder, log: c.Log, metrics: c.metrics}).Run,
		(&pools{world: w, api: c.client, log: c.Log, metrics: c.metrics}).Run,
		(&passwords{world: w, api: c.client, namespace: c.Namespace, log: c.Log, metrics: c.metrics}).Run,
	} {
		parts.Go(func() { run(ctx) })
	}
	<-ctx.Done()
}

// handler answers /healthz unless this instance holds on to a Lease that it cannot renew,
// and /readyz once it works or knows which other instance does.
func (c *controller) handler(e *election) http.Handler {
	mux := c.metricsHandler()
	answer := func(pattern string, fault func() string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			if why := fault(); why != "" {
				http.Error(w, why, http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})
	}
	answer("GET /healthz", e.unhealthy)
	answer("GET /readyz", func() string {
		switch leader := e.leader(); {
		case leader == "":
			return "it does not know yet which instance has the Lease"
		case leader == c.Name && !c.synced.Load():
			return "it has the Lease, and the API server has not sent all objects yet"
		}
		return ""
	})
	return mux
}

// metricsHandler answers /metrics.
func (c *controller) metricsHandler() *http.ServeMux {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), c.metrics)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return mux
}

func serve(ctx context.Context, address string, handler http.Handler) error {
	server := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.ListenAndServe(); ctx.Err() == nil {
		return err
	}
	return nil
}
