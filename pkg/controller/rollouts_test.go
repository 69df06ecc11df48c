package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
)

// What was written counts until the cache has anything else than it had then.
func TestWritten(t *testing.T) {
	var w written[string]
	for _, step := range []struct{ cached, write, want string }{
		{"a", "", "a"},
		{"a", "b", "b"},
		{"a", "c", "c"}, // the cache has neither yet
		{"b", "", "b"},
		{"a", "", "a"}, // nothing is left of c
		{"a", "d", "d"},
		{"x", "", "x"}, // somebody else's
		{"a", "", "a"},
	} {
		got := w.latest(step.cached)
		if step.write != "" {
			w.set(step.write)
			got = w.latest(step.cached)
		}
		if got != step.want {
			t.Errorf("%+v: %s", step, got)
		}
	}
}

// patches is an API server that takes or refuses the PATCHes of statuses.
type patches struct {
	fails int           // with this code
	hangs chan struct{} // answers when it is closed
	last  struct {
		Metadata metav1.ObjectMeta
		Status   struct {
			v1alpha1.NodeConfigTemplateStatus
			TemplateTurn map[string]any `json:"templateTurn"`
		} `json:"status"`
	}
	n int
}

func (p *patches) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	p.n++
	if p.hangs != nil {
		<-p.hangs
	}
	if p.fails != 0 {
		reason := map[int]metav1.StatusReason{http.StatusGatewayTimeout: metav1.StatusReasonTimeout, http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusConflict: metav1.StatusReasonConflict, http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusInternalServerError: metav1.StatusReasonInternalError}[p.fails]
		w.WriteHeader(p.fails)
		fmt.Fprintf(w, `{"apiVersion":"v1","kind":"Status","status":"Failure","code":%d,"reason":%q,"message":"no"}`, p.fails, reason)
		return
	}
	p.last.Status.TemplateTurn, p.last.Metadata = nil, metav1.ObjectMeta{}
	if err := json.NewDecoder(r.Body).Decode(&p.last); err != nil {
		panic(err)
	}
	fmt.Fprint(w, `{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfig"}`)
}

func newRollouts(t *testing.T) (*rollouts, *patches) {
	t.Helper()
	server := &patches{}
	s := httptest.NewServer(server)
	t.Cleanup(s.Close)
	client, err := kube.NewClient(&rest.Config{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	return &rollouts{
		api: client, log: log, events: kube.NewControllerRecorder(client, "test", log), metrics: newMetrics(),
		members: map[types.UID]*member{}, reports: map[types.UID]*reported{"t": {}},
	}, server
}

// A node that is gone has failed still, one that somebody has taken out of the template has not.
func TestStillFailed(t *testing.T) {
	following := map[string]string{"there": "all", "moved": "other", "by-hand": ""}
	if got := stillFailed([]string{"by-hand", "gone", "moved", "there"}, "all", following); !slices.Equal(got, []string{"gone", "there"}) {
		t.Errorf("%v", got)
	}
}

// A node that its template does not fit is one of its nodes all the same.
func TestDecide(t *testing.T) {
	all := &v1alpha1.NodeConfigTemplate{ObjectMeta: metav1.ObjectMeta{Name: "all", UID: "t", Generation: 3}}
	all.Spec.Template.BGP = &v1alpha1.BGPTemplate{LocalASLabel: "as"}
	all.Spec.Template.BGP.Peers = []v1alpha1.BGPPeer{{Name: "tor", Address: "2001:db8::1", RemoteAS: 4200000001}}
	unreadable := all.DeepCopy()
	unreadable.Name, unreadable.Spec.Priority = "first", 1
	unreadable.Spec.NodeSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "role", Operator: "Like"}}
	none := all.DeepCopy()
	none.Spec.NodeSelector.MatchLabels = map[string]string{"role": "storage"}
	fits := map[string]string{"as": "4200000107"}
	node := func(labels map[string]string, ip string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n0", UID: "n", Labels: labels}}
		n.Spec.PodCIDRs = []string{"10.244.7.0/24"}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
		return n
	}
	made := fleet.Decide(fleet.NodeOf(node(fits, "192.0.2.7")), nil, []*v1alpha1.NodeConfigTemplate{all}).Object
	for _, tc := range []struct {
		name           string
		labels         map[string]string
		ip             string
		template       *v1alpha1.NodeConfigTemplate
		of, unfit      string
		updated, facts bool
	}{
		{"as it is", fits, "192.0.2.7", all, "all", "", true, false},
		{"another address", fits, "192.0.2.8", all, "all", "", false, true},
		{"another AS", map[string]string{"as": "4200000108"}, "192.0.2.7", all, "all", "", false, false},
		{"no AS", nil, "192.0.2.7", all, "all", "node n0 has no label as", false, false},
		{"no selector", fits, "192.0.2.7", unreadable, "first", "spec.nodeSelector is not a label selector", false, false},
		{"no template", fits, "192.0.2.7", none, "", "", false, false},
	} {
		m := newMember()
		m.decide(made, node(tc.labels, tc.ip), []*v1alpha1.NodeConfigTemplate{tc.template})
		if m.template != tc.of || m.updated != tc.updated || m.facts != tc.facts || (m.unfit == "") != (tc.unfit == "") || !strings.Contains(m.unfit, tc.unfit) {
			t.Errorf("%s: of %q, updated %t, facts %t, unfit %q", tc.name, m.template, m.updated, m.facts, m.unfit)
		}
	}
}

// A write that nobody answers, as a webhook hangs, is refused.
func TestUnansweredWrites(t *testing.T) {
	r, server := newRollouts(t)
	server.hangs = make(chan struct{})
	defer close(server.hangs)
	m := newMember()
	r.members["n0"] = m
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	config := &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: "n0", UID: "n0"}}
	if given, err := r.giveTurns(ctx, &v1alpha1.NodeConfigTemplate{}, []fleet.Turn{{Config: config}}); given != 0 || err == nil || !strings.Contains(m.refused.why, "deadline exceeded") {
		t.Errorf("%d, %v, %q", given, err, m.refused.why)
	}
}

// A wave's begin and end are written at once, what changes in between once a minute.
func TestReportsArePaced(t *testing.T) {
	r, server := newRollouts(t)
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	tmpl := &v1alpha1.NodeConfigTemplate{ObjectMeta: metav1.ObjectMeta{Name: "all", UID: "t", Generation: 3}}
	done := metav1.NewTime(noon)
	for _, step := range []struct {
		at      int // seconds after noon
		rollout fleet.Rollout
		began   bool
		change  func()
		writes  int
		wait    time.Duration
	}{
		{0, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutProgressing, Message: "first"}, true, nil, 1, -1},
		{1, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutProgressing, Message: "first"}, false, nil, 0, -1},
		{2, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutProgressing, Message: "waits"}, false, nil, 0, 58 * time.Second},
		{10, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutProgressing, Message: "second"}, true, nil, 1, -1},
		{11, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutStopped, Message: "n0"}, false, nil, 1, -1},
		{12, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutStopped, Message: "n0, n1"}, false, nil, 0, 59 * time.Second},
		{12, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutStopped, Message: "n0, n1", Failed: []string{"n1"}}, false, nil, 1, -1}, // it may be deleted at any moment
		{12, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutStopped, Message: "n0"}, false, nil, 0, time.Minute},
		{13, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutProgressing, Message: "waits"}, false, nil, 0, 59 * time.Second},
		{71, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutStopped, Message: "n0, n1", Failed: []string{"n0", "n1"}}, false, nil, 1, -1},
		{72, fleet.Rollout{Nodes: 5, Reason: fleet.RolloutComplete, Message: "all", Completed: &done}, false, nil, 1, -1},
		{73, fleet.Rollout{Nodes: 6, Reason: fleet.RolloutComplete, Message: "all"}, false, nil, 0, 59 * time.Second},
		{74, fleet.Rollout{Nodes: 6, Reason: fleet.RolloutComplete, Message: "all"}, false, func() { tmpl.Generation++ }, 1, -1},
	} {
		if step.change != nil {
			step.change()
		}
		before := server.n
		now := noon.Add(time.Duration(step.at) * time.Second)
		latest := *tmpl
		latest.Status = r.reports["t"].status.latest(tmpl.Status) // the cache never hears of it
		wait, err := r.report(t.Context(), &latest, step.rollout, step.began, now)
		if writes := server.n - before; err != nil || writes != step.writes || wait != step.wait {
			t.Errorf("after %d s: %d writes, %s, %v: want %d, %s", step.at, writes, wait, err, step.writes, step.wait)
		}
		if got := server.last.Status; step.writes > 0 && (got.Conditions[0].Message != step.rollout.Message || got.ObservedGeneration != tmpl.Generation || !slices.Equal(got.FailedNodes, step.rollout.Failed) || got.Nodes != int32(step.rollout.Nodes)) {
			t.Errorf("after %d s: %+v", step.at, got)
		}
	}
	if last := server.last.Status.LastCompleteTime; !last.Equal(&done) {
		t.Errorf("lastCompleteTime %s, want %s", last, done)
	}
}

// What the API server does not take is said, apart from what is another object by now.
func TestRefusedWrites(t *testing.T) {
	r, server := newRollouts(t)
	tmpl := &v1alpha1.NodeConfigTemplate{ObjectMeta: metav1.ObjectMeta{Name: "all", UID: "t"}}
	config := &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: "n0", UID: "n0", ResourceVersion: "7"}}
	m := newMember()
	r.members["n0"] = m
	turn := fleet.Turn{Config: config, Turn: v1alpha1.TemplateTurn{Template: "all", NodeState: v1alpha1.NodeAvailable}}
	for _, tc := range []struct {
		code          int
		said, refused bool
	}{
		{http.StatusNotFound, true, false},
		{http.StatusConflict, true, false}, // it may be another object by now
		{http.StatusConflict, true, true},  // and is not
		{http.StatusGatewayTimeout, true, true},
		{http.StatusForbidden, true, true},
		{http.StatusInternalServerError, true, true},
		{http.StatusServiceUnavailable, true, false},
	} {
		server.fails, m.refused.why = tc.code, ""
		if _, err := r.report(t.Context(), tmpl, fleet.Rollout{Reason: fleet.RolloutComplete}, false, time.Now()); (err != nil) != tc.said || err != nil && !strings.HasPrefix(err.Error(), "NodeConfigTemplate all: write its status: ") {
			t.Errorf("%d for a template: %v", tc.code, err)
		}
		given, err := r.giveTurns(t.Context(), tmpl, []fleet.Turn{turn})
		if given != 0 || (err != nil) != tc.said || err != nil && !strings.HasPrefix(err.Error(), "NodeConfigTemplate all: give node n0 its turn: ") || (m.refused.why != "") != tc.refused {
			t.Errorf("%d for a turn: %d, %v, %q", tc.code, given, err, m.refused.why)
		}
		if err := r.withdrawTurns(t.Context(), tmpl, []fleet.Turn{turn}); (err != nil) != tc.said || err != nil && !strings.HasPrefix(err.Error(), "NodeConfigTemplate all: withdraw the turn of node n0: ") || m.turn.value != nil {
			t.Errorf("%d for the end of a turn: %v, %v", tc.code, err, m.turn.value)
		}
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(r.metrics.failures)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if n := families[0].GetMetric()[0].GetCounter().GetValue(); n != 3*5+1 { // a conflict counts if it is a refusal
		t.Errorf("%v failures", n)
	}
	server.fails, m.refused.why = 0, "before"
	given, err := r.giveTurns(t.Context(), tmpl, []fleet.Turn{turn})
	if got := m.turn.latest(nil); given != 1 || err != nil || m.refused.why != "" || got == nil || !reflect.DeepEqual(*got, turn.Turn) {
		t.Errorf("%d, %v, %q, %v", given, err, m.refused.why, got)
	}
	for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} { // a busy cluster asks no more often
		server.fails = http.StatusForbidden
		before := time.Now()
		if r.giveTurns(t.Context(), tmpl, []fleet.Turn{turn}); m.refused.again.Before(before.Add(want)) || m.refused.again.After(time.Now().Add(want*12/10)) {
			t.Errorf("refusal %d is tried again after %s, want %s and a fifth more at most", i, m.refused.again.Sub(before), want)
		}
	}
	server.fails = 0
	if r.giveTurns(t.Context(), tmpl, []fleet.Turn{turn}); m.refused.pause.Next() > 2*time.Second {
		t.Error("the pause after refusals stays when the turn was taken")
	}
	if sessions, ok := server.last.Status.TemplateTurn["sessionsUp"]; !ok || sessions != 0.0 {
		t.Errorf("sessionsUp of the turn before stays: %v", server.last.Status.TemplateTurn)
	}
	if version := server.last.Metadata.ResourceVersion; version != "" {
		t.Errorf("a turn is given for version %s of the NodeConfig alone", version)
	}

	// A node that follows at this moment keeps its turn: its NodeConfig has another version then.
	turn.Turn.Withdrawn = true
	if err := r.withdrawTurns(t.Context(), tmpl, []fleet.Turn{turn}); err != nil || !reflect.DeepEqual(*m.turn.latest(nil), turn.Turn) || server.last.Metadata.ResourceVersion != "7" {
		t.Errorf("%v, %+v, for version %q", err, m.turn.latest(nil), server.last.Metadata.ResourceVersion)
	}
}
