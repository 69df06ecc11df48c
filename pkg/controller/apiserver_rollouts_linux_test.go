//go:build apiserver

package controller

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
)

// followers are the agents of nodes, as far as they follow templates. Each has an agent's
// rights.
type followers struct {
	mu    sync.Mutex     // guards below
	bad   int32          // the MTU with which a node's sessions go down
	order []string       // of the nodes that changed their MTU, as node=MTU
	quiet map[string]int // nodes whose agents do nothing
	dead  string         // the node whose sessions are down whatever its MTU
	cut   string         // the node whose agent does nothing more once it has followed
}

func (f *followers) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *followers) changes() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.order)
}

func (f *followers) follow(t *testing.T, s *server, name string, stop <-chan struct{}) {
	c, err := kube.NewClient(s.Agent(name))
	if err != nil {
		t.Error(err)
		return
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		f.mu.Lock()
		_, quiet := f.quiet[name]
		bad, dead := f.bad, f.dead == name
		f.mu.Unlock()
		if quiet {
			continue
		}
		if err := f.step(t, c, name, bad, dead); err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && t.Context().Err() == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (f *followers) step(t *testing.T, c *kube.Client, name string, bad int32, dead bool) error {
	ctx := t.Context()
	node := &corev1.Node{}
	if err := c.Core().Get().Resource("nodes").Name(name).Do(ctx).Into(node); err != nil {
		return err
	}
	templates := &v1alpha1.NodeConfigTemplateList{}
	if err := c.Flock().Get().Resource("nodeconfigtemplates").Do(ctx).Into(templates); err != nil {
		return err
	}
	var all []*v1alpha1.NodeConfigTemplate
	for i := range templates.Items {
		all = append(all, &templates.Items[i])
	}
	current := &v1alpha1.NodeConfig{}
	if err := c.Flock().Get().Resource("nodeconfigs").Name(name).Do(ctx).Into(current); apierrors.IsNotFound(err) {
		current = nil
	} else if err != nil {
		return err
	}
	switch v := fleet.Decide(fleet.NodeOf(node), current, all).InTurn(current); v.Action {
	case fleet.Create:
		f.set(func() { f.order = append(f.order, fmt.Sprintf("%s=%d", name, v.Object.Spec.MTU)) })
		return c.CreateNodeConfig(ctx, v.Object)
	case fleet.Update:
		if v.Object.Spec.MTU != current.Spec.MTU {
			f.set(func() {
				f.order = append(f.order, fmt.Sprintf("%s=%d", name, v.Object.Spec.MTU))
				if f.cut == name {
					f.quiet[name] = 0
				}
			})
		}
		return c.UpdateNodeConfig(ctx, v.Object)
	}
	if current == nil {
		return nil
	}
	status := v1alpha1.NodeConfigStatus{ObservedGeneration: current.Generation, Conditions: slices.Clone(current.Status.Conditions)}
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{Type: "Ready", Status: metav1.ConditionTrue, Reason: "ServingPods"})
	up := metav1.Condition{Type: "SessionsUp", Status: metav1.ConditionTrue, Reason: "AllUp"}
	if current.Spec.MTU == bad || dead {
		up.Status, up.Reason, up.Message = metav1.ConditionFalse, "SomeDown", "tor: down"
	}
	changed := meta.SetStatusCondition(&status.Conditions, up)
	if !changed && current.Status.ObservedGeneration == current.Generation {
		return nil
	}
	return c.PatchStatus(ctx, name, status)
}

// wantWaves: the MTU has reached wave0, then two, two and one.
func wantWaves(t *testing.T, got []string, mtu int) {
	t.Helper()
	if len(got) == 6 {
		slices.Sort(got[1:3])
		slices.Sort(got[3:5])
	}
	var want []string
	for i := range 6 {
		want = append(want, fmt.Sprintf("wave%d=%d", i, mtu))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the waves are %v, want %v", got, want)
	}
}

// waves: a change of a template reaches first one node, then waves; a bad one stops there,
// and the remedy begins there.
func waves(t *testing.T, s *server) {
	t.Cleanup(func() { s.Kubectl("", "delete", "nodeconfigtemplates", "--all") })
	template := func(mtu int) {
		t.Helper()
		s.apply(t, fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplate","metadata":{"name":"all"},"spec":{"nodeSelector":{},"minReadySeconds":1,"progressDeadlineSeconds":4,
			"updateStrategy":{"rollingUpdate":{"maxUnavailable":2}},"template":{"mtu":%d}}}`, mtu))
	}
	progress := func(want string) string {
		t.Helper()
		var got string
		for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			got = s.Kubectl("", "get", "nodeconfigtemplate", "all", `--output=jsonpath={.status.updatedNodes}/{.status.nodes} {.metadata.generation}={.status.observedGeneration} {.status.conditions[0].status} {.status.conditions[0].reason}: {.status.conditions[0].message}`)
			if strings.Contains(got, want) {
				return got
			}
		}
		t.Fatalf("the template's status is %s, want %s", got, want)
		return ""
	}
	node := func(i int) string {
		name := fmt.Sprintf("wave%d", i)
		s.Kubectl(fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q},"spec":{"podCIDR":"10.210.%d.0/24","podCIDRs":["10.210.%d.0/24"]}}`, name, i, i), "create", "--filename=-")
		return name
	}
	f := &followers{quiet: map[string]int{}}
	stop := make(chan struct{})
	var agents sync.WaitGroup
	defer agents.Wait()
	defer close(stop)
	start := func(name string) { agents.Go(func() { f.follow(t, s, name, stop) }) }

	// The first NodeConfigs are made at once, without a controller.
	template(1400)
	for i := range 5 {
		start(node(i))
	}
	for deadline := time.Now().Add(20 * time.Second); len(f.changes()) < 5; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("without a controller only %v have their first NodeConfig", f.changes())
		}
	}
	end := s.run(t)
	progress("5/5 1=1 True Complete: generation 1: 5 of 5 nodes are updated")

	// A bad change reaches one node.
	f.set(func() { f.bad, f.order = 1300, nil })
	template(1300)
	progress("2=2 False ProgressDeadlineExceeded: generation 2: 1 of 5 nodes are updated; stopped, as 1 of the last wave are not available 4s after it began: wave0: SessionsUp is False: tor: down: fix the template")
	if got := f.changes(); !slices.Equal(got, []string{"wave0=1300"}) {
		t.Errorf("a bad template has reached %v", got)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if events := s.Kubectl("", "get", "events", "--field-selector=reason=RolloutStopped", "--output=jsonpath={.items[*].involvedObject.name} {.items[*].message}"); strings.HasPrefix(events, "all generation 2: 1 of 5") {
			break
		} else if time.Now().After(deadline) {
			t.Errorf("Events RolloutStopped: %q", events)
			break
		}
	}

	// A new node gets the newest; another instance of the controller stops at the same place.
	end()
	start(node(5))
	end = s.run(t)
	for deadline := time.Now().Add(20 * time.Second); len(f.changes()) < 2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a new node has no NodeConfig")
		}
	}
	if got := f.changes(); !slices.Equal(got, []string{"wave0=1300", "wave5=1300"}) {
		t.Errorf("the template has reached %v, want wave0 and the new node alone", got)
	}

	// The remedy begins with the node that is down; then come waves of two.
	f.set(func() { f.order = nil })
	template(1350)
	progress("6/6 3=3 True Complete")
	wantWaves(t, f.changes(), 1350)
	if got := s.Kubectl("", "get", "nodeconfigs", "wave0", "wave1", "--output=jsonpath={.items[*].status.templateTurn.nodeState}"); got != "Broken Available" {
		t.Errorf("wave0 and wave1 were found %s at their turns, want Broken Available", got)
	}

	// A node whose agent does not work loses its turn at the deadline, and has another when the
	// others have followed. It keeps that for when its agent works again.
	turn := func(name, want string) {
		t.Helper()
		var got string
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if got = s.Kubectl("", "get", "nodeconfig", name, "--output=jsonpath={.status.templateTurn.generation} {.status.templateTurn.withdrawn}"); got == want {
				return
			}
		}
		t.Fatalf("%s has the turn %q, want %q", name, got, want)
	}
	f.set(func() { f.order, f.quiet["wave0"] = nil, 0 })
	template(1320)
	turn("wave0", "4 true")
	progress("4=4 False ProgressDeadlineExceeded: generation 4: ")
	progress("5/6 4=4 True Progressing: generation 4: 5 of 6 nodes are updated, and it")
	turn("wave0", "4 false")
	if got := f.changes(); len(got) != 5 || got[0] != "wave1=1320" {
		t.Errorf("the template has reached %v, want wave1 first, and all but wave0", got)
	}
	f.set(func() { f.quiet = map[string]int{} })
	reported := func() bool {
		generations := strings.Fields(s.Kubectl("", "get", "nodeconfig", "wave0", "--output=jsonpath={.metadata.generation} {.status.observedGeneration}"))
		return slices.Contains(f.changes(), "wave0=1320") && generations[0] == generations[1]
	}
	for deadline := time.Now().Add(20 * time.Second); !reported(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("wave0 does not follow when its agent works again")
		}
	}

	// What was set back is not waited for: no node differs.
	f.set(func() {
		f.order = nil
		for i := range 6 {
			f.quiet[fmt.Sprintf("wave%d", i)] = 0
		}
	})
	template(1330)
	turn("wave0", "5 false")
	template(1320)
	progress("6/6 6=6 True Complete")
	f.set(func() { f.quiet = map[string]int{} })
	if got := f.changes(); len(got) > 0 {
		t.Errorf("%v changed, though the template is what it was", got)
	}

	// A change that cuts the node off from the API server too: the kubelet is silent before the
	// deadline, and the roll-out stops there all the same.
	f.set(func() { f.cut = "wave0" })
	template(1330)
	for deadline := time.Now().Add(20 * time.Second); len(f.changes()) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("wave0 does not follow")
		}
	}
	s.Kubectl("", "patch", "node", "wave0", "--subresource=status", `--patch={"status":{"conditions":[{"type":"Ready","status":"Unknown","reason":"NodeStatusUnknown"}]}}`)
	progress("7=7 False ProgressDeadlineExceeded: generation 7: 1 of 6 nodes are updated; stopped, as 1 of the last wave are not available 4s after it began: wave0")
	if got := f.changes(); !slices.Equal(got, []string{"wave0=1330"}) {
		t.Errorf("%v changed, want wave0 alone, which was cut off", got)
	}

	// One that nothing repairs does not hold up the remedy: another node tries it after the
	// deadline.
	s.Kubectl("", "patch", "node", "wave0", "--subresource=status", `--patch={"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady"}]}}`)
	f.set(func() { f.quiet, f.cut, f.dead = map[string]int{}, "", "wave0" })
	template(1350)
	progress("6/6 8=8 True Complete")
	f.set(func() { f.bad = 1300 })
	template(1300)
	progress("9=9 False ProgressDeadlineExceeded: generation 9: 1 of 6 nodes are updated; stopped, as 1 of the last wave are not available 4s after it began: wave1")
	f.set(func() { f.bad, f.dead = 0, "wave1" })
	template(1340)
	progress("6/6 10=10 True Complete")

	// A node whose turn the API server does not take does not hold up the others.
	refuse := `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy%s","metadata":{"name":"refuse-wave0"},"spec":%s}`
	s.apply(t, fmt.Sprintf(refuse, "", `{"matchConstraints":{"resourceRules":[{"apiGroups":["flock.fritzlab.net"],"apiVersions":["*"],"resources":["nodeconfigs/status"],"operations":["UPDATE"]}]},
		"validations":[{"expression":"object.metadata.name != 'wave0' || object.status.?templateTurn == oldObject.status.?templateTurn","message":"not wave0"}]}`))
	s.apply(t, fmt.Sprintf(refuse, "Binding", `{"policyName":"refuse-wave0","validationActions":["Deny"]}`))
	free := func() {
		s.Kubectl("", "delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "refuse-wave0", "--ignore-not-found")
	}
	t.Cleanup(free)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := s.TryKubectl("", "patch", "nodeconfig", "wave0", "--subresource=status", "--type=merge", `--patch={"status":{"templateTurn":{"sessionsUp":1}}}`, "--dry-run=server"); err != nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("the policy that refuses turns is not in force")
		}
	}
	f.set(func() { f.dead = "" })
	template(1360)
	progress("5/6 11=11 False ProgressDeadlineExceeded: generation 11: 5 of 6 nodes are updated; stopped, as the API server does not take turns, which is tried again: wave0: ")
	free()
	progress("6/6 11=11 True Complete")

	// A template that is made again under its name begins at generation 1 again, and goes in
	// waves again.
	f.set(func() { f.order = nil })
	s.Kubectl("", "delete", "nodeconfigtemplate", "all")
	template(1370)
	progress("6/6 1=1 True Complete")
	wantWaves(t, f.changes(), 1370)

	// What the template does not fit is not done.
	s.apply(t, `{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplate","metadata":{"name":"all"},"spec":{"nodeSelector":{},"minReadySeconds":1,"progressDeadlineSeconds":4,
		"updateStrategy":{"rollingUpdate":{"maxUnavailable":2}},"template":{"mtu":1370,"bgp":{"localASLabel":"example.com/as","peers":[{"name":"tor","address":"2001:db8::1","remoteAS":4200000001}]}}}}`)
	progress("0/6 2=2 True Progressing: generation 2: 0 of 6 nodes are updated; there are 6 nodes that it does not fit: wave0: NodeConfigTemplate all: node wave0 has no label example.com/as")
	template(1370)
	progress("6/6 3=3 True Complete")
	end()

	for _, bad := range []string{`0`, `"0%"`, `"101%"`, `"x"`, `-1`} {
		out, err := s.TryKubectl(fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplate","metadata":{"name":"bad"},"spec":{"nodeSelector":{},"updateStrategy":{"rollingUpdate":{"maxUnavailable":%s}},"template":{}}}`, bad), "create", "--filename=-")
		if err == nil || !strings.Contains(out+fmt.Sprint(err), "must be a number from 1, or a percentage from 1% to 100%") {
			t.Errorf("maxUnavailable: %s: %s %v", bad, out, err)
		}
	}
	for _, bad := range []string{`"minReadySeconds":91`, `"progressDeadlineSeconds":119`, `"minReadySeconds":30,"progressDeadlineSeconds":59`} {
		out, err := s.TryKubectl(fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplate","metadata":{"name":"bad"},"spec":{"nodeSelector":{},%s,"template":{}}}`, bad), "create", "--filename=-")
		if err == nil || !strings.Contains(out+fmt.Sprint(err), "progressDeadlineSeconds must be at least twice minReadySeconds") {
			t.Errorf("%s: %s %v", bad, out, err)
		}
	}
	for _, good := range []string{`"minReadySeconds":90`, `"progressDeadlineSeconds":120`, `"minReadySeconds":0,"progressDeadlineSeconds":1`} {
		s.Kubectl(fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplate","metadata":{"name":"good"},"spec":{"nodeSelector":{},%s,"template":{}}}`, good), "create", "--filename=-", "--dry-run=server")
	}
}
