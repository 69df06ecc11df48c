package agent

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Passwords are read each minute, and sooner after a session has gone down: at first after
// seconds, then less and less often.
func TestReread(t *testing.T) {
	r := newReread()
	within := func(what string, least time.Duration) {
		t.Helper()
		if d := r.after(); d < least || d > least*3/2 {
			t.Errorf("%s: read again after %s, want %s to %s", what, d, least, least*3/2)
		}
	}
	within("at first", time.Minute)
	for _, s := range []metav1.ConditionStatus{metav1.ConditionUnknown, metav1.ConditionTrue} {
		if r.sessions(s) {
			t.Errorf("sessions up is %s: want no other time", s)
		}
		within(string(s), time.Minute)
	}
	for range 2 { // each time that one goes down
		if !r.sessions(metav1.ConditionFalse) {
			t.Error("a session has gone down: want another time")
		}
		for _, d := range []time.Duration{5, 10, 20, 40, 60, 60} {
			within("a session is down", d*time.Second)
			if r.sessions(metav1.ConditionFalse) {
				t.Error("it is still down: want no other time")
			}
		}
		r.sessions(metav1.ConditionTrue)
		within("up again", time.Minute)
	}
}
