package flockctl

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

var nodeCommand = command{
	name: "node", args: "[NAME]",
	short: "Show the nodes, or one of them: configuration, conditions, sessions, anycast addresses",
	long: `Without a name there is a line for each node, and below it what is wrong with which.
With a name: the configuration that is in force and where it comes from, the
conditions with their messages, the sessions with routers, the AddressPools in use,
the pods at anycast addresses. All but AGENT is what the node's agent wrote last:
where the agent is not Ready, it may have changed since.`,
	examples: `flockctl node
flockctl node node1
flockctl node node1 -o yaml
flockctl nodes -o json | jq -r '.items[] | select(.status.sessions[]?.up == false) | .metadata.name'`,
	flags: []string{"output", "watch"}, max: 1, wide: true,
	run: runNode,
}

func runNode(ctx context.Context, s *session, args []string) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	if len(args) == 1 {
		nc, err := c.nodeConfig(ctx, args[0])
		if err != nil {
			return err
		}
		if s.output != "" {
			return s.structured(typed(nc))
		}
		agents, err := c.agents(ctx, nc.Name)
		s.printNode(s.out, node{name: nc.Name, config: nc, agent: agents[nc.Name], agentsUnknown: err != nil})
		return nil
	}
	if s.output != "" {
		all, err := c.nodeConfigs(ctx)
		if err != nil {
			return err
		}
		list := v1alpha1.NodeConfigList{Items: all}
		list.APIVersion, list.Kind = v1alpha1.GroupVersion.String(), "NodeConfigList"
		return s.structured(list)
	}
	nodes, err := c.nodes(ctx)
	if err != nil {
		return err
	}
	printNodes(s.out, nodes, s.wide)
	return nil
}

// nodes are all that have a NodeConfig, or are to run an agent, by name.
func (c *cluster) nodes(ctx context.Context) ([]node, error) {
	all, err := c.nodeConfigs(ctx)
	if err != nil {
		return nil, err
	}
	// Who may not read nodes and pods sees the rest.
	agents, noAgents := c.agents(ctx, "")
	labelled, err := c.labelled(ctx)
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, err // nodes without a NodeConfig, which are the broken ones, would be left out
	}
	var nodes []node
	for i := range all {
		nodes = append(nodes, node{name: all[i].Name, config: &all[i], agent: agents[all[i].Name], agentsUnknown: noAgents != nil})
	}
	for _, name := range labelled {
		if !slices.ContainsFunc(nodes, func(n node) bool { return n.name == name }) {
			nodes = append(nodes, node{name: name, agent: agents[name], agentsUnknown: noAgents != nil})
		}
	}
	slices.SortFunc(nodes, func(a, b node) int { return strings.Compare(a.name, b.name) })
	return nodes, nil
}

// typed says what kind of object it is, which the API server leaves out of an answer
// to a typed client.
func typed(nc *v1alpha1.NodeConfig) *v1alpha1.NodeConfig {
	nc.APIVersion, nc.Kind = v1alpha1.GroupVersion.String(), "NodeConfig"
	return nc
}

// node is what there is of one.
type node struct {
	name   string
	config *v1alpha1.NodeConfig // nil if there is none
	agent  *corev1.Pod          // nil if there is none, or it is not known
	// agentsUnknown: whoever asks may not see pods.
	agentsUnknown bool
}

// agentState is Ready, or why the agent is not.
func (n node) agentState() string {
	switch {
	case n.agentsUnknown:
		return "?"
	case n.agent == nil:
		return "none"
	}
	for _, c := range n.agent.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return "Ready"
		}
	}
	for _, c := range slices.Concat(n.agent.Status.InitContainerStatuses, n.agent.Status.ContainerStatuses) {
		if w := c.State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" {
			return w.Reason
		}
	}
	return "NotReady"
}

func (n node) condition(kind string) string {
	if n.config == nil {
		return none
	}
	if c := meta.FindStatusCondition(n.config.Status.Conditions, kind); c != nil {
		return string(c.Status)
	}
	return none
}

// problems are what is wrong with a node, each with what to do.
func (n node) problems() []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch n.agentState() {
	case "Ready", "?":
	case "none":
		add("no agent runs here: is the node labelled %s= ?", agentLabel)
	default:
		add("its agent is %s: kubectl -n %s describe pod %s", n.agentState(), n.agent.Namespace, n.agent.Name)
	}
	if n.config == nil {
		add("no NodeConfig: create NodeConfig %s with spec.podCIDRs, or a NodeConfigTemplate that selects the node", n.name)
		return out
	}
	st := n.config.Status
	switch {
	case len(st.Conditions) == 0:
		add("its agent has not reported yet")
	case st.ObservedGeneration != n.config.Generation:
		add("its agent has not acted on generation %d of its NodeConfig yet: what is shown is of generation %d", n.config.Generation, st.ObservedGeneration)
	}
	for _, c := range st.Conditions {
		if c.Status != metav1.ConditionTrue {
			add("%s: %s", c.Type, or(c.Message, c.Reason))
		}
	}
	for _, p := range st.Pools {
		if p.Retained > 0 {
			add("AddressPool %s no longer covers %d of the addresses that it granted here; their routes keep its attributes until their pods are gone", p.Name, p.Retained)
		}
	}
	// kube-proxy is at fault for all addresses or for none.
	for _, reason := range []string{"ProxyUnhealthy", "ProxyMissing"} {
		if i := slices.IndexFunc(st.Services, func(s v1alpha1.ServiceStatus) bool { return s.Reason == reason }); i >= 0 {
			add("it does not announce Services for which it needs kube-proxy: %s", or(st.Services[i].Message, reason))
		}
	}
	if st.PodSource == "none" {
		add("its agent gets no pods from the kubelet or the API server: see its log")
	}
	return out
}

func (n node) sessions() string {
	if n.config == nil || len(n.config.Status.Sessions) == 0 {
		return none
	}
	up := 0
	for _, s := range n.config.Status.Sessions {
		if s.Up {
			up++
		}
	}
	return fmt.Sprintf("%d/%d", up, len(n.config.Status.Sessions))
}

func (n node) localAS() string {
	if n.config == nil || n.config.Spec.BGP == nil {
		return none
	}
	return fmt.Sprint(n.config.Spec.BGP.LocalAS)
}

func podCIDRs(nc *v1alpha1.NodeConfig) string {
	if nc == nil {
		return none
	}
	return or(join(slices.Concat(nc.Spec.PodCIDRs.IPv6, nc.Spec.PodCIDRs.IPv4), " "), none)
}

func printNodes(w io.Writer, nodes []node, wide bool) {
	if len(nodes) == 0 {
		fmt.Fprintf(w, "No node is flock's: give one a NodeConfig and the label %s= (docs/deploy.md).\n", agentLabel)
		return
	}
	rows := [][]string{{"NODE", "AGENT", "ACCEPTED", "READY", "ROUTING", "SESSIONS", "AS", "POD CIDRS", "TEMPLATE"}}
	if wide {
		rows[0] = append(rows[0], "PODS FROM", "EXITS FROM", "POOLS", "ANYCAST", "IMAGE")
	}
	var wrong [][]string
	for _, n := range nodes {
		template := none
		if n.config != nil {
			template = or(n.config.Labels[v1alpha1.TemplateLabel], none)
		}
		rows = append(rows, []string{n.name, n.agentState(), n.condition("Accepted"), n.condition("Ready"), n.condition("RoutingConfigured"), n.sessions(), n.localAS(), podCIDRs(n.config), template})
		if wide {
			rows[len(rows)-1] = append(rows[len(rows)-1], n.more()...)
		}
		for _, p := range n.problems() {
			wrong = append(wrong, []string{n.name, p})
		}
	}
	table(w, "", rows)
	if len(wrong) > 0 {
		fmt.Fprintln(w)
		table(w, "", wrong)
	}
}

// more is what --output wide adds to the line of a node.
func (n node) more() []string {
	pods, exits, pools, anycast, image := none, none, none, none, none
	if n.config != nil {
		st := n.config.Status
		pods, exits = or(st.PodSource, none), or(st.ExitSource, none)
		announced := 0
		for _, a := range st.Anycast {
			if a.Announced {
				announced++
			}
		}
		pools, anycast = fmt.Sprint(len(st.Pools)), fmt.Sprintf("%d/%d", announced, len(st.Anycast))
	}
	if n.agent != nil {
		for _, c := range n.agent.Spec.Containers {
			if c.Name == "agent" {
				image = c.Image
			}
		}
	}
	return []string{pods, exits, pools, anycast, image}
}

func (s *session) printNode(w io.Writer, n node) {
	nc := n.config
	st := nc.Status
	from := "written by hand"
	if t := nc.Labels[v1alpha1.TemplateLabel]; t != "" {
		from = "NodeConfigTemplate " + t
		if g := nc.Annotations[v1alpha1.TemplateGenerationAnnotation]; g != "" {
			from += ", generation " + g
		}
		from += fmt.Sprintf(" (to take it over by hand: kubectl label nodeconfig %s %s-)", nc.Name, v1alpha1.TemplateLabel)
	}
	rows := [][]string{
		{"Node", nc.Name},
		{"Agent", n.agentState()},
		{"Comes from", from},
		{"Pod CIDRs", podCIDRs(nc)},
	}
	if len(st.RetiredCIDRs) > 0 {
		rows = append(rows, []string{"Retired CIDRs", strings.Join(st.RetiredCIDRs, " ") + " (routed until their last pods have gone)"})
	}
	rows = append(rows, []string{"Pod source", or(st.PodSource, none)}, []string{"Exit source", or(st.ExitSource, none)})
	table(w, "", rows)
	if wrong := n.problems(); len(wrong) > 0 {
		fmt.Fprintln(w, "\nWrong")
		for _, p := range wrong {
			table(w, "  ", [][]string{{p}})
		}
	}

	fmt.Fprintf(w, "\nConfiguration, generation %d\n", nc.Generation)
	for line := range strings.Lines(specText(nc.Spec)) {
		fmt.Fprint(w, "  ", line)
	}

	fmt.Fprintln(w, "\nConditions")
	rows = [][]string{{"TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"}}
	for _, c := range st.Conditions {
		rows = append(rows, []string{c.Type, string(c.Status), s.age(c.LastTransitionTime.Time), c.Reason, c.Message})
	}
	table(w, "  ", rows)

	if len(st.Sessions) > 0 {
		fmt.Fprintln(w, "\nSessions (the counts of routes may be a minute old)")
		table(w, "  ", s.sessionRows(st.Sessions))
	}
	if len(st.Pools) > 0 {
		fmt.Fprintln(w, "\nAddressPools in use (the first 8 pods of each)")
		rows = [][]string{{"POOL", "ADDRESSES", "PODS"}}
		for _, p := range st.Pools {
			rows = append(rows, []string{p.Name, fmt.Sprint(p.Addresses), strings.Join(p.Pods, ", ")})
		}
		table(w, "  ", rows)
	}
	if len(st.Anycast) > 0 {
		fmt.Fprintln(w, "\nAnycast")
		table(w, "  ", s.pathRows(pathsOf([]v1alpha1.NodeConfig{*nc}), "ADDRESS", "POD"))
	}
}

// specText is a spec as YAML, without fields that hold nothing.
func specText(spec v1alpha1.NodeConfigSpec) string {
	b, _ := json.Marshal(spec)
	var fields map[string]any
	json.Unmarshal(b, &fields)
	prune(fields)
	text, _ := yaml.Marshal(fields)
	return string(text)
}

func prune(fields map[string]any) {
	for name, value := range fields {
		switch v := value.(type) {
		case nil:
			delete(fields, name)
		case []any:
			if len(v) == 0 {
				delete(fields, name)
			}
		case map[string]any:
			prune(v)
		}
	}
}

func (s *session) sessionRows(all []v1alpha1.SessionStatus) [][]string {
	rows := [][]string{{"PEER", "PROTOCOL", "ROUTER", "STATE", "SINCE", "SENT", "ACCEPTED", "REJECTED", "LAST ERROR"}}
	for _, t := range all {
		since := none
		if t.Since != nil {
			since = s.age(t.Since.Time)
		}
		rows = append(rows, []string{t.Peer, t.Protocol, or(t.Router, none), t.State, since, fmt.Sprint(t.Sent), fmt.Sprint(t.Accepted), fmt.Sprint(t.Rejected), t.LastError})
	}
	return rows
}
