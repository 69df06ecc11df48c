package agent

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// patches is an API server that keeps the last status.
type patches struct {
	last  v1alpha1.NodeConfigStatus
	count int
}

func (p *patches) PatchStatus(_ context.Context, _ string, status v1alpha1.NodeConfigStatus) error {
	p.last, p.count = *status.DeepCopy(), p.count+1
	return nil
}

// fickle is a part with one condition.
type fickle struct{ cell.Cell[metav1.Condition] }

func (f *fickle) Conditions() []metav1.Condition { return []metav1.Condition{f.Get()} }

func reporting(t *testing.T) (*fickle, *patches) {
	t.Helper()
	f, api, _ := reportingOf(t)
	return f, api
}

func reportingOf(t *testing.T) (*fickle, *patches, *cell.Cell[observed]) {
	t.Helper()
	f, api := &fickle{}, &patches{}
	f.Set(metav1.Condition{Type: "Fickle", Status: metav1.ConditionTrue, Reason: "Yes"})
	state := nodeState{}
	state.newest.uid, state.newest.generation = "a", 1
	object := &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{UID: "a", Generation: 1}}
	configs := cell.New(observed{object: object, synced: true})
	r := &report{
		node: "node1", api: api, parts: parts{f}, log: slog.New(slog.DiscardHandler),
		state: cell.New(state), configs: configs,
	}
	go r.Run(t.Context())
	return f, api, configs
}

// While the node was cut off, flock-controller has turned the conditions to Unknown. The
// agent, for which nothing has changed, writes them again as soon as it sees that.
func TestConditionsComeBackFromUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, api, configs := reportingOf(t)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		before := api.count
		seen := &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{UID: "a", Generation: 1}, Status: *api.last.DeepCopy()}
		configs.Set(observed{object: seen, synced: true})
		time.Sleep(time.Minute)
		synctest.Wait()
		if api.count != before {
			t.Errorf("%d writes though nothing has changed", api.count-before)
		}
		dead := seen.DeepCopy()
		for i := range dead.Status.Conditions {
			dead.Status.Conditions[i].Status, dead.Status.Conditions[i].Reason = metav1.ConditionUnknown, v1alpha1.ReasonNodeUnknown
		}
		configs.Set(observed{object: dead, synced: true})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if c := meta.FindStatusCondition(api.last.Conditions, "Fickle"); api.count == before || c == nil || c.Status != metav1.ConditionTrue {
			t.Errorf("%d writes, the condition is %+v", api.count-before, c)
		}
		configs.Set(observed{object: seen, synced: true})
		after := api.count
		time.Sleep(time.Minute)
		synctest.Wait()
		if api.count > after+1 {
			t.Errorf("%d writes after it was put right", api.count-after)
		}
	})
}

// However often a condition changes, what is written never lags by more than 2 s.
func TestConditionsDoNotLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, api := reporting(t)
		for i := range 50 {
			want := metav1.ConditionTrue
			if i%2 == 1 {
				want = metav1.ConditionFalse
			}
			f.Set(metav1.Condition{Type: "Fickle", Status: want, Reason: "Yes", Message: fmt.Sprint(i)})
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if c := meta.FindStatusCondition(api.last.Conditions, "Fickle"); c == nil || c.Status != want || c.Message != fmt.Sprint(i) || c.ObservedGeneration != 1 {
				t.Fatalf("2 s after change %d the condition is %+v, want %s", i, c, want)
			}
		}
	})
}

// Messages that change all the time are written at a bounded pace, and the last one
// of a burst is written.
func TestMessagesArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, api := reporting(t)
		const minutes = 20
		for i := range minutes * 60 {
			f.Set(metav1.Condition{Type: "Fickle", Status: metav1.ConditionTrue, Reason: "Yes", Message: fmt.Sprint(i)})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if api.count < minutes || api.count > minutes+11 {
			t.Errorf("%d writes in %d minutes, want one a minute and ten more", api.count, minutes)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if c := meta.FindStatusCondition(api.last.Conditions, "Fickle"); c == nil || c.Message != fmt.Sprint(minutes*60-1) {
			t.Errorf("the last message was not written: %+v", c)
		}
	})
}

// A part takes its condition away by an empty status, and leaves one alone that it
// does not return.
func TestConditionIsTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, api := reporting(t)
		time.Sleep(2 * time.Second)
		f.Set(metav1.Condition{Type: "Fickle"})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if c := meta.FindStatusCondition(api.last.Conditions, "Fickle"); c != nil || len(api.last.Conditions) != 1 {
			t.Errorf("conditions %+v, want only Ready", api.last.Conditions)
		}
	})
}

// A generation is reported as observed within 2 s, also when messages have used up what
// may be written without waiting.
func TestGenerationDoesNotLag(t *testing.T) {
	written := v1alpha1.NodeConfigStatus{ObservedGeneration: 1, RetiredCIDRs: []string{"10.1.0.0/24"}}
	pace := rate.NewLimiter(rate.Every(time.Minute), 1)
	pace.Allow()
	for _, c := range []struct {
		now   v1alpha1.NodeConfigStatus
		waits bool
	}{
		{v1alpha1.NodeConfigStatus{ObservedGeneration: 1}, true},
		{v1alpha1.NodeConfigStatus{ObservedGeneration: 2, RetiredCIDRs: written.RetiredCIDRs}, false},
		{v1alpha1.NodeConfigStatus{ObservedGeneration: 2}, false},
	} {
		if wait := due(written, c.now, time.Now(), pace); wait < 0 || (wait > 0) != c.waits {
			t.Errorf("%+v is due in %s, to wait: %t", c.now, wait, c.waits)
		}
	}
}
