package flockctl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/view"
)

var podCommand = command{
	name: "pod", args: "[NAMESPACE/]NAME",
	short: "Show a pod: what it asks for, what it has, what is announced, what happened",
	long: `The pod's addresses and node; its annotations as flock understands them, together
with the node's defaults; the claims that it holds to static addresses of pools;
its anycast addresses, announced or not and why; and its Events of the last hour or
so, as long as the API server keeps them, that have to do with the network.

With --agents, its node is asked too: what the kernel has for the pod, where it sends
packets for each address, and what of it is not as it should be. That takes the right to
pods/exec in flock's namespace. The exit status is 1 then if something is wrong.`,
	examples: `flockctl pod shop/web-0
flockctl pod shop/web-0 --agents
flockctl pod web-0 -n shop
flockctl pod shop/web-0 -o yaml`,
	flags: []string{"output", "watch", "agents"}, min: 1, max: 1,
	run: runPod,
}

// podAnswer is what there is to say of a pod.
type podAnswer struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Node      string   `json:"node,omitempty"`
	Phase     string   `json:"phase"`
	Ready     bool     `json:"ready"`
	HostNet   bool     `json:"hostNetwork,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	// Identifier is what the interface identifier of the IPv6 address is made of;
	// empty where it is random or chosen.
	Identifier string `json:"identifier,omitempty"`
	// Asks is what the annotations come to, with the node's defaults; nil where
	// they are Refused.
	Asks     *asks    `json:"asks,omitempty"`
	Refused  string   `json:"refused,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Claims   []claim  `json:"claims,omitempty"`
	Anycast  []path   `json:"anycast,omitempty"`
	Events   []event  `json:"events,omitempty"`
	// Kernel is what the kernel of its node has for it, if its agent was asked: one for each
	// of its sandboxes.
	Kernel []view.Pod `json:"kernel,omitempty"`
	// KernelUnknown says why the agent has not said it; empty if it has, or was not asked.
	KernelUnknown string `json:"kernelUnknown,omitempty"`
}

// asks is an annotation.Request, in the words of the annotations.
type asks struct {
	IPv6      bool     `json:"ipv6"`
	IPv4      bool     `json:"ipv4"`
	CIDR6     string   `json:"cidr6,omitempty"`
	CIDR4     string   `json:"cidr4,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	Anycast   []string `json:"anycast,omitempty"`
	IPAlgo    []string `json:"ipAlgo,omitempty"`
}

type claim struct {
	Address string    `json:"address"`
	Node    string    `json:"node"`
	Since   time.Time `json:"since"`
	// ForeignUID: the claim is of an earlier pod of this name.
	ForeignUID bool `json:"ofAnEarlierPod,omitempty"`
}

type event struct {
	Last    time.Time `json:"last"`
	Type    string    `json:"type"`
	Reason  string    `json:"reason"`
	Count   int       `json:"count"`
	Message string    `json:"message"`
}

// byPlugin is in what the kubelet reports of a call to the plugin that failed.
const byPlugin = `plugin type="flock"`

// findPod returns the pod of an argument NAMESPACE/NAME, or NAME in the namespace of the
// kubeconfig's context.
func (s *session) findPod(ctx context.Context, arg string) (*cluster, *corev1.Pod, error) {
	namespace, name, ok := strings.Cut(arg, "/")
	if ok && (namespace == "" || name == "" || strings.Contains(name, "/")) {
		return nil, nil, usageError(fmt.Sprintf("%q: want NAMESPACE/NAME, as in shop/web-0", arg))
	}
	c, err := s.connect()
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		namespace, name = c.namespace, arg
	}
	pod := &corev1.Pod{}
	err = c.get(ctx, c.core, "pods", namespace, name, pod)
	if errors.Is(err, errNotFound) {
		return nil, nil, c.absent(ctx, "no pod", "pods", namespace, name)
	}
	return c, pod, err
}

func runPod(ctx context.Context, s *session, args []string) error {
	c, pod, err := s.findPod(ctx, args[0])
	if err != nil {
		return err
	}
	f := facts{pod: pod}
	if pod.Spec.NodeName != "" {
		nc := &v1alpha1.NodeConfig{}
		if err := c.get(ctx, c.flock, "nodeconfigs", "", pod.Spec.NodeName, nc); err == nil {
			f.node = nc
		} else if !errors.Is(err, errNotFound) {
			return err
		}
	}
	claims := &v1alpha1.AddressClaimList{}
	fields := ""
	if pod.Spec.NodeName != "" {
		fields = "spec.nodeName=" + pod.Spec.NodeName
	}
	if err := c.list(ctx, c.flock, "addressclaims", "", "", fields, claims); err != nil {
		return err
	}
	f.claims = claims.Items
	if f.events, err = c.events(ctx, pod.Namespace, pod.Name); err != nil {
		return err
	}
	answer := answerPod(f)
	var wrong error
	if s.agents && answer.Node != "" && !answer.HostNet {
		wrong = s.askKernel(ctx, c, &answer)
	}
	if s.output != "" {
		return errors.Join(s.structured(answer), wrong)
	}
	s.printPod(s.out, answer, f.node != nil)
	return wrong
}

// askKernel asks the agent of the pod's node what the kernel has for the pod. The error
// says that this is not known, or that something is wrong.
func (s *session) askKernel(ctx context.Context, c *cluster, a *podAnswer) error {
	agents, err := c.agents(ctx, a.Node)
	if err == nil && agents[a.Node] == nil {
		err = fmt.Errorf("node %s has no agent that can be asked", a.Node)
	}
	if err == nil {
		ask := s.ask
		if ask == nil {
			ask = c.askAgent
		}
		var body []byte
		if body, err = ask(ctx, agents[a.Node], "/pod?"+url.Values{"pod": {a.Namespace + "/" + a.Name}}.Encode()); err == nil {
			if err = json.Unmarshal(body, &a.Kernel); err != nil {
				err = fmt.Errorf("cannot read the answer of the agent of node %s: %w: %.200s", a.Node, err, body)
			}
		}
	}
	if err != nil {
		a.KernelUnknown = err.Error()
		return fmt.Errorf("what the kernel of node %s has is not known", a.Node)
	}
	problems := 0
	for _, p := range a.Kernel {
		problems += len(p.Problems)
	}
	switch {
	case problems > 0:
		return fmt.Errorf("%d problem(s) in the kernel of node %s", problems, a.Node)
	case len(a.Kernel) == 0 && a.Phase == string(corev1.PodRunning):
		return fmt.Errorf("the agent of node %s does not know the pod: another network plugin wired it; delete the pod, and flock wires its successor", a.Node)
	}
	return nil
}

func printKernel(w io.Writer, a podAnswer) {
	fmt.Fprintf(w, "\nIn the kernel of %s\n", a.Node)
	if a.KernelUnknown != "" {
		table(w, "  ", [][]string{{"not known: " + strings.ReplaceAll(a.KernelUnknown, "\n", ": ")}})
		return
	}
	if len(a.Kernel) == 0 {
		table(w, "  ", [][]string{{"nothing: its agent does not know the pod"}})
	}
	for _, p := range a.Kernel {
		rows := [][]string{{"link", fmt.Sprintf("%s, MTU %d, sandbox %.12s, %s", p.Link, p.MTU, p.Container, p.State)}}
		for _, addr := range p.Addresses {
			text := addr.Route
			switch {
			case addr.Announced:
				text += ", announced"
			case addr.Why != "":
				text += ", not announced: " + addr.Why
			}
			if !addr.Reaches {
				text += ", WRONG"
			}
			rows = append(rows, []string{addr.Address, text})
		}
		for _, port := range p.Ports {
			rows = append(rows, []string{"port of the node", port})
		}
		rows = append(rows, []string{"dropped packets", fmt.Sprintf("%d by policies, %d with a source that is not the pod's", p.Denied, p.Spoofed)})
		for _, text := range p.Policies {
			rows = append(rows, []string{"policy", text})
		}
		for _, text := range p.Problems {
			rows = append(rows, []string{"WRONG", text})
		}
		table(w, "  ", rows)
	}
}

// facts are what the answer about a pod is made of.
type facts struct {
	pod    *corev1.Pod
	node   *v1alpha1.NodeConfig // nil if there is none
	claims []v1alpha1.AddressClaim
	events []corev1.Event
}

func answerPod(f facts) podAnswer {
	pod := f.pod
	a := podAnswer{
		Namespace: pod.Namespace, Name: pod.Name, Node: pod.Spec.NodeName, Phase: phase(pod), HostNet: pod.Spec.HostNetwork,
		Ready: slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}),
	}
	for _, ip := range pod.Status.PodIPs {
		a.Addresses = append(a.Addresses, ip.IP)
	}
	if !a.HostNet {
		// What the agent goes by where the NodeConfig does not say otherwise.
		defaults := config.Defaults{IPv6: true}
		var cidrs []netip.Prefix
		if f.node != nil {
			if node, err := config.ParseNode(f.node); err == nil {
				defaults, cidrs = node.Defaults, node.IPv6
			}
		}
		request, warnings, err := annotation.Parse(pod.Annotations, defaults)
		for _, w := range warnings {
			a.Warnings = append(a.Warnings, string(w))
		}
		if err != nil {
			a.Refused = err.Error()
		} else {
			a.Asks = asked(request)
			a.Identifier = identifier(pod, request, cidrs)
		}
	}
	for _, c := range f.claims {
		if c.Spec.QuarantinedUntil != nil {
			continue // it was an earlier pod's of this name
		}
		if c.Spec.PodNamespace == pod.Namespace && c.Spec.PodName == pod.Name {
			a.Claims = append(a.Claims, claim{c.Spec.Address, c.Spec.NodeName, c.CreationTimestamp.Time, c.Spec.PodUID != uidOf(pod)})
		}
	}
	slices.SortFunc(a.Claims, func(x, y claim) int { return byAddress(x.Address, y.Address) })
	if f.node != nil {
		a.Anycast = slices.DeleteFunc(pathsOf([]v1alpha1.NodeConfig{*f.node}), func(p path) bool { return p.Pod != pod.Namespace+"/"+pod.Name })
	}
	for _, e := range f.events {
		flocks := e.ReportingController == "flock.fritzlab.net/agent" || strings.Contains(e.Message, byPlugin)
		if flocks && e.InvolvedObject.Name == pod.Name {
			a.Events = append(a.Events, eventOf(e))
		}
	}
	slices.SortStableFunc(a.Events, func(x, y event) int { return x.Last.Compare(y.Last) })
	return a
}

// identifier is what the pod's address says of its workload, see package embed.
func identifier(pod *corev1.Pod, r annotation.Request, cidrs []netip.Prefix) string {
	if r.CIDR6.IsValid() {
		cidrs = []netip.Prefix{r.CIDR6}
	}
	w := embed.Pod{Algo: r.IPAlgo, Workload: embed.Workload{Namespace: pod.Namespace, App: embed.AppOf(pod.Name, pod.Labels, pod.OwnerReferences)}}
	if len(pod.Spec.Containers) > 0 {
		w.Image = pod.Spec.Containers[0].Image
	}
	for _, ip := range pod.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil || slices.Contains(r.Static, addr) {
			continue
		}
		for _, cidr := range cidrs {
			if readings, err := embed.Explain(addr, cidr, []embed.Pod{w}); err == nil && len(readings) > 0 {
				return strings.TrimSuffix(readings[0].String(), ": ") // there is one pod, which needs no name
			}
		}
	}
	return ""
}

// uidOf is the UID that the kubelet knows a pod by: a static pod's is not that of the
// object at the API server.
func uidOf(pod *corev1.Pod) string {
	return cmp.Or(pod.Annotations[corev1.MirrorPodAnnotationKey], string(pod.UID))
}

func phase(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return "Terminating"
	}
	return string(pod.Status.Phase)
}

func asked(r annotation.Request) *asks {
	prefix := func(p netip.Prefix) string {
		if !p.IsValid() {
			return ""
		}
		return p.String()
	}
	texts := func(addrs []netip.Addr) (out []string) {
		for _, a := range addrs {
			out = append(out, a.String())
		}
		return out
	}
	a := &asks{IPv6: r.IPv6, IPv4: r.IPv4, CIDR6: prefix(r.CIDR6), CIDR4: prefix(r.CIDR4), Addresses: texts(r.Static), Anycast: texts(r.Anycast)}
	for _, f := range r.IPAlgo {
		a.IPAlgo = append(a.IPAlgo, string(f))
	}
	return a
}

// eventOf reads an Event of either API, which count in different places.
func eventOf(e corev1.Event) event {
	out := event{Last: e.LastTimestamp.Time, Type: e.Type, Reason: e.Reason, Count: max(int(e.Count), 1), Message: e.Message}
	if e.Series != nil {
		out.Last, out.Count = e.Series.LastObservedTime.Time, int(e.Series.Count)
	}
	if out.Last.IsZero() {
		out.Last = e.EventTime.Time
	}
	if out.Last.IsZero() {
		out.Last = e.CreationTimestamp.Time
	}
	return out
}

func (s *session) printPod(w io.Writer, a podAnswer, nodeKnown bool) {
	state := a.Phase
	if a.Ready {
		state += ", Ready"
	} else if a.Phase == string(corev1.PodRunning) {
		state += ", not Ready"
	}
	node := or(a.Node, "none yet: it waits for the scheduler")
	if a.Node != "" && !nodeKnown {
		node += ", which has no NodeConfig"
	}
	rows := [][]string{
		{"Pod", a.Namespace + "/" + a.Name},
		{"State", state},
		{"Node", node},
		{"Addresses", or(strings.Join(a.Addresses, " "), "none yet")},
	}
	if a.Identifier != "" {
		rows = append(rows, []string{"Identifier", a.Identifier})
	}
	table(w, "", rows)
	if a.HostNet {
		fmt.Fprintln(w, "\nIt uses the host's network (hostNetwork), so flock gives it no addresses.")
		return
	}
	fmt.Fprintln(w, "\nAsks for, by its annotations and the node's defaults")
	if a.Refused != "" {
		table(w, "  ", [][]string{{"refused: " + a.Refused}})
	} else {
		table(w, "  ", a.Asks.rows())
	}
	for _, warning := range a.Warnings {
		table(w, "  ", [][]string{{"warning: " + warning}})
	}
	if len(a.Claims) > 0 {
		fmt.Fprintln(w, "\nClaims, to static addresses of pools, each announced as long as the pod is there")
		rows := [][]string{{"ADDRESS", "NODE", "SINCE", ""}}
		for _, c := range a.Claims {
			row := []string{c.Address, c.Node, s.age(c.Since), ""}
			if c.ForeignUID {
				row[3] = "of an earlier pod of this name"
			}
			rows = append(rows, row)
		}
		table(w, "  ", rows)
	}
	if len(a.Anycast) > 0 {
		fmt.Fprintln(w, "\nAnycast")
		table(w, "  ", s.pathRows(a.Anycast, "ADDRESS"))
	} else if a.Node != "" && a.Asks != nil && len(a.Asks.Anycast) > 0 {
		fmt.Fprintln(w, "\nAnycast\n  its node reports it at none of these addresses: the Events below may say why, or it has no network yet")
	}
	if a.Kernel != nil || a.KernelUnknown != "" {
		printKernel(w, a)
	}
	fmt.Fprintln(w, "\nEvents, the newest last")
	rows = [][]string{{"AGO", "TYPE", "REASON", "TIMES", "MESSAGE"}}
	for _, e := range a.Events {
		message := e.Message
		if i := strings.Index(message, byPlugin); i > 0 {
			message = message[i:] // what the kubelet and the runtime put before says nothing
		}
		rows = append(rows, []string{s.age(e.Last), e.Type, e.Reason, fmt.Sprint(e.Count), strings.TrimSpace(message)})
	}
	if len(rows) == 1 {
		fmt.Fprintln(w, "  none that the API server still has")
		return
	}
	table(w, "  ", rows)
}

func (a *asks) rows() [][]string {
	family := func(on bool, cidr string, own []string) string {
		switch {
		case !on:
			return "no address"
		case len(own) > 0:
			return strings.Join(own, ", ") + " (static)"
		case cidr != "":
			return "an address of " + cidr
		}
		return "any address of the node's"
	}
	of := func(is4 bool, list []string) (out []string) {
		for _, text := range list {
			if strings.Contains(text, ":") != is4 {
				out = append(out, text)
			}
		}
		return out
	}
	algo := "random"
	if len(a.IPAlgo) > 0 {
		algo = "made of " + strings.Join(a.IPAlgo, ", ")
	}
	six := family(a.IPv6, a.CIDR6, of(false, a.Addresses))
	if a.IPv6 && len(of(false, a.Addresses)) == 0 {
		six += ", " + algo
	}
	rows := [][]string{{"IPv6", six}, {"IPv4", family(a.IPv4, a.CIDR4, of(true, a.Addresses))}}
	if len(a.Anycast) > 0 {
		rows = append(rows, []string{"anycast", strings.Join(a.Anycast, ", ")})
	}
	return rows
}
