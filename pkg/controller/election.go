package controller

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LeaseName is the Lease by which one instance works.
const LeaseName = "flock-controller"

// DefaultLeaseDuration is after how long another instance takes a Lease that is not renewed.
const DefaultLeaseDuration = 15 * time.Second

// election has lead run in one instance at a time.
type election struct {
	name    string
	lasts   time.Duration // of the Lease
	lock    resourcelock.Interface
	lead    func(context.Context)
	log     *slog.Logger
	watch   *leaderelection.HealthzAdaptor
	mu      sync.Mutex // guards holder
	holder  string
	working sync.Mutex // held while lead runs
}

func newElection(c Config, lead func(context.Context)) (*election, error) {
	leases, err := coordination.NewForConfig(c.API)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	lasts := cmp.Or(c.LeaseDuration, DefaultLeaseDuration)
	return &election{
		name: c.Name, lasts: lasts, lead: lead, log: c.Log,
		watch: leaderelection.NewLeaderHealthzAdaptor(lasts), // it has ended work long before
		lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: c.Namespace, Name: LeaseName},
			Client:     leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: c.Name},
		},
	}, nil
}

// run takes part in elections until ctx ends. It gives up the Lease only when lead has
// returned.
func (e *election) run(ctx context.Context) {
	for ctx.Err() == nil {
		e.term(ctx)
	}
}

func (e *election) term(ctx context.Context) {
	work, endWork := context.WithCancel(ctx)
	defer endWork()
	elect, endElection := context.WithCancel(context.WithoutCancel(ctx))
	defer endElection()
	defer context.AfterFunc(ctx, func() {
		e.working.Lock() // lead has returned
		defer e.working.Unlock()
		endElection()
	})()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: e.lock, LeaseDuration: e.lasts, RenewDeadline: e.lasts * 2 / 3, RetryPeriod: e.lasts * 2 / 15,
		ReleaseOnCancel: true, WatchDog: e.watch, Name: LeaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				e.working.Lock()
				defer e.working.Unlock()
				defer context.AfterFunc(leading, endWork)()
				if work.Err() != nil {
					return
				}
				e.log.Info("this instance has the Lease", "lease", e.lock.Describe())
				e.lead(work)
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(holder string) {
				e.mu.Lock()
				defer e.mu.Unlock()
				e.holder = holder
			},
		},
	})
	if err != nil {
		e.log.Error("cannot take part in the election", "error", err)
		<-ctx.Done()
		return
	}
	e.watch.SetLeaderElection(elector)
	elector.Run(elect)
	endWork()
	e.working.Lock() // lead has returned
	defer e.working.Unlock()
	if ctx.Err() == nil {
		e.log.Warn("this instance has lost the Lease and stands by", "lease", e.lock.Describe())
	}
}

// leader is the instance that has the Lease, as far as is known; "" before that.
func (e *election) leader() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.holder
}

func (e *election) unhealthy() string {
	if err := e.watch.Check(nil); err != nil {
		return err.Error()
	}
	return ""
}
