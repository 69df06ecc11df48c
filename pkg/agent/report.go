//go:build linux

package agent

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// conditionReady: pods are served.
const conditionReady = "Ready"

// report writes the NodeConfig's status from what the parts contribute.
type report struct {
	node    string
	api     statusWriter
	parts   parts
	state   cell.Reader[nodeState]
	configs cell.Reader[observed]
	log     *slog.Logger
}

type statusWriter interface {
	PatchStatus(ctx context.Context, nodeConfig string, status v1alpha1.NodeConfigStatus) error
}

const (
	gather      = time.Second // changes that come together are one write
	countsEvery = time.Minute // for counters, which alone are no reason to write
)

// Run writes the status when something in it has changed that somebody may act on.
// A condition's or a session's change is written within gather or two. Of messages
// and the like a few changes are written at once, more at a pace at which a thousand
// nodes make fewer than 20 writes a second.
func (r *report) Run(ctx context.Context) error {
	changed := cell.Signal()
	r.parts.notify(changed)
	r.configs.Notify(changed)
	pace := rate.NewLimiter(rate.Every(time.Minute), 10)
	var status, written v1alpha1.NodeConfigStatus
	var of types.UID // the object with that status
	var earliest time.Time
	var wrote time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := backoff.Backoff{First: time.Second, Last: 30 * time.Second}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		}
		newest, config := r.state.Get().newest, r.configs.Get()
		there := config.object != nil && !config.cached
		if newest.uid == "" || !there && of != newest.uid || there && config.object.UID != newest.uid {
			continue // the object to write to is not known yet
		}
		if of != newest.uid { // what an agent before this one wrote goes on
			of, written = newest.uid, ofAgent(config.object.Status)
			status = v1alpha1.NodeConfigStatus{Conditions: slices.Clone(written.Conditions)}
			earliest = time.Now().Add(gather) // BIRD and the API server are about to say the rest
		}
		if wait := time.Until(earliest); wait > 0 {
			timer.Reset(wait)
			continue
		}
		if there && (takenForDead(config.object) || config.object.Status.PasswordKey != written.PasswordKey) {
			written = ofAgent(config.object.Status)
		}
		r.fill(ctx, newest.generation, &status)
		if wait := due(written, status, wrote, pace); wait == never {
			continue
		} else if wait > 0 {
			timer.Reset(wait)
			continue
		}
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := r.api.PatchStatus(call, r.node, status)
		cancel()
		switch config := r.configs.Get(); {
		case err == nil, apierrors.IsNotFound(err) && config.synced && config.object == nil: // a deleted object has no status
			written, wrote = *status.DeepCopy(), time.Now()
			earliest = wrote.Add(gather)
			retry.Reset()
		default:
			after := retry.Next()
			r.log.Debug("cannot write the NodeConfig's status, will retry", "error", err, "after", after)
			earliest = time.Now().Add(after)
			timer.Reset(after)
		}
	}
}

// ofAgent is what of status an agent writes.
func ofAgent(status v1alpha1.NodeConfigStatus) v1alpha1.NodeConfigStatus {
	s := status.DeepCopy()
	s.Passwords, s.TemplateTurn, s.PodCIDROverlaps = nil, nil, nil
	return *s
}

// takenForDead says whether flock-controller has turned the conditions to Unknown, because
// nothing was heard of the node: it was cut off, say. They are to be written again then.
func takenForDead(nc *v1alpha1.NodeConfig) bool {
	return slices.ContainsFunc(nc.Status.Conditions, func(c metav1.Condition) bool {
		return c.Status == metav1.ConditionUnknown && c.Reason == v1alpha1.ReasonNodeUnknown
	})
}

// never says that there is nothing to write.
const never time.Duration = -1

// due is in how long status is to be written, after written was at wrote.
func due(written, status v1alpha1.NodeConfigStatus, wrote time.Time, pace *rate.Limiter) time.Duration {
	switch {
	case reflect.DeepEqual(status, written):
		return never
	case reflect.DeepEqual(withoutCounts(status), withoutCounts(written)):
		return max(0, time.Until(wrote.Add(countsEvery)))
	// People wait for the generation that they have written to be in force.
	case status.ObservedGeneration != written.ObservedGeneration, !reflect.DeepEqual(states(status), states(written)):
		pace.Allow() // counts, but does not wait
		return 0
	case pace.Allow():
		return 0
	}
	return time.Duration((1 - pace.Tokens()) / float64(pace.Limit()) * float64(time.Second))
}

// withoutCounts is status without what changes all the time.
func withoutCounts(status v1alpha1.NodeConfigStatus) *v1alpha1.NodeConfigStatus {
	s := status.DeepCopy()
	for i := range s.Sessions {
		s.Sessions[i].Sent, s.Sessions[i].Accepted, s.Sessions[i].Rejected = 0, 0, 0
	}
	return s
}

// states is what of status must never lag.
func states(status v1alpha1.NodeConfigStatus) map[string]metav1.ConditionStatus {
	s := map[string]metav1.ConditionStatus{}
	for _, c := range status.Conditions {
		s[c.Type] = c.Status
	}
	return s
}

// fill makes status that of now. It keeps the times of conditions that did not
// change.
func (r *report) fill(ctx context.Context, generation int64, status *v1alpha1.NodeConfigStatus) {
	status.ObservedGeneration = generation
	ready := metav1.Condition{Type: conditionReady, Status: metav1.ConditionTrue, Reason: "ServingPods"}
	if reason, message := r.parts.unready(); message != "" {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, reason, message
	}
	for _, c := range append([]metav1.Condition{ready}, r.parts.conditions()...) {
		c.ObservedGeneration = generation
		if c.Status == "" {
			meta.RemoveStatusCondition(&status.Conditions, c.Type)
			continue
		}
		meta.SetStatusCondition(&status.Conditions, c)
	}
	for _, p := range each[Reporter](r.parts) {
		p.Report(ctx, status)
	}
}
